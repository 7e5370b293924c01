"""Unpacks the tar archive of a layer into a directory that overlayfs takes as a lower layer.

The rules of archives are those of the OCI image specification, "Image Layer Filesystem
Changeset"; those of the directory are the kernel's Documentation/filesystems/overlayfs.rst:

==========================  =================================================
in the archive              in the directory
==========================  =================================================
``.wh.NAME``                ``NAME``, a character device 0:0
``.wh..wh..opq``            ``opaque=y`` on the directory that contains it
both ``.wh.NAME`` and       the directory ``NAME``, with ``opaque=y``
a directory ``NAME``
==========================  =================================================

The archive is not trusted: names are resolved by :mod:`.tree`, and what does not belong in a layer
is refused. An ordinary user owns everything that is unpacked, and files of other owners lose their
set-id bits. Since Linux 5.8 an ordinary user may make whiteouts, but no other device nodes.
"""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

from ..linux.errors import LayerError, errno_name, malformed
from ..linux.openat import DIRECTORY as OPEN_DIRECTORY
from ..linux.openat import lstat
from ..linux.overlayfs import PREFIXES, is_whiteout
from ..linux.untouched import os
from .limits import Limits
from .streams import Stream
from .tar_reader import BLOCK_DEVICE, CHAR, DIRECTORY, FIFO, FILE, LINK, SYMLINK, Member, Reader
from .tree import WHITEOUT, Parts, Tree, check_length, split

#: The kind of overlay that the directory is for: root's, or in a user namespace (``userxattr``).
Form: TypeAlias = Literal["trusted", "user", "skeleton"]

_OPAQUE: Final = b".wh..wh..opq"
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OVERLAY: Final = tuple(map(os.fsencode, PREFIXES))
_ACLS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")
_LONGEST_XATTR: Final = 65536
_SET_ID: Final = stat.S_ISUID | stat.S_ISGID


@final
@dataclass(slots=True)
class Unpacked:
    """What has been unpacked from one archive. ``bytes``: size of the content of its files.

    ``opaque``: the root of the layer hides all layers below. overlayfs does not look for that
    mark on a layer's root, so whoever stacks layers has to leave out those below. ``notes``: what
    is in the archive and not in the directory, one sentence each.
    """

    members: int = 0
    bytes: int = 0
    opaque: bool = False
    notes: list[str] = field(default_factory=list)


@final
@dataclass(slots=True)
class _Attributes:
    mode: int
    uid: int
    gid: int
    mtime: int
    xattrs: dict[bytes, bytes]


def unpack(
    stream: Stream, fd: int, form: Form, limits: Limits | None = None, *, openat2: bool = True
) -> Unpacked:
    """Unpack a layer into the empty directory ``fd``. The stream is read up to its last member.

    Raises :class:`LayerError` if the layer contains what it must not, or more than the limits
    allow, and :class:`OSError` if the directory cannot be written. It is incomplete then.
    """
    unpacking = _Unpacking(stream, fd, form, limits or Limits(), openat2)
    try:
        return unpacking.run()
    finally:
        unpacking.tree.close()


@final
class _Unpacking:
    def __init__(self, stream: Stream, fd: int, form: Form, limits: Limits, openat2: bool) -> None:
        self.reader = Reader(stream)
        self.tree = Tree(fd, openat2=openat2)
        self.own = form == "trusted"
        self.opaque = f"{form}.overlay.opaque"
        self.limits = limits
        self.result = Unpacked()
        # Attributes are set when a directory is complete: until then it has to be writable.
        self.directories: dict[Parts, _Attributes] = {(): _Attributes(0o755, 0, 0, 0, {})}
        self.left_out: dict[str, int] = {}

    def run(self) -> Unpacked:
        while (member := self.reader.next()) is not None:
            self.result.members += 1
            if self.result.members > self.limits.members:
                raise LayerError(
                    "read a layer",
                    cause=f"it has more than {self.limits.members} members",
                    remedy="raise the limit for members, if it is meant to have as many",
                )
            self._add(member)
        self._finish_directories()
        for what, count in sorted(self.left_out.items()):
            self.result.notes.append(f"{what} ({count})")
        return self.result

    def _note(self, what: str) -> None:
        self.left_out[what] = self.left_out.get(what, 0) + 1

    def _add(self, member: Member) -> None:
        parts = split(member.name, prefix=WHITEOUT)
        if not parts:
            if member.kind != DIRECTORY:
                raise malformed(f"the root of the layer, {_shown(member)}, is no directory")
            self._directory(parts, member)
            return
        for part in parts[:-1]:
            if part.startswith(WHITEOUT):
                raise malformed(f"{_shown(member)} lies below a name that begins with '.wh.'")
        if parts[-1].startswith(WHITEOUT):
            self._mark(parts, member)
        elif member.kind == DIRECTORY:
            self._directory(parts, member)
        elif member.kind in (CHAR, BLOCK_DEVICE):
            # A sandbox makes its own /dev, so devices in images of whole systems are not needed.
            if parts[0] != b"dev":
                raise malformed(
                    f"{_shown(member)} is a device node, which would reach the machine's devices",
                    "leave it out of the archive",
                )
            self._note("device nodes in /dev were left out")
        else:
            self._entry(parts, member)

    def _mark(self, parts: Parts, member: Member) -> None:
        if member.kind != FILE:
            raise malformed(f"the whiteout {_shown(member)} is no regular file")
        if parts[-1] == _OPAQUE:
            self._set_opaque(parts[:-1])
            return
        name = parts[-1][len(WHITEOUT) :]
        if name in (b"", b".", b"..") or name.startswith(WHITEOUT):
            raise malformed(f"{_shown(member)} is no whiteout of anything")
        fd = self._parent(parts[:-1])
        there = lstat(name, fd)
        if there is None:
            _make_whiteout(name, fd)
        elif is_whiteout(there):
            raise malformed(f"the whiteout {_shown(member)} is there twice")
        elif stat.S_ISDIR(there.st_mode):
            # The order does not matter: the name is hidden in the lower layers.
            self._set_opaque((*parts[:-1], name))

    def _set_opaque(self, parts: Parts) -> None:
        fd = self._parent(parts)
        if not parts:
            self.result.opaque = True
        try:
            os.setxattr(fd, self.opaque, b"y")
        except OSError as error:
            raise _no_xattr(error, self.opaque) from error

    def _parent(self, parts: Parts) -> int:
        """Return a descriptor of a directory. It and its parents are made if they are missing."""
        try:
            return self.tree.directory(parts)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
        for depth, part in enumerate(parts):
            fd = self.tree.directory(parts[:depth])
            there = lstat(part, fd)
            if there is not None and is_whiteout(there):
                os.unlink(part, dir_fd=fd)
                self._make_directory(parts[: depth + 1], fd)
                self._set_opaque(parts[: depth + 1])
            elif there is None:
                self._make_directory(parts[: depth + 1], fd)
            elif not stat.S_ISDIR(there.st_mode):
                kind = "a symbolic link" if stat.S_ISLNK(there.st_mode) else "no directory"
                shown = os.fsdecode(b"/".join(parts))
                at = os.fsdecode(b"/".join(parts[: depth + 1]))
                raise malformed(f"a member lies in {shown!r}, but {at!r} is {kind}")
        return self.tree.directory(parts)

    def _make_directory(self, parts: Parts, fd: int) -> None:
        os.mkdir(parts[-1], 0o700, dir_fd=fd)
        self.directories[parts] = _Attributes(0o755, 0, 0, 0, {})

    def _directory(self, parts: Parts, member: Member) -> None:
        check_length(parts)
        if parts:
            fd = self._parent(parts[:-1])
            there = lstat(parts[-1], fd)
            if there is None:
                self._make_directory(parts, fd)
            elif is_whiteout(there):
                os.unlink(parts[-1], dir_fd=fd)
                self._make_directory(parts, fd)
                self._set_opaque(parts)
            elif not stat.S_ISDIR(there.st_mode):
                raise _twice(member)
        self.directories[parts] = _attributes(member)

    def _entry(self, parts: Parts, member: Member) -> None:
        name = parts[-1]
        source: tuple[int, bytes] | None = None
        if member.kind == LINK:
            source = self._link_source(member)
        try:
            fd = self._parent(parts[:-1])
            there = lstat(name, fd)
            if there is not None:
                if not is_whiteout(there):
                    raise _twice(member)
                os.unlink(name, dir_fd=fd)
            if source is not None:
                os.link(source[1], name, src_dir_fd=source[0], dst_dir_fd=fd, follow_symlinks=False)
            elif member.kind == SYMLINK:
                self._symlink(name, fd, member)
            elif member.kind == FIFO:
                os.mkfifo(name, 0o600, dir_fd=fd)
                self._finish_special(name, fd, member)
            else:
                self._file(name, fd, member)
        finally:
            if source is not None:
                os.close(source[0])

    def _link_source(self, member: Member) -> tuple[int, bytes]:
        """Return a descriptor of the directory of a hard link's target, and the target's name."""
        target = split(member.link, "hard link's target")
        shown = os.fsdecode(member.link[:200])
        there = None
        if target:
            try:
                fd = self.tree.directory(target[:-1])
                there = lstat(target[-1], fd)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
        if there is None or is_whiteout(there):
            raise malformed(f"{_shown(member)} is a hard link to {shown!r}, not in the archive")
        if stat.S_ISDIR(there.st_mode):
            raise malformed(f"{_shown(member)} is a hard link to the directory {shown!r}")
        return os.dup(fd), target[-1]

    def _symlink(self, name: bytes, fd: int, member: Member) -> None:
        if not member.link or b"\0" in member.link or len(member.link) > 4095:
            raise malformed(f"the target of the symbolic link {_shown(member)} can be no path")
        os.symlink(member.link, name, dir_fd=fd)
        self._chown(name, member, fd)
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=fd, follow_symlinks=False)

    def _finish_special(self, name: bytes, fd: int, member: Member) -> None:
        self._chown(name, member, fd)
        # It was made by this process just now, and no other process changes the tree.
        os.chmod(name, member.mode, dir_fd=fd)
        os.utime(name, ns=(member.mtime, member.mtime), dir_fd=fd, follow_symlinks=False)

    def _file(self, name: bytes, dir_fd: int, member: Member) -> None:
        fd = os.open(name, _NEW_FILE, 0o600, dir_fd=dir_fd)
        try:
            for piece in self.reader.data():
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(fd, rest) :]
            self.result.bytes += member.size
            attributes = _attributes(member)
            if not self.own and (member.uid, member.gid) != (os.geteuid(), os.getegid()):
                # For another owner the bits would mean something else.
                attributes.mode &= ~_SET_ID
            self._finish(fd, attributes)
        finally:
            os.close(fd)

    def _finish(self, fd: int, attributes: _Attributes) -> None:
        """Set the owner first, as that removes set-id bits and capabilities, and the times last."""
        self._chown(fd, attributes)
        os.fchmod(fd, attributes.mode)
        for name, value in attributes.xattrs.items():
            self._set_xattr(fd, name, value)
        os.utime(fd, ns=(attributes.mtime, attributes.mtime))

    def _chown(self, target: int | bytes, of: Member | _Attributes, dir_fd: int = -1) -> None:
        if not self.own:
            return
        try:
            if isinstance(target, int):
                os.fchown(target, of.uid, of.gid)
            else:
                os.chown(target, of.uid, of.gid, dir_fd=dir_fd, follow_symlinks=False)
        except OSError as error:
            # The user namespace of a container does not map this id.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise
            self._note("owners that do not exist here were not given")

    def _set_xattr(self, fd: int, name: bytes, value: bytes) -> None:
        shown = os.fsdecode(name[:200])
        if name.startswith(_OVERLAY):
            raise malformed(f"a member has the attribute {shown!r}, which is OverlayFS' own")
        if b"\0" in name or len(name) > 255 or len(value) > _LONGEST_XATTR:
            raise malformed(f"a member has an extended attribute that can be none: {shown!r}")
        allowed = name.startswith(b"user.") or name in _ACLS
        if not (allowed or (self.own and name == b"security.capability")):
            self._note(f"extended attributes {shown} were left out")
            return
        try:
            os.setxattr(fd, name, value)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            self._note(f"extended attributes {shown} were refused ({errno_name(error.errno or 0)})")

    def _finish_directories(self) -> None:
        # The innermost come first: a directory that may not be entered hides those below it.
        for parts, attributes in sorted(
            self.directories.items(), key=lambda item: len(item[0]), reverse=True
        ):
            fd = os.open(b".", OPEN_DIRECTORY, dir_fd=self.tree.directory(parts))
            try:
                self._finish(fd, attributes)
            finally:
                os.close(fd)


def _attributes(member: Member) -> _Attributes:
    return _Attributes(member.mode, member.uid, member.gid, member.mtime, member.xattrs)


def _shown(member: Member) -> str:
    return repr(os.fsdecode(member.name[:200]))


def _twice(member: Member) -> LayerError:
    return malformed(
        f"{_shown(member)} is there twice: which of the two counts depends on the reader"
    )


def _make_whiteout(name: bytes, fd: int) -> None:
    try:
        os.mknod(name, stat.S_IFCHR, os.makedev(0, 0), dir_fd=fd)
    except PermissionError as error:
        raise LayerError(
            "make a whiteout",
            str(error),
            "the cache lies on an overlay, as all of a container does, where nobody can make"
            " one; or Linux is older than 5.8, where only root can",
            "set XDG_CACHE_HOME to a directory on a disk or tmpfs (in a container: a volume)",
        ) from error


def _no_xattr(error: OSError, name: str) -> LayerError:
    return LayerError(
        f"set the attribute {name} on a directory of a layer",
        str(error),
        "only root may set trusted attributes; a tmpfs takes user attributes from Linux 6.6 on,"
        " some filesystems take none",
        "set XDG_CACHE_HOME to a directory on a disk",
    )
