"""The one room that touches pytest's internals, ``_pytest`` and pluggy's lists.

Each function says which internal it rests on. Works from pytest 8.0 to 9.x.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, ParamSpec, TypeAlias, TypeVar, cast

import pluggy
import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from _pytest.junitxml import xml_key
from _pytest.logging import caplog_handler_key, caplog_records_key
from _pytest.outcomes import Exit, OutcomeException
from _pytest.runner import SetupState, check_interactive_exception
from _pytest.skipping import evaluate_xfail_marks
from _pytest.unittest import TestCaseFunction

Phase: TypeAlias = Literal["setup", "call", "teardown"]

_UNSEEN: Final = "<mountns>"

_P = ParamSpec("_P")
_R = TypeVar("_R")

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

has_node_ids = importlib.util.find_spec("_pytest.nodeid") is not None

try:
    from _pytest.subtests import failed_subtests_key
except ImportError:  # before pytest 9
    failed_subtests_key = None  # type: ignore[assignment]


class Delegated(Exit):
    """Ends the protocol of a test in the parent: a child has run it.

    A kind of Exit, because nothing in between catches that: not ``CallInfo.from_call``, nor the
    loops of plugins that own the protocol to run a test again.
    """


def _setup_state(item: pytest.Item) -> SetupState:
    return item.session._setupstate


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Leave the function out of tracebacks, as pytest leaves out its own frames.

    ``filter_traceback`` drops frames of generated code, which it knows by the file's name. Hiding
    them is not enough: where only frames of pytest are left, it says that all are hidden.
    """
    raw = cast(Any, function)
    raw.__code__ = raw.__code__.replace(co_filename=_UNSEEN)
    return function


def drop_unseen(error: BaseException) -> None:
    """Take :func:`unseen` functions out of a traceback.

    Items that are not Python functions show it whole (``Node._traceback_filter``).
    """
    entry = error.__traceback__
    while entry is not None:
        below = entry.tb_next
        while below is not None and below.tb_frame.f_code.co_filename == _UNSEEN:
            below = below.tb_next
        entry.tb_next = below
        entry = below


@unseen
def fill_wider_fixtures(item: pytest.Item) -> None:
    """Instantiate the fixtures of ``item`` whose scope is wider than function.

    ``item.fixturenames`` is ordered widest first. A parametrized fixture has the scope of its
    parametrization; class scope without a class is function scope (``FixtureRequest``).
    """
    __tracebackhide__ = True
    request = getattr(item, "_request", None)
    if not request:
        return
    if isinstance(item, TestCaseFunction) and not hasattr(item, "_getinstance"):
        # Before 8.2 the item's setup made the instance that class-scoped fixtures are bound to.
        cast(Any, item)._testcase = cast(Any, item.parent).obj(item.name)
    funcargs: dict[str, object] = cast(Any, item).funcargs
    definitions = cast(Any, item)._fixtureinfo.name2fixturedefs
    callspec = getattr(item, "callspec", None)
    parametrized = callspec._arg2scope if callspec is not None else {}
    has_class = item.getparent(pytest.Class) is not None
    for name in cast(Any, item).fixturenames:
        if name in funcargs or name not in definitions:
            continue
        scope = parametrized[name].value if name in parametrized else definitions[name][-1].scope
        if scope != "function" and (scope != "class" or has_class):
            funcargs[name] = request.getfixturevalue(name)


def choose_basetemp(config: pytest.Config) -> None:
    """Have the directory of ``tmp_path`` chosen, once, in the parent.

    Each child would choose its own, and clean up those of others.
    """
    cast(Any, config)._tmp_path_factory.getbasetemp()


def skip_item(reason: str) -> NoReturn:
    """Skip, located at the test and not in here (``skip.Exception`` has a private switch)."""
    __tracebackhide__ = True
    raise pytest.skip.Exception(reason, _use_item_location=True)


def forget_setup(item: pytest.Item) -> None:
    """The item's own setup has not run in this process: its teardown must not run either."""
    entry = _setup_state(item).stack.get(item)
    if entry is not None:
        finalizers = entry[0]
        if item.teardown in finalizers:
            finalizers.remove(item.teardown)


def drop(item: pytest.Item) -> None:
    """Forget, in the parent, an item that a child has set up, run and torn down."""
    _setup_state(item).stack.pop(item, None)
    if hasattr(item, "_request"):
        cast(Any, item)._request = False
        cast(Any, item).funcargs = None
    if caplog_handler_key in item.stash:
        del item.stash[caplog_handler_key]
    if caplog_records_key in item.stash:
        del item.stash[caplog_records_key]
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def stop_at_item(item: pytest.Item) -> None:
    """In the child: teardown ends at the item; of wider nodes only what was added since now.

    A wider fixture first asked for inside the test lives and dies in the child.
    """
    state = _setup_state(item)
    known = {node: len(entry[0]) for node, entry in state.stack.items() if node is not item}
    original = state.teardown_exact

    def teardown_exact(nextitem: pytest.Item | None) -> None:
        late = [
            entry[0].pop()
            for node, entry in reversed(state.stack.items())
            if node is not item
            for _ in range(len(entry[0]) - known.get(node, len(entry[0])))
        ]
        errors: list[BaseException] = []
        for finish in (lambda: original(cast(Any, item.parent)), *late):
            try:
                finish()
            except (Exception, OutcomeException) as error:  # noqa: BLE001 - as pytest does
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("errors during test teardown", errors)

    cast(Any, state).teardown_exact = teardown_exact


def tear_down_item(item: pytest.Item) -> None:
    """In the child, when the session is interrupted: what ``pytest_sessionfinish`` does."""
    _setup_state(item).teardown_exact(None)


def wider_teardown_is_due(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether some node wider than ``item`` ends before ``nextitem``."""
    stack = [node for node in _setup_state(item).stack if node is not item]
    needed = nextitem.listchain() if nextitem is not None else []
    return stack != needed[: len(stack)]


def tear_down_wider(
    item: pytest.Item, nextitem: pytest.Item | None
) -> tuple[pytest.CallInfo[None], list[tuple[str, str]]]:
    """Tear down, in the parent, what ends with ``item``. Returns the call and captured sections.

    Only pytest's own hooks run (capture, logging, warnings): those of other plugins have seen
    this item's teardown in the child.
    """
    hook = _own_hook(item, "pytest_runtest_teardown")
    before = len(item._report_sections)
    item.stash.setdefault(caplog_records_key, {})
    with _live_log_of_one_teardown(item.config):
        call = pytest.CallInfo.from_call(
            lambda: hook(item=item, nextitem=nextitem),
            when="teardown",
            reraise=(pytest.exit.Exception, KeyboardInterrupt),
        )
    sections = [
        (f"Captured {key} {when}", content) for when, key, content in item._report_sections[before:]
    ]
    return call, sections


def run_in_protocol(item: pytest.Item, nextitem: pytest.Item | None, instead: object) -> None:
    """Run the plugin ``instead`` within the wrappers that pytest itself puts around an item."""
    hook = _own_hook(item, "pytest_runtest_protocol", besides=instead)
    hook(item=item, nextitem=nextitem)


def _own_hook(item: pytest.Item, name: str, besides: object = None) -> pluggy.HookCaller:
    others = {
        impl.plugin
        for impl in getattr(item.ihook, name).get_hookimpls()
        if impl.plugin is not besides and not impl.function.__module__.startswith("_pytest.")
    }
    return item.config.pluginmanager.subset_hook_caller(name, others)


def keep_reporters_quiet(config: pytest.Config, keep: Sequence[object]) -> None:
    """In the child: reports and warnings go to the ``keep`` plugins and the live log alone.

    Or they would be counted twice, and an xdist worker's channel written by two processes.
    """
    live_log = config.pluginmanager.get_plugin("logging-plugin")
    for name in (
        "pytest_runtest_logstart",
        "pytest_runtest_logreport",
        "pytest_runtest_logfinish",
        "pytest_warning_recorded",
    ):
        # In place: callers for subsets of plugins (conftests) look at the same list.
        implementations = getattr(config.hook, name)._hookimpls
        implementations[:] = [
            impl for impl in implementations if impl.plugin is live_log or impl.plugin in keep
        ]


def _recorded_warnings() -> list[warnings.WarningMessage] | None:
    """The list that pytest's wrapper of the protocol records into.

    Inside ``warnings.catch_warnings(record=True)`` the shower is the ``append`` of that list.
    """
    recorded = getattr(getattr(warnings, "_showwarnmsg_impl", None), "__self__", None)
    return recorded if isinstance(recorded, list) else None


def take_recorded_warnings() -> list[warnings.WarningMessage]:
    """Take out what was recorded so far: in the child since it is the parent's to hand over."""
    recorded = _recorded_warnings()
    taken = list(recorded or ())
    if recorded:
        recorded.clear()
    return taken


def record_warnings(messages: Sequence[warnings.WarningMessage]) -> bool:
    """Record them as if they had come up here; False if nothing is recording."""
    recorded = _recorded_warnings()
    if recorded is None:
        return False
    recorded.extend(messages)
    return True


@contextlib.contextmanager
def capture_suspended(config: pytest.Config) -> Iterator[None]:
    """Output goes to the terminal; what was captured so far stays where it is."""
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None:
        yield
    else:
        with manager.global_and_fixture_disabled():
            yield


def stopping(session: pytest.Session) -> tuple[bool | str, bool | str]:
    """Whether the session is to end before the next test, and why: ``-x`` and the like."""
    return session.shouldfail, session.shouldstop


def set_stopping(session: pytest.Session, shouldfail: bool | str, shouldstop: bool | str) -> None:
    """What the other process has decided."""
    # Setting them to False is a mistake that pytest warns of.
    if shouldfail:
        session.shouldfail = shouldfail
    if shouldstop:
        session.shouldstop = shouldstop


def before_output_is_released(config: pytest.Config, action: Callable[[], None]) -> None:
    """Have ``action`` called in this process whenever output is about to reach the terminal.

    Debuggers, live logs, ``capsys.disabled()`` and ``--setup-show`` all suspend the capture.
    """
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None:
        return
    original = manager.suspend_global_capture

    def suspend_global_capture(in_: bool | None = None) -> None:
        # Said in so many words at the end of each phase, where nothing is written.
        if in_ is not False:
            action()
        original(bool(in_))

    manager.suspend_global_capture = suspend_global_capture


def output_is_seen_at_once(config: pytest.Config) -> bool:
    """Whether what is written while a test runs goes to the terminal, too.

    With ``--capture=sys`` that is what pytest's own terminal writer writes.
    """
    return bool(config.getoption("capture", "no") != "fd")


def flush_output(config: pytest.Config) -> None:
    """What waits in buffers of this process goes where it would have gone."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for stream in (sys.stdout, sys.stderr, getattr(reporter, "_tw", None)):
        # The test may have closed it, or set it to None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            cast(Any, stream).flush()


class _Unmoved(str):
    """The line up to the cursor, as long as nothing is written: writing makes a new text."""

    __slots__ = ()


def cursor(config: pytest.Config) -> tuple[str, object]:
    """Where the terminal reporter takes the cursor to be: the line so far, and whose it is."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return ("", None) if reporter is None else (reporter._tw._current_line, reporter.currentfspath)


def set_cursor(config: pytest.Config, line: str, owner: object) -> None:
    """The other process has written meanwhile, and its :func:`cursor` was this."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter._tw._current_line = _Unmoved(line)
        reporter.currentfspath = owner


def moved_cursor(config: pytest.Config) -> tuple[str, object] | None:
    """The cursor if this process has written since :func:`set_cursor` or the last call."""
    line, owner = cursor(config)
    if isinstance(line, _Unmoved):
        return None
    set_cursor(config, line, owner)
    return line, owner


_LIVE_LOG_STATE = ("_first_record_emitted", "_when", "_section_name_shown", "_test_outcome_written")


def live_log_state(config: pytest.Config) -> dict[str, object]:
    """Which headings and line ends the live log has written already; empty if it is off."""
    handler = _live_log(config)
    return {name: vars(handler)[name] for name in _LIVE_LOG_STATE} if handler else {}


def set_live_log_state(config: pytest.Config, state: dict[str, object]) -> None:
    """What the live log has written in the other process."""
    handler = _live_log(config)
    if handler:
        vars(handler).update(state)


def _live_log(config: pytest.Config) -> Any:
    plugin = config.pluginmanager.get_plugin("logging-plugin")
    handler = getattr(plugin, "log_cli_handler", None)
    # Without live logs there is a handler that has none of this.
    return handler if hasattr(handler, "_section_name_shown") else None


@contextlib.contextmanager
def _live_log_of_one_teardown(config: pytest.Config) -> Iterator[None]:
    """No second heading above what wider teardowns log, if the test process has written one."""
    handler = _live_log(config)
    if handler is None or handler._when != "teardown":
        yield
        return
    handler.set_when = lambda when: None
    try:
        yield
    finally:
        del handler.set_when


def shown_by_debugger(report: pytest.CollectReport | pytest.TestReport) -> bool:
    """Whether ``--pdb`` has shown this failure: the summary leaves it out then."""
    return getattr(report, "_pdbshown", False) is True


def mark_as_shown(report: pytest.TestReport) -> None:
    """See :func:`shown_by_debugger`."""
    cast(Any, report)._pdbshown = True


def captured_so_far(config: pytest.Config) -> tuple[str, str]:
    """Take what the global capture holds: after a crash, what the test process wrote.

    With ``--capture=fd`` it lies in a file that parent and child share; with ``sys`` it was in
    the child's memory and is lost.
    """
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None or not manager.is_globally_capturing():
        return "", ""
    out, err = manager.read_global_capture()
    return out, err


def expects_failure(item: pytest.Item) -> str | None:
    """The reason of an xfail mark that covers any failure, a crash included; None without one."""
    xfail = evaluate_xfail_marks(item)
    if xfail is None or xfail.raises is not None or item.config.option.runxfail:
        return None
    return xfail.reason


def failed_subtests(item: pytest.Item) -> int:
    """How many of the item's subtests failed so far (pytest 9's ``subtests``)."""
    counts = _subtest_counts(item)
    return 0 if counts is None else counts.get(_item_id(item), 0)


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Make it known to this process: the terminal fails a test by its failed subtests."""
    counts = _subtest_counts(item)
    if counts is not None:
        counts[_item_id(item)] = count


def _subtest_counts(item: pytest.Item) -> dict[object, int] | None:
    if failed_subtests_key is None:
        return None
    return cast("dict[object, int] | None", item.config.stash.get(failed_subtests_key, None))


def _item_id(item: pytest.Item) -> object:
    # From 9.2 on keyed by a NodeId, before by its text.
    return cast(Any, item).id if has_node_ids else item.nodeid


def failed_report(item: pytest.Item, message: str, phase: Phase, stop: float) -> pytest.TestReport:
    """A report of the parent's own, by no plugin's ``makereport``. An xfail mark applies."""
    report = pytest.TestReport.from_item_and_call(item, _call(message, phase))
    reason = expects_failure(item)
    if reason is not None and phase != "teardown":
        report.outcome = "skipped"
        report.wasxfail = reason
    report.stop = stop
    return report


def passed_report(item: pytest.Item, phase: Phase) -> pytest.TestReport:
    """The report of a phase in which nothing was left to do."""
    return pytest.TestReport.from_item_and_call(item, _call(None, phase))


def _call(message: str | None, phase: Phase) -> pytest.CallInfo[None]:
    def fail() -> None:
        if message is not None:
            pytest.fail(message, pytrace=False)

    return pytest.CallInfo.from_call(fail, when=phase)


_TEARDOWN_SECTIONS = tuple(f"Captured {key} teardown" for key in ("stdout", "stderr", "log"))


def merge_teardown(
    item: pytest.Item,
    report: pytest.TestReport,
    call: pytest.CallInfo[None],
    sections: list[tuple[str, str]],
) -> None:
    """Add to the teardown report of ``item`` what the teardown of wider scopes did."""
    report.duration += call.duration
    report.stop = call.stop
    for title, content in sections:
        titles = [name for name, _ in report.sections]
        if title in titles:
            index = titles.index(title)
            # Of logs, pytest cuts the end.
            separator = "\n" if title in _TEARDOWN_SECTIONS[2:] else ""
            report.sections[index] = (title, report.sections[index][1] + separator + content)
        else:
            later = _TEARDOWN_SECTIONS[(*_TEARDOWN_SECTIONS, title).index(title) + 1 :]
            places = [titles.index(name) for name in later if name in titles]
            report.sections.insert(min(places, default=len(titles)), (title, content))
    if call.excinfo is None:
        return
    wider = pytest.TestReport.from_item_and_call(item, call)
    if report.failed:
        report.longrepr = f"{report.longreprtext}\n\n{wider.longreprtext}"
    else:
        report.outcome, report.longrepr = wider.outcome, wider.longrepr
    if check_interactive_exception(call, report):
        item.ihook.pytest_exception_interact(node=item, call=call, report=report)


def interrupt_text(error: KeyboardInterrupt) -> object:
    """Where ``error`` came up, as the terminal asks for it (``ExceptionInfo.getrepr``)."""
    return pytest.ExceptionInfo.from_exception(error).getrepr(funcargs=True)


def show_interrupt(excinfo: pytest.ExceptionInfo[BaseException], text: object) -> None:
    """Have the terminal show ``text`` for this interrupt."""
    cast(Any, excinfo).getrepr = lambda *arguments, **keywords: text


def cache_directory(config: pytest.Config) -> Path | None:
    """Where ``config.cache`` lies; None without the cache plugin."""
    cache = getattr(config, "cache", None)
    return None if cache is None else Path(os.path.abspath(cast(Any, cache)._cachedir))


def make_cache_directory(config: pytest.Config) -> None:
    """Make it as pytest does when it first writes there: with the files that explain it.

    Raises :class:`OSError`.
    """
    cache = cast(Any, config).cache
    if hasattr(cache, "_ensure_cache_dir_and_supporting_files"):
        cache._ensure_cache_dir_and_supporting_files()
    else:  # before pytest 8.2
        cache._cachedir.mkdir(parents=True)
        cache._ensure_supporting_files()


def junit_log(config: pytest.Config) -> Any:
    """The plugin that writes the JUnit file (``LogXML``); None without ``--junit-xml``."""
    return config.stash.get(xml_key, None)


def junit_reporter(log: Any, item: pytest.Item) -> Any:
    """What it notes of ``item``, for ``record_xml_attribute``."""
    return log.node_reporter(_item_id(item))


@dataclass(frozen=True, slots=True)
class Watchdog:
    """The settings of pytest's ``faulthandler_timeout``, seconds; ``stderr`` is a descriptor."""

    timeout: float
    stderr: int
    exit: bool


def watchdog(config: pytest.Config) -> Watchdog | None:
    """None where it is off."""
    stderr = config.stash.get(fault_handler_stderr_fd_key, None)
    if stderr is None:
        return None
    timeout = float(config.getini("faulthandler_timeout") or 0)
    try:
        end = bool(config.getini("faulthandler_exit_on_timeout"))
    except (KeyError, ValueError):  # before pytest 8.4
        end = False
    return Watchdog(timeout, stderr, end) if timeout > 0 else None
