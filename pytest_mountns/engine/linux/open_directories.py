"""Open directories: through one of the old root, a test would get out of the new one.

fchdir(2) and ``/proc/self/fd`` lead there. So on the way in each is opened again in the new root,
under its own number. A process that returns home later keeps the old ones meanwhile where no path
leads: in flight, in the buffer of a socket to itself.
"""

from __future__ import annotations

import array
import contextlib
import errno
import stat
from collections.abc import Collection, Iterator, Sequence
from typing import Final, TypeAlias, final

from .errors import SandboxError
from .namespaces import explained, high
from .untouched import _socket, fcntl, os, posix, socket

#: A descriptor of a directory, and the path that it is open at.
Opened: TypeAlias = "tuple[int, str]"

_MOST: Final = 250


def open_directories(besides: Collection[int]) -> list[Opened]:
    """The open directories of this process, but for ``besides``. Needs ``/proc``.

    Raises :class:`SandboxError`.
    """
    with explained("look at the open directories of this process", False):
        return list(_open_directories(besides))


def _open_directories(besides: Collection[int]) -> Iterator[Opened]:
    for name in posix.listdir("/proc/self/fd"):
        fd = int(name)
        if fd in besides:
            continue
        try:
            if stat.S_ISDIR(posix.fstat(fd).st_mode):
                yield fd, posix.readlink(f"/proc/self/fd/{name}")
        except OSError as error:
            # The descriptor of the listing itself, closed by now. Any other may lead out.
            if error.errno not in (errno.EBADF, errno.ENOENT):
                raise


def reopen(directories: Sequence[Opened]) -> None:
    """Have each descriptor stand for what is at its path now, or for ``/``."""
    for fd, path in directories:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_PATH | os.O_DIRECTORY)
        inheritable = posix.get_inheritable(fd)
        try:
            fresh = posix.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            # Nothing stands there in the sandbox: no way out is better than the old one.
            fresh = posix.open("/", flags | os.O_DIRECTORY | os.O_CLOEXEC)
        posix.dup2(fresh, fd, inheritable=inheritable)
        posix.close(fresh)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, also in a suite that forbids them: what it replaces is not used."""
    first, second = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return socket.socket(fileno=high(first.detach())), socket.socket(fileno=high(second.detach()))


@final
class ParkedDescriptors:
    """Holds descriptors of a process out of its own reach, unix(7) ``SCM_RIGHTS``.

    What is in flight has no number and no entry in ``/proc/self/fd``. One load at a time.
    """

    def __init__(self) -> None:
        self._sender, self._receiver = pair()

    @property
    def descriptors(self) -> tuple[int, int]:
        """Its own."""
        return self._sender.fileno(), self._receiver.fileno()

    def leave(self, descriptors: Sequence[int]) -> None:
        """Take copies; the caller closes or replaces its own. Raises :class:`SandboxError`."""
        if len(descriptors) > _MOST:
            raise SandboxError(
                "keep the open directories of this process",
                cause=f"there are {len(descriptors)}; at most {_MOST} can be kept",
                remedy='process="fork"',
            )
        # Of a visit that was interrupted when it began.
        self.clear()
        rights = array.array("i", descriptors)
        self._sender.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])

    def collect(self) -> list[int]:
        """New descriptors of what was left, in the same order; it stays there, too.

        Raises :class:`OSError`.
        """
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT | socket.MSG_PEEK
        _, messages, _, _ = self._receiver.recvmsg(1, socket.CMSG_SPACE(4 * _MOST), flags)
        return [fd for _, _, data in messages for fd in array.array("i", data)]

    def clear(self) -> None:
        """Drop what was left, if anything was."""
        with contextlib.suppress(BlockingIOError):
            self._receiver.recv(1, socket.MSG_DONTWAIT)

    def close(self) -> None:
        """Drop what is in there, too."""
        self._sender.close()
        self._receiver.close()
