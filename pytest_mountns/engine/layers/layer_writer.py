"""Writes the uppers of a sandbox as the tar archive of one OCI layer.

What overlayfs keeps in an upper (Documentation/filesystems/overlayfs.rst) becomes what the OCI
image specification asks for ("Image Layer Filesystem Changeset"):

* a character device 0:0 that hides something becomes ``.wh.NAME``, in front of its siblings;
* a directory that replaces another becomes that directory and ``.wh..wh..opq`` in it;
* a renamed directory is only a reference to the one below (``redirect``): it becomes a copy of
  what the sandbox shows there, and the old name a whiteout;
* the attributes of overlayfs itself are left out.

Directories are opened one at a time, by their paths from descriptors. So nothing is opened through
the root of the sandbox. A directory with a path that no system call takes is refused here, since
nobody could unpack it.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import IO, Final, final

from ..linux.attributes import read_xattrs
from ..linux.errors import LayerError
from ..linux.openat import LONGEST_PATH, lstat, open_directory
from ..linux.overlayfs import is_whiteout, marks, redirect_source
from ..linux.untouched import os
from ..plan.model import Layered
from .tar_reader import BLOCK_DEVICE, CHAR, DIRECTORY, FIFO, FILE, LINK, SYMLINK, Member
from .tar_writer import MEDIA_TYPES, Compression, Writer
from .tree import WHITEOUT
from .upper_reader import Opener, content, kept_xattrs

_OPAQUE: Final = b".wh..wh..opq"
_KINDS: Final = {
    stat.S_IFREG: FILE,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFIFO: FIFO,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK_DEVICE,
}
_OUT_OF_REACH: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP)


@final
@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer that has been written to a file.

    ``digest`` and ``diff_id`` are ``sha256:...`` of the file and of the tar archive in it. ``size``
    is that of the file, in bytes. ``notes`` says what the layer lacks, one sentence each.
    """

    digest: str
    diff_id: str
    size: int
    media_type: str
    members: int
    notes: tuple[str, ...] = ()


def write_layer(
    file: IO[bytes],
    overlays: Sequence[Layered],
    *,
    upper_fd: int,
    lower_fd: int | None,
    xattr_prefix: str,
    compression: Compression = "gzip",
    ignore: Collection[str] = (),
    limit: int | None = None,
) -> WrittenLayer:
    """Write what is in the uppers of a sandbox to an empty file, open for reading and writing.

    ``overlays``, ``upper_fd``, ``lower_fd``, ``xattr_prefix`` and ``ignore``: as for
    :func:`.compare.read_changes`. Without a ``lower_fd`` every whiteout and opaque mark is written.
    ``limit``: bytes of content at most.

    The same content gives the same bytes. Modes in the uppers are changed for a moment where they
    keep their owner from reading. Raises :class:`LayerError` for a name that begins with ``.wh.``,
    for a tree that is too deep, for more than ``limit``, and if the sandbox writes meanwhile;
    :class:`OSError` if the file cannot be written or an upper not be read.
    """
    writer = Writer(file, compression)
    opener = Opener(upper_fd)
    export = _Export(writer, opener, lower_fd, xattr_prefix, frozenset(ignore), limit)
    try:
        # Outer overlays come before inner ones.
        for overlay in sorted(overlays, key=lambda one: one.mountpoint):
            others = {other.mountpoint for other in overlays if other is not overlay}
            export.run(overlay, others)
        digests = writer.finish()
    except BaseException:
        writer.abandon()
        raise
    finally:
        opener.close()
    notes = tuple(f"{what} ({count})" for what, count in sorted(export.left_out.items()))
    return WrittenLayer(
        digests.digest,
        digests.diff_id,
        digests.size,
        MEDIA_TYPES[compression],
        writer.members,
        notes,
    )


@final
@dataclass(slots=True)
class _Place:
    """A directory that is still to be written.

    ``name``: its name in the archive, b"" for the root. ``upper``: its path in the upper, None if
    it is a copy of a lower directory. ``lower``: the lower directory that is merged with it, None
    if there is none. ``base``: the directory of that name in the layers below, None if it is
    hidden. ``copied``: whether the content of ``lower`` has to be written as well.
    """

    name: bytes
    upper: bytes | None
    lower: bytes | None
    base: bytes | None
    copied: bool = False


@final
@dataclass(slots=True)
class _Export:
    writer: Writer
    opener: Opener
    lower_fd: int | None
    xattr_prefix: str
    ignore: Collection[str]
    limit: int | None
    left_out: dict[str, int] = field(default_factory=dict)
    written: int = 0
    links: dict[tuple[int, int], bytes] = field(default_factory=dict)
    # Directories that are written only if something in them is written.
    held: dict[bytes, Member] = field(default_factory=dict)
    done: set[bytes] = field(default_factory=set)

    def run(self, overlay: Layered, covered: Collection[str]) -> None:
        top = os.fsencode(overlay.mountpoint.strip("/"))
        self._hold_ancestors(top)
        pending = [_Place(top, os.fsencode(overlay.upper), top, top)]
        while pending:
            place = pending.pop()
            if os.fsdecode(b"/" + place.name) not in covered:
                pending += reversed(self._directory(place, top))

    def _note(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1

    def _hold_ancestors(self, top: bytes) -> None:
        parts = top.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            name = b"/".join(parts[:depth])
            if name in self.done or name in self.held:
                continue
            fd = self._open_below(name)
            if fd is not None:
                try:
                    self.held[name] = self._member(name, DIRECTORY, os.fstat(fd), fd)
                finally:
                    os.close(fd)

    def _open_below(self, path: bytes | None) -> int | None:
        if path is None or self.lower_fd is None:
            return None
        try:
            return open_directory(self.lower_fd, path)
        except OSError as error:
            if error.errno not in _OUT_OF_REACH:
                raise
            return None

    def _directory(self, place: _Place, top: bytes) -> list[_Place]:
        """Write a directory and the files in it. Returns the directories in it."""
        opened: list[int] = []
        try:
            fd = status = None
            if place.upper is not None:
                fd, status = self.opener.directory(place.upper)
                opened.append(fd)
            base_fd = self._open_below(place.base)
            opened += [] if base_fd is None else [base_fd]
            marked = fd is not None and self._settle(place, fd, base_fd, top)
            lower_fd = base_fd
            if place.lower != place.base:
                lower_fd = self._open_below(place.lower)
                opened += [] if lower_fd is None else [lower_fd]
            source = lower_fd if fd is None else fd
            if source is None:
                self._note("directories that cannot be read were left out")
                return []
            self._head(place, source, status or os.fstat(source), base_fd, marked=marked)
            if marked:
                place.base, base_fd = None, None
            return self._entries(place, fd, lower_fd, base_fd)
        finally:
            for number in opened:
                os.close(number)

    def _settle(self, place: _Place, fd: int, base_fd: int | None, top: bytes) -> bool:
        """Find the directory that is merged with one of the upper, and whether it hides one."""
        opaque, redirect = marks(read_xattrs(fd), self.xattr_prefix)
        hides = base_fd is not None or (self.lower_fd is None and place.base is not None)
        if opaque:
            place.lower, place.copied = None, False
            return hides
        if redirect and self.lower_fd is None:
            raise LayerError(
                "write a layer",
                cause=f"{_shown(place.name)} was renamed, and what is below is not there",
                remedy="write it while the root that it was made on is there",
            )
        if redirect:
            lower = None if place.lower is None else os.fsdecode(place.lower)
            found = redirect_source(redirect, lower, os.fsdecode(top))
            source = None if found is None else os.fsencode(found)
            there = self._open_below(source)
            if there is not None:
                os.close(there)
                moved = source != place.base
                place.lower = source
                place.copied = place.copied or moved
                return hides and moved
        return False

    def _head(
        self,
        place: _Place,
        fd: int,
        status: os.stat_result,
        base_fd: int | None,
        *,
        marked: bool,
    ) -> None:
        member = self._member(place.name, DIRECTORY, status, fd)
        path = os.fsdecode(b"/" + place.name)
        # The root is always written: without it the root gets arbitrary attributes when unpacked.
        unchanged = (
            place.name and base_fd is not None and not marked and self._is_same(member, base_fd)
        )
        if unchanged or (path in self.ignore and base_fd is None):
            self.held[place.name] = member
        else:
            self._emit(member)
        if marked:
            self._emit(_empty(_joined(place.name, _OPAQUE)))

    def _is_same(self, member: Member, base_fd: int) -> bool:
        """Compare attributes except for the mtime, which every copy-up into it changes."""
        there = self._member(member.name, DIRECTORY, os.fstat(base_fd), base_fd)
        there.mtime = member.mtime
        return there == member

    def _entries(
        self, place: _Place, fd: int | None, lower_fd: int | None, base_fd: int | None
    ) -> list[_Place]:
        ours = {} if fd is None else _listed(fd)
        below = _listed(lower_fd) if place.copied and lower_fd is not None else {}
        whiteouts: list[bytes] = []
        others: list[tuple[bytes, int]] = []
        inner: list[_Place] = []
        for name in sorted({*ours, *below}):
            if name.startswith(WHITEOUT):
                raise LayerError(
                    "write a layer",
                    cause=f"the name of {_shown(_joined(place.name, name))} begins with '.wh.',"
                    " which means a deletion in a layer",
                    remedy="give it another name, or leave its directory out by a volume or tmpfs",
                )
            if ours[name] if name in ours else below[name]:
                inner.append(self._inner(place, name, in_upper=name in ours, base_fd=base_fd))
            elif name not in ours:
                assert lower_fd is not None
                others.append((name, lower_fd))
            else:
                assert fd is not None
                status = lstat(name, fd)
                if status is None or not is_whiteout(status):
                    others.append((name, fd))
                elif self._is_below(name, place, base_fd):
                    whiteouts.append(name)
        for name in whiteouts:
            self._emit(_empty(_joined(place.name, WHITEOUT + name)))
        for name, source in others:
            path = _joined(place.name, name)
            if os.fsdecode(b"/" + path) in self.ignore and (
                not self._is_below(name, place, base_fd) or _is_as_made(name, fd, base_fd)
            ):
                continue
            self._entry(path, name, source, in_upper=source == fd)
        return inner

    def _is_below(self, name: bytes, place: _Place, base_fd: int | None) -> bool:
        """Whether layers below may have something of that name."""
        if self.lower_fd is None:
            return place.base is not None
        return base_fd is not None and lstat(name, base_fd) is not None

    def _inner(self, place: _Place, name: bytes, *, in_upper: bool, base_fd: int | None) -> _Place:
        upper = _joined(place.upper, name) if in_upper and place.upper is not None else None
        lower = None if place.lower is None else _joined(place.lower, name)
        known = self.lower_fd is None or base_fd is not None
        base = _joined(place.base, name) if place.base is not None and known else None
        return _Place(_joined(place.name, name), upper, lower, base, place.copied)

    def _entry(self, path: bytes, name: bytes, dir_fd: int, *, in_upper: bool) -> None:
        status = lstat(name, dir_fd)
        kind = _KINDS.get(stat.S_IFMT(status.st_mode)) if status is not None else ""
        if status is None or kind is None:
            self._note("sockets, which no archive can hold, were left out")
            return
        key = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and key in self.links:
            member = self._member(path, LINK, status)
            member.link = self.links[key]
            self._emit(member)
            return
        if kind == FILE:
            if not self._file(path, name, dir_fd, in_upper=in_upper):
                return
        else:
            member = self._member(path, kind, status)
            if kind == SYMLINK:
                member.link = os.readlink(name, dir_fd=dir_fd)
            elif kind != FIFO:
                member.device = (os.major(status.st_rdev), os.minor(status.st_rdev))
            self._emit(member)
        if status.st_nlink > 1:
            self.links[key] = path

    def _file(self, path: bytes, name: bytes, dir_fd: int, *, in_upper: bool) -> bool:
        try:
            fd, status = self.opener.file(name, dir_fd, in_upper=in_upper)
        except PermissionError:
            self._note("files that cannot be read were left out")
            return False
        try:
            if in_upper and f"{self.xattr_prefix}metacopy" in os.listxattr(fd):
                raise LayerError(
                    "write a layer",
                    cause=f"{_shown(path)} has its content in the layer below (metacopy)",
                    remedy="mount the overlay with metacopy=off",
                )
            member = self._member(path, FILE, status, fd)
            member.size = status.st_size
            self.written += status.st_size
            if self.limit is not None and self.written > self.limit:
                raise LayerError(
                    "write a layer",
                    cause=f"it would hold more than {self.limit} bytes",
                    remedy="raise the limit, or keep less",
                )
            self._emit(member, content(fd, status.st_size, _shown(path)))
        finally:
            os.close(fd)
        return True

    def _emit(self, member: Member, data: Iterable[bytes] = ()) -> None:
        if self.held:
            parts = member.name.split(b"/")
            for depth in range(len(parts)):
                directory = self.held.pop(b"/".join(parts[:depth]), None)
                if directory is not None:
                    self._emit(directory)
        if member.kind == DIRECTORY:
            if len(member.name) > LONGEST_PATH:
                raise LayerError(
                    "write a layer",
                    cause=f"the path of the directory {_shown(member.name[:200])}... is longer than"
                    f" {LONGEST_PATH} bytes",
                    remedy="leave it out by a volume or tmpfs, or make a tree that is less deep",
                )
            self.done.add(member.name)
            member.name = (member.name or b".") + b"/"
        self.writer.add(member, data)

    def _member(
        self, name: bytes, kind: str, status: os.stat_result, fd: int | None = None
    ) -> Member:
        uid, gid = status.st_uid, status.st_gid
        xattrs = {} if fd is None else kept_xattrs(fd)
        mode = stat.S_IMODE(status.st_mode)
        return Member(name, kind, b"", mode, uid, gid, 0, status.st_mtime_ns, (0, 0), 0, xattrs)


def _is_as_made(name: bytes, fd: int | None, base_fd: int | None) -> bool:
    """Whether a mountpoint that was made for the sandbox still is as in the layer below."""
    if fd is None or base_fd is None:
        return False
    here, below = lstat(name, fd), lstat(name, base_fd)
    if here is None or below is None:
        return False
    return (here.st_mode, here.st_size, here.st_mtime_ns) == (
        below.st_mode,
        below.st_size,
        below.st_mtime_ns,
    )


def _empty(name: bytes) -> Member:
    return Member(name, FILE, b"", 0o644, 0, 0, 0, 0, (0, 0))


def _joined(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _listed(fd: int) -> dict[bytes, bool]:
    """Return the names in a directory, and whether they are directories."""
    with os.scandir(fd) as entries:
        return {os.fsencode(e.name): e.is_dir(follow_symlinks=False) for e in entries}


def _shown(name: bytes) -> str:
    return repr("/" + os.fsdecode(name))
