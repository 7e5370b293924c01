"""Events from a forked test process to its parent: reports, warnings, descriptors, the end.

Here are the form that they have and the end that sends; :mod:`.receiver` is the other.

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
import pickle
import socket
import struct
import sys
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

from .. import pytest_internals
from ..engine.linux.namespaces import high

_HEADER: Final = struct.Struct("!4sI")
_MAGIC: Final = b"\xf7mns"
#: Bytes to receive at a time.
CHUNK: Final = 1 << 18

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


def as_frame(content: tuple[object, ...]) -> bytes:
    """The bytes of one."""
    data = dumps(content, protocol=5)
    return _HEADER.pack(_MAGIC, len(data)) + data


class Garbled(Exception):
    """Something else than frames has come through the channel."""


def whole_frames(buffer: bytearray) -> Iterator[tuple[Any, ...]]:
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
        frame = self._kept + as_frame((name, *content))
        self._kept = b""
        sent = 0
        if descriptor is not None:
            fds = array.array("i", [descriptor])
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)]
            sent = self._socket.sendmsg([frame], rights)
        self._socket.sendall(frame[sent:])

    def keep(self, name: str, *content: object) -> None:
        """A frame that goes with the next one: nobody waits for it."""
        self._kept += as_frame((name, *content))

    def report(self, report: pytest.TestReport, item: pytest.Item) -> None:
        """A report as it is if that can be pickled, else what pytest's own serialisation keeps."""
        self._reports += 1
        self.send("report", self._pack(report, item), pytest_internals.failed_subtests(item))

    def settle(self) -> Any:
        """Wait until the parent has dealt with every report; what it answers.

        None if there is nothing to wait for, or nobody.
        """
        answer = None
        with contextlib.suppress(OSError):
            if not self.is_copy and self._settled < self._reports:
                self.send("settle", self._reports)
            while not self.is_copy and self._settled < self._reports:
                data = self._socket.recv(CHUNK)
                if not data:
                    return None
                self._answers += data
                for frame in whole_frames(self._answers):
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
            while data := self._socket.recv(CHUNK):
                self._answers += data
                for frame in whole_frames(self._answers):
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
            return self._pickle(pytest_internals.interrupt_text(error))
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
        content = report if whole else (pytest_internals.fields_of(report, item),)
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
        return pytest_internals.report_of(item, *value)
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


def pair() -> tuple[socket.socket, socket.socket]:
    """Parent's and child's end. The parent learns who sent a message, in its own pids."""
    first, second = _socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours, theirs = Socket(fileno=first.detach()), Socket(fileno=second.detach())
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return ours, theirs
