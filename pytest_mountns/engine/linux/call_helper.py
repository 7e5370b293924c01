"""Performs a list of system calls in a helper process, while this process does something else.

The compiled library starts a helper that shares the memory of this process, see ``helper.h`` and
``perform_calls.c``. It has mount namespaces, a working directory and descriptors of its own. What
it opens comes over a socket, and is in no process's table of descriptors until it is received.

The helper is not a child of this process, since tests may wait for all children. It ends when this
process does, however that comes.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
from collections.abc import Iterator, Sequence
from typing import Final, final

from . import syscalls as sys
from .call_list import CallList, Result
from .compiled import library
from .errors import SandboxError
from .namespaces import privileged, signals_held
from .open_directories import pair
from .sockets import socket
from .untouched import os, posix, select, signal, struct

#: As in ``perform_calls.c``: address of the calls, how many, registers, descriptors that are given,
#: descriptors that are returned, and their registers.
_REQUEST: Final = struct.Struct("=9q")
_RESULTS: Final = 4
_ARE_YOU_DONE: Final = b"?"
#: Milliseconds to wait for an answer. A list takes less than one.
_PATIENCE: Final = 2000
#: After so many lists it is known whether the helper is worth it.
_TRIALS: Final = 16


@final
class CallHelper:
    """A helper of this process. It performs one list at a time.

    It has the user and group that this process had when it was first asked. ``dropped``: this
    process has capabilities that are not in effect. The helper has them in effect.
    """

    def __init__(self, *, dropped: bool) -> None:
        self._dropped = dropped
        self._socket: socket.socket | None = None
        self._owner = os.getpid()
        #: What the helper reads.
        self._list: CallList | None = None
        #: How many descriptors are to come.
        self._expected = 0
        #: What its end of the channel is known by, and its process id.
        self._inode = self._pid = 0
        #: Its effective user and group.
        self._user = -1, -1
        #: Whether it is gone, or cannot be started.
        self._failed = False
        #: How many lists it has performed, and how many of them were waited for.
        self._done = self._late = 0

    @property
    def is_busy(self) -> bool:
        """Whether an answer is to be received."""
        return self._list is not None and not self._failed and self._owner == os.getpid()

    @property
    def is_worth_it(self) -> bool:
        """Whether a list is usually done when it is asked for: whether a processor is idle."""
        return self._done < _TRIALS or self._late * 2 < self._done

    def begin(self, calls: CallList, stage: int, results: Sequence[Result]) -> bool:
        """Have the helper perform a list in the mount namespace ``stage``. Returns whether it does.

        ``results`` are what is to be returned, four descriptors at most; they are all that the list
        leaves open. The list is not to be changed until :meth:`end` has returned.
        """
        if self._failed or self._list is not None or self._owner != os.getpid():
            return False
        if self._socket is None and not self._start():
            return False
        if self._user != (os.geteuid(), os.getegid()):
            return False
        registers = [one.register for one in results]
        registers += [0] * (_RESULTS - len(registers))
        request = _REQUEST.pack(*calls.at(), len(calls.given), len(results), *registers)
        rights = array.array("i", [stage, *calls.given])
        # A handler that raises between the request and its answer would mix up the answers.
        with signals_held(), self._or_give_up():
            self._list, self._expected = calls, len(results)
            channel = self._known_socket()
            channel.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        return not self._failed

    def end(self) -> list[int] | None:
        """Wait for the list. Returns the results; None if a call has failed or the helper is gone.

        It waits for two seconds at most, and then the helper is ended.
        """
        if not self.is_busy:
            return None
        data, received = b"", []
        with self._or_give_up():
            self._wait()
            with signals_held():
                room, flags = socket.CMSG_SPACE(4 * _RESULTS), socket.MSG_CMSG_CLOEXEC
                data, messages, _, _ = self._known_socket().recvmsg(1, room, flags)
                received = [fd for _, _, content in messages for fd in array.array("i", content)]
                if data:
                    self._list = None
        if not data:
            self._give_up()
        elif len(received) == self._expected and data == b"+":
            return received
        # There are fewer where this process may open no more files.
        for fd in received:
            os.close(fd)
        return None

    def _wait(self) -> None:
        """Raises :class:`TimeoutError` if there is no answer in time."""
        poll = select.poll()
        poll.register(self._known_socket(), select.POLLIN)
        self._done += 1
        if not poll.poll(0):
            self._late += 1
            if not poll.poll(_PATIENCE):
                # It has a sandbox, or what is below, in use.
                with contextlib.suppress(OSError):
                    os.kill(self._pid, signal.SIGKILL)
                raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

    def finish(self) -> None:
        """Wait until the helper has nothing of the host's mounts in use. Nothing is to be received.

        It waits for two seconds at most, and then the helper is ended.
        """
        if self._socket is None or self._failed or self.is_busy or self._owner != os.getpid():
            return
        with self._or_give_up():
            self._known_socket().send(_ARE_YOU_DONE)
            self._wait()
            self._known_socket().recv(1)

    def _known_socket(self) -> socket.socket:
        """The channel. Raises :class:`OSError` if its number stands for something else by now."""
        if self._socket is None or not self._is_own(self._socket):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._socket

    def _is_own(self, channel: socket.socket) -> bool:
        """Whether the number still stands for the channel: a test may have closed it."""
        try:
            return posix.fstat(channel.fileno()).st_ino == self._inode
        except OSError:
            return False

    def _start(self) -> bool:
        self._failed = True
        compiled = library()
        # It would be a child of such a process, and tests may wait for all children.
        if compiled is None or sys.adopts_orphans():
            return False
        try:
            ours, theirs = pair()
        except OSError:
            return False
        try:
            watched = os.pidfd_open(self._owner)
            try:
                with privileged(self._dropped):
                    started = compiled.mountns_start_performer(theirs.fileno(), watched)
            finally:
                os.close(watched)
        except (OSError, SandboxError):
            # The first is for kernels before Linux 5.3.
            started = 0
        finally:
            theirs.close()
        if started <= 0:
            ours.close()
            return False
        self._socket, self._pid, self._failed = ours, started, False
        self._inode = posix.fstat(ours.fileno()).st_ino
        self._user = os.geteuid(), os.getegid()
        return True

    @contextlib.contextmanager
    def _or_give_up(self) -> Iterator[None]:
        """A context after which the helper is not used any more, if it ends by an exception.

        What a handler of a signal has raised goes on. A failure of a call does not.
        """
        try:
            yield
        except BaseException as error:
            self._give_up()
            # TimeoutError, which handlers raise, is an OSError; it has no errno then.
            if not isinstance(error, OSError) or error.errno is None:
                raise

    def _give_up(self) -> None:
        """Use the helper no more: it was killed, does not answer, or its channel is closed."""
        channel, self._socket, self._failed = self._socket, None, True
        if channel is not None:
            if self._is_own(channel):
                channel.close()
            else:
                # The number may be that of another descriptor by now.
                channel.detach()
        if self._list is not None:
            # It may still be read, so its memory is never free.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._list))
            self._list = None

    def close(self) -> None:
        """Have the helper end. Nothing is to be received."""
        self._give_up()
