"""Reads which shared libraries a program or library needs: elf(5), ld.so(8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from .untouched import open, os, struct

_INTERP: Final = 3
_LOAD: Final = 1
_DYNAMIC: Final = 2
_NEEDED: Final = 1
_STRTAB: Final = 5
_RPATH: Final = 15
_RUNPATH: Final = 29
_CACHE_MAGIC: Final = b"glibc-ld.so.cache1.1"
_CACHE_HEAD: Final = 48
_CACHE_ENTRY: Final = 24
#: The largest dynamic section that is read, in bytes.
_MOST: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Linked:
    """What the dynamic section of a file says."""

    #: The names of the libraries that it needs.
    needed: tuple[str, ...] = ()
    #: The directories to look in first; ``$ORIGIN`` is not replaced.
    search: tuple[str, ...] = ()
    #: The path of the program that loads it; "" if it is no executable.
    loader: str = ""


def read_linked(path: str) -> Linked | None:
    """What the dynamic section of a file says; None if it is not an ELF file or is damaged.

    Raises :class:`OSError` if it cannot be opened.
    """
    with open(path, "rb") as file:
        fd = file.fileno()
        try:
            return _linked(fd)
        except (struct.error, ValueError, IndexError, OverflowError, StopIteration, OSError):
            # An offset may lead out of the file, for example.
            return None


def _linked(fd: int) -> Linked | None:
    head = os.pread(fd, 64, 0)
    if head[:4] != b"\x7fELF" or len(head) < 52:
        return None
    wide = head[4] == 2
    order = "<" if head[5] == 1 else ">"
    if wide:
        at, size, count = *struct.unpack_from(f"{order}Q", head, 32), *_two(order, head, 54)
    else:
        at, size, count = *struct.unpack_from(f"{order}I", head, 28), *_two(order, head, 42)
    segments = []
    for number in range(count):
        raw = os.pread(fd, size, at + number * size)
        if wide:
            kind, _, offset, address, _, length = struct.unpack_from(f"{order}IIQQQQ", raw)
        else:
            kind, offset, address, _, length = struct.unpack_from(f"{order}IIIII", raw)
        segments.append((kind, offset, address, min(length, _MOST)))
    loader = ""
    entries: list[tuple[int, int]] = []
    for kind, offset, _, length in segments:
        if kind == _INTERP:
            loader = _text(os.pread(fd, length, offset))
        elif kind == _DYNAMIC:
            form = f"{order}qQ" if wide else f"{order}iI"
            data = os.pread(fd, length, offset)
            entries = list(struct.iter_unpack(form, data[: len(data) // 16 * 16]))
    strings = dict(entries).get(_STRTAB)
    if strings is None:
        return Linked(loader=loader)
    # The string table is given by its address in memory.
    base = next(
        offset + strings - address
        for kind, offset, address, length in segments
        if kind == _LOAD and address <= strings < address + max(length, 1)
    )

    def named(*tags: int) -> list[str]:
        return [_text(os.pread(fd, 4096, base + value)) for tag, value in entries if tag in tags]

    search = [part for text in named(_RPATH, _RUNPATH) for part in text.split(":") if part]
    return Linked(tuple(named(_NEEDED)), tuple(search), loader)


def _two(order: str, head: bytes, at: int) -> tuple[int, int]:
    size, count = struct.unpack_from(f"{order}HH", head, at)
    return size, count


def _text(raw: bytes) -> str:
    return os.fsdecode(raw.split(b"\0", 1)[0])


def read_cache(data: bytes) -> dict[str, str]:
    """Names and paths in the content of ``/etc/ld.so.cache``, ldconfig(8).

    Of several paths for a name the first one counts. Empty if it has another format.
    """
    at = data.find(_CACHE_MAGIC)
    if at < 0:
        return {}
    found: dict[str, str] = {}
    try:
        (count,) = struct.unpack_from("=I", data, at + len(_CACHE_MAGIC))
        for number in range(min(count, _MOST)):
            _, name, path = struct.unpack_from(
                "=iII", data, at + _CACHE_HEAD + number * _CACHE_ENTRY
            )
            found.setdefault(_at(data, at + name), _at(data, at + path))
    except (struct.error, ValueError):
        pass
    return found


def _at(data: bytes, start: int) -> str:
    return os.fsdecode(data[start : data.index(b"\0", start)])


def locate(
    name: str, origin: str, search: tuple[str, ...], cached: Mapping[str, str], usual: list[str]
) -> str | None:
    """Where the loader finds a library that ``origin`` (a directory) asks for, ld.so(8)."""
    if "/" in name:
        return name if os.path.exists(name) else None
    places = [
        part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin)
        for part in search
        if "$LIB" not in part
    ]
    for place in places:
        if os.path.exists(os.path.join(place, name)):
            return os.path.normpath(os.path.join(place, name))
    if name in cached:
        return cached[name]
    for place in usual:
        if os.path.exists(os.path.join(place, name)):
            return os.path.join(place, name)
    return None
