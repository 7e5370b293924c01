"""A tree that is only reached by descriptors, so that no link in it can lead outside.

What is unpacked comes from strangers: a symbolic link that is followed by a later member is the
oldest trick there is. Every name is therefore opened from the descriptor of the tree's root, with
openat2(2) and ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`` where there is one, else component by
component with ``O_NOFOLLOW``.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import Final, final

from . import syscalls as sys
from .errors import malformed

#: Open flags of every directory in such a tree.
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RESOLVE: Final = (
    sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS | sys.RESOLVE_NO_XDEV
)
#: PATH_MAX without the NUL: no longer name can be given to a system call.
LONGEST_PATH: Final = 4095
_LONGEST_NAME: Final = 255

Parts = tuple[bytes, ...]


def split(name: bytes, what: str = "member") -> Parts:
    """The components of a member's name; none for the root of the tree itself.

    ``.`` and repeated slashes are dropped. Raises :class:`LayerError` for a name that is empty,
    absolute, too long, has a NUL in it or leads upwards.
    """
    shown = os.fsdecode(name[:200])
    if not name:
        raise malformed(f"a {what} has an empty name")
    if b"\0" in name:
        raise malformed(f"the name of {what} {shown!r} has a NUL character in it")
    if name.startswith(b"/"):
        raise malformed(
            f"the name of {what} {shown!r} is absolute",
            "make the archive with names relative to its root (tar does, without -P)",
        )
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise malformed(f"the name of {what} {shown!r} leads outside by '..'")
    if len(name) > LONGEST_PATH:
        raise malformed(f"the name of {what} {shown!r}... is longer than {LONGEST_PATH} bytes")
    if any(len(part) > _LONGEST_NAME for part in parts):
        raise malformed(f"the name of {what} {shown!r} has a part of over {_LONGEST_NAME} bytes")
    return parts


@final
class Tree:
    """A directory that is being filled. ``fd`` is its descriptor and stays the caller's."""

    __slots__ = ("_at", "_at_fd", "_openat2", "fd")

    def __init__(self, fd: int, *, openat2: bool = True) -> None:
        self.fd = fd
        self._at: Parts = ()
        self._at_fd = fd
        self._openat2 = openat2

    def close(self) -> None:
        """Close what is kept open for the next call."""
        if self._at_fd != self.fd:
            os.close(self._at_fd)
        self._at, self._at_fd = (), self.fd

    def directory(self, parts: Parts) -> int:
        """A descriptor of a directory in the tree, good until the next call.

        Raises :class:`OSError`: ENOENT, or ENOTDIR or ELOOP where a component is something else.
        """
        if parts != self._at:
            fd = self._open(parts) if parts else self.fd
            self.close()
            self._at, self._at_fd = parts, fd
        return self._at_fd

    def _open(self, parts: Parts) -> int:
        if self._openat2:
            try:
                return sys.openat2(self.fd, b"/".join(parts), DIRECTORY, _RESOLVE)
            except OSError as error:
                # Older than Linux 5.6, or hidden by a seccomp profile.
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._openat2 = False
        fd = self.fd
        try:
            for part in parts:
                inner = os.open(part, DIRECTORY, dir_fd=fd)
                if fd != self.fd:
                    os.close(fd)
                fd = inner
        except BaseException:
            if fd != self.fd:
                os.close(fd)
            raise
        return fd


def open_deep(path: bytes, root: int) -> int:
    """The directory at a path from ``root``, of any length; b"" is ``root`` itself.

    Raises :class:`OSError`.
    """
    rest = path or b"."
    at = root
    try:
        while len(rest) > LONGEST_PATH:
            cut = rest.rindex(b"/", 0, LONGEST_PATH)
            step = os.open(rest[:cut], DIRECTORY, dir_fd=at)
            if at != root:
                os.close(at)
            at, rest = step, rest[cut + 1 :]
        return os.open(rest, DIRECTORY, dir_fd=at)
    finally:
        if at != root:
            os.close(at)


def lstat(name: bytes, dir_fd: int) -> os.stat_result | None:
    """What stands there, links not followed; None if nothing does."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def is_whiteout(status: os.stat_result) -> bool:
    """Whether it is overlayfs' mark of a deleted entry: a character device 0:0."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def remove_tree(name: str, dir_fd: int) -> None:
    """Remove a tree whose directories may be closed to their owner, of any depth.

    Nothing else may be changing it. What is missing is passed over. Raises :class:`OSError`.
    """
    status = lstat(os.fsencode(name), dir_fd)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    fd = _opened_up(os.fsencode(name), dir_fd)
    # One descriptor whatever the depth: names of the directories on the way, and what is to do.
    way: list[bytes] = []
    todo = [_emptied(fd)]
    try:
        while todo:
            if todo[-1]:
                below = todo[-1].pop()
                inner = _opened_up(below, fd)
                os.close(fd)
                fd = inner
                way.append(below)
                todo.append(_emptied(fd))
                continue
            todo.pop()
            if way:
                outer = os.open("..", DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = outer
                os.rmdir(way.pop(), dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _opened_up(name: bytes, dir_fd: int) -> int:
    try:
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dir_fd)
        return os.open(name, DIRECTORY, dir_fd=dir_fd)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _emptied(fd: int) -> list[bytes]:
    """Remove what is no directory; give the names of the directories."""
    directories = []
    with os.scandir(fd) as entries:
        listed = list(entries)
    for entry in listed:
        name = os.fsencode(entry.name)
        if entry.is_dir(follow_symlinks=False):
            directories.append(name)
        else:
            os.unlink(name, dir_fd=fd)
    return directories
