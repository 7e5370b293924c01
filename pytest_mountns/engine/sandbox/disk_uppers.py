"""Uppers on disk: directories that must not outlive the session, SIGKILL included."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, final

from ..linux import syscalls
from ..linux.errno_advice import explain
from ..linux.errors import Unavailable, said
from ..linux.mountinfo import owning, read, visible
from ..linux.processes import born, fork, reap, withdraw
from ..linux.remove_tree import remove_tree


@final
class DiskUppers:
    """One directory on disk for all uppers of a session, and a process that guards it.

    The guard waits for this process to end, however it ends, and removes what is left.
    """

    def __init__(self) -> None:
        self._base: str | None = None
        self._guard: Guard | None = None

    def new(self) -> str:
        """A new empty directory. Raises :class:`Unavailable` if none can be made."""
        if self._base is None:
            base = os.path.join(_place(), f"mountns-uppers-{secrets.token_hex(8)}")
            with _explained(f"guard the directory {base} for uppers on disk"):
                # The guard first: there is no moment in which the directory is unguarded.
                self._guard = Guard(base)
            self._base = base
            try:
                with _explained(f"make the directory {base} for uppers on disk"):
                    os.mkdir(base, 0o700)
            except Unavailable:
                self.close()
                raise
        with _explained(f"make a directory for an upper in {self._base}"):
            return tempfile.mkdtemp(dir=self._base)

    def close(self) -> None:
        """Remove everything, end the guard."""
        if self._base is not None:
            remove(self._base)
            self._base = None
        if self._guard is not None:
            self._guard.end()
            self._guard = None


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause, remedy = explain(error.errno or 0, False, "disk")
        raise Unavailable(what, said(error), cause, remedy) from error


def _place() -> str:
    """Where uppers can lie, an absolute path. Raises :class:`Unavailable`."""
    with _explained("look for a place for uppers on disk"):
        mounts = visible(read())
    for parent in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp"):
        if parent and os.access(parent, os.W_OK | os.X_OK):
            mount = owning(mounts, os.path.realpath(parent))
            # An upper may not lie on an overlay, as all of a container's own root does.
            if mount is None or mount.fstype != "overlay":
                return os.path.abspath(parent)
    raise Unavailable(
        "no directory for an upper on disk",
        cause="TMPDIR, /var/tmp and /tmp cannot be written, or lie on an overlay themselves,"
        " as in a container",
        remedy="export TMPDIR=/some/disk (in a container: a volume)",
    )


def remove(directory: str) -> None:
    """Remove a directory of uppers; overlays leave ``work/work`` there with mode 000.

    Never raises. What cannot be removed now is left to the guard.
    """
    # A dying test process may still write there.
    for _ in range(50):
        if _removed(directory):
            return
        time.sleep(0.1)


def _removed(directory: str) -> bool:
    with contextlib.suppress(OSError):
        remove_tree(directory)
    return not os.path.lexists(directory)


@final
class Guard:
    """A process that removes ``base`` when this one has ended, and until then does nothing.

    No child of this one, whose tests and fixtures may wait for all children; where a process cannot
    be known but as a child, before Linux 5.3, it is one. Raises :class:`OSError`.
    """

    def __init__(self, base: str) -> None:
        self.child = True
        try:
            watched = os.pidfd_open(os.getpid())
        except OSError:
            self.pid = _start_as_child(base)
            return
        try:
            self.child, self.pid = False, _start_as_grandchild(base, watched)
        finally:
            os.close(watched)
        # No descriptor of it: test processes would inherit that.
        self._born = born(self.pid)

    def end(self) -> None:
        """Without removing anything. It may have been killed before."""
        with contextlib.suppress(OSError):
            if self.child:
                os.kill(self.pid, signal.SIGKILL)
            else:
                self._kill()
        if self.child:
            reap(self.pid)

    def _kill(self) -> None:
        process = os.pidfd_open(self.pid)
        try:
            # Its number may have become another process's.
            if born(self.pid) == self._born:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                _await(process)
        finally:
            os.close(process)


def _await(process: int) -> None:
    # Not select(2), which knows no descriptors above 1023.
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll()


def _start_as_child(base: str) -> int:
    parent = os.getpid()
    guard = fork()
    if guard == 0:

        def wait() -> None:
            while os.getppid() == parent:
                time.sleep(0.5)

        _stand_guard(base, wait, ())
    _out_of_group(guard)
    return guard


def _start_as_grandchild(base: str, watched: int) -> int:
    reader, writer = os.pipe()
    try:
        child = fork()
        if child == 0:
            _start_and_report(base, watched, writer)
    finally:
        os.close(writer)
    with open(reader) as file:
        said = file.read()
    reap(child)
    if not said.isdecimal():
        number = int(said or -errno.ECHILD)
        raise OSError(-number, os.strerror(-number))
    return int(said)


def _start_and_report(base: str, watched: int, writer: int) -> NoReturn:
    try:
        syscalls.block_all_signals()
        try:
            guard = os.fork()
            if guard == 0:
                _stand_guard(base, lambda: _await(watched), (watched,))
            _out_of_group(guard)
        except OSError as error:
            guard = -(error.errno or errno.EAGAIN)
        os.write(writer, str(guard).encode())
    finally:
        syscalls.exit_now(0)


def _out_of_group(guard: int) -> None:
    # Not of pytest's process group: whoever kills that would kill the guard too.
    os.setpgid(guard, guard)


def _stand_guard(base: str, wait: Callable[[], object], kept: Sequence[int]) -> NoReturn:
    try:
        withdraw(kept)
        wait()
        remove(base)
    finally:
        syscalls.exit_now(0)
