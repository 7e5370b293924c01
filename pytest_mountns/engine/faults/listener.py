"""The descriptor on which a supervisor hears of system calls and answers, seccomp_unotify(2)."""

from __future__ import annotations

import array
import errno
from typing import Final, NamedTuple, final

from ..linux.sockets import socket
from ..linux.untouched import fcntl, os, struct

# struct seccomp_notif: __u64 id; __u32 pid; __u32 flags; struct seccomp_data data;
_NOTIFICATION: Final = struct.Struct("=QIIiIQ6Q")
# struct seccomp_notif_resp: __u64 id; __s64 val; __s32 error; __u32 flags;
_RESPONSE: Final = struct.Struct("=QqiI")
_RECEIVE: Final = 0xC0502100
_SEND: Final = 0xC0182101
_IS_VALID: Final = 0x40082102
_CONTINUE: Final = 1


def hand_over(listener: int, channel: socket.socket) -> None:
    """Send the descriptor to the supervisor, and close it here.

    From the moment when the filter is installed, supervised calls wait for the supervisor. Sending
    a message is no supervised call. Raises :class:`OSError`.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))]
    channel.sendmsg([b"."], rights)
    os.close(listener)


def take_over(channel: socket.socket) -> tuple[int, bytes]:
    """The descriptor that :func:`hand_over` has sent; -1 if something else has come, and that."""
    data, messages, _, _ = channel.recvmsg(1 << 16, socket.CMSG_SPACE(4), socket.MSG_CMSG_CLOEXEC)
    for _level, _kind, content in messages:
        return int(array.array("i", content[:4])[0]), data
    return -1, data


class Notification(NamedTuple):
    """A system call that waits."""

    #: What the answer names.
    id: int
    #: The thread that has made it, as this process numbers it.
    thread: int
    #: The number of the call, and the architecture that it is one of.
    number: int
    audit: int
    arguments: tuple[int, ...]


@final
class Listener:
    """Receives system calls that wait, and answers them."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def receive(self) -> Notification | None:
        """The next call; None if it was withdrawn, as its thread was killed or interrupted."""
        buffer = bytearray(_NOTIFICATION.size)
        try:
            fcntl.ioctl(self.fd, _RECEIVE, buffer)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        number, thread, _, call, audit, _, *arguments = _NOTIFICATION.unpack(buffer)
        return Notification(number, thread, call, audit, tuple(arguments))

    def is_valid(self, notification: Notification) -> bool:
        """Whether the call still waits, so that what was read of its thread was really its own."""
        try:
            fcntl.ioctl(self.fd, _IS_VALID, struct.pack("=Q", notification.id))
        except OSError:
            return False
        return True

    def go_on(self, notification: Notification) -> None:
        """Have the kernel carry the call out."""
        self._answer(_RESPONSE.pack(notification.id, 0, 0, _CONTINUE))

    def fail(self, notification: Notification, number: int) -> None:
        """Have the call fail with an errno; it has no effect."""
        self._answer(_RESPONSE.pack(notification.id, 0, -number, 0))

    def succeed(self, notification: Notification, value: int) -> None:
        """Have the call return a value; the kernel does nothing else."""
        self._answer(_RESPONSE.pack(notification.id, value, 0, 0))

    def _answer(self, response: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, response)
        except OSError as error:
            # The thread was killed or interrupted meanwhile.
            if error.errno not in (errno.ENOENT, errno.EINPROGRESS):
                raise

    def close(self) -> None:
        """Stop answering: calls that wait, and those that follow, fail with ENOSYS."""
        os.close(self.fd)
