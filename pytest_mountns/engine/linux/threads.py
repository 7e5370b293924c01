"""Moves the other threads of this process to the mount namespace that this thread has moved to.

setns(2) moves the calling thread only. A thread that was there before, such as one of a pool, would
go on in the old root, and what it does for a test would not be isolated. So the other threads get a
signal whose handler moves them; ``move_threads.c`` has it, and how it is built is in
``hatch_build.py``.

Things that do not work, and so are not done here:

* Signals to threads that block them. Such threads are told apart by ``SigBlk`` in
  ``/proc/self/task/TID/status``, proc(5).
* pivot_root(2) in a mount namespace that all threads share: it would move other processes as well,
  such as servers that a fixture has started.
"""

from __future__ import annotations

import ctypes
import functools
from _thread import get_native_id
from collections.abc import Collection
from sys import _current_frames
from threading import enumerate as _python_threads
from typing import Final, NamedTuple, final

from . import syscalls
from .compiled import LIBRARY
from .errors import SandboxError, errno_name, said
from .untouched import open, os, posix, time

_MOVE: Final = "move all threads of this process to another root"
_TASKS: Final = "/proc/self/task"
#: The number of links of that directory if there is one thread.
_LINKS_OF_ONE: Final = 3

#: Threads with these names block all signals, and have nothing to do with files. The first is of
#: jemalloc (``background_thread.c``), and :data:`WATCHDOG` is ours.
WATCHDOG: Final = "mountns-watch"
_WITHOUT_FILES: Final = frozenset({"jemalloc_bg_thd", WATCHDOG})
#: How the names of ZeroMQ's threads begin (``ctx.cpp``), which block all signals as well. They send
#: and receive; the path of an ``ipc`` socket that they connect to leads to the host.
_OF_ZEROMQ: Final = "ZMQbg/"

#: A library that stops its threads before a fork and starts them anew, pthread_atfork(3).
OPENBLAS: Final = "OpenBLAS"

#: What the files of libraries that start threads are called, and the libraries' names.
_LIBRARIES: Final = {
    "openblas": OPENBLAS,
    "libgomp": "OpenMP (libgomp)",
    "libiomp": "OpenMP (libiomp)",
    "libomp": "OpenMP (libomp)",
    "libtbb": "TBB",
    "polars": "Polars",
    "libarrow": "Arrow",
    "duckdb": "DuckDB",
    "cygrpc": "gRPC",
    "lightgbm": "LightGBM",
    "libtorch": "PyTorch",
    "tensorflow": "TensorFlow",
}

#: Seconds in which a thread has to unblock the signal. New threads of the C library begin with all
#: signals blocked, for a moment.
_UNBLOCK_TIME: Final = 0.2
#: Seconds in which a thread has to handle the signal. A thread in uninterruptible sleep does not.
_MOVE_TIME: Final = 2.0
_PAUSE: Final = 0.001

#: In the place of a namespace: other requests of ``move_threads.c``.
_DROP_CAPABILITIES: Final = -1
_DIRECTORY_ONLY: Final = -2


class StuckThread(NamedTuple):
    """A thread that cannot move, or has not moved."""

    tid: int
    name: str
    #: Why it cannot, in words.
    why: str
    #: Whether it was started by Python.
    of_python: bool

    def describe(self) -> str:
        """One line for a message."""
        kind = "a Python thread" if self.of_python else "a thread of a native library"
        return f"{self.name} ({kind}, tid {self.tid}): {self.why}"


def is_alone() -> bool:
    """Whether this process has one thread.

    Without ``/proc`` and the right to call unshare(2), it is taken to have several.
    """
    if syscalls.is_single_threaded():
        return True
    try:
        return posix.stat(_TASKS).st_nlink == _LINKS_OF_ONE
    except OSError:
        return False


def other_threads() -> frozenset[int]:
    """The ids of the other threads. Raises :class:`SandboxError` without ``/proc``."""
    if is_alone():
        return frozenset()
    try:
        names = posix.listdir(_TASKS)
    except OSError as error:
        raise SandboxError(
            "look at the threads of this process", cause=f"{_TASKS}: {errno_name(error.errno or 0)}"
        ) from error
    return frozenset(map(int, names)) - {get_native_id()}


def stuck_threads() -> list[StuckThread]:
    """The other threads of this process that cannot be moved. Nothing is moved.

    Raises :class:`SandboxError` without ``/proc``.
    """
    return [] if is_alone() else _mover().look()


def move_other_threads(namespace: int, *, raise_capabilities: bool) -> list[StuckThread]:
    """Move all other threads to ``namespace``, and to the working directory of this thread.

    This thread is there already. ``raise_capabilities``: threads have the necessary capabilities,
    but not in effect (:func:`.namespaces.drop_user_capabilities`). Returns those that have not
    moved. Raises :class:`SandboxError` if the threads cannot be found.
    """
    return [] if is_alone() else _mover().move(namespace, raise_capabilities)


def python_threads(besides: Collection[int]) -> list[str]:
    """The names of the other threads that :mod:`threading` has started, but for ``besides``."""
    ignored = {get_native_id(), *besides}
    return [thread.name for thread in _python_threads() if thread.native_id not in ignored]


def native_threads() -> list[StuckThread]:
    """The other threads that Python has not started: those of native libraries.

    In a forked process they are missing, as all other threads are. Raises :class:`SandboxError`
    without ``/proc``.
    """
    others = other_threads()
    if not others:
        return []
    of_python = {thread.native_id for thread in _python_threads()}
    # Those that were started by the module _thread are not among these. Their number is known.
    unknown = others - of_python
    if len(unknown) <= len(_current_frames()) - len(of_python):
        return []
    found = []
    for tid in sorted(unknown):
        status = _status(tid)
        if status is not None and status.state not in "ZX" and status.name not in _WITHOUT_FILES:
            found.append(StuckThread(tid, status.name, "fork(2) leaves it behind", False))
    return found


def libraries_with_threads() -> list[str]:
    """The native libraries in this process that are known to start threads, as far as known.

    By the names of their files, in ``/proc/self/maps``.
    """
    try:
        with open("/proc/self/maps", "rb", buffering=0) as file:
            maps = b"".join(iter(lambda: file.read(1 << 16), b""))
    except OSError:
        return []
    return [name for file_name, name in _LIBRARIES.items() if file_name.encode() in maps]


def explain_stuck(threads: list[StuckThread]) -> SandboxError:
    """The error of a sandbox that cannot be entered because of these threads."""
    return SandboxError(
        _MOVE,
        cause="; ".join(thread.describe() for thread in threads),
        remedy="end these threads before the test, as a fixture of function scope does, or run the"
        ' test in a process of its own: process="fork"',
    )


@final
class ThreadsAfterFork(SandboxError):
    """A process that was just forked has several threads: a library has started them in it."""


def explain_forked_threads(error: SandboxError) -> SandboxError:
    """Why a process that was just forked could not make a user namespace, if threads are the cause.

    Returns ``error`` itself if the process has one thread. Only such a process can make a user
    namespace, and some libraries start threads anew in each forked process, pthread_atfork(3).
    """
    if is_alone():
        return error
    try:
        names = {status.name for tid in other_threads() if (status := _status(tid)) is not None}
    except SandboxError:
        names = set()
    return ThreadsAfterFork(
        error.tried,
        error.kernel,
        cause="a library has started threads in the forked process"
        f" ({', '.join(sorted(names)) or 'unknown'}), and only a process with one thread can enter"
        " a new user namespace, unshare(2). gRPC does so after each fork",
        remedy="run the tests inline: --mountns-process=auto; or GRPC_ENABLE_FORK_SUPPORT=0 in the"
        " environment, or run as root",
    )


def drop_capabilities_of_others() -> list[StuckThread]:
    """Drop the effective, inheritable and ambient capabilities of all other threads.

    They stay permitted. Returns the threads that have not done it. Raises :class:`SandboxError` if
    the threads cannot be found.
    """
    return [] if is_alone() else _mover().move(_DROP_CAPABILITIES, False)


def move_others_to_directory() -> list[StuckThread]:
    """Have all other threads change to the working directory of this thread.

    They share it no longer, once they were in another mount namespace. Returns those that have not
    done it. Raises :class:`SandboxError` if the threads cannot be found.
    """
    return [] if is_alone() else _mover().move(_DIRECTORY_ONLY, False)


class _Status(NamedTuple):
    name: str
    state: str
    blocked: int


@final
class _Mover:
    """Moves threads. There is one in a process, as the handler of a signal is the process's."""

    def __init__(self, library: ctypes.PyDLL | None) -> None:
        self._library = library
        self._signal = 0
        #: Threads that have been moved before and so do not block the signal.
        self._known: set[int] = set()
        #: Threads that have not handled the signal in time. One that waits for all signals in
        #: sigwait(3) does not block it, by its status, and takes it itself.
        self._deaf: set[int] = set()

    def look(self) -> list[StuckThread]:
        """The threads that cannot be moved."""
        self._prepare()
        deadline = time.monotonic() + _UNBLOCK_TIME
        while True:
            try:
                stuck = self._sort(other_threads() - self._known)[1]
            except OSError as error:
                raise SandboxError("look at the threads of this process", said(error)) from error
            if not stuck or self._library is None or time.monotonic() > deadline:
                return stuck
            if self._deaf >= {one.tid for one in stuck}:
                return stuck
            time.sleep(_PAUSE)

    def move(self, namespace: int, raise_capabilities: bool) -> list[StuckThread]:
        """See :func:`move_other_threads`."""
        if self._library is None:
            return self._sort(other_threads())[1]
        self._prepare()
        directory = -1
        try:
            directory = posix.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            return self._move_all(namespace, directory, raise_capabilities)
        except OSError as error:
            raise SandboxError(_MOVE, said(error)) from error
        finally:
            if directory >= 0:
                posix.close(directory)

    def _prepare(self) -> None:
        # A test may have set a handler of its own for the signal of before.
        if self._library is not None:
            self._signal = self._library.mountns_prepare(self._signal)
            if self._signal < 0:
                raise SandboxError(
                    "find a signal to move threads by",
                    cause=f"all real-time signals are handled by others"
                    f" ({errno_name(-self._signal)})",
                    remedy='process="fork"',
                )

    def _move_all(
        self, namespace: int, directory: int, raise_capabilities: bool
    ) -> list[StuckThread]:
        # A directory is not worth waiting for.
        patience = 0 if namespace == _DIRECTORY_ONLY else _UNBLOCK_TIME
        moved: set[int] = set()
        failed: list[StuckThread] = []
        began = time.monotonic()
        first_stuck: dict[int, float] = {}
        here = other_threads()
        while True:
            known = here & self._known - moved
            movable, stuck = self._sort(here - known - moved)
            movable += known
            for tid, error in self._call(movable, namespace, directory, raise_capabilities):
                moved.add(tid)
                if error == 0:
                    self._known.add(tid)
                elif error != "ESRCH":
                    self._known.discard(tid)
                    self._deaf.add(tid)
                    failed.append(_stuck(tid, f"it has not moved: {error}"))
            # A thread may have started another one before it moved. And a listing ends early if
            # the thread at which it is ends meanwhile. So there have to be as many threads as were
            # listed, all of which live longer than the moment when they were counted.
            links = posix.stat(_TASKS).st_nlink
            now = other_threads()
            clock = time.monotonic()
            first_stuck = {one.tid: first_stuck.get(one.tid, clock) for one in stuck}
            if now >= here and links == len(here) + _LINKS_OF_ONE:
                if all(clock - since >= patience for since in first_stuck.values()):
                    # Threads that have ended leave their numbers to others.
                    self._known &= moved
                    return [*failed, *stuck]
                time.sleep(_PAUSE)
            elif clock - began > _MOVE_TIME:
                raise SandboxError(
                    _MOVE,
                    cause="threads start and end faster than they are found",
                    remedy='process="fork"',
                )
            here = now

    def _call(
        self, threads: list[int], namespace: int, directory: int, raise_capabilities: bool
    ) -> list[tuple[int, str | int]]:
        if not threads:
            return []
        assert self._library is not None
        numbers = ctypes.c_int * len(threads)
        results = numbers()
        error = self._library.mountns_move(
            self._signal,
            numbers(*threads),
            results,
            len(threads),
            namespace,
            directory,
            raise_capabilities,
            int(1000 * _MOVE_TIME),
        )
        found: list[int] = [error] * len(threads) if error else list(results)
        return [
            (tid, number and errno_name(number)) for tid, number in zip(threads, found, strict=True)
        ]

    def _sort(self, threads: frozenset[int]) -> tuple[list[int], list[StuckThread]]:
        """Which of these can be moved, and which cannot. Others need not be moved."""
        movable, stuck = [], []
        self._deaf &= other_threads() if self._deaf else set()
        for tid in threads:
            status = _status(tid)
            if status is None or status.state in "ZX" or status.name in _WITHOUT_FILES:
                continue
            if status.name.startswith(_OF_ZEROMQ):
                continue
            if self._library is None:
                stuck.append(_stuck(tid, "this installation lacks the part that moves threads"))
            elif tid in self._deaf:
                stuck.append(_stuck(tid, "it did not handle the signal that would move it"))
            elif status.blocked >> (self._signal - 1) & 1:
                stuck.append(_stuck(tid, "it blocks the signal that would move it"))
            else:
                movable.append(tid)
        return movable, stuck


def _status(tid: int) -> _Status | None:
    try:
        with open(f"{_TASKS}/{tid}/status", "rb", buffering=0) as file:
            lines = file.read(8192).split(b"\n")
    except (FileNotFoundError, ProcessLookupError):
        # It has ended.
        return None
    fields = dict(line.split(b":\t", 1) for line in lines if b":\t" in line)
    name, state = os.fsdecode(fields[b"Name"]), os.fsdecode(fields[b"State"])[0]
    return _Status(name, state, int(fields[b"SigBlk"], 16))


def _stuck(tid: int, why: str) -> StuckThread:
    for thread in _python_threads():
        if thread.native_id == tid:
            return StuckThread(tid, thread.name, why, True)
    status = _status(tid)
    return StuckThread(tid, status.name if status else "?", why, False)


@functools.cache
def _mover() -> _Mover:
    try:
        # It holds the global interpreter lock, so that no Python code runs half-way.
        library = ctypes.PyDLL(str(LIBRARY))
    except OSError:
        return _Mover(None)
    return _Mover(library)
