"""Open directories of the old root, through which a test would get out of the new one.

fchdir(2) and ``/proc/self/fd`` lead there. So when a process enters a sandbox, each open directory
is opened again in the new root, under its own number. A process that returns to the host later
parks the old descriptors where no path leads to: in the buffer of a socket to itself.
"""

from __future__ import annotations

import array
import ctypes
import errno
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, final

from .compiled import library
from .errors import SandboxError
from .namespaces import FD_FLOOR, explained, go, high
from .sockets import _socket, socket
from .untouched import fcntl, os, posix

#: A descriptor of a directory, and the path that it is open at.
Opened: TypeAlias = "tuple[int, str]"

_MOST: Final = 250
#: How many the compiled function has room for.
_MOST_FOUND: Final = 512


def open_directories(besides: Collection[int]) -> list[Opened]:
    """The open directories of this process, except for those in ``besides``. Needs ``/proc``.

    Raises :class:`SandboxError` if they cannot be listed.
    """
    with explained("look at the open directories of this process", False):
        return list(_open_directories(besides))


def _open_directories(besides: Collection[int]) -> Iterator[Opened]:
    for fd in _find_directories():
        if fd in besides:
            continue
        try:
            yield fd, posix.readlink(f"/proc/self/fd/{fd}")
        except OSError as error:
            # Another thread has closed it. Any other one may lead out.
            if error.errno != errno.ENOENT:
                raise


def _find_directories() -> Iterable[int]:
    if (compiled := library()) is not None:
        found = (ctypes.c_int * _MOST_FOUND)()
        count = compiled.mountns_find_directories(found, _MOST_FOUND, FD_FLOOR)
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        if count <= _MOST_FOUND:
            return found[:count]
    return _find_directories_step_by_step()


def _find_directories_step_by_step() -> Iterator[int]:
    for name in posix.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if stat.S_ISDIR(posix.fstat(fd).st_mode):
                yield fd
        except OSError as error:
            # The descriptor of the listing itself is closed by now.
            if error.errno != errno.EBADF:
                raise


def reopen(directories: Sequence[Opened]) -> None:
    """Open each directory again at its path, in the root of now, under the same number.

    A descriptor whose path does not exist there leads to ``/``.
    """
    for fd, path in directories:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_PATH | os.O_DIRECTORY)
        inheritable = posix.get_inheritable(fd)
        try:
            fresh = posix.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            # It does not exist in the sandbox, and the old one must not stay open.
            fresh = posix.open("/", flags | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            posix.dup2(fresh, fd, inheritable=inheritable)
        finally:
            posix.close(fresh)


def is_open(fd: int, inside: os.stat_result) -> bool:
    """Whether the number still stands for the directory that it stood for when it was reopened."""
    try:
        return os.path.samestat(posix.fstat(fd), inside)
    except OSError:
        return False


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets, whose descriptors are out of the way of the test's."""
    first, second = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return socket.socket(fileno=high(first.detach())), socket.socket(fileno=high(second.detach()))


@final
class ParkedDescriptors:
    """Keeps descriptors of a process out of its own reach.

    They are sent over a socket and not received (unix(7), ``SCM_RIGHTS``). Meanwhile they have no
    number and no entry in ``/proc/self/fd``.
    """

    def __init__(self) -> None:
        self._sender, self._receiver = pair()
        self._is_empty = True
        #: What the compiled library is given and returns.
        self._numbers = (ctypes.c_int * (1 + _MOST))()

    @property
    def descriptors(self) -> tuple[int, int]:
        """The descriptors of the socket itself."""
        return self._sender.fileno(), self._receiver.fileno()

    def leave(self, descriptors: Sequence[int]) -> None:
        """Park the working directory and copies of ``descriptors``, in place of what was parked.

        The caller closes or replaces its own. Raises :class:`SandboxError` if they are too many,
        and :class:`OSError` if too many files are open.
        """
        if len(descriptors) > _MOST:
            raise SandboxError(
                "keep the open directories of this process",
                cause=f"there are {len(descriptors)}, and at most {_MOST} can be kept",
                remedy='process="fork"',
            )
        if not self._is_empty:
            # A signal handler has interrupted the way into a sandbox.
            self.clear()
        self._is_empty = False
        compiled, numbers, count = library(), self._numbers, len(descriptors)
        if compiled is not None:
            numbers[1 : 1 + count] = [*descriptors]
            if compiled.mountns_park(self._sender.fileno(), ctypes.addressof(numbers), count) == 0:
                return
        here = posix.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            rights = array.array("i", [here, *descriptors])
            self._sender.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            posix.close(here)

    def go_back(self, namespace: int) -> list[int]:
        """Go to a mount namespace, and to the working directory that is parked.

        Returns new descriptors of what is parked, the working directory first. It stays parked as
        well. Raises :class:`OSError` if the kernel refuses, or if too many files are open. This may
        be tried again then.
        """
        compiled, numbers = library(), self._numbers
        if compiled is not None:
            receiver = self._receiver.fileno()
            count = compiled.mountns_return(namespace, receiver, ctypes.addressof(numbers))
            if count > 0:
                return numbers[:count]
        go(namespace)
        collected = self.collect()
        try:
            posix.fchdir(collected[0])
        except BaseException:
            for fd in collected:
                posix.close(fd)
            raise
        return collected

    def collect(self) -> list[int]:
        """New descriptors of what is parked, as :meth:`go_back` returns them.

        Raises :class:`OSError` if this process may not open so many files.
        """
        flags = socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT | socket.MSG_PEEK
        _, messages, found, _ = self._receiver.recvmsg(1, socket.CMSG_SPACE(4 * (1 + _MOST)), flags)
        descriptors = [fd for _, _, data in messages for fd in array.array("i", data)]
        if found & socket.MSG_CTRUNC:
            # Only as many came as there was room for, recvmsg(2).
            for fd in descriptors:
                posix.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return descriptors

    def clear(self) -> None:
        """Drop what is parked, if anything is."""
        try:
            self._receiver.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            pass
        self._is_empty = True

    def close(self) -> None:
        """Close the socket, and drop what is parked."""
        self._sender.close()
        self._receiver.close()
