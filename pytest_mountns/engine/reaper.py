"""Lets go of namespaces in a process of its own.

The last to close a descriptor of a mount namespace unmounts all that is in it, and waits for the
kernel's grace periods: a third of what a sandbox costs, and far more on a busy machine. Nobody has
to wait for that. The descriptors go to another process, which closes them.

It also has overlays forget what they know of the files below, which takes one such period.

That process is no child of this one, whose tests may wait for all children. It ends when this one
does, however that comes.
"""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from socket import socket as Socket
from typing import Final, NoReturn, final

from . import syscalls
from .descriptors import pair
from .errors import SandboxError
from .moving import privileged
from .processes import fork, reap

# What can wait in the socket; a machine that is too slow to let go is waited for.
_MOST: Final = 16
# What to do, a number to answer with, whether it was done.
_ORDER: Final = struct.Struct("<BIB")
_CLOSE: Final = 0
_FRESHEN: Final = 1


@final
class Reaper:
    """Closes descriptors elsewhere; here, if there can be no such process."""

    def __init__(self) -> None:
        self._socket: Socket | None = None
        self._owner = os.getpid()
        self._failed = False
        self._asked = 0
        self._done: dict[int, bool] = {}

    def close(self, descriptors: Sequence[int]) -> None:
        """Close them, as far as this process can tell at once."""
        self._send(_CLOSE, descriptors)
        for fd in descriptors:
            os.close(fd)

    def freshen(self, contexts: Sequence[int]) -> int | None:
        """Have overlays look anew at what is below: descriptors as fspick(2) gives them.

        Returns a number to ask :meth:`has_freshened` for, or None if there is nobody to do it.
        """
        self._asked += 1
        # Not of those that nobody has asked for any more.
        self._done = {n: done for n, done in self._done.items() if n > self._asked - _MOST}
        return self._asked if self._send(_FRESHEN, contexts, self._asked) else None

    def has_freshened(self, asked: int) -> bool | None:
        """Whether that was done; None for not yet."""
        while self._socket is not None and asked not in self._done:
            try:
                answer = self._socket.recv(_ORDER.size, socket.MSG_DONTWAIT)
                _, number, succeeded = _ORDER.unpack(answer)
            except BlockingIOError:
                return None
            except (OSError, struct.error):
                return False
            self._done[number] = bool(succeeded)
        return self._done.pop(asked, False)

    def _send(self, what: int, descriptors: Sequence[int], number: int = 0) -> bool:
        if self._socket is None and not self._failed and os.getpid() == self._owner:
            self._start()
        # A fork of the owner shares the socket, but its descriptors are not the last ones.
        if self._socket is None or os.getpid() != self._owner:
            return False
        rights = array.array("i", descriptors)
        order = _ORDER.pack(what, number, 0)
        try:
            self._socket.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        except OSError:
            # A test may have closed the socket.
            self._socket, self._failed = None, True
            return False
        return True

    def _start(self) -> None:
        ours, theirs = pair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 0)
        try:
            watched = os.pidfd_open(self._owner)
        except OSError:
            # Before Linux 5.3.
            ours.close()
            theirs.close()
            self._failed = True
            return
        try:
            child = fork()
            if child == 0:
                _become_reaper(theirs, watched)
            reap(child)
            self._socket = ours
        except OSError:
            ours.close()
            self._failed = True
        finally:
            os.close(watched)
            theirs.close()

    def stop(self) -> None:
        """No more; the process ends when it has closed what it has."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._failed = True


def _carry_out(channel: Socket, order: bytes, descriptors: Sequence[int]) -> None:
    what, number, _ = _ORDER.unpack(order) if order else (_CLOSE, 0, 0)
    succeeded = True
    if what == _FRESHEN:
        try:
            # Of an ordinary user's process, its capabilities.
            with privileged(True):
                for context in descriptors:
                    syscalls.fsconfig_reconfigure(context)
        except (OSError, SandboxError):
            succeeded = False
    for fd in descriptors:
        os.close(fd)
    if what == _FRESHEN:
        # Whoever has not fetched so many answers does not wait for this one.
        with suppress(OSError):
            channel.send(_ORDER.pack(what, number, succeeded), socket.MSG_DONTWAIT)


def _become_reaper(channel: Socket, watched: int) -> NoReturn:
    try:
        if os.fork() == 0:
            _reap(channel, watched)
    finally:
        syscalls.exit_now(0)


def _reap(channel: Socket, watched: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    keep = sorted((channel.fileno(), watched))
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    os.closerange(keep[1] + 1, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(watched, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if channel.fileno() in ready:
            order, messages, _, _ = channel.recvmsg(_ORDER.size, socket.CMSG_SPACE(4 * _MOST))
            _carry_out(
                channel, order, [fd for *_, data in messages for fd in array.array("i", data)]
            )
            if order:
                continue
        # The other end is closed, or its process is gone.
        return
