"""One path before or after: what it is, and what it holds while its sandbox is there."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final, Literal, TypeAlias, final

from ..linux.attributes import read_xattrs, without_overlay
from ..linux.errors import SandboxError
from ..linux.openat import FILE, open_at, open_directory
from ..linux.untouched import open, os

FileType: TypeAlias = Literal[
    "file", "directory", "symlink", "fifo", "socket", "character device", "block device", "unknown"
]
Side: TypeAlias = Literal["before", "after"]
#: Gives, for as long as it is entered, a descriptor of the directory that paths of a side begin at.
Trees: TypeAlias = Callable[[Side], AbstractContextManager[int]]

_TYPES: Final[dict[int, FileType]] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def file_type(mode: int) -> FileType:
    """The type in words of a ``st_mode``; "unknown" of what could not be looked at."""
    return _TYPES.get(stat.S_IFMT(mode), "unknown")


@final
class Contents:
    """Where the entries of one :class:`Changes` can be read, and whether they still can.

    ``trees`` is None once they cannot; so it is after pickling.
    """

    __slots__ = ("trees",)

    def __init__(self, trees: Trees | None = None) -> None:
        self.trees = trees

    def close(self) -> None:
        """From now on reading raises :class:`SandboxError`."""
        self.trees = None

    def __reduce__(self) -> tuple[type[Contents], tuple[()]]:
        return (Contents, ())


@final
class Place:
    """A directory: its paths in the two trees, relative to their descriptors. One for many."""

    __slots__ = ("after", "before", "contents")

    def __init__(self, contents: Contents, before: str, after: str) -> None:
        self.contents = contents
        self.before = before
        self.after = after

    def __reduce__(self) -> tuple[type[Place], tuple[Contents, str, str]]:
        return (Place, (self.contents, self.before, self.after))


@final
class Entry:
    """What stood, or stands, at the path of a change.

    ``size`` in bytes, as stat(2) gives it; ``uid`` and ``gid`` as the sandbox sees them;
    ``mtime_ns`` in nanoseconds since the epoch. These are of the moment of ``changes()``. What the
    methods read is read when they are called, as long as the sandbox is there: afterwards, and
    after a ``reset()``, they raise :class:`SandboxError`.
    """

    __slots__ = ("_path", "_place", "_side", "gid", "mtime_ns", "size", "st_mode", "uid")

    def __init__(
        self,
        status: os.stat_result,
        place: Place | None = None,
        path: str = "",
        side: Side = "after",
    ) -> None:
        # `path` ends in the name within the place, whatever stands before the last slash; "" is
        # the place itself. So no name is stored twice.
        self.st_mode = status.st_mode
        self.size = status.st_size
        self.uid = status.st_uid
        self.gid = status.st_gid
        self.mtime_ns = status.st_mtime_ns
        self._place = place
        self._path = path
        self._side = side

    @property
    def type(self) -> FileType:
        """ "file", "directory", "symlink", "fifo", ..."""
        return file_type(self.st_mode)

    @property
    def mode(self) -> int:
        """The permission bits, as ``0o644``."""
        return stat.S_IMODE(self.st_mode)

    def __repr__(self) -> str:
        return f"<{self.type} {self.mode:04o} {self.uid}:{self.gid} {self.size} bytes>"

    def as_dict(self) -> dict[str, Any]:
        """What JSON has of it."""
        return {
            "type": self.type,
            "mode": f"{self.mode:04o}",
            "uid": self.uid,
            "gid": self.gid,
            "size": self.size,
            "mtime_ns": self.mtime_ns,
        }

    def read_bytes(self, limit: int = -1) -> bytes:
        """The content of a file, at most ``limit`` bytes of it if that is not negative.

        Raises :class:`SandboxError` if it cannot be read, :class:`ValueError` if it is no file.
        """
        if self.type != "file":
            raise ValueError(f"a {self.type} has no content to read")
        with self._within() as (directory, name):
            fd = open_at(name, FILE, directory)
            with open(fd, "rb") as file:
                return file.read(limit)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a file as text. Raises what :meth:`read_bytes` raises, and
        :class:`UnicodeDecodeError`.
        """
        return self.read_bytes().decode(encoding, errors)

    def target(self) -> str:
        """Where a symlink leads.

        Raises :class:`SandboxError` if it cannot be read, :class:`ValueError` if it is none.
        """
        if self.type != "symlink":
            raise ValueError(f"a {self.type} leads nowhere")
        with self._within() as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def xattrs(self) -> dict[str, bytes]:
        """Its extended attributes, ACLs among them (xattr(7), acl(5)); those of overlays are not.

        Raises :class:`SandboxError`.
        """
        with self._within() as (directory, name):
            if not name:
                return without_overlay(read_xattrs(directory))
            # There is no getxattrat(2) to be had; without /proc this is empty.
            return without_overlay(read_xattrs(f"/proc/self/fd/{directory}/{name}", follow=False))

    @contextmanager
    def _within(self) -> Iterator[tuple[int, str]]:
        """A descriptor of the directory it is in, and its name there; "" for that directory."""
        place = self._place
        trees = None if place is None else place.contents.trees
        name = self._path.rpartition("/")[2]
        if trees is None or place is None:
            raise SandboxError(
                f"read what {self._path or 'a directory'} holds",
                cause="the sandbox has ended or was reset since the changes were read",
                remedy="read it in the test, or in pytest_mountns_changes",
            )
        try:
            with trees(self._side) as root:
                directory = open_directory(root, getattr(place, self._side), unreadable=True)
                try:
                    yield directory, name
                finally:
                    os.close(directory)
        except OSError as error:
            raise SandboxError(
                f"read what {self._path or 'a directory'} holds", str(error)
            ) from None
