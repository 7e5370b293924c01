"""A directory tree that is filled from an archive which need not be trusted.

No link may lead out of the tree: an attack that is well known puts a symbolic link into an archive
and a later member below it. So every name is opened from the descriptor of the tree's root, with
openat2(2) and ``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`` where the kernel has it, and otherwise
component by component with ``O_NOFOLLOW``.
"""

from __future__ import annotations

import errno
from typing import Final, TypeAlias, final

from ..linux import syscalls as sys
from ..linux.errors import malformed
from ..linux.openat import DIRECTORY, LONGEST_PATH
from ..linux.untouched import os

_RESOLVE: Final = (
    sys.RESOLVE_BENEATH | sys.RESOLVE_NO_SYMLINKS | sys.RESOLVE_NO_MAGICLINKS | sys.RESOLVE_NO_XDEV
)
_LONGEST_NAME: Final = 255
#: What a member begins with that hides another name: the image specification, "Whiteouts".
WHITEOUT: Final = b".wh."

#: The components of a path; none for the root of the tree.
Parts: TypeAlias = tuple[bytes, ...]


def split(name: bytes, what: str = "member", prefix: bytes = b"") -> Parts:
    """Return the components of the name of a member; none for the root of the tree.

    ``.`` and repeated slashes are dropped. ``prefix``: with it, the last component is no name in
    the tree, but stands for what follows. Raises :class:`LayerError` if the name is empty,
    absolute or too long, contains a NUL, or leads upwards.
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
    # What is in a directory is reached by its descriptor.
    check_length(parts[:-1], what)
    named = (*parts[:-1], *(part.removeprefix(prefix) for part in parts[-1:]))
    if any(len(part) > _LONGEST_NAME for part in named):
        raise malformed(f"the name of {what} {shown!r} has a part of over {_LONGEST_NAME} bytes")
    return parts


def check_length(directory: Parts, what: str = "member") -> None:
    """Raise :class:`LayerError` if a directory cannot be opened by its path in one system call."""
    path = b"/".join(directory)
    if len(path) > LONGEST_PATH:
        shown = os.fsdecode(path[:200])
        raise malformed(f"the name of {what} {shown!r}... is longer than {LONGEST_PATH} bytes")


@final
class Tree:
    """The tree below a directory. The caller closes its descriptor, ``fd``."""

    __slots__ = ("_at", "_at_fd", "_openat2", "fd")

    def __init__(self, fd: int, *, openat2: bool = True) -> None:
        self.fd = fd
        self._at: Parts = ()
        self._at_fd = fd
        self._openat2 = openat2

    def close(self) -> None:
        """Close the directory that was opened last."""
        if self._at_fd != self.fd:
            os.close(self._at_fd)
        self._at, self._at_fd = (), self.fd

    def directory(self, parts: Parts) -> int:
        """Return a descriptor of a directory in the tree, which is valid until the next call.

        Raises :class:`OSError`: ENOENT, or ENOTDIR or ELOOP if a component is not a directory.
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
                # The kernel is older than Linux 5.6, or a seccomp profile hides it.
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
