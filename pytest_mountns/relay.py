"""Events from a forked test process to its parent: reports, warnings, descriptors, the end.

A frame is a magic word, 4 bytes of length and a pickled tuple whose first member is the event's
name. What a test has written in between is seen by the missing word, and not waited for. The last
frame is "leave"; the end of the stream proves nothing, since a daemon that the test has left
behind may hold the socket open for ever. A process that is gone without "leave" has crashed,
whatever its exit status.
"""

from __future__ import annotations

import _socket
import array
import contextlib
import linecache
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import tracemalloc
import warnings
from collections.abc import Iterator
from io import BytesIO
from itertools import islice

# Bound here: reports are sent while what the test has replaced in `os` and `pickle` is in place.
from os import getpid
from pickle import PicklingError, dumps, loads
from socket import socket as Socket
from typing import Any, Final, final

import pytest

from . import internals
from .engine import processes
from .engine.moving import high
from .interrupts import Interrupts

_HEADER: Final = struct.Struct("!4sI")
_MAGIC: Final = b"\xf7mns"
_CHUNK: Final = 1 << 18
# A number: with members of an enumeration each test would make a new one.
_AT_ONCE: Final = int(socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
_SI_KERNEL: Final = 0x80
_GRACE: Final = 0.2
_LOOK_UP: Final = 50

#: How far a test got: the values of the byte that parent and child share.
SETUP, CALL, TEARDOWN, LEAVING = range(4)


@final
class _Known:
    """The modules that were imported when this object was made: those the parent has too."""

    def __init__(self) -> None:
        self._count = len(sys.modules)

    def __contains__(self, module: str) -> bool:
        # sys.modules is ordered by import, and most tests import nothing.
        return len(sys.modules) == self._count or module in set(islice(sys.modules, self._count))


def _frame(content: tuple[object, ...]) -> bytes:
    data = dumps(content, protocol=5)
    return _HEADER.pack(_MAGIC, len(data)) + data


class Garbled(Exception):
    """Something else than frames has come through the channel."""


def _whole_frames(buffer: bytearray) -> Iterator[tuple[Any, ...]]:
    """Take from ``buffer`` what is complete. Raises :class:`Garbled`."""
    while len(buffer) >= _HEADER.size:
        magic, length = _HEADER.unpack_from(buffer)
        if magic != _MAGIC:
            raise Garbled
        end = _HEADER.size + length
        if len(buffer) < end:
            return
        try:
            frame = loads(memoryview(buffer)[_HEADER.size : end].tobytes())
        except Exception as error:
            raise Garbled from error
        del buffer[:end]
        yield frame


class _Pickler(pickle.Pickler):
    """Refuses what the parent cannot load: classes of modules only the child has imported."""

    def __init__(self, file: BytesIO, known: _Known) -> None:
        super().__init__(file, protocol=5)
        self._known = known

    def reducer_override(self, obj: object) -> Any:
        module = getattr(obj, "__module__", None)
        if isinstance(module, str) and module not in self._known:
            raise PicklingError(f"{module} is not imported in the parent")
        return NotImplemented


@final
class Sender:
    """The child's end. Sends nothing from a copy that the test itself forked."""

    def __init__(self, channel: socket.socket, config: pytest.Config) -> None:
        self._socket = Socket(fileno=high(channel.detach()))
        self._config = config
        self._known = _Known()
        self._owner = getpid()
        self._answers = bytearray()
        self._kept = b""
        self._reports = 0
        self._settled = 0

    def adopt(self) -> None:
        """From now on this process, a fork of the one that made the sender, is the sender."""
        self._owner = getpid()

    @property
    def is_copy(self) -> bool:
        """This process was forked by the test and has come back up the stack."""
        return getpid() != self._owner

    def send(self, name: str, *content: object, descriptor: int | None = None) -> None:
        """One frame. ``content`` is of plain types.

        Raises :class:`OSError` when the parent is gone or the test has closed the socket.
        """
        if self.is_copy:
            return
        frame = self._kept + _frame((name, *content))
        self._kept = b""
        sent = 0
        if descriptor is not None:
            fds = array.array("i", [descriptor])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            sent = self._socket.sendmsg([frame], rights)
        self._socket.sendall(frame[sent:])

    def keep(self, name: str, *content: object) -> None:
        """A frame that goes with the next one: nobody waits for it."""
        self._kept += _frame((name, *content))

    def report(self, report: pytest.TestReport, item: pytest.Item) -> None:
        """A report as it is if that can be pickled, else what pytest's own serialisation keeps."""
        self._reports += 1
        self.send("report", self._pack(report, item), internals.failed_subtests(item))

    def settle(self) -> Any:
        """Wait until the parent has dealt with every report; what it answers.

        None if there is nothing to wait for, or nobody.
        """
        answer = None
        with contextlib.suppress(OSError):
            if not self.is_copy and self._settled < self._reports:
                self.send("settle", self._reports)
            while not self.is_copy and self._settled < self._reports:
                data = self._socket.recv(_CHUNK)
                if not data:
                    return None
                self._answers += data
                for frame in _whole_frames(self._answers):
                    self._settled, answer = frame
        return answer

    def ask(self, name: str, *content: object) -> Any:
        """Send a frame that the parent answers, and wait for the answer; None if nobody gives one.

        All reports have been settled before: each answer belongs to the last question.
        """
        self.settle()
        if self.is_copy:
            return None
        with contextlib.suppress(OSError):
            self.send(name, *content)
            while data := self._socket.recv(_CHUNK):
                self._answers += data
                for frame in _whole_frames(self._answers):
                    return frame[0]
        return None

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """A recorded warning; a message that cannot be pickled becomes its text."""
        fields = {
            "category": message.category,
            "filename": message.filename,
            "lineno": message.lineno,
            "line": message.line,
            **_origin(message),
        }
        text = Warning(str(message.message))
        for attempt in (
            (message.message, fields),
            (text, fields),
            (text, {**fields, "category": Warning}),
        ):
            try:
                packed = self._pickle(attempt)
                break
            except Exception:  # noqa: BLE001 - any class may raise anything when pickled
                continue
        self.send("warning", packed, when, nodeid)

    def interrupt(self, error: KeyboardInterrupt) -> bytes:
        """Where it came up; empty if that cannot be pickled."""
        try:
            return self._pickle(internals.interrupt_text(error))
        except Exception:  # noqa: BLE001 - arguments of functions may raise anything
            return b""

    def _pickle(self, value: object, *, verify: bool = True) -> bytes:
        file = BytesIO()
        _Pickler(file, self._known).dump(value)
        data = file.getvalue()
        if verify:
            # An exception whose __init__ wants more than its args can be pickled, not loaded.
            loads(data)
        return data

    def _pack(self, report: pytest.TestReport, item: pytest.Item) -> bytes:
        # Without what the parent has itself, nearly all are of plain types alone.
        whole = type(report) is not pytest.TestReport
        content = report if whole else (internals.fields_of(report, item),)
        try:
            return self._pickle(content, verify=report.failed or bool(report.user_properties))
        except Exception:  # noqa: BLE001 - any attribute of a report may raise anything
            pass
        hook = self._config.hook
        data = hook.pytest_report_to_serializable(config=self._config, report=report)
        for key, value in list(data.items()):
            try:
                self._pickle(value)
            except Exception:  # noqa: BLE001
                if key == "user_properties":
                    data[key] = [(name, str(content)) for name, content in value]
                elif key == "longrepr":
                    data[key] = str(value)
                else:
                    del data[key]
        return self._pickle(data)


def _origin(message: warnings.WarningMessage) -> dict[str, object]:
    """Fields that say what ``source``, which only this process has, would have said.

    pytest appends where tracemalloc has seen the source made, or how to turn that on. It never
    has seen ``()`` made.
    """
    if message.source is None:
        return {}
    seen = tracemalloc.get_object_traceback(message.source) if tracemalloc.is_tracing() else None
    if seen is None:
        return {"source": ()}
    line = message.line or linecache.getline(message.filename, message.lineno)
    frames = "\n".join(seen.format())
    return {"line": f"{line.strip()}\n\nObject allocated at:\n{frames}"}


def unpack_report(packed: bytes, item: pytest.Item) -> pytest.TestReport:
    """What :meth:`Sender.report` has packed."""
    value = loads(packed)
    if isinstance(value, tuple):
        return internals.report_of(item, *value)
    if isinstance(value, dict):
        config = item.config
        value = config.hook.pytest_report_from_serializable(config=config, data=value)
    assert isinstance(value, pytest.TestReport)
    return value


def unpack_warning(packed: bytes) -> warnings.WarningMessage:
    """What :meth:`Sender.warning` has packed."""
    message, fields = loads(packed)
    return warnings.WarningMessage(message=message, **fields)


def unpack_interrupt(packed: bytes) -> object:
    """What :meth:`Sender.interrupt` has packed."""
    return loads(packed)


@final
class Receiver:
    """The parent's end: frames until the child leaves or is gone.

    ``phase`` is the byte that says how far the child got. ``apart``: the test process is in a
    process group of its own, so that a Ctrl-C does not reach it by itself. ``descriptor`` is the
    last one the child has sent, -1 before. ``interrupted``: there was a SIGINT that the child
    cannot have answered.
    """

    def __init__(
        self, channel: socket.socket, child: int, phase: mmap.mmap, *, apart: bool
    ) -> None:
        self._socket = channel
        self._child = child
        self._test = child
        self._buffer = bytearray()
        self._phase = phase
        self.apart = apart
        self._pass_on_at: float | None = None
        self.descriptor = -1
        self.interrupted = False

    def frames(self, interrupts: Interrupts) -> Iterator[tuple[Any, ...]]:
        """Every whole frame, "leave" the last. Without it, the child is dead when this ends.

        A Ctrl-C reaches the child as well and is for it to answer; a SIGINT sent to this process
        alone is passed on. Raises :class:`Garbled`.
        """
        with _pidfd(self._child) as pidfd:
            poll = select.poll()
            for fd in (self._socket.fileno(), interrupts.descriptor, pidfd):
                if fd >= 0:
                    poll.register(fd, select.POLLIN)
            gone = False
            while not gone:
                # Not for ever: a SIGINT that another thread has taken interrupts no system call
                # of this one, and before Linux 5.3 there are no pidfds.
                ready = {fd for fd, _ in poll.poll(_LOOK_UP)}
                gone = self._is_gone() if pidfd < 0 else pidfd in ready
                self._take_interrupt(interrupts)
                self._pass_on()
                if gone or self._socket.fileno() in ready:
                    ended = self._receive(everything=gone)
                    for frame in _whole_frames(self._buffer):
                        if frame[0] == "leave":
                            self._settle(interrupts)
                            yield frame
                            return
                        yield frame
                    if ended and not gone:
                        # Closed by the test; its process may live on.
                        poll.unregister(self._socket.fileno())
            self._settle(interrupts)

    def _take_interrupt(self, interrupts: Interrupts) -> None:
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
            # From the terminal, to both; the child may be past answering.
            self.interrupted = True

    def _pass_on_soon(self) -> None:
        # Not at once: sent to the whole process group, the child has it already, and a second
        # one would interrupt the teardown that answers the first.
        if self._pass_on_at is None:
            self._pass_on_at = time.monotonic() + (0 if self.apart else _GRACE)

    def _pass_on(self) -> None:
        if self._pass_on_at is None or time.monotonic() < self._pass_on_at:
            return
        if self.apart and self._test == self._child:
            # On its way in, and not heard of yet: what is there ignores it.
            return
        self._pass_on_at = None
        if self._phase[0] < LEAVING:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._test, signal.SIGINT)

    def _settle(self, interrupts: Interrupts) -> None:
        """The child has left: what it could not answer is for this process to answer."""
        self._take_interrupt(interrupts)
        if self._pass_on_at is not None:
            self.interrupted = True

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
                data, rights, _, _ = self._socket.recvmsg(_CHUNK, 128, _AT_ONCE)
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

    def answer(self, *content: object) -> None:
        """To a child that waits in :meth:`Sender.settle`."""
        # It may have died meanwhile.
        with contextlib.suppress(OSError):
            self._socket.sendall(_frame(content))

    def close(self) -> None:
        """Let go of the socket and of the descriptor the child has sent."""
        self._socket.close()
        self._let_go()

    def _let_go(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        yield -1
        return
    try:
        yield fd
    finally:
        os.close(fd)


def pair() -> tuple[socket.socket, socket.socket]:
    """Parent's and child's end. The parent learns who sent a message, in its own pids."""
    first, second = _socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours, theirs = Socket(fileno=first.detach()), Socket(fileno=second.detach())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs
