"""The headers of a tar archive, read strictly: pax(1) of POSIX.1-2017 and GNU's long names.

:mod:`tarfile` is not used. It takes a damaged header for the end of the archive and an invalid
number for 0, and it ignores extended records that it cannot parse. That helps to restore a backup,
but a layer would lack files without anybody knowing. Here everything that is not understood is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, final

from ..linux.errors import malformed
from ..linux.untouched import os
from .streams import CHUNK

BLOCK: Final = 512
_ZEROS: Final = bytes(BLOCK)
#: Most bytes of extended headers before one member. An extended attribute has up to 64 KiB.
MOST_EXTENDED: Final = 8 << 20
_MOST_HEADERS: Final = 16
_DECIMAL: Final = re.compile(rb"\d{1,20}")
_TIME: Final = re.compile(rb"(-?)(\d{1,19})(?:\.(\d{0,64}))?")
_LENGTH: Final = re.compile(rb"(\d{1,9}) ")
_OCTAL: Final = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
XATTR: Final = b"SCHILY.xattr."

#: Type flags. The old "\0", and "7" for contiguous files, mean regular files as well.
FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO = "0123456"
_KNOWN: Final = {
    b"\0": FILE,
    b"7": FILE,
    **{kind.encode(): kind for kind in (FILE, LINK, SYMLINK, CHAR, BLOCK_DEVICE, DIRECTORY, FIFO)},
}
_NO_MEMBER: Final = {
    b"S": "a sparse file of GNU tar: make the archive without --sparse",
    b"M": "the rest of a file from another volume: layers have one volume",
    b"V": "a volume label: layers have none",
    b"D": "a directory of an incremental backup: make the archive without --incremental",
    b"N": "an old long name of GNU tar: make the archive anew",
}


@final
@dataclass(slots=True)
class Member:
    """One entry of an archive. Only its format has been checked.

    ``kind``: one of the type flags above. ``mtime``: nanoseconds since the epoch. ``position``:
    where its data begin in the archive. ``xattrs``: from ``SCHILY.xattr.``.
    """

    name: bytes
    kind: str
    link: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    device: tuple[int, int]
    position: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)


class Bytes(Protocol):
    """What an archive is read from: :class:`.streams.Stream`, or something like it."""

    position: int

    def some(self, size: int) -> bytes:
        """Read up to ``size`` bytes, and none only at the end."""
        ...

    def exactly(self, size: int) -> bytes:
        """Read ``size`` bytes. Raises :class:`LayerError` if there are fewer."""
        ...

    def skip(self, size: int) -> None:
        """Skip ``size`` bytes. Raises :class:`LayerError` if there are fewer."""
        ...


@final
class Reader:
    """The members of an archive, in order. After :meth:`next` its :meth:`data` may be read."""

    def __init__(self, stream: Bytes) -> None:
        self._stream = stream
        self._data = 0
        self._padding = 0

    def next(self) -> Member | None:
        """Return the next member, None at the end. Raises :class:`LayerError` if it is damaged."""
        self._stream.skip(self._data + self._padding)
        self._data = self._padding = 0
        records: dict[bytes, bytes] = {}
        extended = headers = 0
        while True:
            block = self._stream.exactly(BLOCK)
            if block == _ZEROS:
                if headers:
                    raise malformed("the archive ends behind an extended header")
                return None
            _check_sum(block)
            flag = block[156:157]
            if flag not in b"xXgLK":
                return self._member(block, records)
            headers += 1
            size = _number(block[124:136], "size")
            extended += size
            if headers > _MOST_HEADERS or extended > MOST_EXTENDED:
                raise malformed("too many or too long extended headers before one member")
            content = self._stream.exactly(size)
            self._stream.skip(-size % BLOCK)
            if flag == b"g":
                _check_global(_records(content))
            elif flag in b"LK":
                key = b"path" if flag == b"L" else b"linkpath"
                # Extended headers come later and take precedence.
                records.setdefault(key, content.split(b"\0", 1)[0])
            else:
                records.update(_records(content))

    def data(self) -> Iterator[bytes]:
        """Yield the content of a file in pieces. Raises :class:`LayerError` if it is truncated."""
        while self._data:
            piece = self._stream.some(min(self._data, CHUNK))
            if not piece:
                raise malformed("the archive is truncated", "fetch or make it anew")
            self._data -= len(piece)
            yield piece

    def _member(self, block: bytes, records: dict[bytes, bytes]) -> Member:
        member = _parsed(block, records)
        member.position = self._stream.position
        if member.kind == FILE:
            self._data = member.size
            self._padding = -member.size % BLOCK
        return member


def _check_sum(block: bytes) -> None:
    stated = _OCTAL.fullmatch(block[148:156])
    blank = block[:148] + b" " * 8 + block[156:]
    total = sum(blank)
    number = -1 if stated is None else int(stated[1] or b"0", 8)
    # Some old implementations have summed up signed bytes.
    if number != total and number != total - 256 * sum(byte > 127 for byte in blank):
        raise malformed(
            "a header is damaged, or this is no tar archive (wrong checksum)",
            "check what file it is, and fetch or make it anew",
        )


def _number(raw: bytes, what: str) -> int:
    if raw[0] == 0x80 or raw[0] == 0xFF:
        # GNU's extension: base 256, for numbers that are too large for the octal digits.
        return int.from_bytes(raw[1:], "big", signed=raw[0] == 0xFF)
    match = _OCTAL.fullmatch(raw)
    if match is None:
        raise malformed(f"a member's {what} is no number: {raw!r}")
    return int(match[1] or b"0", 8)


def _parsed(block: bytes, records: dict[bytes, bytes]) -> Member:
    name = block[:100].split(b"\0", 1)[0]
    magic = block[257:265]
    if magic.startswith(b"ustar\0"):
        # star keeps times in the last bytes of the prefix.
        end = 476 if block[508:512] == b"tar\0" else 500
        prefix = block[345:end].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    name = records.get(b"path", name)
    flag = block[156:157]
    shown = os.fsdecode(name[:200])
    if flag in _NO_MEMBER:
        what, _, remedy = _NO_MEMBER[flag].partition(": ")
        raise malformed(f"{shown!r} is {what}", remedy)
    if flag not in _KNOWN:
        raise malformed(f"{shown!r} has an unknown type of member, {flag!r}")
    if any(key.startswith(b"GNU.sparse.") for key in records):
        raise malformed(f"{shown!r} is a sparse file", "make the archive without --sparse")
    kind = _KNOWN[flag]
    if kind == FILE and name.endswith(b"/"):
        kind = DIRECTORY
    member = Member(
        name,
        kind,
        records.get(b"linkpath", block[157:257].split(b"\0", 1)[0]),
        _number(block[100:108], "mode") & 0o7777,
        _decimal(records, b"uid", block[108:116]),
        _decimal(records, b"gid", block[116:124]),
        _decimal(records, b"size", block[124:136]),
        _mtime(records, block[136:148]),
        (0, 0),
    )
    if kind in (CHAR, BLOCK_DEVICE):
        member.device = (
            _number(block[329:337], "device number"),
            _number(block[337:345], "device number"),
        )
    for what, number, most in (
        ("size", member.size, 1 << 62),
        ("user id", member.uid, (1 << 32) - 2),
        ("group id", member.gid, (1 << 32) - 2),
    ):
        if not 0 <= number <= most:
            raise malformed(f"the {what} of {shown!r} is out of range: {number}")
    for key, value in records.items():
        if key.startswith(XATTR):
            member.xattrs[key[len(XATTR) :]] = value
    return member


def _decimal(records: dict[bytes, bytes], key: bytes, raw: bytes) -> int:
    value = records.get(key)
    if value is None:
        return _number(raw, key.decode())
    if not _DECIMAL.fullmatch(value):
        raise malformed(f"an extended header says {key.decode()}={value[:40]!r}, no number")
    return int(value)


def _mtime(records: dict[bytes, bytes], raw: bytes) -> int:
    value = records.get(b"mtime")
    if value is None:
        seconds, fraction, sign = _number(raw, "mtime"), b"", 1
    else:
        match = _TIME.fullmatch(value)
        if match is None:
            raise malformed(f"an extended header says mtime={value[:40]!r}, no time")
        seconds, fraction = int(match[2]), match[3] or b""
        sign = -1 if match[1] else 1
    nanoseconds = sign * (seconds * 1_000_000_000 + int(fraction[:9].ljust(9, b"0")))
    # What struct timespec holds. A filesystem may hold less, and then takes the nearest time.
    if not -(1 << 63) <= nanoseconds // 1_000_000_000 < 1 << 63:
        raise malformed(f"a member's mtime is out of range: {sign * seconds} s")
    return nanoseconds


def _records(content: bytes) -> dict[bytes, bytes]:
    r"""Return the records ``LENGTH KEY=VALUE\n`` of an extended header."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(content):
        match = _LENGTH.match(content, at)
        end = at + int(match[1]) if match else 0
        if match is None or end > len(content) or end <= match.end():
            raise malformed("an extended header is damaged")
        if content[end - 1 : end] != b"\n":
            raise malformed("a record of an extended header does not end where it says")
        key, equals, value = content[match.end() : end - 1].partition(b"=")
        if not equals or not key:
            raise malformed("a record of an extended header has no keyword")
        if key.startswith(XATTR):
            # GNU tar encodes these two characters, since a keyword ends at the first "=".
            key = key.replace(b"%3D", b"=").replace(b"%25", b"%")
        if key in found:
            raise malformed(f"an extended header says {key[:80]!r} twice")
        found[key] = value
        at = end
    # An empty value removes the value of an earlier header.
    return {key: value for key, value in found.items() if value or key.startswith(XATTR)}


def _check_global(records: dict[bytes, bytes]) -> None:
    """Raise :class:`LayerError` for a header that describes all members at once."""
    for key in records:
        if key in (b"comment", b"charset", b"hdrcharset") or (
            b"." in key and not key.startswith((b"SCHILY.", b"GNU.sparse."))
        ):
            continue
        raise malformed(f"a global extended header sets {key[:80]!r} for all members")
