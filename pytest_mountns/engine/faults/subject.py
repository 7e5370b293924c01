"""The process that runs the function under test, and the way in which it ends.

It is forked by the supervisor, a process of its own, which runs no code of the test: its Python has
one thread, whatever the test process had, and waits for no lock that a thread of the test could
hold. The test process waits for the supervisor.

The supervisor is a "subreaper" (PR_SET_CHILD_SUBREAPER(2const)): what the function starts and
leaves behind becomes a child of it, so that nothing of the tree is missed when it is killed. A PID
namespace would do the same, but in it the function would see other process ids than its test: a
lock file with the id of a process that has crashed would name a process that is alive.
"""

from __future__ import annotations

import gc
import pickle
import sys
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple, NoReturn, final

from ..linux import processes, syscalls
from ..linux.errors import SandboxError, said
from ..linux.pid_namespace import die_with_parent
from ..linux.sockets import socket
from ..linux.untouched import os, time
from .calls import Architecture
from .filters import install
from .listener import hand_over, take_over

#: Seconds that killed processes may take to be gone.
_GONE_WITHIN: Final = 30.0


class Ended(NamedTuple):
    """The function has ended by itself."""

    #: What it has raised, pickled; None if it has returned, empty if that cannot be pickled.
    raised: bytes | None = None
    #: The traceback, as text.
    traceback: str = ""


@final
class Subject:
    """The process that runs the function, as the supervisor sees it."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        #: It says on this how the function has ended.
        self.channel = channel
        #: Becomes readable when the process has ended, pidfd_open(2).
        self.pidfd = os.pidfd_open(pid)
        self._said = b""

    def listener(self) -> int:
        """The descriptor on which its system calls are heard of; for the caller to close.

        Raises :class:`SandboxError` if it cannot be supervised.
        """
        listener, data = take_over(self.channel)
        if listener >= 0:
            return listener
        if data:
            raise pickle.loads(data)
        raise SandboxError(
            "supervise the system calls of a process",
            cause="the process has ended before its first call",
            remedy="dmesg; free -m",
        )

    def hear(self) -> None:
        """Take in what it says; it may come in pieces."""
        try:
            self._said += self.channel.recv(1 << 16, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return

    def ended(self) -> tuple[Ended | None, int]:
        """How the function has ended, None without a word, and the wait status of its process.

        Called when the process has ended.
        """
        before = -1
        while before != len(self._said):
            before = len(self._said)
            self.hear()
        ended: Ended | None = pickle.loads(self._said) if self._said else None
        return ended, processes.reap(self.pid)


def start(
    function: Callable[[], object],
    architecture: Architecture,
    instructions: bytes,
    mask: syscalls.SignalSet,
    *inherited: socket.socket,
) -> Subject:
    """Fork the process that calls ``function``. Called by the supervisor.

    ``instructions``: its filter. ``mask``: its signal mask. ``inherited``: what it is not to hold.
    """
    syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = processes.fork()
    if pid:
        theirs.close()
        return Subject(pid, ours)
    try:
        ours.close()
        for one in inherited:
            one.close()
        die_with_parent(parent)
        _run(function, architecture, instructions, mask, theirs)
    finally:
        syscalls.exit_now(1)


def _run(
    function: Callable[[], object],
    architecture: Architecture,
    instructions: bytes,
    mask: syscalls.SignalSet,
    channel: socket.socket,
) -> NoReturn:
    try:
        listener = install(architecture, instructions)
    except SandboxError as error:
        channel.sendall(pickle.dumps(error))
        syscalls.exit_now(1)
    hand_over(listener, channel)
    gc.enable()
    syscalls.set_signal_mask(mask)
    ended = Ended()
    try:
        function()
    except BaseException as error:  # noqa: BLE001 - raised again by the test process
        ended = _raised(error)
    flush_output()
    channel.sendall(pickle.dumps(ended))
    syscalls.exit_now(0)


def flush_output() -> None:
    """Flush what Python prints to, or all copies of this process would write what waits there."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001 - whatever the test has put there
            continue


def _raised(error: BaseException) -> Ended:
    text = "".join(traceback.format_exception(error))
    try:
        packed = pickle.dumps(error)
        pickle.loads(packed)
    except Exception:  # noqa: BLE001 - whatever it is made of
        packed = b""
    return Ended(packed, text)


def kill_tree() -> None:
    """Kill all descendants of this process, the supervisor, and reap them.

    Those that wait for an answer of the supervisor have not carried out their call, and will not.
    Raises :class:`SandboxError` if one does not end.
    """
    deadline = time.monotonic() + _GONE_WITHIN
    while True:
        processes.kill_all(processes.children(os.getpid()))
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        except OSError as error:
            raise SandboxError("wait for killed processes", said(error)) from error
        if time.monotonic() > deadline:
            raise SandboxError(
                "kill the processes that the function has started",
                cause=f"{processes.children(os.getpid())} did not end in {_GONE_WITHIN:.0f} s",
                remedy="look at them with ps -o pid,stat,wchan:30,args",
            )
        time.sleep(0.0005)
