"""What the pytest process makes of what a test process says about one test."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, final

import pytest

from .. import pytest_internals
from ..engine.changes.changes import Changes
from ..engine.linux.c_stdout import put_stdout
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.linux.threads import libraries_with_threads
from ..engine.linux.untouched import time
from ..engine.plan.model import Plan, UppersDescription
from ..engine.sandbox.written import Written
from ..forking import channel, deadlock, messages
from ..forking.deadlock import EXPLANATION
from ..forking.receiver import Receiver
from .context import RunnerContext
from .finish import Death, Finish, describe

PHASES: Final[tuple[pytest_internals.Phase, ...]] = ("setup", "call", "teardown")

#: How a test process has ended that has sent something else than messages.
GARBLED: Final = "the test has written to the socket of the plugin, and its process was ended"


@final
class Hearing:
    """Does what the messages of a test process ask for, while it runs one item."""

    def __init__(
        self,
        context: RunnerContext,
        item: pytest.Item,
        finish: Finish,
        *,
        of_module: bool = False,
        guarded: bool = False,
    ) -> None:
        self._context = context
        self._session = context.session
        self._item = item
        self._finish = finish
        #: Whether the process runs all tests of a module.
        self._of_module = of_module
        self._guarded = guarded
        #: The last report that was sent.
        self.last_report: pytest.TestReport | None = None
        #: Why the test process could not enter its sandbox; None if it could.
        self.refusal: SandboxError | None = None
        #: What the test's uppers are called, while they can be read; None before and after.
        self.uppers: UppersDescription | None = None
        #: The plan of the test's root, if it is another one than in the beginning.
        self.plan: Plan | None = None
        #: What the sandbox has written. Raises :class:`SandboxError` if it cannot be read.
        self.find: Callable[[], Written] | None = None
        #: A descriptor of the directory in which the uppers lie; -1 if there is none.
        self.find_scratch: Callable[[], int] | None = None

    def hear(self, message: messages.FromTest, receiver: Receiver) -> None:
        """Do what one message asks for."""
        item = self._item
        match message:
            case messages.Report():
                self._report(message)
            case messages.WarningRecorded():
                self._warn(message)
            case messages.LogStart():
                hook = "pytest_runtest_logstart"
                self._finish.hold(hook, nodeid=message.nodeid, location=message.location)
            case messages.LogFinish():
                hook = "pytest_runtest_logfinish"
                self._finish.hold(hook, nodeid=message.nodeid, location=message.location)
            case messages.Screen():
                if message.cursor is not None:
                    self._context.screen.set_cursor(*message.cursor)
                self._context.screen.set_live_log(message.live_log)
            case messages.ShownByDebugger():
                if self.last_report is not None:
                    pytest_internals.mark_as_shown(self.last_report)
            case messages.ReportChanged():
                if self.last_report is not None:
                    with contextlib.suppress(channel.Unloadable):
                        vars(self.last_report).update(channel.unpack_fields(message.fields))
            case messages.Settle():
                self._finish.log_teardown_early()
                cursor = self._context.screen.cursor
                stopping = pytest_internals.stopping(item.session)
                notes = list(self._context.plugin_states.pack_early(item))
                receiver.answer(messages.Settled(message.reports, notes, cursor, stopping))
            case messages.AskObjection():
                objection = self._session.observers.objection(item, _WrittenForked(self))
                receiver.answer(messages.Objection(objection))
            case messages.PipesOpen():
                self._session.sandboxes.pipes.hold(message.paths)
                receiver.answer(messages.PipesHeld())
            case messages.Entered():
                self.uppers = message.uppers
                # A fresh root: what was reported of the attempt before is complete.
                self._finish.log_held()
            case messages.Mounted():
                self.uppers = message.uppers
            case messages.Planned():
                self.plan = message.plan
            case messages.CStdout():
                put_stdout(message.content, message.by_lines)
            case messages.EndedProcesses():
                self._session.observers.ended_processes(item, message.names)
            case messages.PluginNotes():
                self._context.plugin_states.merge(item, message.plugin, message.packed)
            case messages.WrittenPages():
                pages = self._context.pages(of_module=self._of_module)
                if pages is not None:
                    pages.learn(message.numbers)
            case messages.Noted():
                self._context.note_once(message.kind, message.why)
            case messages.Skipped():
                self._session.observers.skipped(item)
            case messages.TeardownFailed():
                self._finish.warn(message.text)
            case messages.Refused():
                unavailable, *texts = message
                self.refusal = (Unavailable if unavailable else SandboxError)(*texts)
            case messages.Leave() | messages.TestDone():
                raise messages.UnknownMessage(message)
            case _:
                messages.not_handled(message)

    def _report(self, message: messages.Report) -> None:
        pytest_internals.set_failed_subtests(self._item, message.failed_subtests)
        try:
            report = channel.unpack_report(message.packed, self._item)
        except channel.Unloadable as error:
            text = f"mountns: a report of this test {error}"
            now = time.time()
            report = pytest_internals.failed_report(self._item, text, message.when, now)
        self.last_report = report
        for name, packed in message.notes:
            self._context.plugin_states.merge(self._item, name, packed, report)
        self._finish.go_on()
        # In the process of a module a wider fixture may have failed before the sandbox was made.
        written = None if self._guarded or self.uppers is None else _WrittenForked(self)
        self._session.observers.on_report(self._item, report, written)
        # What wider scopes print when they are torn down belongs into the report of the teardown.
        tell = self._finish.hold if report.when == "teardown" else self._finish.log
        with self._context.screen.capture_resumed() if message.captured else nullcontext():
            tell("pytest_runtest_logreport", report=report)

    def _warn(self, message: messages.WarningRecorded) -> None:
        try:
            warning = channel.unpack_warning(message.packed)
        except channel.Unloadable as error:
            self._finish.warn(f"mountns: a warning of this test {error}")
            return
        # With those of this process, which pytest reports when the protocol has ended.
        if message.when == "runtest" and pytest_internals.record_warnings([warning]):
            return
        hook = self._item.ihook.pytest_warning_recorded
        hook.call_historic(
            kwargs={
                "warning_message": warning,
                "when": message.when,
                "nodeid": message.nodeid,
                "location": None,
            }
        )

    def test_has_ended(self, *, died: bool) -> None:
        """Tell observers so, as long as what the test has written can be read."""
        if self.uppers is None or self.refusal is not None:
            return
        observers = self._session.observers
        self._finish.observer_failed = observers.ended(self._item, _WrittenForked(self), died=died)
        if self.find_scratch is not None and (scratch := self.find_scratch()) >= 0:
            observers.left_behind(self._item, scratch, self.uppers)

    def process_has_died(self, how: str) -> None:
        """Note for the report of the test in which way its process has ended. See :class:`Death`.

        The capture is suspended.
        """
        out, err = pytest_internals.captured_so_far(self._item.config)
        phase = PHASES[min(self._context.phase[0], channel.TEARDOWN)]
        self._finish.death = Death(how, phase, out, err, time.time())
        self._context.plugin_states.lost()

    def how_ended(self, receiver: Receiver, status: int | None, *, garbled: bool) -> str:
        """How a test process has ended that has not left, in words.

        ``status``: its wait status, None if it does not end.
        """
        if receiver.deadlock_watch is not None and receiver.deadlock_watch.ended:
            return _explain_deadlock()
        return GARBLED if garbled else describe(status)

    def tell_waiting(self) -> None:
        """Tell observers that the test has only waited for long."""
        self._session.observers.waits(self._item, deadlock.LIMIT, libraries_with_threads())

    def written(self) -> Written:
        """What the sandbox has written. Raises :class:`SandboxError` if it cannot be read."""
        if self.find is None:
            raise SandboxError("read what the sandbox has written", cause="it was never entered")
        return self.find()

    def wider_written(self) -> list[Written]:
        """What captured wider fixtures of the item have written, lowest first."""
        sandboxes = self._context.fixture_scopes.sandboxes(self._item)
        return [Written.of_sandbox(one) for one in sandboxes]


def _explain_deadlock() -> str:
    libraries = libraries_with_threads()
    return (
        EXPLANATION
        + (f" (libraries that start threads here: {', '.join(libraries)})" if libraries else "")
        + '; process="inline" has no such problem. It happened'
    )


@final
class _WrittenForked:
    """What a test in a forked process has written, read by the pytest process.

    Implements :class:`.observers.WrittenByTest`.
    """

    #: Also after the test process has ended: its uppers are open until the receiver is closed.
    left = False

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing

    def changes(self) -> AbstractContextManager[Changes]:
        return self._hearing.written().changes()

    def layers(self) -> AbstractContextManager[Sequence[Written]]:
        return nullcontext([*self._hearing.wider_written(), self._hearing.written()])
