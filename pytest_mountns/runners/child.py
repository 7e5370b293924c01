"""The test process: a fork of the pytest process that enters the sandbox and runs one item.

It forwards what is reported in it, and never returns to the loop over items.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, final

import pytest

from .. import pytest_internals
from ..engine.linux import c_stdout, processes, syscalls
from ..engine.linux.errors import SandboxError, Unavailable, said
from ..engine.linux.left_processes import names_of_running
from ..engine.linux.untouched import os, signal, socket
from ..engine.plan.model import Plan, User
from ..engine.sandbox.forked import ForkedEntry
from ..engine.sandbox.sandbox import Sandbox
from ..engine.sandbox.stack import SandboxStack, close
from ..forking import after_fork, messages
from ..forking.channel import CALL, LEAVING, SETUP, TEARDOWN, Sender
from ..forking.timers import Timers
from ..session.exploring import start_faults
from ..session.temporary import USER_TEMPORARY
from .context import RunnerContext

if TYPE_CHECKING:
    from ..engine.sandbox.guard import Guard

_PHASES = {"setup": SETUP, "call": CALL, "teardown": TEARDOWN}


@final
@dataclass(frozen=True, slots=True)
class Inheritance:
    """What the test process takes over from the pytest process beside its memory."""

    #: The process id of the pytest process.
    parent: int
    #: Its end of the channel.
    channel: socket.socket
    #: See :meth:`.ForkedEntry.enter`.
    status: int
    #: ``random.getstate()``: Python seeds its generator anew after a fork.
    randomness: tuple[Any, ...]
    #: Returns which pages the process has written to; None if nobody wants to know.
    written_pages: Callable[[], bytes] | None


@final
class TestProcess:
    """This process, from the fork to its end. Implements :class:`.current.RunningTest`."""

    __test__ = False
    #: See :attr:`.current.RunningTest.forked`.
    forked = True

    def __init__(
        self,
        context: RunnerContext,
        item: pytest.Item,
        entry: ForkedEntry | Guard,
        inheritance: Inheritance,
    ) -> None:
        self._context = context
        self._session = context.session
        self._item = item
        self._entry = entry
        #: See :attr:`.current.RunningTest.guard`.
        self.guard = None if isinstance(entry, ForkedEntry) else entry
        self._inheritance = inheritance
        #: Sends what is reported to the pytest process.
        self.sender = Sender(inheritance.channel, item.config, context.session.trace)
        self._live_log = pytest_internals.live_log_state(item.config)
        self._stack: SandboxStack | None = None

    @property
    def stack(self) -> SandboxStack:
        """The sandbox that the test is in, and those that it goes back to."""
        assert self._stack is not None
        return self._stack

    def begin(self, timers: Timers) -> None:
        """Enter the sandbox. Where that is not possible, say why and end this process."""
        try:
            self._prepare()
            if not isinstance(self._entry, ForkedEntry):
                self._enter_guard(self._entry)
            else:
                self._stack = SandboxStack(self._enter(self._entry), close)
                if self._entry.sandbox is None:
                    self._say_entered()
        except SandboxError as error:
            self._refuse(error)
        except BaseException as error:  # noqa: BLE001 - going on would be going on un-isolated
            self._refuse(SandboxError("enter the sandbox", _leave_message(error).text))
        trace = self._session.trace
        if self._stack is None:
            trace("guarded", self._item.nodeid)
        else:
            if trace.enabled and isinstance(self._entry, ForkedEntry) and not self._entry.sandbox:
                trace("mounted", *(one.mountpoint for one in self.stack.sandbox.overlays))
            trace("entered", self._item.nodeid)
            self._start_faults()
        # In the process that runs the test: with a PID namespace there was another fork.
        self._context.plugin_states.begin(self._item)
        if self._stack is not None:
            self._session.observers.entered(self._item, self)
        timers.start_in_child()

    def _start_faults(self) -> None:
        """Have system calls fail from here on, if the marks of the item ask for it."""
        faults = self._session.selection.spec(self._item).faults
        if faults:
            dropped = self.stack.sandbox.plan.drops_capabilities
            # More may be asked for in the test, and the filter cannot be changed then.
            everything = "overlay_root" in getattr(self._item, "fixturenames", ())
            current = self._session.current
            try:
                start_faults(current, faults, dropped=dropped, everything=everything)
            except SandboxError as error:
                self._refuse(error)

    def _prepare(self) -> None:
        """Make this copy of the pytest process one that runs a single test."""
        # What is in that buffer is written by the pytest process.
        self._has_printed = c_stdout.drop_stdout()
        random.setstate(self._inheritance.randomness)
        config = self._item.config
        pytest_internals.stop_at_item(self._item)
        pytest_internals.keep_reporters_quiet(config, [self._context.hooks])
        pytest_internals.take_recorded_warnings()
        pytest_internals.set_cursor(config, *pytest_internals.cursor(config))
        pytest_internals.before_output_is_released(config, self._settle)
        after_fork.repair()

    def _refuse(self, error: SandboxError) -> NoReturn:
        try:
            texts = (error.tried, error.kernel, error.cause, error.remedy)
            self.sender.send(messages.Refused(isinstance(error, Unavailable), *texts))
        finally:
            syscalls.exit_now(0)

    def _enter_guard(self, guard: Guard) -> None:
        try:
            guard.enter(self._inheritance.parent)
        finally:
            self.sender.adopt()
        os.close(self._inheritance.status)

    def _enter(self, entry: ForkedEntry) -> Sandbox:
        parent, status = self._inheritance.parent, self._inheritance.status
        user = entry.plan.user
        try:
            sandbox = entry.enter(parent, status)
        finally:
            # With a PID namespace this is another process than before.
            self.sender.adopt()
        os.close(status)
        if user is not None:
            self._make_temporary_directory(user)
        entry.drop_privileges(parent)
        if user is not None:
            for name, value in user.variables().items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        return sandbox

    def _make_temporary_directory(self, user: User) -> None:
        if pytest_internals.basetemp(self._item.config) is None:
            return
        # Root's own directory is closed to other users.
        base = os.path.join(tempfile.gettempdir(), USER_TEMPORARY)
        with contextlib.suppress(OSError):
            # It cannot be made in a read-only root.
            os.makedirs(base, mode=0o700, exist_ok=True)
            os.chown(base, user.uid, user.gid)
        pytest_internals.set_basetemp(self._item.config, Path(base))

    def enter_phase(self, phase: pytest_internals.Phase) -> None:
        """Note how far the test has got, where the pytest process sees it."""
        # A copy that the test has forked may come this far, too.
        if not self.sender.is_copy:
            self._context.phase[0] = _PHASES[phase]

    def objection(self) -> str:
        """See :meth:`.current.RunningTest.objection`."""
        return self.sender.ask_objection()

    def reset(self) -> None:
        """See :meth:`.current.RunningTest.reset`."""
        if self._stack is None:
            # A guard has nothing to drop.
            return
        self._context.plugin_states.before_reset()
        self.stack.reset()
        self._say_entered()

    def restack(self, find: Callable[[], Plan]) -> None:
        """See :meth:`.current.RunningTest.restack`."""
        plan = self.stack.restack(find)
        self._tell(messages.Planned(plan))
        self._say_entered()

    def _say_entered(self) -> None:
        """Raises :class:`SandboxError` if the pytest process cannot be told."""
        sandbox = self.stack.sandbox
        self._tell(messages.Entered(sandbox.describe_uppers()), descriptor=sandbox.scratch)

    def _tell(self, message: messages.FromTest, descriptor: int | None = None) -> None:
        """Raises :class:`SandboxError` if the pytest process cannot be told."""
        try:
            self.sender.send(message, descriptor=descriptor)
        except OSError as error:
            raise SandboxError("tell the pytest process of the sandbox", said(error)) from error

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """See :meth:`.current.RunningTest.bind`."""
        sandbox = self.stack.sandbox
        sandbox.bind(source, target, read_only=read_only)
        # The target may have been made for it, which is no change of the test's.
        self._tell(messages.Mounted(sandbox.describe_uppers()))

    def make_own(self, path: str) -> None:
        """See :meth:`.current.RunningTest.make_own`."""
        sandbox = self.stack.sandbox
        if sandbox.make_own(path) and not self.stack.in_checkpoint:
            self._tell(messages.Mounted(sandbox.describe_uppers()))

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """See :meth:`.current.RunningTest.checkpoint`."""
        with self.stack.checkpoint():
            try:
                yield
            finally:
                self._context.plugin_states.before_reset()

    def log_start(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logstart`` in this process."""
        self.sender.send(messages.LogStart(nodeid, location))

    def log_finish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logfinish`` in this process; nobody waits for it."""
        self.sender.keep(messages.LogFinish(nodeid, location))

    def report(self, report: pytest.TestReport) -> None:
        """``pytest_runtest_logreport`` in this process."""
        config = self._item.config
        pytest_internals.flush_output(config)
        cursor, live_log = (
            pytest_internals.moved_cursor(config),
            pytest_internals.live_log_state(config),
        )
        if cursor is not None or live_log != self._live_log:
            self._live_log = live_log
            with self._end_if_unheard():
                self.sender.send(messages.Screen(cursor, live_log))
        with self._end_if_unheard():
            notes = self._context.plugin_states.pack_early(self._item, report)
            self.sender.report(report, self._item, notes)
        # After a failure, -x and --maxfail set what subtests look at, and observers read what the
        # test has written.
        waits = report.failed or self._session.observers.want_pause(report)
        if waits or pytest_internals.output_is_seen_at_once(config):
            self._settle()

    def _settle(self) -> None:
        """Wait until the pytest process has dealt with all reports."""
        answer = self.sender.settle()
        if answer is not None:
            pytest_internals.set_cursor(self._item.config, *answer.cursor)
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
        """Whether a plugin has met this error since the test runs as another user than pytest.

        It is one of a pipe of :mod:`..session.runner_pipes`, which belongs to the user of the
        pytest process. A section of the report says it then. As an error of a hook it would end
        the whole run.
        """
        user = self._entry.plan.user if isinstance(self._entry, ForkedEntry) else None
        if user is None or error.filename not in self._session.sandboxes.pipes.paths:
            return False
        text = (
            f"{error.filename} cannot be opened as {user.name}, the user of this test, so the"
            " program that has started pytest does not hear of this failure by that pipe. Likely"
            " cause: the pipe is open to its owner only. Remedy: chmod a+w, where that program"
            " makes the pipe."
        )
        report.sections.append(("mountns", text))
        return True

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """``pytest_warning_recorded`` in this process."""
        with self._end_if_unheard():
            self.sender.warning(message, when, nodeid)

    @contextlib.contextmanager
    def _end_if_unheard(self) -> Iterator[None]:
        """End this process if the pytest process cannot be told: as if it had crashed."""
        try:
            yield
        except OSError:
            try:
                processes.kill_all(processes.own_children())
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
            pytest_internals.flush_output(self._item.config)
            with contextlib.suppress(OSError):
                # It cannot be read if the test has closed its standard output, for example.
                if printed := c_stdout.take_stdout(self._has_printed):
                    self.sender.send(messages.CStdout(*printed))
            if children := processes.own_children():
                if names := names_of_running(children):
                    self.sender.send(messages.EndedProcesses(names))
                # Their root is about to vanish.
                processes.kill_all(children)
            for name, packed in self._context.plugin_states.pack(self._item):
                self.sender.send(messages.PluginNotes(name, packed))
            if pipes := self._session.sandboxes.pipes.left_open():
                self.sender.hand_over(pipes)
            if self._inheritance.written_pages is not None:
                self.sender.send(messages.WrittenPages(self._inheritance.written_pages()))
            leave = _leave_message(error)._replace(
                torn_down=pytest_internals.is_torn_down(self._item)
            )
            if isinstance(error, KeyboardInterrupt):
                leave = leave._replace(interrupt=self.sender.pack_interrupt(error))
            self.sender.send(leave)
        finally:
            syscalls.exit_now(0)


def _leave_message(error: BaseException | None) -> messages.Leave:
    """The last message: by what the protocol of the item was ended, None if it has returned."""
    if error is None:
        return messages.Leave()
    if isinstance(error, KeyboardInterrupt):
        return messages.Leave("KeyboardInterrupt")
    if isinstance(error, pytest.exit.Exception):
        # Of an enumeration's members the number is enough.
        status = None if error.returncode is None else int(error.returncode)
        return messages.Leave("Exit", error.msg, status)
    return messages.Leave("error", "".join(traceback.format_exception(error)))
