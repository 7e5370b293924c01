"""Writes tar archives for OCI layers: the same bytes for the same content.

Headers are those of pax(1), POSIX.1-2017: ustar, and extended records where ustar is too small.
Extended attributes are ``SCHILY.xattr.`` records, as in archives of Docker and GNU tar; in their
names ``%`` and ``=`` are written as GNU tar does, ``%25`` and ``%3D``.
:mod:`tarfile` is not used: for one binary attribute it declares all names of a member binary.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import IO, Final, Literal, Protocol, TypeAlias, final

from ..linux.errors import LayerError
from ..linux.untouched import os
from .streams import CHUNK
from .tar_reader import BLOCK, FILE, MOST_EXTENDED, XATTR, Member

Compression: TypeAlias = Literal["", "gzip", "zstd"]

#: By the OCI image specification, "Image Layer Filesystem Changeset".
MEDIA_TYPES: Final[dict[Compression, str]] = {
    "": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
}
_SMALL: Final = 8**7
_BIG: Final = 8**11
_LEVEL: Final = 3


@final
@dataclass(frozen=True, slots=True)
class Digests:
    """Digests, ``sha256:...``, of the file that was written and of the tar archive in it."""

    digest: str
    diff_id: str
    size: int


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


@final
class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def compression_of_name(path: str) -> Compression:
    """Return the compression for a file of that name."""
    if path.endswith((".gz", ".tgz")):
        return "gzip"
    return "zstd" if path.endswith(".zst") else ""


def best_compression() -> Compression:
    """Return ``"zstd"`` if this machine can write it, else ``"gzip"``."""
    return "zstd" if _zstd() is not None or shutil.which("zstd") else "gzip"


def _zstd() -> _Compressor | None:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        try:
            import zstandard  # type: ignore[import-not-found, unused-ignore]
        except ImportError:
            return None
        made: _Compressor = zstandard.ZstdCompressor(level=_LEVEL).compressobj()
        return made
    compressor: _Compressor = zstd.ZstdCompressor(level=_LEVEL)
    return compressor


@final
class Writer:
    """Writes one archive to ``file``, which has a descriptor and is empty.

    Call :meth:`add` for each member and then :meth:`finish`, or :meth:`abandon` after an error.
    They raise :class:`OSError` if the file cannot be written.
    """

    def __init__(self, file: IO[bytes], compression: Compression) -> None:
        self._file = file
        self._plain_hash = hashlib.sha256()
        self._hash = hashlib.sha256()
        self._size = 0
        self._program: subprocess.Popen[bytes] | None = None
        self._compressor: _Compressor = _Plain()
        if compression == "gzip":
            # No name and no time in its header.
            self._compressor = zlib.compressobj(6, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
        elif compression == "zstd" and (library := _zstd()):
            self._compressor = library
        elif compression == "zstd":
            self._program = _start_zstd(file)
        self.members = 0

    def add(self, member: Member, content: Iterable[bytes] = ()) -> None:
        """Write a member, and ``member.size`` bytes of content if it is a file.

        Raises :class:`LayerError` if it has more extended attributes than a reader takes.
        """
        self._write(header(member))
        self.members += 1
        written = 0
        for piece in content:
            self._write(piece)
            written += len(piece)
        assert written == (member.size if member.kind == FILE else 0)
        self._write(bytes(-written % BLOCK))

    def _write(self, data: bytes) -> None:
        self._plain_hash.update(data)
        if self._program is not None:
            assert self._program.stdin is not None
            self._program.stdin.write(data)
        else:
            self._put(self._compressor.compress(data))

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        self._size += len(data)
        self._file.write(data)

    def finish(self) -> Digests:
        """Write the end of the archive. Raises :class:`LayerError` if the program zstd failed."""
        self._write(bytes(2 * BLOCK))
        return self._close()

    def _close(self) -> Digests:
        if self._program is not None:
            self._program.communicate()
            if self._program.returncode:
                raise LayerError(
                    "write a layer",
                    cause=f"zstd failed with status {self._program.returncode}",
                    remedy="look at the room on the disk, or compress with gzip",
                )
            self._read_back()
        else:
            self._put(self._compressor.flush())
            self._file.flush()
        return Digests(
            f"sha256:{self._hash.hexdigest()}",
            f"sha256:{self._plain_hash.hexdigest()}",
            self._size,
        )

    def abandon(self) -> None:
        """End the program that compresses, if there is one."""
        if self._program is not None:
            self._program.kill()
            self._program.wait()

    def _read_back(self) -> None:
        fd = self._file.fileno()
        while data := os.pread(fd, CHUNK, self._size):
            self._hash.update(data)
            self._size += len(data)


def gzipped(archive: Iterable[bytes], file: IO[bytes]) -> Digests:
    """Compress an existing archive with gzip, and write it to an empty file."""
    writer = Writer(file, "gzip")
    for piece in archive:
        writer._write(piece)
    return writer._close()


def _start_zstd(file: IO[bytes]) -> subprocess.Popen[bytes]:
    program = shutil.which("zstd")
    if program is None:
        raise LayerError(
            "write a layer",
            cause="this machine has no program or library that compresses with zstd",
            remedy="pip install zstandard, install the program zstd, or compress with gzip",
        )
    return subprocess.Popen(
        [program, f"-{_LEVEL}", "-qc"],
        stdin=subprocess.PIPE,
        stdout=file.fileno(),
        stderr=subprocess.DEVNULL,
    )


def header(member: Member) -> bytes:
    """Return the blocks before the content of a member. Raises as :meth:`Writer.add`."""
    records: dict[bytes, bytes] = {}
    name, prefix = _fitted(member.name)
    if not name or not member.name.isascii():
        records[b"path"] = member.name
        name, prefix = member.name[:100], b""
    if len(member.link) > 100 or not member.link.isascii():
        records[b"linkpath"] = member.link
    if not (_is_utf8(member.name) and _is_utf8(member.link)):
        # By POSIX, names are UTF-8 otherwise.
        records = {b"hdrcharset": b"BINARY", **records}
    for key, value, most in (
        (b"uid", member.uid, _SMALL),
        (b"gid", member.gid, _SMALL),
        (b"size", member.size, _BIG),
    ):
        if value >= most:
            records[key] = b"%d" % value
    seconds, fraction = divmod(member.mtime, 1_000_000_000)
    if fraction or not 0 <= seconds < _BIG:
        records[b"mtime"] = _decimal(member.mtime)
    for attribute, content in sorted(member.xattrs.items()):
        encoded = attribute.replace(b"%", b"%25").replace(b"=", b"%3D")
        records[XATTR + encoded] = content
    extended = b""
    if records:
        content = b"".join(_record(key, value) for key, value in records.items())
        if len(content) > MOST_EXTENDED:
            raise LayerError(
                "write a layer",
                cause=f"the extended attributes of {os.fsdecode(member.name[:200])!r} take more"
                f" than {MOST_EXTENDED} bytes",
                remedy="leave the file out by a volume or tmpfs, or set fewer attributes",
            )
        about = Member(b"PaxHeaders/entry", "x", b"", 0o644, 0, 0, len(content), 0, (0, 0))
        extended = _block(about, about.name, b"") + content + bytes(-len(content) % BLOCK)
    short = replace(
        member,
        link=member.link[:100],
        uid=member.uid % _SMALL,
        gid=member.gid % _SMALL,
        size=member.size if member.size < _BIG else 0,
        mtime=seconds if 0 <= seconds < _BIG else 0,
    )
    return extended + _block(short, name, prefix)


def _block(member: Member, name: bytes, prefix: bytes) -> bytes:
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % member.mode,
            b"%07o\0" % member.uid,
            b"%07o\0" % member.gid,
            b"%011o\0" % member.size,
            b"%011o\0" % member.mtime,
            b" " * 8,
            member.kind.encode(),
            member.link.ljust(100, b"\0"),
            b"ustar\0" + b"00",
            bytes(64),
            b"%07o\0" % member.device[0],
            b"%07o\0" % member.device[1],
            prefix.ljust(155, b"\0"),
            bytes(12),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _fitted(name: bytes) -> tuple[bytes, bytes]:
    """Split a name into the name and prefix of ustar. Both are empty if it does not fit."""
    if len(name) <= 100:
        return name, b""
    cut = name.find(b"/", len(name) - 101)
    # A slash at the very end belongs to the name of a directory.
    if 0 < cut <= 155 and cut < len(name) - 1:
        return name[cut + 1 :], name[:cut]
    return b"", b""


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def _decimal(nanoseconds: int) -> bytes:
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    sign = b"-" if nanoseconds < 0 else b""
    return b"%s%d.%09d" % (sign, seconds, fraction)


def _record(key: bytes, value: bytes) -> bytes:
    r"""Return ``LENGTH KEY=VALUE\n``, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)
