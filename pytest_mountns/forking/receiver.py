"""The pytest process's end of the channel: what a test process says, and whether it still lives."""

from __future__ import annotations

import array
import contextlib
import mmap
from collections.abc import Callable, Iterator
from typing import Final, final

from ..engine.linux import processes
from ..engine.linux.sockets import socket
from ..engine.linux.untouched import os, select, signal, struct, time
from .channel import CALL, CHUNK, LEAVING, as_frame, whole_frames
from .deadlock import DeadlockWatch
from .interrupts import Interrupts
from .messages import Answer, FromTest, Leave, TestDone

# A number: with members of an enumeration each test would make a new one.
_AT_ONCE: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SI_KERNEL: Final = 0x80
#: Seconds before a SIGINT is passed on.
_GRACE: Final = 0.2
#: Milliseconds.
_LOOK_UP: Final = 50
#: Seconds after which it is looked whether a process that says nothing is about to end.
_LOOK_AGAIN: Final = 1.0
#: The messages at the end of a test.
_LAST: Final = (Leave, TestDone)


@final
class Receiver:
    """The pytest process's end: messages, until the test process leaves or is gone.

    ``phase`` is the byte that says how far the test has got; the test process writes it.
    ``apart`` says that the test process is in a process group of its own, so that a Ctrl-C does
    not reach it by itself. ``bell`` is an eventfd(2) that the sender rings, see :class:`.Sender`.
    """

    def __init__(
        self,
        channel: socket.socket,
        child: int,
        phase: mmap.mmap,
        trace: Callable[..., None],
        *,
        apart: bool,
        deadlock_watch: DeadlockWatch | None = None,
        bell: int = -1,
    ) -> None:
        self._bell = bell
        #: Of the test process, -1 before Linux 5.3; None before it is needed.
        self._pidfd: int | None = None
        self._socket = channel
        self._child = child
        self._test = child
        self._buffer = bytearray()
        self._phase = phase
        self._trace = trace
        self.apart = apart
        #: Set if threads were alive when the test process was forked.
        self.deadlock_watch = deadlock_watch
        self._pass_on_at: float | None = None
        #: When to look next whether the process is held by the kernel, and how long it may be.
        self._look_at = time.monotonic() + _LOOK_AGAIN
        self._held_until: float | None = None
        #: The last descriptor that the test process has sent, -1 before there is one.
        self.descriptor = -1
        #: Whether a SIGINT may have come too late for the test process: then this one handles it.
        self.interrupted = False

    def messages(
        self, interrupts: Interrupts | None, limit: float | None = None
    ) -> Iterator[FromTest]:
        """Every message of the test process. It ends after ``Leave``.

        If it ends without ``Leave``, the test process has died, or ``limit`` seconds are over, or
        the process was killed or has exited and the kernel does not let it end. The caller may
        also stop earlier, as at ``TestDone`` of the process of a module.

        A Ctrl-C reaches the test process as well, and it answers it; a SIGINT that was sent to this
        process alone is passed on. Without ``interrupts`` it interrupts this process as usual.
        Raises :class:`.channel.Garbled` if the test has written to the socket.
        """
        deadline = None if limit is None else time.monotonic() + limit
        if self._pidfd is None:
            self._pidfd = _pidfd(self._child)
        pidfd = self._pidfd
        poll = select.poll()
        signals = -1 if interrupts is None else interrupts.descriptor
        # Where there is a bell, what comes without it is read now and then.
        told_by = self._bell if self._bell >= 0 else self._socket.fileno()
        for fd in (told_by, signals, pidfd):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        gone = False
        while not gone:
            # Not for ever: a SIGINT that another thread has taken interrupts no system call
            # of this one, and before Linux 5.3 there are no pidfds.
            ready = {fd for fd, _ in poll.poll(_LOOK_UP)}
            gone = self._is_gone() if pidfd < 0 else pidfd in ready
            if not ready and self._does_not_end():
                gone = True
            if signals in ready or (interrupts is not None and interrupts.noted):
                self._take_interrupt(interrupts)
            self._pass_on()
            if self.deadlock_watch is not None:
                self.deadlock_watch.look(self._test)
            ended = False
            if self._bell >= 0:
                if self._bell in ready:
                    os.eventfd_read(self._bell)
                self._receive(everything=True)
            elif gone or told_by in ready:
                ended = self._receive(everything=gone)
            for message in whole_frames(self._buffer):
                self._trace("received", type(message).__name__)
                if isinstance(message, _LAST):
                    self._settle(interrupts)
                yield message
                if isinstance(message, Leave):
                    return
            if ended and not gone:
                # Closed by the test; its process may live on.
                poll.unregister(told_by)
            if deadline is not None and time.monotonic() > deadline:
                return
        self._settle(interrupts)

    def _take_interrupt(self, interrupts: Interrupts | None) -> None:
        if interrupts is None:
            return
        if interrupts.noted:
            interrupts.noted = False
            self._pass_on_soon()
            processes.wake(self._test)
        if interrupts.descriptor < 0:
            return
        try:
            info = os.read(interrupts.descriptor, 128)
        except OSError:
            # Mostly: there is nothing to read.
            return
        processes.wake(self._test)
        (code,) = struct.unpack_from("i", info, 8)
        if code != _SI_KERNEL or self.apart:
            self._pass_on_soon()
        elif self._phase[0] > CALL:
            # From the terminal, to both processes; the test's may be too far to answer it.
            self.interrupted = True

    def _pass_on_soon(self) -> None:
        # Not at once: if it was sent to the whole process group, the test process has it already,
        # and a second one would interrupt the teardown that answers the first.
        if self._pass_on_at is None:
            self._pass_on_at = time.monotonic() + (0 if self.apart else _GRACE)

    def _pass_on(self) -> None:
        if self._pass_on_at is None or time.monotonic() < self._pass_on_at:
            return
        if self.apart and self._test == self._child:
            # It is on its way into the sandbox and has sent nothing yet; it ignores SIGINT.
            return
        self._pass_on_at = None
        if self._phase[0] < LEAVING:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._test, signal.SIGINT)

    def _settle(self, interrupts: Interrupts | None) -> None:
        """The test process has left: a SIGINT that it could not answer interrupts this one."""
        self._take_interrupt(interrupts)
        if self._pass_on_at is not None:
            self._pass_on_at = None
            self.interrupted = True

    def begin_test(self) -> None:
        """Another test of the same process begins: what was sent of the last one is done with."""
        self._let_go()
        self.interrupted = False

    def _does_not_end(self) -> bool:
        """Whether the test process has been about to end for longer than that may take."""
        now = time.monotonic()
        if now < self._look_at:
            return False
        self._look_at = now + _LOOK_AGAIN
        # With a PID namespace, this process waits for the first one of that.
        pids = processes.children(self._child) if self.apart else []
        if not any(map(processes.is_dying, [self._child, *pids])):
            self._held_until = None
        elif self._held_until is None:
            self._held_until = processes.deadline()
        return self._held_until is not None and now >= self._held_until

    def _is_gone(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PID, self._child, flags) is not None
        except ChildProcessError:
            # SIGCHLD is ignored: it has gone without leaving a trace.
            return True

    def _receive(self, *, everything: bool) -> bool:
        """Read what is there; True at the end of the stream."""
        while True:
            try:
                data, rights, _, _ = self._socket.recvmsg(CHUNK, 128, _AT_ONCE)
            except BlockingIOError:
                return False
            except ConnectionResetError:
                return True
            for _level, kind, content in rights:
                numbers = array.array("i", content[: len(content) // 4 * 4])
                if kind == socket.SCM_CREDENTIALS:
                    # The sender's pid as this PID namespace knows it.
                    self._test = numbers[0]
                    continue
                for fd in numbers:
                    self._let_go()
                    self.descriptor = fd
            if not data:
                return True
            self._buffer += data
            if not everything:
                return False

    def answer(self, message: Answer) -> None:
        """Answer a test process that waits for it, or tell one what to do that waits for that."""
        # It may have died meanwhile.
        with contextlib.suppress(OSError):
            self._socket.sendall(as_frame(message))

    def close(self) -> None:
        """Let go of the socket and of the descriptor that the test process has sent."""
        self._socket.close()
        for fd in (self._bell, self._pidfd if self._pidfd is not None else -1):
            if fd >= 0:
                os.close(fd)
        self._bell, self._pidfd = -1, None
        self._let_go()

    def _let_go(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return -1
