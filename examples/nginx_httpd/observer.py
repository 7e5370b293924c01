"""A process on the host that answers what a test in its sandbox cannot see itself.

Started by a wide fixture, so it stays outside, and asked over a socket that the test process has
inherited. The kernel says who asks (SCM_CREDENTIALS, unix(7)), with the pid as the host has it.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIMIT = 1 << 20


@dataclass(frozen=True)
class Note:
    """What a test leaves behind for those after it: where its server was, what it wrote."""

    port: int
    path: str
    text: str


class Observer:
    """The asking side."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            command = [sys.executable, __file__, str(theirs.fileno())]
            # A session of its own: a Ctrl-C is for pytest, which then closes the socket.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], start_new_session=True
            )

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._process.wait(timeout=10)

    def mount_table(self) -> str:
        """The host's own."""
        return str(self._ask("mount table"))

    def read(self, path: Path) -> str | None:
        """What the host has at ``path``; None for nothing."""
        text: str | None = self._ask("read", str(path))
        return text

    def read_inside(self, path: Path) -> str | None:
        """What the host finds when it looks into the root of the process that asks."""
        text: str | None = self._ask("read inside", str(path))
        return text

    def remember(self, note: Note) -> None:
        """A test process leaves nothing behind, not even in memory; this one stays."""
        self._ask("remember", note.port, note.path, note.text)

    def notes(self) -> list[Note]:
        return [Note(*note) for note in self._ask("notes")]

    def _ask(self, *question: object) -> Any:
        self._socket.send(json.dumps(question).encode())
        return json.loads(self._socket.recv(_LIMIT))


def _answer(pid: int, question: list[Any], notes: list[list[Any]]) -> object:
    match question:
        case ["mount table"]:
            return _read("/proc/self/mountinfo")
        case ["read", path]:
            return _read(path)
        case ["read inside", path]:
            return _read(f"/proc/{pid}/root{path}")
        case ["remember", *note]:
            notes.append(note)
            return None
        case ["notes"]:
            return notes
    raise ValueError(question)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except FileNotFoundError:
        return None


def _observe(channel: socket.socket) -> None:
    notes: list[list[Any]] = []
    credentials = struct.Struct("iII")
    while True:
        question, ancillary, _, _ = channel.recvmsg(_LIMIT, socket.CMSG_SPACE(credentials.size))
        if not question:
            return
        [(_, _, data)] = ancillary
        pid, _, _ = credentials.unpack(data)
        channel.send(json.dumps(_answer(pid, json.loads(question), notes)).encode())


if __name__ == "__main__":
    _observe(socket.socket(fileno=int(sys.argv[1])))
