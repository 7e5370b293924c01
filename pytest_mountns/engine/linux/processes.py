"""Processes: forked, waited for, looked at and killed."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Collection
from typing import Final

from . import syscalls
from .errors import is_failed_call
from .untouched import os, posix, select, signal, time

#: Bytes to read at a time. The kernel does not cut a number of ``children`` in two.
_PAGE: Final = 4096
#: Wait for children that were made by clone(2), too: wait(2), ``__WALL``.
_WALL: Final = 0x40000000
#: A task that ends, ``PF_EXITING`` of include/linux/sched.h.
_EXITING: Final = 4
#: What a process of this plugin is called that is no child of a test and ends with it.
HELPER_NAME: Final = b"mountns-helper"
#: Seconds that a killed process may take to end, and between two looks. One that waits for a device
#: or for a server of files may never end.
ENDS_WITHIN: Final = 10.0
_INTERVAL: Final = 0.001


def fork() -> int:
    """Calls ``os.fork()`` without the warning of Python 3.12 and later about threads.

    Children that are forked here use none of their parent's threads, and where warnings are
    errors this one would end the session.
    """
    if sys.version_info < (3, 12):
        return os.fork()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def reap(child: int) -> int:
    """Wait for ``child``. Returns its wait status, 0 if it is not known."""
    try:
        return os.waitpid(child, 0)[1]
    except ChildProcessError:
        # If SIGCHLD is ignored, by a wider fixture for example, the kernel drops the status.
        return 0


def deadline() -> float:
    """Until when to wait for killed processes, by time.monotonic()."""
    return time.monotonic() + ENDS_WITHIN


def reap_soon(child: int, until: float | None = None) -> int | None:
    """Wait for a child that was killed or is about to end. Returns its wait status.

    0 if that is not known, as :func:`reap`. None if it has not ended at ``until``, by
    time.monotonic(), which is 10 seconds from now unless given. The kernel holds it then: it waits
    for a device, for a server of files that does not answer, or, as the first process of a PID
    namespace, for another one to be reaped.
    """
    until = deadline() if until is None else until
    while True:
        try:
            ended, status = os.waitpid(child, os.WNOHANG)
        except ChildProcessError:
            return 0
        if ended:
            return status
        if (left := until - time.monotonic()) <= 0:
            return None
        _wait_for_end(child, left)


def _wait_for_end(pid: int, seconds: float) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if not is_failed_call(error):
            raise
        # Before Linux 5.3, or too many files are open.
        time.sleep(_INTERVAL)
        return
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if poll.poll(seconds * 1000):
            # One that is traced by another process may have ended, and cannot be reaped yet.
            time.sleep(_INTERVAL)
    finally:
        os.close(pidfd)


def describe_unended(pid: int) -> str:
    """What is known of a process that does not end, in words."""
    return (
        f"process {pid} has not ended {ENDS_WITHIN:.0f} s after it was to. What it uses stays"
        " mounted until it ends. Likely cause: it waits for a device or for a server of files that"
        f" does not answer, or another process traces it. Look at it:"
        f" cat /proc/{pid}/status /proc/{pid}/stack"
    )


def signal_name(number: int) -> str:
    """The name of a signal; real-time signals have none, signal(7)."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return "a real-time signal"


def describe_status(status: int | None) -> str:
    """How a process has ended, in words, from its wait status: "signal SIGKILL".

    None if it was to end and has not.
    """
    if status is None:
        return "it was to end, and has not"
    code = os.waitstatus_to_exitcode(status)
    return f"signal {signal_name(-code)}" if code < 0 else f"exit status {code}"


def withdraw(kept: Collection[int]) -> None:
    """Turn this process into a background process, as daemon(7) says.

    It ignores the terminal's signals, has ``/`` as working directory and ``/dev/null`` as standard
    streams, and keeps no other descriptors than ``kept``.
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
    """The state of a process as one letter, proc_pid_stat(5); ``X`` if there is none."""
    try:
        return _status(pid)[0]
    except OSError:
        return b"X"


def has_ended(pid: int) -> bool:
    """Whether a process has ended with all its threads, reaped or not."""
    try:
        fields = _status(pid)
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    # Where only the first thread has ended, the state is that of a process that has.
    return fields[0] in b"ZX" and int(fields[17]) <= 1


def is_dying(pid: int) -> bool:
    """Whether a process has been killed or has called exit(2), and has not ended yet.

    Nothing it does in user space comes after that; the kernel may hold it for any time.
    """
    try:
        fields = _status(pid)
    except OSError:
        return False
    if fields[0] in b"ZX":
        return False
    # The flags of the task and its pending signals, proc_pid_stat(5).
    return bool(int(fields[6]) & _EXITING or int(fields[28]) >> (signal.SIGKILL - 1) & 1)


def born(pid: int) -> bytes:
    """When a process was started, in clock ticks since boot, proc_pid_stat(5).

    Raises :class:`OSError` if there is no such process.
    """
    return _status(pid)[19]


def parent(pid: int) -> int:
    """The parent of a process, proc_pid_stat(5). Raises :class:`OSError` if there is none."""
    return int(_status(pid)[1])


def cpu_time(pid: int) -> int:
    """The CPU time that a process has used, in clock ticks, proc_pid_stat(5).

    Raises :class:`OSError` if there is no such process.
    """
    fields = _status(pid)
    return int(fields[11]) + int(fields[12])


def _status(pid: int) -> list[bytes]:
    # The name may contain anything, so what follows its last parenthesis is split.
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, _PAGE).rpartition(b")")[2].split()
    finally:
        os.close(fd)


def wake(pid: int) -> None:
    """Continue a stopped process: it would not react to any other signal."""
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
    """Whether this process has children, of any of its threads, ended or not."""
    return syscalls.has_children(posix.WEXITED | posix.WNOHANG | posix.WNOWAIT | _WALL)


def own_children() -> list[int]:
    """The children of all threads of this process: one system call if there are none."""
    return children(os.getpid()) if has_children() else []


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


def descendants(pid: int) -> list[int]:
    """The children of ``pid``, theirs, and so on."""
    return _trees(children(pid))


def kill_all(tops: Collection[int]) -> set[int]:
    """Kill these processes and all their descendants. Returns the process ids.

    A process that has left the tree by a double fork is not found. One that this process may not
    send a signal goes on, and is not among those returned.
    """
    # They are stopped first, parents before children: a stopped process starts no new ones.
    seen: set[int] = set()
    while new := [pid for pid in _trees(tops) if pid not in seen]:
        seen.update(new)
        for pid in new:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP)
    refused = set()
    for pid in seen:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        except PermissionError:
            refused.add(pid)
    return seen - refused


def end(tops: Collection[int]) -> set[int]:
    """Kill processes with :func:`kill_all`, and wait until they have ended, at most 10 seconds.

    Until then they hold what others may want: ports, locks, and memory. Children of this process
    are reaped, if they have ended. Returns the process ids.
    """
    killed = kill_all(tops)
    until = deadline()
    # One that may not be killed is not waited for. It may have ended before.
    left = {pid for pid in {*tops, *killed} if not _is_gone(pid)} & killed
    while left and time.monotonic() < until:
        time.sleep(_INTERVAL)
        left = {pid for pid in left if not _is_gone(pid)}
    return killed


def end_children(besides: Collection[int]) -> None:
    """End the children of this process with :func:`end`, but for those of ``besides``.

    Where orphans become children of this process, what these leave is ended as well. A child that
    could not be ended is not tried again.
    """
    tried = set(besides)
    while children := [pid for pid in own_children() if pid not in tried]:
        end(children)
        tried.update(children)


def _is_gone(pid: int) -> bool:
    """Whether a process has ended. If it is a child of this one, it is reaped.

    One that another process traces can be reaped only when that one has let go of it, ptrace(2).
    """
    ended, zombie = has_ended(pid), state(pid) == b"Z"
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG | _WALL)[0] == pid or (ended and zombie)
    return ended


def _trees(tops: Collection[int]) -> list[int]:
    found: list[int] = []
    for top in tops:
        found += [top, *_trees(children(top))]
    return found
