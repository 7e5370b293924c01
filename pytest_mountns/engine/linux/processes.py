"""fork(2), as everything here uses it."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Collection
from typing import Final

from .untouched import os, posix, signal

# The kernel ends a read of this file between two numbers.
_PAGE: Final = 4096
#: Of clone(2) as well, wait(2).
_WALL: Final = 0x40000000


def fork() -> int:
    """os.fork(), without the warning of Python 3.12 and later about threads.

    The children forked here use none of their parent's threads; a warning turned into an error
    would end the session.
    """
    if sys.version_info < (3, 12):
        return os.fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def reap(child: int) -> int:
    """Wait for ``child``. Returns its wait status."""
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:
        # SIGCHLD is ignored, by a wider fixture for example: the kernel has thrown it away.
        return 0


def signal_name(number: int) -> str:
    """The name of a signal; real-time signals have none, signal(7)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


def describe_status(status: int) -> str:
    """How a process has ended, in words, from its wait status: "signal SIGKILL"."""
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal_name(-code)}" if code < 0 else f"exit status {code}"


def withdraw(kept: Collection[int]) -> None:
    """For a process that stays behind in the background: deaf to the terminal, with ``kept`` its
    only descriptors beside a standard input, output and error that are nobody's, and in ``/``.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    before = 3
    for fd in (*sorted(kept), os.sysconf("SC_OPEN_MAX")):
        os.closerange(before, fd)
        before = fd + 1
    os.chdir("/")


def state(pid: int) -> bytes:
    """One letter, proc_pid_stat(5); ``X`` if there is no such process."""
    try:
        return _status(pid)[0]
    except OSError:
        return b"X"


def born(pid: int) -> bytes:
    """When it was started, proc_pid_stat(5). Raises :class:`OSError` if there is none."""
    return _status(pid)[19]


def _status(pid: int) -> list[bytes]:
    # What follows the name, which may contain anything.
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PAGE).rpartition(b")")[2].split()
    finally:
        os.close(fd)


def wake(pid: int) -> None:
    """SIGCONT to a stopped process: it would not hear of any other signal."""
    if state(pid) == b"T":
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)


def reap_ended(child: int) -> bool:
    """Reap ``child`` if it has ended. Returns whether it is gone."""
    try:
        return os.waitpid(child, os.WNOHANG)[0] == child
    except ChildProcessError:
        return True


def has_children() -> bool:
    """Whether this process has any, of whichever thread, ended or not."""
    try:
        posix.waitid(posix.P_ALL, 0, posix.WEXITED | posix.WNOHANG | posix.WNOWAIT | _WALL)
    except ChildProcessError:
        return False
    return True


def children(pid: int) -> list[int]:
    """The children of all threads of ``pid``, proc_tid_children(5)."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            fd = os.open(f"/proc/{pid}/task/{task}/children", os.O_RDONLY | os.O_CLOEXEC)
            try:
                while data := os.read(fd, _PAGE):
                    found.extend(map(int, data.split()))
            finally:
                os.close(fd)
    return found


def kill_all(tops: Collection[int]) -> set[int]:
    """SIGKILL to these processes and all below them. Returns whom it was sent to.

    A process that has left the tree by a double fork is not found.
    """
    # Stopped first, parents before children: what is stopped starts nothing new.
    seen: set[int] = set()
    while new := [pid for pid in _trees(tops) if pid not in seen]:
        seen.update(new)
        for pid in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP)
    for pid in seen:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return seen


def end(tops: Collection[int]) -> set[int]:
    """:func:`kill_all`, of children of this process, which are reaped."""
    killed = kill_all(tops)
    for pid in tops:
        reap(pid)
    return killed


def _trees(tops: Collection[int]) -> list[int]:
    found: list[int] = []
    for top in tops:
        found += [top, *_trees(children(top))]
    return found
