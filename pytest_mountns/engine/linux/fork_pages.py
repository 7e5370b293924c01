"""The pages that every forked process writes to, copied by fork(2) at once.

Otherwise each costs two faults: one in the child, which gets its copy then, and one here, where
fork has made it read-only. A page that something has pinned is copied within fork: a device may
write to it, and what it writes belongs to the parent. Buffers that are registered with an io_uring
are pinned, io_uring_register(2); so these pages are registered, and nothing ever uses the ring.

The child's memory is what it would have been. Only what another thread writes without the GIL
while fork copies the page may be seen half done in there, where that thread is gone.

Where it cannot be (seccomp, ``kernel.io_uring_disabled``, RLIMIT_MEMLOCK, an old kernel), nothing
is pinned, and all goes on as without.
"""

from __future__ import annotations

import errno
import re
import resource
import sys as _sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, TypeAlias, final

from . import syscalls as sys
from .ablation import is_left_out
from .namespaces import high
from .untouched import os, posix

#: Address and length in bytes.
Run: TypeAlias = "tuple[int, int]"

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MOST: Final = 2048
_CAP_IPC_LOCK: Final = 14
#: What a child says; more than that is data of its test.
_MOST_SAID: Final = 1 << 15
#: So many children are learned from, after so many forks: what runs first does not run always.
_CHILDREN: Final = 4
_AFTER: Final = (4, 64, 1024)

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ (\d+)")
_HUGE: Final = re.compile(r"(?:AnonHugePages|Private_Hugetlb): +[1-9]")
# The last byte of an entry in pagemap, proc_pid_pagemap(5): present, of no file, mapped once.
_OWN: Final = re.compile(b"\x81")


@final
@dataclass(frozen=True, slots=True)
class Mapping:
    """Private memory that can be written to, of a file or not. ``huge``: some in huge pages."""

    start: int
    end: int
    of_file: bool
    huge: bool


def read_mappings(smaps: str) -> Iterator[Mapping]:
    """From the text of ``/proc/PID/smaps``, or ``maps``, proc_pid_smaps(5)."""
    heads = list(_MAPPING.finditer(smaps))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = smaps[head.end() : following.start() if following else len(smaps)]
        start, end = int(head[1], 16), int(head[2], 16)
        yield Mapping(start, end, head[3] != "0", _HUGE.search(body) is not None)


def budget(limit: int, *, exempt: bool, processes: int) -> int:
    """How many pages may be pinned.

    ``limit``: RLIMIT_MEMLOCK in bytes, for all processes of a user; half of it is left to others,
    and ``processes`` like this one share the rest. ``exempt``: it does not apply.
    """
    if exempt or limit == resource.RLIM_INFINITY:
        return _MOST
    return min(_MOST, limit // 2 // max(processes, 1) // _PAGE)


def choose(
    written: Sequence[Iterable[int]], mappings: Iterable[Mapping], most: int
) -> Iterator[Run]:
    """The runs of pages to pin, ``most`` pages at most.

    ``written``: by each child, page numbers. Pinned, a page is copied for every child: that is
    worth it for what more than half of them write to. A huge page is copied whole: never.
    """
    counts = Counter(page for pages in written for page in pages)
    spans = sorted((m.start // _PAGE, m.end // _PAGE) for m in mappings if not m.huge)

    def is_ours(page: int) -> bool:
        index = bisect_right(spans, page, key=itemgetter(0)) - 1
        return index >= 0 and page < spans[index][1]

    often = [
        page for page, count in counts.most_common() if 2 * count > len(written) and is_ours(page)
    ]
    run = range(0)
    for page in sorted(often[:most]):
        if page != run.stop:
            if run:
                yield run.start * _PAGE, len(run) * _PAGE
            run = range(page, page)
        run = range(run.start, page + 1)
    if run:
        yield run.start * _PAGE, len(run) * _PAGE


def written_pages() -> bytes:
    """In a child: what it has written to since the fork, as page numbers of 8 bytes.

    Empty where that cannot be read.
    """
    found = array("Q")
    try:
        maps = _read("/proc/self/maps").decode(errors="replace")
        pagemap = posix.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        for mapping in read_mappings(maps):
            if len(found) >= _MOST_SAID:
                break
            first, count = mapping.start // _PAGE, (mapping.end - mapping.start) // _PAGE
            entries = posix.pread(pagemap, count * 8, first * 8)
            last = entries[7::8] if _sys.byteorder == "little" else entries[::8]
            found.extend(first + match.start() for match in _OWN.finditer(last))
    except OSError:
        return b""
    finally:
        posix.close(pagemap)
    return found.tobytes()


@final
class ForkPages:
    """The pages of this process that its children write to.

    ``processes``: how many like this one there are, of the same user.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        self._forks = 0
        self._written: list[array[int]] = []
        self._ring = -1
        self._learning = self._pinned = False
        self._refused = is_left_out("fork_pages")

    def before_fork(self) -> Callable[[], bytes] | None:
        """What the child that is forked next is to call at its end, and say, for :meth:`learn`."""
        if self._forks in _AFTER and not self._refused:
            self._learning = True
            # In a child, what is pinned would look as if it had been written to.
            self._unpin()
        self._forks += 1
        return written_pages if self._learning else None

    def in_child(self) -> None:
        """The ring is the parent's."""
        if self._ring >= 0:
            posix.close(self._ring)
            self._ring = -1

    def learn(self, pages: bytes) -> None:
        """From what a child has said; after some of them, pin."""
        self._written.append(array("Q", pages))
        if len(self._written) == _CHILDREN:
            try:
                self._pin(self._written)
            except OSError:
                self._refuse()
            self._written = []
            self._learning = False

    def _pin(self, written: Sequence[array[int]]) -> None:
        effective, _, _ = sys.capget()
        limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        exempt = bool(effective >> _CAP_IPC_LOCK & 1)
        most = budget(limit, exempt=exempt, processes=self._processes)
        mappings = list(read_mappings(_read("/proc/self/smaps").decode(errors="replace")))
        runs = list(choose(written, mappings, most))
        if not runs:
            return
        if self._ring < 0:
            self._ring = high(sys.io_uring_setup(1))
        try:
            sys.io_uring_register_buffers(self._ring, runs)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            # Before Linux 6.5: none of what a library has written to its own data.
            anonymous = [mapping for mapping in mappings if not mapping.of_file]
            sys.io_uring_register_buffers(self._ring, list(choose(written, anonymous, most)))
        self._pinned = True

    def _unpin(self) -> None:
        if self._pinned:
            self._pinned = False
            try:
                sys.io_uring_unregister_buffers(self._ring)
            except OSError:
                self._refuse()

    def _refuse(self) -> None:
        self.close()
        self._refused, self._learning = True, False

    def close(self) -> None:
        """Pin nothing any more."""
        if self._ring >= 0:
            posix.close(self._ring)
            self._ring = -1


def _read(path: str) -> bytes:
    fd = posix.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: posix.read(fd, 1 << 20), b""))
    finally:
        posix.close(fd)
