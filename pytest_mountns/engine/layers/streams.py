"""Decompresses bytes, limits their number, and hashes them.

There are three steps: a :class:`Section` of a file; a decompressor, which is chosen by the first
bytes and never by a name or a media type; and a :class:`Stream`, which counts and hashes the
bytes, and raises an error when there are more than the limits allow.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final, Protocol, TypeAlias, final

from ..linux.errors import LayerError, malformed
from ..linux.untouched import os
from .limits import UNSUSPECTED, Limits

CHUNK: Final = 1 << 18
#: Bytes of memory that xz may use to decompress; its own presets need 65 MiB at most.
_XZ_MEMORY: Final = 256 << 20

#: Called every few hundred kilobytes with the bytes read so far, and the bytes in all.
Progress: TypeAlias = Callable[[int, int], None]

_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class Source(Protocol):
    """Something that bytes are read from; ``b""`` is the end."""

    def read(self, size: int, /) -> bytes:
        """Read at most ``size`` bytes, and at least one before the end."""
        ...


@final
class Section:
    """A part of an open file, read by position. Counts what was read and hashes it."""

    def __init__(
        self,
        fd: int,
        start: int,
        size: int,
        algorithm: str = "",
        progress: Progress | None = None,
    ) -> None:
        self.fd = fd
        self.start = start
        self.size = size
        self.count = 0
        self._hash = hashlib.new(algorithm) if algorithm else None
        self._progress = progress

    def peek(self) -> bytes:
        """Return the first few bytes, which are read again later."""
        return os.pread(self.fd, min(8, self.size), self.start)

    def read(self, size: int) -> bytes:
        """See :class:`Source`. Raises :class:`LayerError` if the file ends before the section."""
        wanted = min(size, self.size - self.count)
        if wanted <= 0:
            return b""
        data = os.pread(self.fd, wanted, self.start + self.count)
        if not data:
            raise malformed("the file is truncated", "fetch or make it anew")
        self.count += len(data)
        if self._hash is not None:
            self._hash.update(data)
        if self._progress is not None:
            self._progress(self.count, self.size)
        return data

    def digest(self) -> str:
        """Read what is left of the section, and return its SHA-256 in hexadecimal."""
        while self.read(CHUNK):
            pass
        return "" if self._hash is None else self._hash.hexdigest()


def compression_of(section: Section) -> str:
    """Return ``"gzip"``, ``"bzip2"``, ``"xz"``, ``"zstd"``, or ``""`` for anything else."""
    head = section.peek()
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


class _Decompressor(Protocol):
    """Interface of the decompressors of ``bz2`` and ``lzma``, and of ``compression.zstd``."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decompressor with the interface of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)
        # A full buffer may mean that there is more, even without input left.
        self.needs_input = len(out) < max_length
        return out


@final
class _Decompressed:
    """The content of one or several compressed streams, one after the other."""

    def __init__(self, raw: Source, kind: str, make: Callable[[], _Decompressor]) -> None:
        self._raw = raw
        self._kind = kind
        self._make = make
        self._now: _Decompressor | None = make()
        self._left = b""

    def read(self, size: int) -> bytes:
        while self._now is not None:
            data = b""
            if self._now.needs_input:
                data, self._left = self._left or self._raw.read(CHUNK), b""
                if not data:
                    raise malformed(f"the {self._kind} data are truncated", "fetch it anew")
            try:
                out = self._now.decompress(data, size)
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise malformed(f"damaged {self._kind} data: {error}", "fetch it anew") from error
            if self._now.eof:
                self._next(self._now.unused_data)
            if out:
                return out
        return b""

    def _next(self, rest: bytes) -> None:
        # Streams may be padded with zeros, as on tapes.
        while not rest.strip(b"\0"):
            rest = self._raw.read(CHUNK)
            if not rest:
                self._now = None
                return
        self._left = rest
        self._now = self._make()


def _zstd_library() -> Callable[[], _Decompressor] | None:
    """Return the decompressor of the standard library (Python 3.14), None without one."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        return None
    make: Callable[[], _Decompressor] = zstd.ZstdDecompressor
    return make


@contextmanager
def decompressed(section: Section, directory: str) -> Iterator[Source]:
    """Return the decompressed content of a section.

    ``directory``: where a temporary file may be made. Raises :class:`LayerError` for zstd if this
    machine cannot read it. Damaged content raises an error when it is read.
    """
    kind = compression_of(section)
    if kind == "":
        yield section
    elif kind == "gzip":
        yield _Decompressed(section, kind, _Gzip)
    elif kind == "bzip2":
        yield _Decompressed(section, kind, bz2.BZ2Decompressor)
    elif kind == "xz":
        yield _Decompressed(section, kind, _xz)
    elif library := _zstd_library():
        yield _Decompressed(section, kind, library)
    else:
        with _zstd(section, directory) as source:
            yield source


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


@contextmanager
def _zstd(section: Section, directory: str) -> Iterator[Source]:
    try:
        import zstandard  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        program = shutil.which("zstd")
        if program is None:
            raise LayerError(
                "read a layer",
                cause="it is compressed with zstd, which nothing here can read",
                remedy="pip install zstandard, or install the program zstd",
            ) from None
        with _zstd_program(program, section, directory) as source:
            yield source
        return
    reader = zstandard.ZstdDecompressor().stream_reader(section, read_across_frames=True)
    yield _Zstandard(reader, zstandard.ZstdError)


@final
class _Zstandard:
    """The reader of the package zstandard, whose errors become :class:`LayerError`."""

    def __init__(self, reader: Source, error: type[Exception]) -> None:
        self._reader = reader
        self._error = error

    def read(self, size: int) -> bytes:
        try:
            return self._reader.read(size)
        except self._error as error:
            raise malformed(f"damaged zstd data: {error}", "fetch it anew") from error


@contextmanager
def _zstd_program(program: str, section: Section, directory: str) -> Iterator[Source]:
    # The program reads to the end of its input, so it gets a file of the section alone.
    with tempfile.TemporaryFile(dir=directory) as file:
        while data := section.read(CHUNK):
            file.write(data)
        file.seek(0)
        with subprocess.Popen(
            [program, "-dcq"], stdin=file, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            try:
                yield _Piped(process, process.stdout)
            finally:
                process.kill()


@final
class _Piped:
    """The output of a program. Raises :class:`LayerError` at the end if it has failed."""

    def __init__(self, process: subprocess.Popen[bytes], output: IO[bytes]) -> None:
        self._process = process
        self._fd = output.fileno()

    def read(self, size: int) -> bytes:
        data = os.read(self._fd, size)
        if not data and self._process.wait():
            raise malformed("damaged zstd data", "fetch it anew")
        return data


@final
class Stream:
    """The bytes of a layer or archive, which are hashed, counted and limited.

    ``section`` is the compressed section that they come from, for the limit of the ratio.
    """

    def __init__(self, source: Source, section: Section, limits: Limits) -> None:
        self._source = source
        self._section = section
        self._limits = limits
        self._hash = hashlib.sha256()
        self.position = 0

    def some(self, size: int) -> bytes:
        """Read at most ``size`` bytes, none at the end. Raises :class:`LayerError` past a limit."""
        if not size:
            # For decompressors 0 means no limit, or an endless loop.
            return b""
        data = self._source.read(min(size, CHUNK))
        self.position += len(data)
        self._hash.update(data)
        if self.position > self._limits.bytes:
            raise LayerError(
                "read a layer",
                cause=f"it unpacks to more than {self._limits.bytes} bytes",
                remedy="raise the limit for bytes, if it is meant to be as big",
            )
        if (
            self.position > UNSUSPECTED
            and self._source is not self._section
            and self.position > self._section.count * self._limits.ratio
        ):
            raise LayerError(
                "read a layer",
                cause=f"it unpacks to more than {self._limits.ratio} times its size",
                remedy="raise the limit for ratio, if it is known to hold little but zeros",
            )
        return data

    def exactly(self, size: int) -> bytes:
        """Read ``size`` bytes. Raises :class:`LayerError` if there are fewer."""
        data = self.some(size)
        if len(data) == size:
            return data
        parts = [data]
        missing = size - len(data)
        while missing:
            data = self.some(missing)
            if not data:
                raise malformed("the archive is truncated", "fetch or make it anew")
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Skip ``size`` bytes. Raises :class:`LayerError` if there are fewer."""
        while size:
            data = self.some(min(size, CHUNK))
            if not data:
                raise malformed("the archive is truncated", "fetch or make it anew")
            size -= len(data)

    def digest(self) -> str:
        """Read what is left, and return the SHA-256 of everything in hexadecimal."""
        while self.some(CHUNK):
            pass
        return self._hash.hexdigest()
