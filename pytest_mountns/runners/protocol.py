"""Runs isolated items: chooses between the two runners, and answers the hooks of the plugin."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError
from ..engine.linux.namespaces import real_stderr
from ..engine.linux.threads import other_threads, python_threads
from ..engine.plan.spec import SandboxSpec
from ..session.early import name_watchdogs
from ..session.session import Session
from .choice import Choice, choose, lost_threads
from .context import ProcessOfTest, RunnerContext
from .inline import HostHooks, InlineTest
from .shared_directory import SharedDirectory

if TYPE_CHECKING:
    from ..forking.timers import TimeoutSettings
    from .finisher import Finisher

__all__ = ["Runner", "TimeoutSettings"]

_GUARDED: Final = "a guarded test has a process of its own, since a guard cannot be taken off"


@final
class Runner:
    """Runs the isolated items of one session.

    ``hooks`` is the plugin that forwards, in a test process, what is reported there.
    """

    def __init__(
        self, config: pytest.Config, session: Session, hooks: object, finisher: Finisher
    ) -> None:
        self._config = config
        self._session = session
        self._context = RunnerContext(config, session, hooks, finisher)
        #: The test that was the last to run inline in this process.
        self._last_inline: InlineTest | None = None
        self._shared_directory: SharedDirectory | None = None
        #: The threads of plugins and of what was imported: those that were there before any test.
        self._threads_before: frozenset[int] = frozenset()
        #: Those that were there when it was last looked at them.
        self._threads_looked_at: frozenset[int] = frozenset()

    @property
    def process(self) -> ProcessOfTest | None:
        """This process, if it is a test process."""
        return self._context.process

    def begin(self, items: Sequence[pytest.Item]) -> None:
        """After collection, before the first test."""
        self._session.begin(items)
        with contextlib.suppress(SandboxError):
            self._threads_before = other_threads()
        specs = map(self._session.selection.valid_spec, items)
        forks = any(spec.is_forked for spec in specs if spec is not None)
        if forks or self._session.guards.are_made:
            # Loaded now, since a test or fixture may replace what an import needs.
            importlib.import_module(".forked", __package__)

    def _note_threads(self) -> None:
        """Tell observers once which threads a test process will lack."""
        others = other_threads()
        if others == self._threads_looked_at:
            return
        self._threads_looked_at = others
        lost, libraries = self._session.sandboxes.lost_by_fork()
        for kind, why in lost_threads(python_threads(self._threads_before), lost, libraries):
            self._context.note_once(kind, why)

    def _choose(self, item: pytest.Item) -> Choice:
        try:
            spec = self._session.selection.spec(item)
            choice = self._choose_by(spec, guarded=self._session.guards.guards(item))
            other_plugins = self._session.other_plugins
            forked = choice.process == "fork"
            if choice.error is None and (
                problem := other_plugins.problem(item, spec, forked=forked)
            ):
                return choice._replace(process="fork", error=problem)
            if forked:
                other_plugins.say(item)
            return choice
        except (pytest.UsageError, SandboxError):
            # The preparation of the test says it.
            return Choice("fork")

    def _choose_by(self, spec: SandboxSpec, *, guarded: bool) -> Choice:
        """Raises :class:`SandboxError` without ``/proc``."""
        sandboxes = self._session.sandboxes
        if spec.is_forked:
            self._note_threads()
            return Choice("fork", guarded=guarded)
        stuck = sandboxes.stuck_threads
        obstacle = _GUARDED if guarded else sandboxes.obstacle
        lost, libraries = sandboxes.lost_by_fork() if stuck or obstacle else ([], [])
        choice = choose(spec, obstacle=obstacle, stuck=stuck, lost=lost, libraries=libraries)
        return choice._replace(guarded=guarded)

    def protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Around ``pytest_runtest_protocol`` of an isolated item."""
        name_watchdogs(self._config)
        choice = self._choose(item)
        if choice.process == "inline":
            return (yield from self._protocol_inline(item, nextitem))
        if choice.why_not_inline and choice.error is None and not choice.guarded:
            self._session.observers.not_inline(item, choice.why_not_inline)
        # What forks is not loaded for suites that run inline: that saves them 15 ms.
        from ..forking.timers import Timers
        from .forked import ForkedTest

        context = self._context
        timers = context.timers = Timers(item)
        test = ForkedTest(context, item, nextitem, timers, choice.error, guarded=choice.guarded)
        item.setup = test.setup  # type: ignore[method-assign]
        result: object = True
        try:
            result = yield
        except pytest_internals.Delegated:
            pass
        except BaseException as error:
            if context.process is not None:
                context.process.leave(error)
            if test.delegated:
                pytest_internals.drop(item, torn_down=test.finish.torn_down)
            raise
        finally:
            item.__dict__.pop("setup", None)
            context.timers = None
        if context.process is not None:
            context.process.leave(None)
        # Not in the handler above: an error in here would be shown as a consequence of that one.
        if test.delegated:
            pytest_internals.drop(item, torn_down=test.finish.torn_down)
            test.finish.finish_in_protocol()
        return result

    def _protocol_inline(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        if self._last_inline is None:
            real_stderr.set(pytest_internals.real_stderr(self._config))
            self._shared_directory = SharedDirectory()
            hooks = HostHooks(self._context)
            self._config.pluginmanager.register(hooks, "mountns-host-hooks")
        test = self._last_inline = InlineTest(self._context, item, nextitem)
        item.setup = test.setup  # type: ignore[method-assign]
        try:
            return (yield)
        except BaseException:
            # The session ends. What would be torn down with the session is torn down here, in the
            # sandbox that it belongs to.
            with contextlib.suppress(BaseException):
                pytest_internals.tear_down_function_scope(item)
            raise
        finally:
            test.leave()
            test.end()
            item.__dict__.pop("setup", None)

    def outside(self) -> None:
        """An item that is not isolated is about to run."""
        self._session.sandboxes.before_host_changes()

    def make_report(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Around ``pytest_runtest_makereport`` of any item."""
        if call.excinfo is not None:
            pytest_internals.drop_unseen(call.excinfo.value)
        report = yield
        test = self._session.current.test
        if call.excinfo is not None and test is not None:
            observers, error = self._session.observers, call.excinfo.value
            if test.guard is not None:
                observers.on_failure_under_guard(report, error, test.guard)
            else:
                observers.on_failure(report, error, test.stack.sandbox)
        if isinstance(test, InlineTest):
            self._session.observers.on_report(item, report, test.written)
        elif test is None and self._last_inline is not None and report.when == "teardown":
            if self._last_inline.item is item:
                self._session.observers.on_report(item, report, self._last_inline.written)
            self._last_inline.end()
        return report

    def show_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Have the terminal show where a Ctrl-C has met a test process, if it has met one."""
        if self._session.current.interrupt is not None:
            pytest_internals.show_interrupt(excinfo, self._session.current.interrupt)

    def timeout_is_set(self, settings: TimeoutSettings | None) -> None:
        """pytest-timeout has set a timer for the running item, or cancelled it (None)."""
        if self._context.timers is not None:
            self._context.timers.timeout_is_set(settings)

    def finish(self) -> None:
        """The last test has run."""
        self._context.plugin_states.finish()
        self._session.observers.finished()

    def close(self) -> None:
        """At the end of the session."""
        if self._shared_directory is not None:
            self._shared_directory.restore()
        self._session.close()
        self._context.close()
