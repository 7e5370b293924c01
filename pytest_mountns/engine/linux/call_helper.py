"""Performs a list of system calls in a helper process, while this process does something else.

The compiled library starts a helper that shares the memory of this process, see ``helper.h`` and
``perform_calls.c``. It has mount namespaces, a working directory and descriptors of its own. What
it opens comes over a socket, and is in no process's table of descriptors until it is received.

The helper is not a child of this process, since tests may wait for all children. It ends when this
process does, however that comes.
"""

from __future__ import annotations

import array
import ctypes
import errno
from collections.abc import Sequence
from typing import Final, final

from .call_list import CallList, Result
from .compiled import library
from .errors import SandboxError
from .namespaces import privileged
from .open_directories import pair
from .sockets import socket
from .untouched import os, select, struct

#: As in ``perform_calls.c``: address of the calls, how many, registers, descriptors that are given,
#: descriptors that are returned, and their registers.
_REQUEST: Final = struct.Struct("=9q")
_RESULTS: Final = 4
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
        if self._socket is None or self._user != (os.geteuid(), os.getegid()):
            return False
        registers = [one.register for one in results]
        registers += [0] * (_RESULTS - len(registers))
        request = _REQUEST.pack(*calls.at(), len(calls.given), len(results), *registers)
        rights = array.array("i", [stage, *calls.given])
        try:
            self._socket.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError as error:
            self._give_up(error)
            return False
        self._list, self._expected = calls, len(results)
        return True

    def end(self) -> list[int] | None:
        """Wait for the list. Returns the results; None if a call has failed or the helper is gone.

        It waits for two seconds at most, and then the helper is given up.
        """
        if not self.is_busy or self._socket is None:
            return None
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            self._done += 1
            if not poll.poll(0):
                self._late += 1
                if not poll.poll(_PATIENCE):
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            room, flags = socket.CMSG_SPACE(4 * _RESULTS), socket.MSG_CMSG_CLOEXEC
            data, messages, _, _ = self._socket.recvmsg(1, room, flags)
        except OSError as error:
            self._give_up(error)
            return None
        received = [fd for _, _, content in messages for fd in array.array("i", content)]
        if not data:
            self._give_up(OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)))
            return None
        self._list = None
        if len(received) == self._expected and data == b"+":
            return received
        # There are fewer where this process may open no more files.
        for fd in received:
            os.close(fd)
        return None

    def _start(self) -> bool:
        compiled = library()
        if compiled is None:
            self._failed = True
            return False
        try:
            ours, theirs = pair()
        except OSError:
            self._failed = True
            return False
        try:
            watched = os.pidfd_open(self._owner)
            try:
                with privileged(self._dropped):
                    failed = compiled.mountns_start_performer(theirs.fileno(), watched)
            finally:
                os.close(watched)
        except (OSError, SandboxError):
            # The first is for kernels before Linux 5.3.
            failed = True
        finally:
            theirs.close()
        if failed:
            ours.close()
            self._failed = True
            return False
        self._socket, self._user = ours, (os.geteuid(), os.getegid())
        return True

    def _give_up(self, error: OSError) -> None:
        assert self._socket is not None
        if error.errno in (errno.EBADF, errno.ENOTSOCK):
            # A test has closed it, and the number may be that of another descriptor by now.
            self._socket.detach()
        else:
            # The helper was killed, or does not answer.
            self._socket.close()
        self._socket, self._failed = None, True
        if self._list is not None:
            # It may still be read, so its memory is never free.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._list))
            self._list = None

    def close(self) -> None:
        """Have the helper end. Nothing is to be received."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._failed = True
