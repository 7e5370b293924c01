"""A path before or after a change: its attributes, and its content while the sandbox exists."""

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
#: Returns a context with a descriptor of the directory that the paths of one side begin at.
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
    """The type of a ``st_mode`` in words; "unknown" if it could not be read."""
    return _TYPES.get(stat.S_IFMT(mode), "unknown")


@final
class Contents:
    """Where the entries of one :class:`Changes` are read from."""

    __slots__ = ("trees",)

    def __init__(self, trees: Trees | None = None) -> None:
        #: None when they cannot be read any more, and after pickling.
        self.trees = trees

    def close(self) -> None:
        """From now on reading raises :class:`SandboxError`."""
        self.trees = None

    def __reduce__(self) -> tuple[type[Contents], tuple[()]]:
        return (Contents, ())


@final
class Place:
    """The paths of a directory in the two trees, relative to their descriptors.

    All entries of the directory share it.
    """

    __slots__ = ("after", "before", "contents")

    def __init__(self, contents: Contents, before: str, after: str) -> None:
        self.contents = contents
        self.before = before
        self.after = after

    def __reduce__(self) -> tuple[type[Place], tuple[Contents, str, str]]:
        return (Place, (self.contents, self.before, self.after))


@final
class Entry:
    """What was, or is, at the path of a change.

    ``size`` is in bytes as stat(2) returns it, ``uid`` and ``gid`` are those that the sandbox
    sees, ``mtime_ns`` is in nanoseconds since the epoch. All of them are of the moment of
    ``changes()``. The methods read when they are called. When the sandbox has ended, and after a
    ``reset()``, they raise :class:`SandboxError`.
    """

    __slots__ = ("_path", "_place", "_side", "gid", "mtime_ns", "size", "st_mode", "uid")

    def __init__(
        self,
        status: os.stat_result,
        place: Place | None = None,
        path: str = "",
        side: Side = "after",
    ) -> None:
        # The last component of `path` is the name in the directory `place`; "" is the directory
        # itself. So no name is stored twice.
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
        """One of "file", "directory", "symlink", "fifo", ..."""
        return file_type(self.st_mode)

    @property
    def mode(self) -> int:
        """The permission bits, as ``0o644``."""
        return stat.S_IMODE(self.st_mode)

    def __repr__(self) -> str:
        return f"<{self.type} {self.mode:04o} {self.uid}:{self.gid} {self.size} bytes>"

    def as_dict(self) -> dict[str, Any]:
        """The entry as plain types, for JSON."""
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

        Raises :class:`SandboxError` if it cannot be read, :class:`ValueError` if it is not a file.
        """
        if self.type != "file":
            raise ValueError(f"a {self.type} has no content to read")
        with self._within() as (directory, name):
            fd = open_at(name, FILE, directory)
            with open(fd, "rb") as file:
                return file.read(limit)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a file as text.

        Raises what :meth:`read_bytes` raises, and :class:`UnicodeDecodeError`.
        """
        return self.read_bytes().decode(encoding, errors)

    def target(self) -> str:
        """Where a symlink leads.

        Raises :class:`SandboxError` if it cannot be read, :class:`ValueError` if it is no symlink.
        """
        if self.type != "symlink":
            raise ValueError(f"a {self.type} leads nowhere")
        with self._within() as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def xattrs(self) -> dict[str, bytes]:
        """Its extended attributes, with ACLs (xattr(7), acl(5)) and without those of OverlayFS.

        Raises :class:`SandboxError` if they cannot be read.
        """
        with self._within() as (directory, name):
            if not name:
                return without_overlay(read_xattrs(directory))
            # Python has no getxattrat(2). Without /proc the result is empty.
            return without_overlay(read_xattrs(f"/proc/self/fd/{directory}/{name}", follow=False))

    @contextmanager
    def _within(self) -> Iterator[tuple[int, str]]:
        """A descriptor of its directory, and its name there; "" if it is that directory itself."""
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
