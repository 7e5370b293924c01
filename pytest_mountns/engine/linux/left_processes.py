"""Finds the processes that somebody has left running, and names them for people."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Final

from . import processes
from .namespaces import privileged
from .untouched import os, signal, time

#: Helpers of multiprocessing and of libraries like it (loky, billiard). They end with the process
#: that they belong to, and nobody starts them on purpose.
_HELPER: Final = rb"(resource_tracker|semaphore_tracker|forkserver) import main"
#: How many processes are named: a test may have left thousands.
_MOST: Final = 50
#: How many characters of a command line are a name.
_LONGEST_NAME: Final = 60
#: Seconds between two looks.
_INTERVAL: Final = 0.01
#: Seconds that a process may take to begin a program.
_PATIENCE: Final = 0.2
_ENDING: Final = 1 << (signal.SIGTERM - 1) | 1 << (signal.SIGKILL - 1)


def names_of_running(tops: Collection[int], *, patience: float = 0) -> list[str]:
    """The names of those of the processes ``tops`` that still run, the first 50.

    A process that was told to end, and has not yet noticed, does not count. Helper processes of
    multiprocessing do not count either, but their children do. ``patience`` is how many seconds
    the others may take to end.
    """
    until = time.monotonic() + patience
    while (running := list(islice(_running(tops), _MOST))) and time.monotonic() < until:
        time.sleep(_INTERVAL)
    return [name_of(pid) for pid in running]


def _running(tops: Collection[int]) -> Iterator[int]:
    for pid in tops:
        if processes.has_ended(pid) or _is_ending(pid):
            continue
        if re.search(_HELPER, _command(pid)):
            yield from _running(processes.children(pid))
        else:
            yield pid


def _is_ending(pid: int) -> bool:
    """Whether it was sent SIGTERM or SIGKILL, and has not yet taken it."""
    pending = re.findall(rb"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)", _read(pid, "status"), re.MULTILINE)
    return any(int(mask, 16) & _ENDING for mask in pending)


def name_of(pid: int) -> str:
    """The command line of a process, without the directory of its program, cut where it is long.

    A copy of this process, as multiprocessing forks them, is called that.
    """
    command = _command(pid)
    if not command:
        return _read(pid, "comm").decode(errors="replace").strip() or f"process {pid}"
    if command == _read(os.getpid(), "cmdline"):
        return "a fork of the test's process"
    program, *arguments = command.rstrip(b"\0").decode(errors="replace").split("\0")
    name = " ".join(" ".join([os.path.basename(program), *arguments]).split())
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 3]}..."


def _command(pid: int) -> bytes:
    """Its command line; empty if it has none for good, as one that has ended."""
    until = time.monotonic() + _PATIENCE
    # The kernel shows none while it replaces the program, execve(2).
    while not (command := _read(pid, "cmdline")) and time.monotonic() < until:
        if processes.has_ended(pid):
            break
        time.sleep(_INTERVAL)
    return command


def in_same_mount_namespace() -> list[int]:
    """The other processes that are in the mount namespace of this one and are not its children.

    In a sandbox these are processes that have left the tree of the test by a double fork.
    """
    own = {os.getpid(), os.getppid(), *processes.descendants(os.getpid())}
    with _allowed_to_look():
        here = _mount_namespace(os.getpid())
        return [
            pid
            for pid in _all()
            if pid not in own and _mount_namespace(pid) == here and not _is_helper(pid)
        ]


def _is_helper(pid: int) -> bool:
    """Whether it is a process of this plugin, which ends with the test."""
    return _read(pid, "comm").rstrip(b"\n") == processes.HELPER_NAME


def orphans_in_sandboxes(variable: str, since: float) -> list[tuple[int, str]]:
    """Returns the processes that have left the tree of this process by a double fork.

    With each comes the value of an environment variable that it was started with; "" for one that
    has not been started as a program, but is a copy of this process. Only those are found that were
    made ``since`` (``CLOCK_BOOTTIME``), and that are in another mount namespace than this process
    and their new parent. Processes of other users may not be looked at.
    """
    with _allowed_to_look():
        return list(_orphans_in_sandboxes(variable, since))


def _orphans_in_sandboxes(variable: str, since: float) -> Iterator[tuple[int, str]]:
    here, command = _mount_namespace(os.getpid()), _read(os.getpid(), "cmdline")
    earliest = since * os.sysconf("SC_CLK_TCK")
    key = f"{variable}=".encode()
    own = set(processes.descendants(os.getpid()))
    for pid in _all():
        try:
            if pid in own or int(processes.born(pid)) < earliest or _is_helper(pid):
                continue
            there, parent = _mount_namespace(pid), processes.parent(pid)
        except OSError:
            continue
        if there is None or there in (here, _mount_namespace(parent)):
            continue
        if processes.has_ended(pid) or _is_ending(pid):
            continue
        if _read(pid, "cmdline") == command:
            # A copy of another process with the same command line has a living parent.
            if _read(parent, "cmdline") != command:
                yield pid, ""
            continue
        for entry in _read(pid, "environ").split(b"\0"):
            if entry.startswith(key):
                yield pid, entry[len(key) :].decode(errors="replace")


@contextmanager
def _allowed_to_look() -> Iterator[None]:
    """A context in which processes of the same user namespace may be looked at.

    Copies of this process have capabilities that it has dropped, ptrace(2), "Ptrace access mode
    checking". Raises :class:`SandboxError` if they cannot be taken back.
    """
    with privileged(os.geteuid() != 0):
        yield


def _all() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _mount_namespace(pid: int) -> int | None:
    """The number of the process's mount namespace; None if it may not be looked at, or is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return None


def _read(pid: int, name: str) -> bytes:
    try:
        fd = os.open(f"/proc/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 1 << 16)
    except OSError:
        return b""
    finally:
        os.close(fd)
