"""Has fork(2) copy at once the pages that every test process writes to.

Otherwise each of these pages costs two page faults: one in the child, which gets its copy then, and
one in the parent, where fork has made the page read-only. A page that is pinned is copied within
fork: a device may write to it, and what it writes belongs to the parent. Buffers that are
registered with an io_uring are pinned, io_uring_register(2). So these pages are registered, and
nothing ever uses the ring.

The child's memory has the same content as without. There is one exception: if another thread
writes to such a page while fork copies it, without holding the GIL, the child may see a part of
what it writes. That thread does not exist in the child.

Where pages cannot be pinned (seccomp, ``kernel.io_uring_disabled``, RLIMIT_MEMLOCK, an old kernel),
fork works as usual.

This exists for speed alone; ``MOUNTNS_ABLATE=fork_pages`` leaves it out. Measured on Linux 6.18
with and without it in turn: an empty test with ``process="fork"`` takes 1.13 times the CPU time
and 1.18 times the wall time without it (1.09 and 1.20 times as an ordinary user).
"""

from __future__ import annotations

import errno
import re
import resource
import sys as _sys
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Final, NamedTuple, TypeAlias, final

from . import syscalls as sys
from .ablation import is_left_out
from .namespaces import high
from .untouched import os, posix

#: Address and length in bytes.
Run: TypeAlias = "tuple[int, int]"

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_MOST: Final = 2048
_CAP_IPC_LOCK: Final = 14
#: How many pages a child reports; what is more is data of its test.
_MOST_SAID: Final = 1 << 15
#: The first tests may not be typical, so it is learned more than once.
_AFTER: Final = (4, 64, 1024)

_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw.p \S+ \S+ (\d+)")
_HUGE: Final = re.compile(r"(?:AnonHugePages|Private_Hugetlb): +[1-9]")
# The last byte of an entry in pagemap, proc_pid_pagemap(5): present, of no file, mapped once.
_OWN: Final = re.compile(b"\x81")


@final
class Mapping(NamedTuple):
    """A range of private memory that can be written to."""

    #: The addresses of its first byte and of the byte behind its last.
    start: int
    end: int
    #: Whether it is mapped from a file.
    of_file: bool
    #: Whether some of it is in huge pages.
    huge: bool


def read_mappings(smaps: str) -> Iterator[Mapping]:
    """Parse the text of ``/proc/PID/smaps`` or ``/proc/PID/maps``, proc_pid_smaps(5)."""
    heads = list(_MAPPING.finditer(smaps))
    for head, following in zip(heads, [*heads[1:], None], strict=True):
        body = smaps[head.end() : following.start() if following else len(smaps)]
        start, end = int(head[1], 16), int(head[2], 16)
        yield Mapping(start, end, head[3] != "0", _HUGE.search(body) is not None)


def budget(limit: int, *, exempt: bool, processes: int) -> int:
    """How many pages may be pinned.

    ``limit`` is RLIMIT_MEMLOCK in bytes, which all processes of a user share. Half of it is left
    to others, and ``processes`` like this one share the rest. ``exempt``: the limit does not
    apply to this process.
    """
    if exempt or limit == resource.RLIM_INFINITY:
        return _MOST
    return min(_MOST, limit // 2 // max(processes, 1) // _PAGE)


def choose(
    written: Sequence[Iterable[int]], mappings: Iterable[Mapping], most: int
) -> Iterator[Run]:
    """The ranges of pages to pin, with ``most`` pages at most.

    ``written`` has the numbers of the pages that each child has written to. A pinned page is
    copied for every child, so only those are pinned that more than half of the children write
    to. Huge pages would be copied whole, so they never are.
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
    """In a child: the numbers of the pages that it has written to since the fork, 8 bytes each.

    Empty if that cannot be read.
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
    """Learns which pages children write to, and pins them in this process.

    ``processes`` is the number of such processes of the same user. After each number of forks in
    ``after``, the next ``children`` processes report what they have written to.
    """

    def __init__(self, processes: int, children: int = 4, after: Collection[int] = _AFTER) -> None:
        self._processes = processes
        self._children = children
        self._after = after
        self._forks = 0
        self._written: list[array[int]] = []
        self._ring = -1
        self._learning = self._pinned = False
        self._refused = is_left_out("fork_pages")

    def before_fork(self) -> Callable[[], bytes] | None:
        """Called before each fork.

        Returns the function that the child calls at its end; what that returns is to be passed to
        :meth:`learn`. None if nothing is to be learned from this child.
        """
        if self._forks in self._after and not self._refused:
            self._learning = True
            # A child could not tell its copies of pinned pages from pages it has written to.
            self._unpin()
        self._forks += 1
        return written_pages if self._learning else None

    def learn(self, pages: bytes) -> None:
        """Take what a child has reported. After some children, pin the pages."""
        self._written.append(array("Q", pages))
        if len(self._written) == self._children:
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
            # Before Linux 6.5, memory that is mapped from files cannot be registered.
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
        """Unpin all pages. In a child: close the ring, which is the parent's."""
        if self._ring >= 0:
            posix.close(self._ring)
            self._ring = -1


def _read(path: str) -> bytes:
    fd = posix.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: posix.read(fd, 1 << 20), b""))
    finally:
        posix.close(fd)
