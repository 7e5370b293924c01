"""The forked test process: enters the sandbox, forwards what it hears, leaves."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import traceback
import warnings
from dataclasses import dataclass
from typing import Any, NoReturn, final

import pytest

from . import afterfork, internals
from .changes_report import changes_key
from .companions import Companions
from .engine import syscalls
from .engine.enter import Sandbox, drop_user_capabilities, enter, enter_user_namespace
from .engine.errors import SandboxError, Unavailable
from .engine.init import die_with_parent, enter_pid_namespace
from .engine.plan import Plan
from .engine.remains import outline
from .engine.syscalls import flush_stdout
from .relay import LEAVING, Sender
from .timers import Timers


@final
@dataclass(frozen=True, slots=True)
class Inheritance:
    """What the child takes over from its parent beside memory: fork(2) leaves these behind."""

    parent: int
    channel: socket.socket
    status: int
    randomness: tuple[Any, ...]


@final
class TestProcess:
    """This process, from the fork to its end. It runs one item and never returns to the loop."""

    __test__ = False

    def __init__(
        self,
        item: pytest.Item,
        plan: Plan,
        inheritance: Inheritance,
        phase: mmap.mmap,
        companions: Companions,
    ) -> None:
        self._item = item
        self._phase = phase
        self._companions = companions
        self._plan = plan
        self._inheritance = inheritance
        self.sender = Sender(inheritance.channel, item.config)
        self._live_log = internals.live_log_state(item.config)
        self._sandbox: Sandbox | None = None

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox it is in."""
        assert self._sandbox is not None
        return self._sandbox

    def begin(self, keep: object, directory: str | None, timers: Timers) -> None:
        """Become the test process: enter the sandbox, or end with the reason why not.

        ``keep``: the plugin that hears reports and warnings from now on. ``directory``: where an
        upper on disk lies.
        """
        random.setstate(self._inheritance.randomness)
        internals.stop_at_item(self._item)
        internals.keep_reporters_quiet(self._item.config, [keep])
        internals.take_recorded_warnings()
        internals.set_cursor(self._item.config, *internals.cursor(self._item.config))
        internals.before_output_is_released(self._item.config, self._settle)
        afterfork.mend()
        try:
            self._sandbox = self._enter(directory)
        except SandboxError as error:
            self._refuse(error)
        except BaseException as error:  # noqa: BLE001 - going on would be going on un-isolated
            self._refuse(SandboxError("enter the sandbox", "".join(_explain(error)[1:])))
        self.sender.send("entered", outline(self._sandbox), descriptor=self._sandbox.scratch)
        # In the process that stays: with a PID namespace the one above was not the last fork.
        self._companions.begin(self._item)
        timers.hand_over()

    def _refuse(self, error: SandboxError) -> NoReturn:
        try:
            texts = (error.tried, error.kernel, error.cause, error.remedy)
            self.sender.send("refused", isinstance(error, Unavailable), *texts)
        finally:
            syscalls.exit_now(0)

    def _enter(self, directory: str | None) -> Sandbox:
        plan = self._plan
        die_with_parent(self._inheritance.parent)
        if plan.user_namespace:
            enter_user_namespace()
            # The new credentials may have cleared it.
            die_with_parent(self._inheritance.parent)
        if plan.pid_namespace:
            sandbox = self._enter_as_process_of_init(directory)
        else:
            sandbox = enter(plan, directory)
        os.close(self._inheritance.status)
        if plan.user_namespace:
            drop_user_capabilities()
        return sandbox

    def _enter_as_process_of_init(self, directory: str | None) -> Sandbox:
        result: list[Sandbox | SandboxError] = []

        def prepare() -> None:
            try:
                result.append(enter(self._plan, directory))
            except SandboxError as error:
                result.append(error)

        enter_pid_namespace(prepare, self._inheritance.status, self._plan.user_namespace)
        self.sender.adopt()
        entered = result[0]
        if isinstance(entered, SandboxError):
            raise entered
        return entered

    def reset(self) -> None:
        """A fresh root for what follows. Raises :class:`SandboxError`."""
        self._companions.before_reset()
        self.sandbox.reset()
        self.sender.send("entered", outline(self.sandbox), descriptor=self.sandbox.scratch)

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """:meth:`Sandbox.bind`. Raises :class:`SandboxError`."""
        self.sandbox.bind(source, target, read_only=read_only)
        # The target may have been made for it, which is no change of the test's.
        self.sender.send("outline", outline(self.sandbox))

    def report(self, report: pytest.TestReport) -> None:
        """``pytest_runtest_logreport`` in this process."""
        config = self._item.config
        internals.flush_output(config)
        cursor, live_log = internals.moved_cursor(config), internals.live_log_state(config)
        if cursor is not None or live_log != self._live_log:
            self._live_log = live_log
            self.sender.send("screen", cursor, live_log)
        self.sender.report(report, internals.failed_subtests(self._item))
        # Of a failure, -x and --maxfail make something that subtests look at.
        # And what it has changed is read meanwhile.
        waits = config.stash[changes_key].waits_for(report)
        if report.failed or waits or internals.output_is_seen_at_once(config):
            self._settle()

    def _settle(self) -> None:
        """What this process does next comes after what the parent makes of its reports."""
        answer = self.sender.settle()
        if answer is not None:
            cursor, stopping = answer
            internals.set_cursor(self._item.config, *cursor)
            internals.set_stopping(self._item.session, *stopping)

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """``pytest_warning_recorded`` in this process."""
        self.sender.warning(message, when, nodeid)

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
                    internals.tear_down_item(self._item)
            internals.flush_output(self._item.config)
            flush_stdout()
            _kill_children()
            for name, state in self._companions.pack(self._item):
                self.sender.send("state", name, state)
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


def _kill_children() -> None:
    """What the test has started and not ended, down the tree: its root is about to vanish.

    A process that has left the tree by a double fork is found only with ``pid=True``.
    """
    # Stopped first, parents before children: what is stopped starts nothing new.
    seen: set[int] = set()
    while new := [pid for pid in _descendants(os.getpid()) if pid not in seen]:
        seen.update(new)
        for pid in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP)
    for pid in seen:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for child in _children(pid):
        found.extend(_descendants(child))
        found.append(child)
    return found


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found.extend(int(number) for number in file.read().split())
    return found
