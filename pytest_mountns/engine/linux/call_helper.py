"""Performs a list of system calls in a helper process, while this process does something else.

The compiled library starts a helper that shares the memory of this process, see ``helper.h`` and
``perform_calls.c``. It has mount namespaces, a working directory and descriptors of its own. What
it opens comes over a socket, and is in no process's table of descriptors until it is received.

Requests are sent and answers received by the library, too: both take 32 us in place of 67.

The helper is not a child of this process, since tests may wait for all children. It ends when this
process does, however that comes.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Sequence
from typing import Final, final

from . import syscalls as sys
from .call_list import CallList, Result
from .compiled import library
from .errors import SandboxError, is_failed_call
from .namespaces import FD_FLOOR, privileged
from .open_directories import pair
from .sockets import socket
from .untouched import os, posix, select, signal

_RESULTS: Final = 4
_ARE_YOU_DONE: Final = b"?"
#: Milliseconds to wait for an answer. A list takes less than one.
_PATIENCE: Final = 2000
#: After so many lists it is known whether the helper is worth it.
_TRIALS: Final = 16


class _Request(ctypes.Structure):
    """``struct request`` of ``perform_calls.c``."""

    _fields_ = [
        ("calls", ctypes.c_void_p),
        ("count", ctypes.c_int64),
        ("registers", ctypes.c_int64),
        ("given", ctypes.c_int64),
        ("results", ctypes.c_int64),
        ("result", ctypes.c_int64 * _RESULTS),
    ]


class _Answer(ctypes.Structure):
    """``struct answer`` of ``perform_calls.c``."""

    _fields_ = [
        ("byte", ctypes.c_char),
        ("count", ctypes.c_int32),
        ("results", ctypes.c_int32 * _RESULTS),
    ]


@final
class _Asked:
    """A request that may be made once more: the next test's mostly is the same."""

    def __init__(self, calls: CallList, stage: int, results: Sequence[Result]) -> None:
        self.calls = calls
        self.stage = stage
        self.results = results
        address, count, registers = calls.at()
        given = [stage, *calls.given]
        request = _Request(address, count, registers, len(calls.given), len(results))
        for index, result in enumerate(results):
            request.result[index] = result.register
        descriptors = (ctypes.c_int * len(given))(*given)
        self._kept = request, descriptors
        #: Where it is in memory, and the descriptors that come along.
        self.at = ctypes.addressof(request), ctypes.addressof(descriptors)


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
        self._library = library()
        #: What the helper is at work on.
        self._list: CallList | None = None
        self._asked: _Asked | None = None
        self._answer = _Answer()
        self._answer_at = ctypes.addressof(self._answer)
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
        asked = self._asked
        if asked is None or (asked.calls, asked.stage, asked.results) != (calls, stage, results):
            asked = self._asked = _Asked(calls, stage, results)
        try:
            self._list = calls
            if self._call("mountns_request", *asked.at) < 0:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        except BaseException as error:  # noqa: BLE001 - raised again unless a call has failed
            self._give_up_after(error)
        return not self._failed

    def end(self) -> list[int] | None:
        """Wait for the list. Returns the results; None if a call has failed or the helper is gone.

        It waits for two seconds at most, and then the helper is ended. The results have numbers
        that are out of the way of the test's, if there are such numbers.
        """
        asked, answer = self._asked, self._answer
        if asked is None or not self.is_busy:
            return None
        there, received = 0, []
        try:
            self._done += 1
            there = self._call("mountns_answer", self._answer_at, FD_FLOOR)
            if there == -errno.EAGAIN:
                self._late += 1
                self._wait()
                there = self._call("mountns_answer", self._answer_at, FD_FLOOR)
            if there > 0:
                self._list = None
            received = list(answer.results[: answer.count])
            answer.count = 0
        except BaseException as error:  # noqa: BLE001 - raised again unless a call has failed
            self._give_up_after(error)
        if there > 0 and answer.byte == b"+" and len(received) == len(asked.results):
            return received
        # There are fewer where this process may open no more files.
        for fd in received:
            os.close(fd)
        if there <= 0:
            self._give_up()
        return None

    def _wait(self) -> None:
        """Raises :class:`TimeoutError` if there is no answer in time."""
        poll = select.poll()
        poll.register(self._known_socket(), select.POLLIN)
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
        try:
            self._known_socket().send(_ARE_YOU_DONE)
            self._wait()
            self._known_socket().recv(1)
        except BaseException as error:  # noqa: BLE001 - raised again unless a call has failed
            self._give_up_after(error)

    def _call(self, function: str, *arguments: int) -> int:
        """Call a function of the library with the channel. Returns its result, or ``-EAGAIN``.

        Raises :class:`OSError` if it fails otherwise.
        """
        if self._library is None or self._socket is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        result = int(
            getattr(self._library, function)(self._socket.fileno(), self._inode, *arguments)
        )
        if result < 0 and result != -errno.EAGAIN:
            raise OSError(-result, os.strerror(-result))
        return result

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
        compiled = self._library
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

    def _give_up_after(self, error: BaseException) -> None:
        """Use the helper no more after this exception.

        What a handler of a signal has raised is raised again. A failure of a call is not.
        """
        self._give_up()
        if not is_failed_call(error):
            raise error

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
        # An answer that came just before a handler of a signal has raised.
        left, self._answer.count = self._answer.results[: self._answer.count], 0
        for fd in left:
            os.close(fd)

    def close(self) -> None:
        """Have the helper end. Nothing is to be received."""
        self._give_up()
