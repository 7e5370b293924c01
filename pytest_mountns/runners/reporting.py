"""What every forked process that runs tests does: it tells the pytest process what is reported."""

from __future__ import annotations

import contextlib
import random
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, final

import pytest

from .. import pytest_internals
from ..engine.linux import c_stdout, processes, syscalls
from ..engine.linux.errors import SandboxError, Unavailable, said
from ..engine.linux.left_processes import names_of_running
from ..engine.linux.sockets import socket
from ..engine.linux.untouched import signal
from ..forking import after_fork, messages
from ..forking.channel import CALL, LEAVING, SETUP, TEARDOWN, Sender
from .context import RunnerContext

_PHASES = {"setup": SETUP, "call": CALL, "teardown": TEARDOWN}


@final
class Inheritance(NamedTuple):
    """What a forked process takes over from the pytest process beside its memory."""

    #: The process id of the pytest process.
    parent: int
    #: Its end of the channel.
    channel: socket.socket
    #: See :meth:`.ForkedEntry.enter`; -1 without a PID namespace.
    status: int
    #: ``random.getstate()``: Python seeds its generator anew after a fork.
    randomness: tuple[Any, ...]
    #: Returns which pages the process has written to; None if nobody wants to know.
    written_pages: Callable[[], bytes] | None = None
    #: See :class:`.Sender`.
    bell: int = -1


class ReportingProcess:
    """This process, a fork of the pytest process that runs tests. It forwards what they report.

    Implements :class:`.context.ProcessOfTest`.
    """

    __test__ = False

    def __init__(self, context: RunnerContext, item: pytest.Item, inheritance: Inheritance) -> None:
        self._context = context
        self._session = context.session
        #: The test that it runs.
        self._item = item
        self._inheritance = inheritance
        #: Sends what is reported to the pytest process.
        self.sender = Sender(
            inheritance.channel, item.config, context.session.trace, inheritance.bell
        )
        self._screen = context.screen
        self._has_printed = False
        #: The warnings that pytest records while an item runs.
        self._warnings: list[warnings.WarningMessage] = []

    def _inherit(self) -> None:
        """Make this copy of the pytest process one that runs tests and reports nothing itself."""
        # What is in that buffer is written by the pytest process.
        self._has_printed = c_stdout.drop_stdout()
        random.setstate(self._inheritance.randomness)
        config = self._item.config
        pytest_internals.keep_reporters_quiet(config, [self._context.hooks])
        # The test may begin to record for itself, and leave that on.
        recorded = pytest_internals.recorded_warnings()
        self._warnings = [] if recorded is None else recorded
        self._warnings.clear()
        self._screen.begin(self._settle)
        after_fork.repair()

    def _refuse(self, error: SandboxError) -> NoReturn:
        """End this process: the test cannot be run in it."""
        try:
            texts = (error.tried, error.kernel, error.cause, error.remedy)
            self.sender.send(messages.Refused(isinstance(error, Unavailable), *texts))
        finally:
            syscalls.exit_now(0)

    def _tell(self, message: messages.FromTest, descriptor: int | None = None) -> None:
        """Raises :class:`SandboxError` if the pytest process cannot be told."""
        try:
            self.sender.send(message, descriptor=descriptor)
        except OSError as error:
            raise SandboxError("tell the pytest process of the sandbox", said(error)) from error

    def enter_phase(self, phase: pytest_internals.Phase) -> None:
        """Note how far the test has got, where the pytest process sees it."""
        # A copy that the test has forked may come this far, too.
        if not self.sender.is_copy:
            self._context.phase[0] = _PHASES[phase]

    def note(self, kind: str, why: str) -> None:
        """See :meth:`.RunnerContext.note_once`."""
        self._tell(messages.Noted(kind, why))

    def skipped(self) -> None:
        """See :meth:`.Observer.skipped`."""
        self._tell(messages.Skipped())

    def hand_over_warnings(self) -> None:
        """See :meth:`.context.ProcessOfTest.hand_over_warnings`."""
        if not self.sender.is_copy:
            for message in self._warnings:
                self.warning(message, "runtest", self._item.nodeid)

    def log_start(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logstart`` in this process."""
        self.sender.send(messages.LogStart(nodeid, location))

    def log_finish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logfinish`` in this process; nobody waits for it."""
        self.sender.keep(messages.LogFinish(nodeid, location))

    def report(self, report: pytest.TestReport) -> None:
        """``pytest_runtest_logreport`` in this process."""
        moved = self._screen.moved()
        try:
            if moved.cursor is not None or moved.live_log is not None:
                self.sender.send(messages.Screen(moved.cursor, moved.live_log or {}))
            notes = self._context.plugin_states.pack_early(self._item, report)
            self.sender.report(report, self._item, notes, captured=moved.captures_marks)
        except OSError:
            self._end_unheard()
        # After a failure, -x and --maxfail set what subtests look at, and observers read what the
        # test has written. What is captured has its place in the output.
        waits = moved.captures_marks or report.failed
        if waits or self._screen.is_seen_at_once or self._session.observers.want_pause(report):
            self._settle()

    def _settle(self) -> None:
        """Wait until the pytest process has dealt with all reports."""
        answer = self.sender.settle()
        if answer is not None:
            self._screen.set_cursor(*answer.cursor)
            pytest_internals.set_stopping(self._item.session, *answer.stopping)
            for name, packed in answer.notes:
                self._context.plugin_states.merge(self._item, name, packed)

    def interacts(self, report: pytest.CollectReport | pytest.TestReport) -> Callable[[], None]:
        """``pytest_exception_interact`` begins in this process. Returns what is called at its end.

        Plugins change the report, which was sent already.
        """
        before = {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(report).items()
        }

        def end() -> None:
            if pytest_internals.shown_by_debugger(report):
                self.sender.send(messages.ShownByDebugger())
            self.sender.report_changed(before, report)

        return end

    def explains(
        self, error: PermissionError, report: pytest.CollectReport | pytest.TestReport
    ) -> bool:
        """See :meth:`.context.ProcessOfTest.explains`."""
        return False

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """``pytest_warning_recorded`` in this process."""
        try:
            self.sender.warning(message, when, nodeid)
        except OSError:
            self._end_unheard()

    def _end_unheard(self) -> NoReturn:
        """End this process, since the pytest process cannot be told: as if it had crashed."""
        try:
            processes.end(processes.own_children())
        finally:
            syscalls.exit_now(1)

    def leave(self, error: BaseException | None) -> NoReturn:
        """The protocol of the item has ended, by ``error`` if there is one."""
        if self.sender.is_copy:
            # The test has forked and let the copy return up the stack: nobody waits for it.
            syscalls.exit_now(0)
        if error is None or isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
            self._context.phase[0] = LEAVING
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if error is not None:
                # Without a fork, pytest would do it when the session is interrupted.
                with contextlib.suppress(BaseException):
                    pytest_internals.tear_down_item(self._item)
            self._screen.flush()
            with contextlib.suppress(OSError):
                # It cannot be read if the test has closed its standard output, for example.
                if printed := c_stdout.take_stdout(self._has_printed):
                    self.sender.send(messages.CStdout(*printed))
            if children := processes.own_children():
                if names := names_of_running(children):
                    self.sender.send(messages.EndedProcesses(names))
                # Their root is about to vanish, and the next test is not to meet them.
                processes.end(children)
            self._send_notes()
            if pipes := self._session.sandboxes.pipes.left_open():
                self.sender.hand_over(pipes)
            if self._inheritance.written_pages is not None:
                self.sender.send(messages.WrittenPages(self._inheritance.written_pages()))
            torn_down = pytest_internals.is_torn_down(self._item)
            if error is None:
                leave = messages.Leave(torn_down=torn_down)
            else:
                leave = leave_message(error)._replace(torn_down=torn_down)
            if isinstance(error, KeyboardInterrupt):
                leave = leave._replace(interrupt=self.sender.pack_interrupt(error))
            self.sender.send(leave)
        finally:
            syscalls.exit_now(0)

    def _send_notes(self) -> None:
        """Send what plugins have noted while the test ran."""
        for name, packed in self._context.plugin_states.pack(self._item):
            self.sender.send(messages.PluginNotes(name, packed))


def leave_message(error: BaseException) -> messages.Leave:
    """The last message, where ``error`` has ended the protocol of the item."""
    if isinstance(error, KeyboardInterrupt):
        return messages.Leave("KeyboardInterrupt")
    if isinstance(error, pytest.exit.Exception):
        # Of an enumeration's members the number is enough.
        status = None if error.returncode is None else int(error.returncode)
        return messages.Leave("Exit", error.msg, status)
    return messages.Leave("error", "".join(traceback.format_exception(error)))
