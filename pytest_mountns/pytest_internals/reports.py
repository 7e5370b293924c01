"""Makes and merges reports and warnings, and reads what pytest notes about them."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, cast

import pytest
from _pytest.junitxml import xml_key
from _pytest.runner import check_interactive_exception
from _pytest.skipping import evaluate_xfail_marks

from .frames import fill_in_lines

Phase: TypeAlias = Literal["setup", "call", "teardown"]

_has_node_ids = importlib.util.find_spec("_pytest.nodeid") is not None

try:
    from _pytest.subtests import failed_subtests_key
except ImportError:  # before pytest 9
    failed_subtests_key = None  # type: ignore[assignment]


def recorded_warnings() -> list[warnings.WarningMessage] | None:
    """The list in which pytest records warnings while an item runs.

    Inside ``warnings.catch_warnings(record=True)``, the function that shows a warning
    (``warnings._showwarnmsg_impl``) is the ``append`` method of that list. With
    ``-X context_aware_warnings`` (Python 3.14), the default of free-threaded builds, the list
    belongs to a context instead.
    """
    get_context = getattr(warnings, "_get_context", None)
    recorded = None if get_context is None else get_context().log
    if recorded is None:
        recorded = getattr(getattr(warnings, "_showwarnmsg_impl", None), "__self__", None)
    return recorded if isinstance(recorded, list) else None


def warn_of(item: pytest.Item, text: str) -> None:
    """Have the summary show a warning about ``item``."""
    path, line, _ = item.location
    _show_warning(item.ihook, text, "runtest", item.nodeid, path, (line or 0) + 1)


def warn_of_session(config: pytest.Config, text: str) -> None:
    """Have the summary show a warning about the session."""
    _show_warning(config.hook, text, "config", "", "pytest-mountns", 1)


def _show_warning(hook: Any, text: str, when: str, nodeid: str, path: str, line: int) -> None:
    # Not issued: a filter that makes errors of warnings would end the session.
    message = warnings.WarningMessage(pytest.PytestWarning(text), pytest.PytestWarning, path, line)
    hook.pytest_warning_recorded.call_historic(
        kwargs={"warning_message": message, "when": when, "nodeid": nodeid, "location": None}
    )


def take_recorded_warnings() -> list[warnings.WarningMessage]:
    """Remove and return what was recorded so far, for another process or protocol to report."""
    recorded = recorded_warnings()
    taken = list(recorded or ())
    if recorded:
        recorded.clear()
    return taken


def record_warnings(messages: Sequence[warnings.WarningMessage]) -> bool:
    """Record them as if they were issued here. Returns False if nothing is recording."""
    recorded = recorded_warnings()
    if recorded is None:
        return False
    recorded.extend(messages)
    return True


def shown_by_debugger(report: pytest.CollectReport | pytest.TestReport) -> bool:
    """Whether ``--pdb`` has shown this failure; the summary then leaves it out."""
    return getattr(report, "_pdbshown", False) is True


def mark_as_shown(report: pytest.TestReport) -> None:
    """Note that ``--pdb`` has shown this failure, see :func:`shown_by_debugger`."""
    cast(Any, report)._pdbshown = True


def expects_failure(item: pytest.Item) -> str | None:
    """The reason of an xfail mark that expects any failure, a crash too; None if there is none."""
    xfail = evaluate_xfail_marks(item)
    if xfail is None or xfail.raises is not None or item.config.option.runxfail:
        return None
    return xfail.reason


def failed_subtests(item: pytest.Item) -> int:
    """How many of the item's subtests failed so far (pytest 9's ``subtests``)."""
    counts = _subtest_counts(item)
    return 0 if counts is None else counts.get(_item_id(item), 0)


def set_failed_subtests(item: pytest.Item, count: int) -> None:
    """Note how many have failed: the terminal fails a test that has failed subtests."""
    counts = _subtest_counts(item)
    if counts is not None:
        counts[_item_id(item)] = count


def _subtest_counts(item: pytest.Item) -> dict[object, int] | None:
    if failed_subtests_key is None:
        return None
    return cast("dict[object, int] | None", item.config.stash.get(failed_subtests_key, None))


def _item_id(item: pytest.Item) -> object:
    # From pytest 9.2 on the key is a NodeId, before that its text.
    return cast(Any, item).id if _has_node_ids else item.nodeid


def fields_of(report: pytest.TestReport, item: pytest.Item) -> dict[str, object]:
    """The attributes of a report of ``item``, without the object that identifies the item."""
    fields = report.__dict__
    if _has_node_ids and fields.get("_id") is cast(Any, item).id:
        fields = {name: value for name, value in fields.items() if name != "_id"}
    return fields


def report_of(item: pytest.Item, fields: dict[str, object]) -> pytest.TestReport:
    """The report that :func:`fields_of` has taken apart."""
    report = pytest.TestReport.__new__(pytest.TestReport)
    if _has_node_ids:
        cast(Any, report)._id = cast(Any, item).id
    report.__dict__.update(fields)
    return report


def failed_report(item: pytest.Item, message: str, phase: Phase, stop: float) -> pytest.TestReport:
    """A failed report that no hook of a plugin sees being made. An xfail mark applies to it."""
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
            # pytest strips the last line end of captured logs.
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
    """Where ``error`` was raised, as ``ExceptionInfo.getrepr`` returns it to the terminal."""
    fill_in_lines(error)
    return pytest.ExceptionInfo.from_exception(error).getrepr(funcargs=True)


def show_interrupt(excinfo: pytest.ExceptionInfo[BaseException], text: object) -> None:
    """Have the terminal show ``text`` for this interrupt."""
    cast(Any, excinfo).getrepr = lambda *arguments, **keywords: text


def junit_log(config: pytest.Config) -> Any:
    """The plugin that writes the JUnit file (``LogXML``); None without ``--junit-xml``."""
    return config.stash.get(xml_key, None)


def junit_reporter(log: Any, item: pytest.Item) -> Any:
    """The object in which ``log`` collects what it writes about ``item``."""
    return log.node_reporter(_item_id(item))
