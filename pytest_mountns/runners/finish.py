"""How a test ends in the parent: what is reported late, what a dead process owes, wider scopes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

import pytest

from .. import pytest_internals
from ..engine.changes.changes import Changes
from ..engine.linux.pid_namespace import read_status
from ..forking import channel
from ..reports.changes import Sorted, changes_key

if TYPE_CHECKING:
    import warnings

    from ..session.session import Gate

#: A hook of reporters and what it is called with.
_Event: TypeAlias = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Death:
    """How a test process ended that never said it was done.

    ``read_changes``: what its sandbox has written, while that can be read.
    """

    how: str
    phase: pytest_internals.Phase
    out: str
    err: str
    stop: float
    read_changes: Callable[[], AbstractContextManager[Changes]]
    changed: tuple[Sorted, str] | None = None


class InternalErrorInTestProcess(Exception):
    """What would have been an INTERNALERROR without a fork."""


@final
class Finish:
    """The end of one test's way, as the parent reports it.

    ``death``, ``internal_error``, ``changes_failed``: what went wrong, if it did.
    """

    def __init__(self, gate: Gate, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        self._gate = gate
        self._item = item
        self._nextitem = nextitem
        self._wider: bool | None = None
        self._held: list[_Event] = []
        self._recorded: list[warnings.WarningMessage] = []
        self._finished = False
        self.death: Death | None = None
        self.internal_error: Exception | None = None
        self.changes_failed: pytest.CallInfo[None] | None = None

    def log(self, hook: str, **arguments: Any) -> None:
        """Report that now."""
        getattr(self._item.ihook, hook)(**arguments)
        if getattr(arguments.get("report"), "outcome", None) == "rerun":
            self._gate.plugin_states.repeated(self._item)

    def hold(self, hook: str, **arguments: Any) -> None:
        """Report that later, when it is known what belongs before it, or into it."""
        self._held.append((hook, arguments))

    def log_held(self) -> None:
        """Report now what was held back."""
        while self._held:
            hook, arguments = self._held.pop(0)
            self.log(hook, **arguments)

    def go_on(self) -> None:
        """Another report has come: report what was held back before, the end is not yet decided."""
        self.log_held()
        self._wider = None

    def log_teardown_early(self) -> None:
        """The test process is about to write: its debugger follows the report of the failure."""
        if self._item.config.stash[changes_key].is_wanted(died=False):
            # What the test has changed is known only when it has ended, and belongs to this report.
            return
        if self._held and not self._wider_is_due():
            # Decided before the report is heard of, which may end the session.
            self._wider = False
            self.log_held()

    def conclude(self, *, refused: bool) -> None:
        """Report the rest here, within the item's protocol, unless wider scopes end with it."""
        wider = self._wider_is_due() if self._wider is None else self._wider
        if refused or self.internal_error is not None:
            return
        if wider:
            if pytest_internals.wider_teardown_runs_code(self._item, self._nextitem):
                self._gate.before_host_changes()
            # To be handed over after the reports: so in the protocol in which those are made.
            self._recorded = pytest_internals.take_recorded_warnings()
            return
        try:
            with pytest_internals.capture_suspended(self._item.config):
                self.finish()
        except pytest.exit.Exception:
            raise
        except Exception as error:  # noqa: BLE001 - of whichever reporter
            self.internal_error = error

    def answer(self, name: str, *content: Any, interrupted: bool) -> None:
        """End in the parent as the protocol has ended in the child."""
        __tracebackhide__ = True
        if not name and not interrupted:
            return
        self.log_held()
        if name == "Exit":
            reason, code = content
            raise pytest.exit.Exception(reason, int(code) if code else None)
        if name == "error":
            self.internal_error = InternalErrorInTestProcess(content[0])
            return
        if content and content[0]:
            self._gate.interrupt = channel.unpack_interrupt(content[0])
        raise KeyboardInterrupt

    def finish(self, *, wider: bool = False) -> None:
        """In the parent, when the child is done: report what is left to report.

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
        if self.changes_failed is not None:
            self._add_wider_teardown(self.changes_failed, [])
        if wider:
            self._add_wider_teardown(*pytest_internals.tear_down_wider(self._item, self._nextitem))
        self.log_held()

    def finish_in_protocol(self) -> None:
        """:meth:`finish` with the teardown of wider scopes, within pytest's own wrappers."""
        if self._finished and self.internal_error is None:
            return
        finisher = self._gate.finisher
        finisher.work = lambda: self.finish(wider=True)
        try:
            pytest_internals.run_in_protocol(self._item, self._nextitem, finisher)
        finally:
            finisher.work = None

    def _report_death(self, death: Death) -> None:
        """The reports a dead process owes: the phase it died in failed, the teardown is ours."""
        item = self._item
        changes = item.config.stash[changes_key]
        report = pytest_internals.failed_report(
            item, f"{death.how} during {death.phase}", death.phase, death.stop
        )
        for key, content in (("stdout", death.out), ("stderr", death.err)):
            if content:
                report.sections.append((f"Captured {key} {death.phase}", content))
        if death.changed is not None:
            changes.attach(item, report, *death.changed)
        if death.phase != "teardown":
            self.log("pytest_runtest_logreport", report=report)
            report = pytest_internals.passed_report(item, "teardown")
            changes.complete(item, report, death.read_changes)
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
        session = self._item.session
        if session.shouldfail or session.shouldstop:
            self._nextitem = None
        return pytest_internals.wider_teardown_is_due(self._item, self._nextitem)


def describe(reader: int, status: int) -> str:
    """How the test process ended; of which child, see :func:`.init.read_status`."""
    code = os.waitstatus_to_exitcode(read_status(reader, status))
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "a real-time signal"
        return f"the test process was ended by {name} (signal {-code})"
    return f"the test process exited with status {code}, before the test was done,"
