"""The guard of uppers on disk, which removes them when the pytest process has ended.

Hardly any session has uppers on disk, so this is loaded with the first of them.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Sequence
from typing import NoReturn, final

from ..linux import syscalls
from ..linux.errors import Unavailable
from ..linux.helper_process import channel, receive_answer, send_answer
from ..linux.mountinfo import owning, read, visible
from ..linux.processes import ENDS_WITHIN, born, fork, reap, reap_soon, withdraw
from ..linux.remove_tree import remove_tree
from ..linux.sockets import socket
from ..linux.untouched import os, select, signal, time


def find_place() -> str:
    """The absolute path of a directory in which uppers can lie.

    Raises :class:`Unavailable` if there is none, and :class:`OSError`.
    """
    mounts = visible(read())
    for parent in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp"):
        if parent and os.access(parent, os.W_OK | os.X_OK):
            mount = owning(mounts, os.path.realpath(parent))
            # An upper may not lie on an overlay, Documentation/filesystems/overlayfs.rst. The root
            # of a container usually is one.
            if mount is None or mount.fstype != "overlay":
                return os.path.abspath(parent)
    raise Unavailable(
        "no directory for an upper on disk",
        cause="TMPDIR, /var/tmp and /tmp cannot be written, or lie on an overlay themselves,"
        " as in a container",
        remedy="export TMPDIR=/some/disk (in a container: a volume)",
    )


def remove(directory: str) -> None:
    """Remove a directory of uppers, in which overlays leave ``work/work`` with mode 000.

    Never raises an error. What cannot be removed now is removed by the guard.
    """
    # A test process that is about to end may still write there.
    for _ in range(50):
        if _is_removed(directory):
            return
        time.sleep(0.1)


def _is_removed(directory: str) -> bool:
    with contextlib.suppress(OSError):
        remove_tree(directory)
    try:
        os.lstat(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


@final
class Guard:
    """A process that removes the directory ``base`` when this process has ended.

    It is no child of this process, whose tests and fixtures may wait for all children. Before Linux
    5.3, which has no pidfd_open(2), a process can be known safely only as a child, and it is one.
    Raises :class:`OSError` if it cannot be started.
    """

    def __init__(self, base: str) -> None:
        #: Whether it is a child of this process.
        self.child = True
        try:
            watched = os.pidfd_open(os.getpid())
        except OSError:
            #: Its process id.
            self.pid = _start_as_child(base)
            return
        try:
            self.child, self.pid = False, _start_as_grandchild(base, watched)
        finally:
            os.close(watched)
        # A pidfd is not held: test processes would inherit it.
        self._born = born(self.pid)

    def end(self) -> None:
        """End the process without removing anything. It may have been killed before."""
        with contextlib.suppress(OSError):
            if self.child:
                os.kill(self.pid, signal.SIGKILL)
            else:
                self._kill()
        if self.child:
            reap_soon(self.pid)

    def _kill(self) -> None:
        process = os.pidfd_open(self.pid)
        try:
            # Its process id may be another process's by now.
            if born(self.pid) == self._born:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                # The kernel may hold it.
                _wait_for_end(process, ENDS_WITHIN)
        finally:
            os.close(process)


def _wait_for_end(process: int, seconds: float | None = None) -> None:
    """Wait until a process has ended, pidfd_open(2), for any time if ``seconds`` is None."""
    # Not with select(2), which knows no descriptors above 1023.
    poll = select.poll()
    poll.register(process, select.POLLIN)
    poll.poll(None if seconds is None else seconds * 1000)


def _start_as_child(base: str) -> int:
    parent = os.getpid()
    guard = fork()
    if guard == 0:

        def wait() -> None:
            while os.getppid() == parent:
                time.sleep(0.5)

        _run_guard(base, wait, ())
    _give_process_group(guard)
    return guard


def _start_as_grandchild(base: str, watched: int) -> int:
    """``watched`` is a pidfd of the process whose end the guard waits for."""
    receiver, sender = channel()
    try:
        child = fork()
        if child == 0:
            _start_and_report(base, watched, sender)
    except OSError:
        receiver.close()
        raise
    finally:
        sender.close()
    with receiver:
        answer = receive_answer(receiver).content
    reap(child)
    if isinstance(answer, int):
        return answer
    raise answer or OSError(errno.ECHILD, os.strerror(errno.ECHILD))


def _start_and_report(base: str, watched: int, sender: socket.socket) -> NoReturn:
    """In the child: fork the guard, and answer with its process id or an :class:`OSError`."""
    try:
        syscalls.block_all_signals()
        try:
            guard = os.fork()
            if guard == 0:
                _run_guard(base, lambda: _wait_for_end(watched), (watched,))
            _give_process_group(guard)
        except OSError as error:
            send_answer(sender, error)
        else:
            send_answer(sender, guard)
    finally:
        syscalls.exit_now(0)


def _give_process_group(guard: int) -> None:
    # Who kills pytest's process group, as a terminal or timeout(1) does, must not kill the guard.
    os.setpgid(guard, guard)


def _run_guard(base: str, wait: Callable[[], object], descriptors: Sequence[int]) -> NoReturn:
    """In the guard, which needs only these descriptors."""
    try:
        withdraw(descriptors)
        wait()
        remove(base)
    finally:
        syscalls.exit_now(0)
