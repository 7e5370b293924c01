"""Closes descriptors of mount namespaces in a helper process.

Whoever closes the last descriptor of a mount namespace unmounts all that is in it, and waits for
grace periods of the kernel. So the descriptors are sent to a helper process, and that one waits.
It keeps what was sent last until more is sent, or nothing is sent for a moment: if it closed its
copies at once, it would often be done before this process has closed its own, and this process
would wait.

The compiled library starts a helper that shares the memory of this process: see
``close_descriptors.c``. So that memory is free when both have ended.

The helper is not a child of this process, since tests may wait for all children. It ends when this
process does, however that comes.

The helper exists for speed alone; ``MOUNTNS_ABLATE=background_close`` leaves it out. Measured on
Linux 6.18 with two processors, with and without it in turn, with ``process="inline"``: where each
test writes 200 files, a test takes 1.16 times the wall time without it; empty tests take 1.06
times the wall time, and 0.92 times the CPU time. So it gains wall time where there is memory to
free, and costs CPU time where there is none.
"""

from __future__ import annotations

import array
import errno
from collections.abc import Sequence
from typing import Final, NoReturn, final

from . import syscalls
from .ablation import is_left_out
from .compiled import library
from .errors import is_failed_call
from .namespaces import close_all
from .open_directories import pair
from .processes import HELPER_NAME, fork, reap, withdraw
from .sockets import socket
from .untouched import os, select

#: How many descriptors come with one message.
_MOST: Final = 16
#: Bytes that may wait in the socket: the messages of about eight tests. What these have written
#: stays in memory meanwhile, so where the helper is slower than the tests, they wait for it.
_ROOM: Final = 1 << 12
#: Milliseconds after which what was sent last is closed though nothing has been sent after it.
_AT_REST: Final = 50
#: Seconds to wait until all is closed. The kernel takes some milliseconds for it.
_PATIENCE: Final = 10.0

_CLOSE: Final = b"."
_CLOSE_ALL: Final = b"!"


@final
class BackgroundCloser:
    """Closes descriptors in the helper or, if it cannot be started, in this process.

    ``at_rest``: after how many milliseconds without another call the helper closes the last ones.
    """

    def __init__(self, at_rest: int = _AT_REST) -> None:
        self._at_rest = at_rest
        self._socket: socket.socket | None = None
        self._owner = os.getpid()
        self._is_behind = False
        self._failed = is_left_out("background_close")

    def close(self, descriptors: Sequence[int], *, may_start: bool) -> None:
        """Close descriptors. This process has none of them any more when this returns.

        ``may_start``: whether the helper may be started. It stays in the mount namespace that this
        process is in then, and so must not be started in a sandbox.
        """
        interruption: BaseException | None = None
        is_owner = os.getpid() == self._owner
        if self._socket is None and may_start and not self._failed and is_owner:
            # Its helper would be a child of this process, and tests may wait for all children.
            self._failed = syscalls.adopts_orphans()
            if not self._failed:
                self._start()
        # In a fork of the owner they are not the last descriptors, so nothing has to be waited for.
        if self._socket is not None and is_owner:
            rights = array.array("i", descriptors)
            try:
                self._socket.sendmsg([_CLOSE], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                self._is_behind = True
            except BaseException as error:  # noqa: BLE001 - raised again unless a call has failed
                if is_failed_call(error):
                    self._give_up(error)
                else:
                    interruption = error
        close_all(descriptors)
        if interruption is not None:
            raise interruption

    def finish(self) -> None:
        """Wait until everything is closed that was sent; ten seconds at most."""
        if self._socket is None or not self._is_behind or os.getpid() != self._owner:
            return
        self._is_behind = False
        try:
            self._socket.sendmsg([_CLOSE_ALL])
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            if poll.poll(_PATIENCE * 1000):
                self._socket.recv(1)
        except BaseException as error:
            # If a handler of a signal has raised it, the answer may still come, and would be taken
            # for that to another question.
            self._give_up(error)
            if not is_failed_call(error):
                raise

    def _give_up(self, error: BaseException) -> None:
        """From now on this process closes everything itself."""
        assert self._socket is not None
        if isinstance(error, OSError) and error.errno in (errno.EBADF, errno.ENOTSOCK):
            # A test has closed it, and the number may be that of another descriptor by now.
            self._socket.detach()
        else:
            # The helper was killed.
            self._socket.close()
        self._socket, self._failed = None, True

    def _start(self) -> None:
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ROOM)
        try:
            watched = os.pidfd_open(self._owner)
        except OSError:
            # Before Linux 5.3.
            ours.close()
            theirs.close()
            self._failed = True
            return
        try:
            if not _start_compiled(theirs, watched, self._at_rest):
                child = fork()
                if child == 0:
                    _become_helper(theirs, watched, self._at_rest)
                reap(child)
            self._socket = ours
        except OSError:
            ours.close()
            self._failed = True
        finally:
            os.close(watched)
            theirs.close()

    def stop(self) -> None:
        """Start no helper any more; a running one ends when it has closed what was sent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._failed = True


def _start_compiled(channel: socket.socket, watched: int, at_rest: int) -> bool:
    """Have the compiled library start the helper. Returns whether it has.

    Before Linux 5.9 it cannot, nor on a processor that it has no system calls for.
    """
    compiled = library()
    if compiled is None:
        return False
    return int(compiled.mountns_start_closer(channel.fileno(), watched, at_rest)) > 0


def _become_helper(channel: socket.socket, watched: int, at_rest: int) -> NoReturn:
    try:
        if os.fork() == 0:
            _serve(channel, watched, at_rest)
    finally:
        syscalls.exit_now(0)


def _serve(channel: socket.socket, watched: int, at_rest: int) -> None:
    withdraw((channel.fileno(), watched))
    syscalls.set_thread_name(HELPER_NAME)
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(watched, select.POLLIN)
    kept: list[int] = []
    while True:
        ready = {fd for fd, _ in poll.poll(at_rest if kept else None)}
        data, received = _CLOSE if not ready else b"", []
        if channel.fileno() in ready:
            data, messages, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(4 * _MOST))
            received = [fd for _, _, content in messages for fd in array.array("i", content)]
        for fd in kept:
            os.close(fd)
        kept = received
        if data == _CLOSE_ALL:
            channel.send(data)
        elif not data:
            # The other end is closed, or its process is gone.
            return
