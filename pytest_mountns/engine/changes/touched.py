"""Finds out at little cost what was written in one directory, by looking into uppers alone.

:mod:`.compare` says exactly what has changed. This module answers a smaller question after every
test: was anything written below this directory? Nearly always the answer is no, and costs one
system call, since an upper has no entry there.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, TypeAlias, final

from ..linux.mountinfo import is_below
from ..linux.openat import open_directory
from ..linux.overlayfs import is_whiteout
from ..linux.untouched import os

#: The file that marks a directory as a cache, https://bford.info/cachedir/.
CACHE_TAG: Final = "CACHEDIR.TAG"

#: Of how many mountpoints it is kept in mind whether they matter.
_MOST_KNOWN: Final = 1000

#: Says of an absolute path that it does not matter, nor does what lies below it.
LeaveOut: TypeAlias = Callable[[str], bool]


class Touched(NamedTuple):
    """A file, link or other entry that is not a directory, and was written or deleted."""

    path: str
    #: The topmost directory on the way to it that was made, else the one that it lies in.
    directory: str
    #: Whether it was deleted. A directory that was deleted counts as one path.
    deleted: bool


@final
class TouchedBelow:
    """Finds what sandboxes have written or deleted below one directory, absolute and normal."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        #: For each mountpoint of an overlay: where in the tree it is looked into, and what leads
        #: there in the upper. None if nothing below the directory is in that overlay.
        self._ways: dict[str, tuple[str, str] | None] = {}

    def has_entry(self, overlays: Iterable[tuple[str, str]], upper_fd: int) -> bool:
        """Whether an upper has an entry at the directory, or there is an overlay on or below it.

        ``overlays`` are pairs of a mountpoint and an upper, as in :class:`.UppersDescription`;
        ``upper_fd`` is a descriptor that the uppers are relative to.
        """
        for mountpoint, upper in overlays:
            way = self._way(mountpoint)
            if way is None:
                continue
            try:
                os.stat(upper + way[1], dir_fd=upper_fd, follow_symlinks=False)
            except NotADirectoryError:
                return True
            except OSError:
                continue
            return True
        return False

    def find(
        self, overlays: Iterable[tuple[str, str]], upper_fd: int, leave_out: LeaveOut
    ) -> Iterator[Touched]:
        """Yield what was written or deleted.

        The caller sees the tree that lies below the overlays as its own. A file that was copied up
        and has its size and time of modification still, as one that was only opened for writing,
        does not count, nor does what lies in a directory that is marked as a cache. What cannot be
        read is left out.
        """
        for mountpoint, upper in overlays:
            if (way := self._way(mountpoint)) is None:
                continue
            start = way[0]
            if any(map(leave_out, self._way_down(start))):
                continue
            deleted = Touched(start, os.path.dirname(start), True)
            try:
                status = os.stat(upper + way[1], dir_fd=upper_fd, follow_symlinks=False)
            except NotADirectoryError:
                # A directory above was deleted, or replaced.
                yield deleted
            except OSError:
                continue
            else:
                if stat.S_ISDIR(status.st_mode):
                    yield from _walk(upper_fd, upper + way[1], start, leave_out)
                elif is_whiteout(status):
                    yield deleted

    def _way_down(self, start: str) -> Iterator[str]:
        """The paths from ``start`` up to the directory, without the directory itself."""
        while start != self._directory:
            yield start
            start = os.path.dirname(start)

    def _way(self, mountpoint: str) -> tuple[str, str] | None:
        try:
            return self._ways[mountpoint]
        except KeyError:
            way: tuple[str, str] | None = None
            if mountpoint == self._directory or is_below(self._directory, mountpoint):
                within = self._directory[len(mountpoint.rstrip("/")) :].rstrip("/")
                way = self._directory, within
            elif is_below(mountpoint, self._directory):
                way = mountpoint, ""
            if len(self._ways) >= _MOST_KNOWN:
                # Of mounts that every test has elsewhere.
                self._ways.clear()
            self._ways[mountpoint] = way
            return way


def _walk(upper_fd: int, upper: str, start: str, leave_out: LeaveOut) -> Iterator[Touched]:
    # The directory in the upper, its path, and the topmost directory that was made on the way.
    pending = [(upper, start, "")]
    while pending:
        upper, place, made = pending.pop()
        entries = dict(_entries(upper_fd, upper))
        if CACHE_TAG in entries or os.path.exists(f"{place}/{CACHE_TAG}"):
            continue
        for name, status in entries.items():
            path = f"{place.rstrip('/')}/{name}"
            if leave_out(path):
                continue
            try:
                below = None if made else os.lstat(path)
            except OSError:
                below = None
            if stat.S_ISDIR(status.st_mode):
                new = below is None or not stat.S_ISDIR(below.st_mode)
                pending.append((f"{upper}/{name}", path, made or (path if new else "")))
            elif is_whiteout(status):
                if below is not None:
                    yield Touched(path, place, True)
            elif below is None or not _same(status, below):
                yield Touched(path, made or place, False)


def _entries(upper_fd: int, upper: str) -> Iterator[tuple[str, os.stat_result]]:
    try:
        fd = open_directory(upper_fd, upper)
    except OSError:
        return
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                yield entry.name, entry.stat(follow_symlinks=False)
    except OSError:
        return
    finally:
        os.close(fd)


def _same(here: os.stat_result, below: os.stat_result) -> bool:
    return (
        stat.S_IFMT(here.st_mode) == stat.S_IFMT(below.st_mode)
        and here.st_size == below.st_size
        and here.st_mtime_ns == below.st_mtime_ns
    )
