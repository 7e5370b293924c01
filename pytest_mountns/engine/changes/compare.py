"""What a sandbox changed: its uppers, read against what lies below them.

That a path is in an upper proves nothing: OverlayFS copies up on the first open for writing, on a
link, on a change of owner. Only the comparison with the tree below tells. The layout of an upper is
that of Documentation/filesystems/overlayfs.rst: "Whiteouts and opaque directories", "Renaming
directories", "Nested overlayfs mounts".

Directories are opened by their path from the two descriptors, one pair at a time, so neither the
depth of a tree nor its size is limited by descriptors or by the interpreter's stack.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, final

from ..linux.attributes import OVERFLOW_ID, read_xattrs, without_overlay
from ..linux.openat import FILE, open_at, open_directory
from ..linux.overlayfs import is_whiteout, marks, redirect_source
from ..linux.untouched import os
from ..plan.model import Layered
from .changes import Change, Changes, Kind
from .entries import Contents, Entry, Place

_CHUNK = 1 << 20
# The sandbox and the host may change while they are read, and the caller may not read everything.
_OUT_OF_REACH = (FileNotFoundError, NotADirectoryError, PermissionError)
# Stands for what the caller may not read: it counts as existing, and as something else.
_UNKNOWN = os.stat_result((0,) * 10)


def read_changes(
    overlays: Sequence[Layered],
    *,
    upper_fd: int,
    lower_fd: int,
    xattr_prefix: str,
    ignore: Collection[str] = (),
    contents: Contents | None = None,
) -> Changes:
    """Compare the uppers of a sandbox with what it showed before it was written to.

    `upper_fd` and `lower_fd` are descriptors of directories: of the one `Layered.upper` is relative
    to, and of the root of the tree below, whose mounts are crossed. `xattr_prefix` is what the
    overlays put before the names of their attributes, "trusted.overlay." or "user.overlay.". A path
    in `ignore` is not reported for merely being "added". `contents` is where what the changes hold
    can be read later, by paths relative to the same descriptors.

    Nothing is written, and access times below are not changed where the caller may avoid it. The
    sandbox may be running; what vanishes meanwhile is left out. A file that the caller may not read
    is "modified" if its size or mtime differ. The content of an unreadable directory of the upper
    is not listed, and that of an unsearchable directory below counts as something else. The
    attributes of symlinks and special files are read by way of /proc. Raises OSError if an upper
    cannot be opened, or if anything cannot be read for another reason.
    """
    quiet = frozenset(ignore)
    contents = contents or Contents()
    changes: list[Change] = []
    for overlay in overlays:
        covered = {other.mountpoint for other in overlays if other is not overlay}
        walk = _Walk(overlay, upper_fd, lower_fd, xattr_prefix, quiet, covered, contents)
        changes += walk.run()
    return Changes(changes)


class _Directory(NamedTuple):
    """A directory of an upper that is still to be read. Paths are absolute, and "" for the root."""

    path: str
    #: The path in the upper, relative to the descriptor of the uppers.
    upper: str
    #: Where the tree below would show through; None if its parent has nothing below.
    lower: str | None
    #: The type (S_IFMT) of what the tree below has there.
    below: int | None
    #: Whether it is in a directory that was made anew, where nothing shows through.
    remade: bool = False


@final
@dataclass(slots=True, eq=False, repr=False)
class _Walk:
    """Compares one upper with what lies below it, once."""

    overlay: Layered
    upper_fd: int
    lower_fd: int
    xattr_prefix: str
    ignore: Collection[str]
    # Directories that another overlay is mounted on; that overlay reports them.
    covered: Collection[str]
    contents: Contents
    changes: list[Change] = field(default_factory=list)
    pending: list[_Directory] = field(default_factory=list)
    # Path, path below, and what was there: only at the end it is known which of them were moved.
    gone: list[tuple[str, str, Entry]] = field(default_factory=list)
    sources: set[str] = field(default_factory=set)

    def run(self) -> list[Change]:
        top = self.overlay.mountpoint.rstrip("/")
        form = stat.S_IFDIR if self._is_directory_below(top) else None
        root = _Directory(top, self.overlay.upper, top, form)
        self.pending.append(root)
        while self.pending:
            directory = self.pending.pop()
            try:
                fd = _open_directory(self.upper_fd, directory.upper)
            except _OUT_OF_REACH:
                if directory is root:
                    raise
                continue
            try:
                self._read(directory, fd)
            finally:
                os.close(fd)
        for path, lower, entry in self.gone:
            if lower not in self.sources:
                self._report(path, "deleted", None, entry, None)
        return self.changes

    def _report(
        self, path: str, kind: Kind, source: str | None, before: Entry | None, after: Entry | None
    ) -> None:
        if kind != "added" or path not in self.ignore:
            self.changes.append(Change(path or "/", kind, source, before, after))

    def _read(self, directory: _Directory, fd: int) -> None:
        here = os.fstat(fd)
        xattrs = read_xattrs(fd)
        kind, lower, remade = self._classify(directory, xattrs)
        lower_fd = None
        if lower is not None:
            try:
                lower_fd = _open_directory(self.lower_fd, lower[1:])
            except _OUT_OF_REACH:
                lower = None
        try:
            below = None if lower_fd is None else os.fstat(lower_fd)
            if kind is None and lower_fd is not None and below is not None:
                if directory.upper == self.overlay.upper:
                    below = _owned_as_far_as_mapped(below, here)
                same = _same_stat(here, below)
                if not same or without_overlay(xattrs) != without_overlay(read_xattrs(lower_fd)):
                    kind = "metadata"
            source = lower if kind == "renamed" else None
            if source is not None:
                self.sources.add(source)
            if kind is not None and directory.path not in self.covered:
                self._report_directory(directory, kind, source, below, here)
            self._read_entries(directory, fd, lower, lower_fd, remade)
        finally:
            if lower_fd is not None:
                os.close(lower_fd)

    def _report_directory(
        self,
        directory: _Directory,
        kind: Kind,
        source: str | None,
        below: os.stat_result | None,
        here: os.stat_result,
    ) -> None:
        before = None
        lower = source or directory.lower
        if kind == "replaced" and lower is not None and directory.below != stat.S_IFDIR:
            # What was there is not a directory, but an entry of the one above.
            name = lower.rpartition("/")[2]
            above = Place(self.contents, lower[1:].rpartition("/")[0], "")
            below = self._stat_below(above.before, name)
            before = None if below is None else Entry(below, above, lower, "before")
        elif below is not None and lower is not None:
            before = Entry(below, Place(self.contents, lower[1:], ""), "", "before")
        place = Place(self.contents, "", directory.upper)
        self._report(directory.path, kind, source, before, Entry(here, place))

    def _stat_below(self, directory: str, name: str) -> os.stat_result | None:
        try:
            fd = _open_directory(self.lower_fd, directory)
        except _OUT_OF_REACH:
            return None
        try:
            return _stat(name, fd)
        finally:
            os.close(fd)

    def _classify(
        self, directory: _Directory, xattrs: Mapping[str, bytes]
    ) -> tuple[Kind | None, str | None, bool]:
        """Returns its kind without its metadata, its directory below, and whether it is new."""
        lower = directory.lower
        opaque, redirect = marks(xattrs, self.xattr_prefix)
        if not opaque and redirect:
            relative = redirect_source(
                redirect, None if lower is None else lower[1:], self.overlay.mountpoint.strip("/")
            )
            # The kernel ignores a redirect that leads nowhere, too.
            if relative is not None and self._is_directory_below(source := f"/{relative}"):
                # A directory that was moved away and back again is not renamed.
                return (None if source == lower else "renamed"), source, False
        if directory.below is None:
            return "added", None, False
        if directory.below != stat.S_IFDIR:
            return "replaced", None, False
        # Any new directory may be opaque, but only one that hides a directory was made anew. Within
        # that, the mark has no meaning, since nothing shows through there.
        if opaque and not directory.remade:
            return "replaced", lower, True
        return None, lower, directory.remade

    def _is_directory_below(self, lower: str) -> bool:
        try:
            os.close(_open_directory(self.lower_fd, lower[1:]))
        except _OUT_OF_REACH:
            return False
        return True

    def _read_entries(
        self, directory: _Directory, fd: int, lower: str | None, lower_fd: int | None, remade: bool
    ) -> None:
        place = Place(self.contents, "" if lower is None else lower[1:], directory.upper)
        missing: set[str] = set()
        if remade and lower_fd is not None:
            missing.update(entry.name for entry in _entries(lower_fd))
        for entry in _entries(fd):
            name = entry.name
            path = f"{directory.path}/{name}"
            missing.discard(name)
            below = None if lower_fd is None else _stat(name, lower_fd)
            if entry.is_dir(follow_symlinks=False):
                upper = f"{directory.upper}/{name}"
                under = None if lower is None else f"{lower}/{name}"
                form = None if below is None else stat.S_IFMT(below.st_mode)
                self.pending.append(_Directory(path, upper, under, form, remade))
                continue
            try:
                here = entry.stat(follow_symlinks=False)
                if is_whiteout(here):
                    if below is not None:
                        was = Entry(below, place, path, "before")
                        self.gone.append((path, f"{lower}/{name}", was))
                elif lower_fd is None or below is None:
                    self._report(path, "added", None, None, Entry(here, place, path))
                elif kind := _compared(name, fd, here, lower_fd, below):
                    was, now = Entry(below, place, path, "before"), Entry(here, place, path)
                    self._report(path, kind, None, was, now)
            except _OUT_OF_REACH:
                continue
        for name in missing:
            below = None if lower_fd is None else _stat(name, lower_fd)
            if below is not None:
                path = f"{directory.path}/{name}"
                was = Entry(below, place, path, "before")
                self.gone.append((path, f"{lower}/{name}", was))


def _open_directory(root: int, path: str) -> int:
    return open_directory(root, path, unreadable=True)


def _owned_as_far_as_mapped(below: os.stat_result, here: os.stat_result) -> os.stat_result:
    """Returns ``below`` with the owner and group of ``here`` where the user namespace maps none.

    The user has made the root of the upper and could not give it an owner or group that is not
    mapped, so that is no change.
    """
    fields = list(below)
    for index, made in ((stat.ST_UID, here.st_uid), (stat.ST_GID, here.st_gid)):
        if fields[index] == OVERFLOW_ID:
            fields[index] = made
    return os.stat_result(fields)


def _compared(
    name: str, fd: int, here: os.stat_result, lower_fd: int, below: os.stat_result
) -> Kind | None:
    """The kind of change of an entry that is not a directory; None if it is the same."""
    form = stat.S_IFMT(here.st_mode)
    if form != stat.S_IFMT(below.st_mode):
        return "replaced"
    if form == stat.S_IFREG:
        return _compared_files(name, fd, here, lower_fd, below)
    if form == stat.S_IFLNK:
        same = os.readlink(name, dir_fd=fd) == os.readlink(name, dir_fd=lower_fd)
    else:
        same = here.st_rdev == below.st_rdev
    if not same:
        return "modified"
    # Neither can be opened, and Python has no getxattrat(2); without /proc both are {}.
    xattrs, xattrs_below = (
        without_overlay(read_xattrs(f"/proc/self/fd/{at}/{name}", follow=False))
        for at in (fd, lower_fd)
    )
    return None if _same_stat(here, below) and xattrs == xattrs_below else "metadata"


def _compared_files(
    name: str, fd: int, here: os.stat_result, lower_fd: int, below: os.stat_result
) -> Kind | None:
    if here.st_size != below.st_size:
        return "modified"
    opened: list[int] = []
    same_xattrs = True
    try:
        opened.append(open_at(name, FILE, fd))
        opened.append(open_at(name, FILE, lower_fd))
        if not _same_content(opened[0], opened[1], here.st_size):
            return "modified"
        same_xattrs = without_overlay(read_xattrs(opened[0])) == without_overlay(
            read_xattrs(opened[1])
        )
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        # It may not be read, or an error occurred. A write would have changed the mtime.
        if here.st_mtime_ns != below.st_mtime_ns:
            return "modified"
    finally:
        for file in opened:
            os.close(file)
    return None if same_xattrs and _same_stat(here, below) else "metadata"


def _same_content(file: int, other: int, size: int) -> bool:
    offset = 0
    while offset < size:
        ours = os.pread(file, min(_CHUNK, size - offset), offset)
        theirs = os.pread(other, len(ours), offset)
        # Some filesystems return less than was asked for. Nothing means that it was truncated.
        if not theirs or ours[: len(theirs)] != theirs:
            return False
        offset += len(theirs)
    return True


def _same_stat(here: os.stat_result, below: os.stat_result) -> bool:
    """Whether mode, owner and, except for directories, mtime are the same."""
    return (
        here.st_mode == below.st_mode
        and here.st_uid == below.st_uid
        and here.st_gid == below.st_gid
        and (here.st_mtime_ns == below.st_mtime_ns or stat.S_ISDIR(here.st_mode))
    )


def _stat(name: str, dir_fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except PermissionError:
        return _UNKNOWN
    except OSError:  # also ENAMETOOLONG, from a filesystem that takes less than the upper
        return None


def _entries(fd: int) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(fd) as entries:
            return list(entries)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return []  # a descriptor opened with O_PATH, see _open_directory()
