"""How the pytest process reports the end of a forked test.

That is: what is reported late, the reports of a process that died, and the teardown of wider
scopes.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any, NamedTuple, TypeAlias, final

import pytest

from .. import pytest_internals
from ..engine.linux.processes import signal_name
from ..engine.linux.untouched import os
from ..forking import channel, messages
from .context import ENDS_SESSION, RunnerContext

#: The name of a hook of reporters, and what it is called with.
_Event: TypeAlias = tuple[str, dict[str, Any]]


class Death(NamedTuple):
    """How a test process has ended, if it ended without sending its last message."""

    #: In words: by which signal, or with which exit status.
    how: str
    #: The phase that it was in.
    phase: pytest_internals.Phase
    #: What it had written to standard output and standard error.
    out: str
    err: str
    #: When it ended, seconds since the epoch.
    stop: float


class InternalErrorInTestProcess(Exception):
    """What would have been an INTERNALERROR without a fork."""


@final
class Finish:
    """Reports the end of one forked test."""

    def __init__(
        self, context: RunnerContext, item: pytest.Item, nextitem: pytest.Item | None
    ) -> None:
        self._context = context
        self._session = context.session
        self._item = item
        self._nextitem = nextitem
        #: The item looks for it each time.
        self._ihook = item.ihook
        self._timers = context.timers
        #: Whether a report of a failure was logged; that of the teardown is held back.
        self._has_failed = False
        self._wider: bool | None = None
        self._held: list[_Event] = []
        self._recorded: list[warnings.WarningMessage] = []
        self._finished = False
        #: Whether the item was torn down in the test process.
        self.torn_down = True
        #: Set if the test process has died.
        self.death: Death | None = None
        #: What a reporter has raised, or what ended the test process outside of the test.
        self.internal_error: BaseException | None = None
        #: The call of an observer that has failed at the end of the test.
        self.observer_failed: pytest.CallInfo[None] | None = None

    def log(self, hook: str, **arguments: Any) -> None:
        """Call the hook now."""
        getattr(self._ihook, hook)(**arguments)
        outcome = getattr(arguments.get("report"), "outcome", None)
        if outcome == "rerun":
            self._context.plugin_states.repeated(self._item)
        self._has_failed |= outcome in ("failed", "rerun")

    def hold(self, hook: str, **arguments: Any) -> None:
        """Call the hook later, when it is known what belongs before the report, or into it."""
        self._held.append((hook, arguments))

    def log_held(self) -> None:
        """Call the hooks that were held back."""
        while self._held:
            hook, arguments = self._held.pop(0)
            self.log(hook, **arguments)

    def go_on(self) -> None:
        """Another report has come, so what was held back is complete and the test goes on."""
        self.log_held()
        self._wider = None

    def log_teardown_early(self) -> None:
        """The test process is about to write, as a debugger does after the report of a failure."""
        if self._session.observers.want_end(died=False):
            # What observers are told at the end of the test may belong into this report.
            return
        if self._held and not self._wider_is_due():
            # Decided before reporters hear the report, since they may end the session.
            self._wider = False
            self.log_held()

    def conclude(self, *, refused: bool) -> None:
        """Report the rest now, unless wider scopes end with the item. The capture is suspended."""
        wider = self._wider_is_due() if self._wider is None else self._wider
        if refused or self.internal_error is not None:
            return
        if wider:
            if pytest_internals.wider_teardown_runs_code(self._item, self._nextitem):
                self._session.sandboxes.before_host_changes()
            # pytest hands warnings over after the reports: so in the protocol that makes those.
            self._recorded = pytest_internals.take_recorded_warnings()
            return
        try:
            self.finish()
        except pytest.exit.Exception:
            raise
        except (Exception, pytest_internals.OutcomeException) as error:  # noqa: BLE001 - of reporters
            self.internal_error = error

    def answer(self, leave: messages.Leave, *, interrupted: bool) -> None:
        """End the protocol in this process as it has ended in the test process."""
        __tracebackhide__ = True
        self.torn_down = leave.torn_down
        if not leave.ended_by and not interrupted:
            return
        self.log_held()
        if leave.ended_by == "Exit":
            raise pytest.exit.Exception(leave.text, leave.status)
        if leave.ended_by == "error":
            self.internal_error = InternalErrorInTestProcess(leave.text)
            return
        if leave.interrupt:
            with contextlib.suppress(channel.Unloadable):
                self._session.current.interrupt = channel.unpack_interrupt(leave.interrupt)
        raise KeyboardInterrupt

    def finish(self, *, wider: bool = False) -> None:
        """The test process is done: report what is left to report.

        ``wider``: tear down first what ends with the item.
        """
        self._finished = True
        if self.internal_error is not None:
            raise self.internal_error
        if self._recorded:
            pytest_internals.record_warnings(self._recorded)
        if self.death is not None:
            self.log_held()
            self._report_death(self.death)
        if self.observer_failed is not None:
            excinfo = self.observer_failed.excinfo
            if excinfo is not None and isinstance(excinfo.value, ENDS_SESSION):
                self.log_held()
                raise excinfo.value
            self._add_wider_teardown(self.observer_failed, [])
        if wider:
            with self._timers_started():
                torn_down = pytest_internals.tear_down_wider(self._item, self._nextitem)
            self._add_wider_teardown(*torn_down)
        self.log_held()

    def _timers_started(self) -> contextlib.AbstractContextManager[None]:
        """Timers for the teardown of wider scopes, unless the test has failed.

        When a test fails, pytest-timeout and pytest cancel theirs until the next test.
        """
        if self._timers is None or (self._has_failed and self.death is None):
            return contextlib.nullcontext()
        return self._timers.started_again()

    def finish_here(self) -> None:
        """:meth:`finish` with the teardown of wider scopes, if that is left to do.

        It is called within pytest's own wrappers of the protocol.
        """
        if not self._finished or self.internal_error is not None:
            self.finish(wider=True)

    def warn(self, text: str) -> None:
        """Have a warning about the item recorded."""
        pytest_internals.warn_of(self._item, text)

    def finish_in_protocol(self) -> None:
        """:meth:`finish` with the teardown of wider scopes, within pytest's own wrappers."""
        if self._finished and self.internal_error is None:
            return
        finisher = self._context.finisher
        finisher.work = lambda: self.finish(wider=True)
        try:
            pytest_internals.run_in_protocol(self._item, self._nextitem, finisher)
        finally:
            finisher.work = None

    def _report_death(self, death: Death) -> None:
        """Make the reports that the process did not send. The phase in which it died has failed."""
        item = self._item
        observers = self._session.observers
        report = pytest_internals.failed_report(
            item, f"{death.how} during {death.phase}", death.phase, death.stop
        )
        for key, content in (("stdout", death.out), ("stderr", death.err)):
            if content:
                report.sections.append((f"Captured {key} {death.phase}", content))
        observers.on_report(item, report, None)
        if death.phase != "teardown":
            self.log("pytest_runtest_logreport", report=report)
            report = pytest_internals.passed_report(item, "teardown")
            observers.on_report(item, report, None)
        self.hold("pytest_runtest_logreport", report=report)
        self.hold("pytest_runtest_logfinish", nodeid=item.nodeid, location=item.location)

    def _add_wider_teardown(
        self, call: pytest.CallInfo[None], sections: list[tuple[str, str]]
    ) -> None:
        for _, arguments in self._held:
            if "report" in arguments:
                pytest_internals.merge_teardown(self._item, arguments["report"], call, sections)
                return

    def _wider_is_due(self) -> bool:
        if not self.torn_down:
            # Without a fork, nothing would have been torn down, either.
            return False
        session = self._item.session
        if session.shouldfail or session.shouldstop:
            self._nextitem = None
        return pytest_internals.wider_teardown_is_due(self._item, self._nextitem)


def describe(status: int | None) -> str:
    """How the test process has ended, in words, from its wait status; None if it has not."""
    if status is None:
        return "the test process was killed or has exited, and the kernel does not let it end,"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"the test process was ended by {signal_name(-code)} (signal {-code})"
    return f"the test process exited with status {code}, before the test was done,"
