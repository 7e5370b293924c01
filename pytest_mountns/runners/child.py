"""The forked test process: enters the sandbox, forwards what it hears, leaves."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, final

import pytest

from .. import pytest_internals
from ..engine.linux import processes, syscalls
from ..engine.linux.errors import SandboxError, Unavailable, said
from ..engine.plan.model import Plan, User
from ..engine.sandbox.forked import ForkedEntry
from ..engine.sandbox.sandbox import Sandbox
from ..engine.sandbox.stack import SandboxStack, close
from ..engine.sandbox.written import outline
from ..forking import after_fork
from ..forking.channel import LEAVING, Sender
from ..forking.timers import Timers
from ..plugin_state import PluginStates
from ..reports.changes import USER_TEMPORARY, changes_key

if TYPE_CHECKING:
    from ..repro.keeper import Keeper


@final
@dataclass(frozen=True, slots=True)
class Inheritance:
    """What the child takes over from its parent beside memory: fork(2) leaves these behind.

    ``written_pages``: what it is to call at its end, and to say.
    """

    parent: int
    channel: socket.socket
    status: int
    randomness: tuple[Any, ...]
    written_pages: Callable[[], bytes] | None


@final
class TestProcess:
    """This process, from the fork to its end. It runs one item and never returns to the loop."""

    __test__ = False

    def __init__(
        self,
        item: pytest.Item,
        forked_entry: ForkedEntry,
        inheritance: Inheritance,
        phase: mmap.mmap,
        plugin_states: PluginStates,
        keeper: Keeper | None,
    ) -> None:
        self._item = item
        self._phase = phase
        self._plugin_states = plugin_states
        self._keeper = keeper
        self._forked_entry = forked_entry
        self._inheritance = inheritance
        self.sender = Sender(inheritance.channel, item.config)
        self._live_log = pytest_internals.live_log_state(item.config)
        self._stack: SandboxStack | None = None

    @property
    def stack(self) -> SandboxStack:
        """The sandbox it is in, and those to go back to."""
        assert self._stack is not None
        return self._stack

    def begin(self, keep: object, timers: Timers) -> None:
        """Become the test process: enter the sandbox, or end with the reason why not.

        ``keep``: the plugin that hears reports and warnings from now on.
        """
        # What is in there is the parent's to write.
        self._has_printed = syscalls.drop_stdout()
        random.setstate(self._inheritance.randomness)
        pytest_internals.stop_at_item(self._item)
        pytest_internals.keep_reporters_quiet(self._item.config, [keep])
        pytest_internals.take_recorded_warnings()
        pytest_internals.set_cursor(self._item.config, *pytest_internals.cursor(self._item.config))
        pytest_internals.before_output_is_released(self._item.config, self._settle)
        after_fork.repair()
        try:
            self._stack = SandboxStack(self._enter(), close)
            if self._forked_entry.sandbox is None:
                self._say_entered()
        except SandboxError as error:
            self._refuse(error)
        except BaseException as error:  # noqa: BLE001 - going on would be going on un-isolated
            self._refuse(SandboxError("enter the sandbox", "".join(_explain(error)[1:])))
        # In the process that stays: with a PID namespace the one above was not the last fork.
        self._plugin_states.begin(self._item)
        self._item.config.stash[changes_key].watch(self._item)
        timers.start_in_child()

    def _refuse(self, error: SandboxError) -> NoReturn:
        try:
            texts = (error.tried, error.kernel, error.cause, error.remedy)
            self.sender.send("refused", isinstance(error, Unavailable), *texts)
        finally:
            syscalls.exit_now(0)

    def _enter(self) -> Sandbox:
        parent, status = self._inheritance.parent, self._inheritance.status
        user = self._forked_entry.plan.user
        try:
            sandbox = self._forked_entry.enter(parent, status)
        finally:
            # With a PID namespace it is another one.
            self.sender.adopt()
        os.close(status)
        if user is not None:
            self._make_temporary_directory(user)
        self._forked_entry.give_up_rights(parent)
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
        # The one of root is closed to others.
        base = os.path.join(tempfile.gettempdir(), USER_TEMPORARY)
        with contextlib.suppress(OSError):
            # As in a read-only root.
            os.makedirs(base, mode=0o700, exist_ok=True)
            os.chown(base, user.uid, user.gid)
        pytest_internals.set_basetemp(self._item.config, Path(base))

    def reset(self) -> None:
        """A fresh root for what follows. Raises :class:`SandboxError`."""
        self._plugin_states.before_reset()
        self.stack.reset()
        self._say_entered()

    def restack(self, find: Callable[[], Plan]) -> None:
        """Go on with what ``find``, called among the host's mounts, plans.

        Raises :class:`SandboxError`.
        """
        plan = self.stack.restack(find)
        self._tell("planned", plan)
        self._say_entered()

    def _say_entered(self) -> None:
        """Raises :class:`SandboxError`."""
        sandbox = self.stack.sandbox
        self._tell("entered", outline(sandbox), descriptor=sandbox.scratch)

    def _tell(self, name: str, content: object, descriptor: int | None = None) -> None:
        """Raises :class:`SandboxError`."""
        try:
            self.sender.send(name, content, descriptor=descriptor)
        except OSError as error:
            raise SandboxError("tell the pytest process of the sandbox", said(error)) from error

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """:meth:`Sandbox.bind`. Raises :class:`SandboxError`."""
        sandbox = self.stack.sandbox
        sandbox.bind(source, target, read_only=read_only)
        # The target may have been made for it, which is no change of the test's.
        self._tell("outline", outline(sandbox))

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Drop, afterwards, what was written meanwhile. Raises :class:`SandboxError`."""
        with self.stack.checkpoint():
            try:
                yield
            finally:
                self._plugin_states.before_reset()

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
                self.sender.send("screen", cursor, live_log)
        with self._end_if_unheard():
            self.sender.report(report, self._item)
        # Of a failure, -x and --maxfail make something that subtests look at.
        # And what it has changed is read meanwhile.
        keeper = self._keeper
        waits = config.stash[changes_key].waits_for(report) or (keeper and keeper.waits_for(report))
        if report.failed or waits or pytest_internals.output_is_seen_at_once(config):
            self._settle()

    def _settle(self) -> None:
        """What this process does next comes after what the parent makes of its reports."""
        answer = self.sender.settle()
        if answer is not None:
            cursor, stopping = answer
            pytest_internals.set_cursor(self._item.config, *cursor)
            pytest_internals.set_stopping(self._item.session, *stopping)

    def shown(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        """``pytest_exception_interact`` in this process has ended."""
        if pytest_internals.shown_by_debugger(report):
            self.sender.send("shown")

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """``pytest_warning_recorded`` in this process."""
        with self._end_if_unheard():
            self.sender.warning(message, when, nodeid)

    @contextlib.contextmanager
    def _end_if_unheard(self) -> Iterator[None]:
        """A test whose reports do not arrive ends as if it had crashed: the session goes on."""
        try:
            yield
        except OSError:
            try:
                processes.kill_all(processes.children(os.getpid()))
            finally:
                syscalls.exit_now(1)

    def leave(self, error: BaseException | None) -> NoReturn:
        """The protocol of the item has ended, by ``error`` if there is one."""
        if self.sender.is_copy:
            # The test has forked and let the copy return: nobody waits for this one.
            syscalls.exit_now(0)
        if error is None or isinstance(error, KeyboardInterrupt | pytest.exit.Exception):
            self._phase[0] = LEAVING
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            if error is not None:
                # In one process the session would do it when it is interrupted.
                with contextlib.suppress(BaseException):
                    pytest_internals.tear_down_item(self._item)
            pytest_internals.flush_output(self._item.config)
            with contextlib.suppress(OSError):
                # As where the test has closed its standard output.
                if printed := syscalls.take_stdout(self._has_printed):
                    self.sender.send("printed", *printed)
            # Its root is about to vanish.
            if processes.has_children():
                processes.kill_all(processes.children(os.getpid()))
            for name, state in self._plugin_states.pack(self._item):
                self.sender.send("state", name, state)
            if self._inheritance.written_pages is not None:
                self.sender.send("pages", self._inheritance.written_pages())
            words: tuple[object, ...] = _explain(error)
            if isinstance(error, KeyboardInterrupt):
                words = (*words, self.sender.interrupt(error))
            self.sender.send("leave", *words)
        finally:
            syscalls.exit_now(0)


def _explain(error: BaseException | None) -> tuple[str, ...]:
    if error is None:
        return ("",)
    if isinstance(error, KeyboardInterrupt):
        return ("KeyboardInterrupt",)
    if isinstance(error, pytest.exit.Exception):
        return ("Exit", error.msg, "" if error.returncode is None else str(int(error.returncode)))
    return ("error", "".join(traceback.format_exception(error)))
