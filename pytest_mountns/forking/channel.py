"""The channel between a test process and the pytest process, and the end that the test has.

:mod:`.messages` has what is said, and :mod:`.receiver` is the end of the pytest process.

A frame is a magic word, 4 bytes of length and a pickled message. If the test has written to the
socket, the magic word is missing; the rest of that frame is then not waited for. The last message
is :class:`.messages.Leave`. The end of the stream proves nothing, since a daemon that the test has
started may hold the socket open for ever. A process that is gone without having sent ``Leave`` has
crashed, whatever its exit status.
"""

from __future__ import annotations

import array
import contextlib
import linecache
import pickle
import sys
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from itertools import islice

# Taken when the plugin is loaded: a test may have replaced them when its reports are sent.
from pickle import PicklingError, dumps, loads
from typing import Any, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.namespaces import high
from ..engine.linux.sockets import socket
from ..engine.linux.untouched import os, struct
from . import messages
from .messages import Message

#: Four bytes by which a frame is known, the number of the message's class, the length of the rest.
_HEADER: Final = struct.Struct("!4sBI")
_MAGIC: Final = b"\xf7mns"
#: Bytes to receive at a time.
CHUNK: Final = 1 << 18
#: Messages that somebody waits for.
_URGENT: Final = (
    *(messages.Settle, messages.AskObjection, messages.PipesOpen),
    *(messages.TestDone, messages.Leave, messages.Refused),
)
#: Bytes that may wait in the socket without anybody being told.
_MOST_UNHEARD: Final = 1 << 14

#: How far a test has got: the values of the byte that both processes share.
SETUP, CALL, TEARDOWN, LEAVING = range(4)


@final
class _Known:
    """The modules that were imported when this object was made: the pytest process has them too."""

    def __init__(self) -> None:
        self._count = len(sys.modules)

    def __contains__(self, module: str) -> bool:
        # sys.modules is ordered by import, and most tests import nothing.
        return len(sys.modules) == self._count or module in set(islice(sys.modules, self._count))


def as_frame(message: Message) -> bytes:
    """The bytes of a frame."""
    data = dumps(tuple(message), protocol=5)
    return _HEADER.pack(_MAGIC, messages.NUMBERS[type(message)], len(data)) + data


class Garbled(Exception):
    """Something else than frames has come through the channel."""


def whole_frames(buffer: bytearray) -> Iterator[Any]:
    """Take the messages that are complete out of ``buffer``.

    Raises :class:`Garbled` if there is something else than frames in it, and
    :class:`.messages.UnknownMessage` if a frame holds something else than a message.
    """
    while len(buffer) >= _HEADER.size:
        magic, number, length = _HEADER.unpack_from(buffer)
        if magic != _MAGIC:
            raise Garbled
        end = _HEADER.size + length
        if len(buffer) < end:
            return
        try:
            fields = loads(memoryview(buffer)[_HEADER.size : end].tobytes())
        except Exception as error:
            raise Garbled from error
        del buffer[:end]
        yield messages.made_of(number, fields)


class Unloadable(Exception):
    """What a test process has sent cannot be loaded in the pytest process."""


def _load(packed: bytes) -> Any:
    """Load what a test process has pickled. Raises :class:`Unloadable`.

    The test process has loaded it, but a test may have added a class to a module.
    """
    try:
        return loads(packed)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
        raise Unloadable(f"cannot be loaded in the pytest process ({problem})") from error


class _Pickler(pickle.Pickler):
    """Refuses classes of modules that the pytest process has not imported: it cannot load them."""

    def __init__(self, file: BytesIO, known: _Known) -> None:
        super().__init__(file, protocol=5)
        self._known = known
        #: Whether there was anything but numbers, texts, and containers of these.
        self.has_objects = False

    def reducer_override(self, obj: object) -> Any:
        self.has_objects = True
        module = getattr(obj, "__module__", None)
        if isinstance(module, str) and module not in self._known:
            raise PicklingError(f"{module} is not imported in the pytest process")
        return NotImplemented


@final
class Sender:
    """The test process's end. It sends nothing from a copy that the test itself has forked.

    ``bell`` is an eventfd(2) that the pytest process waits for in place of the socket. It is rung
    with messages that somebody waits for, so that the pytest process is not woken up for each.
    """

    def __init__(
        self,
        channel: socket.socket,
        config: pytest.Config,
        trace: Callable[..., None],
        bell: int = -1,
    ) -> None:
        self._bell = bell if bell < 0 else high(bell)
        #: Bytes that were sent since it was rung.
        self._unheard = 0
        self._socket = socket.socket(fileno=high(channel.detach()))
        self._config = config
        self._trace = trace
        self._known = _Known()
        self._owner = os.getpid()
        self._answers = bytearray()
        self._kept = b""
        self._reports = 0
        self._settled = 0

    def adopt(self) -> None:
        """From now on this process, a fork of the one that made the sender, is the sender."""
        self._owner = os.getpid()

    @property
    def is_copy(self) -> bool:
        """Whether the test has forked this process, and let it return up the stack."""
        return os.getpid() != self._owner

    def send(self, message: messages.FromTest, descriptor: int | None = None) -> None:
        """Send one message, with a descriptor if it has one.

        Raises :class:`OSError` if the pytest process is gone or the test has closed the socket.
        """
        if self.is_copy:
            return
        self._trace("sent", type(message).__name__)
        frame = self._kept + as_frame(message)
        self._kept = b""
        self._unheard += len(frame)
        is_much = self._bell >= 0 and self._unheard > _MOST_UNHEARD
        if is_much:
            # The socket may be full, and then this waits for the pytest process.
            self._ring()
        sent = 0
        if descriptor is not None:
            fds = array.array("i", [descriptor])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            sent = self._socket.sendmsg([frame], rights)
        self._socket.sendall(frame[sent:])
        if self._bell >= 0 and (is_much or isinstance(message, _URGENT)):
            self._unheard = 0
            self._ring()

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def keep(self, message: messages.FromTest) -> None:
        """Send a message together with the next one, since nobody waits for it."""
        self._kept += as_frame(message)

    def report(
        self,
        report: pytest.TestReport,
        item: pytest.Item,
        notes: Iterable[tuple[str, bytes | None]] = (),
        *,
        captured: bool = False,
    ) -> None:
        """Send a report: as it is if it can be pickled, else what pytest's serialisation keeps.

        ``notes``: what plugins have noted up to now. ``captured``: see :class:`.messages.Report`.
        """
        self._reports += 1
        packed = self._pack(report, item)
        failed = pytest_internals.failed_subtests(item)
        self.send(messages.Report(packed, report.when, failed, list(notes), captured))

    def report_changed(self, before: Mapping[str, object], report: object) -> None:
        """Send the attributes of a report that are others than ``before``, if there are any."""
        changed = {}
        for name, value in vars(report).items():
            known = before.get(name, before)
            if known is not value and known != value:
                with contextlib.suppress(Exception):
                    self._pickle(value)
                    changed[name] = value
        if changed:
            self.send(messages.ReportChanged(self._pickle(changed)))

    def settle(self) -> messages.Settled | None:
        """Wait until the pytest process has dealt with every report. Returns what it answers.

        None if there was nothing to wait for, or if nobody answers.
        """
        answer: messages.Settled | None = None
        with contextlib.suppress(OSError):
            if not self.is_copy and self._settled < self._reports:
                self.send(messages.Settle(self._reports))
            while not self.is_copy and self._settled < self._reports:
                received = self._receive()
                if received is None:
                    return None
                if isinstance(received, messages.Settled):
                    self._settled, answer = received.reports, received
        return answer

    def ask_objection(self) -> str:
        """Ask whether observers object to what the test has written, and wait for the answer.

        "" if nobody objects, and if nobody answers.
        """
        # So that the next answer is the one to this question.
        self.settle()
        if self.is_copy:
            return ""
        with contextlib.suppress(OSError):
            self.send(messages.AskObjection())
            while (received := self._receive()) is not None:
                if isinstance(received, messages.Objection):
                    return received.text
        return ""

    def hand_over(self, pipes: list[str]) -> None:
        """Wait until the pytest process has these pipes open as well, if it can open them."""
        self.settle()
        if self.is_copy:
            return
        with contextlib.suppress(OSError):
            self.send(messages.PipesOpen(pipes))
            while (received := self._receive()) is not None:
                if isinstance(received, messages.PipesHeld):
                    return

    def next_command(self) -> messages.RunTest | messages.EndProcess | None:
        """In a module process: wait for what it is to do next.

        None if the pytest process has closed the channel.
        """
        while True:
            received = self._receive()
            if received is None or isinstance(received, messages.RunTest | messages.EndProcess):
                return received

    def _receive(self) -> messages.Answer | None:
        """The next answer; None if the pytest process has closed the channel."""
        while True:
            for message in whole_frames(self._answers):
                answer: messages.Answer = message
                return answer
            data = self._socket.recv(CHUNK)
            if not data:
                return None
            self._answers += data

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """Send a recorded warning; a message that cannot be pickled becomes its text."""
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
        self.send(messages.WarningRecorded(packed, when, nodeid))

    def pack_interrupt(self, error: KeyboardInterrupt) -> bytes:
        """Where ``error`` came up; empty if that cannot be pickled."""
        try:
            return self._pickle(pytest_internals.interrupt_text(error))
        except Exception:  # noqa: BLE001 - arguments of functions may raise anything
            return b""

    def _pickle(self, value: object) -> bytes:
        file = BytesIO()
        pickler = _Pickler(file, self._known)
        pickler.dump(value)
        data = file.getvalue()
        if pickler.has_objects:
            # An exception whose __init__ wants more than its args can be pickled, not loaded.
            loads(data)
        return data

    def _pack(self, report: pytest.TestReport, item: pytest.Item) -> bytes:
        # Without what the pytest process has itself, nearly all reports are of plain types alone.
        whole = type(report) is not pytest.TestReport
        content = report if whole else (pytest_internals.fields_of(report, item),)
        try:
            return self._pickle(content)
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
    """Fields that stand in for ``source``, an object that only this process has.

    pytest appends to the warning where tracemalloc has seen that object being made, or how to
    turn tracemalloc on. Of ``()`` it never knows where it was made.
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
    """What :meth:`Sender.report` has packed. Raises :class:`Unloadable`."""
    value = _load(packed)
    if isinstance(value, tuple):
        return pytest_internals.report_of(item, *value)
    if isinstance(value, dict):
        config = item.config
        value = config.hook.pytest_report_from_serializable(config=config, data=value)
    assert isinstance(value, pytest.TestReport)
    return value


def unpack_fields(packed: bytes) -> dict[str, object]:
    """What :meth:`Sender.report_changed` has packed. Raises :class:`Unloadable`."""
    fields: dict[str, object] = _load(packed)
    return fields


def unpack_warning(packed: bytes) -> warnings.WarningMessage:
    """What :meth:`Sender.warning` has packed. Raises :class:`Unloadable`."""
    message, fields = _load(packed)
    return warnings.WarningMessage(message=message, **fields)


def unpack_interrupt(packed: bytes) -> object:
    """What :meth:`Sender.pack_interrupt` has packed. Raises :class:`Unloadable`."""
    return _load(packed)


def pair() -> tuple[socket.socket, socket.socket]:
    """The ends of the pytest process and of the test process.

    With each message the kernel tells the pytest process who has sent it, by the process id that
    it knows it by (``SO_PASSCRED``, unix(7)).
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs
