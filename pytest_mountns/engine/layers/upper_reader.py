"""Reads all files and attributes in an upper, also those that its owner may not read."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from typing import Final, final

from ..linux.errors import LayerError
from ..linux.openat import open_directory
from ..linux.overlayfs import PREFIXES
from ..linux.untouched import os
from .streams import CHUNK

# O_NONBLOCK, as a file may have been replaced by a FIFO since it was listed.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HANDLE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_KEPT: Final = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")


@final
class Opener:
    """Opens directories and files of an upper, also those with mode 000, until :meth:`close`.

    Where this process may not read a directory because of its mode, the mode is changed for that
    time. Root may read all of them.
    """

    def __init__(self, upper_fd: int) -> None:
        self._upper_fd = upper_fd
        self._opened_up: list[tuple[int, int]] = []

    def close(self) -> None:
        """Restore the modes of directories, the innermost first."""
        while self._opened_up:
            fd, mode = self._opened_up.pop()
            os.chmod(f"/proc/self/fd/{fd}", mode)
            os.close(fd)

    def directory(self, path: bytes) -> tuple[int, os.stat_result]:
        """Return a descriptor, which the caller closes, and the status before any change."""
        try:
            fd = open_directory(self._upper_fd, path)
            status = os.fstat(fd)
            if status.st_uid != os.geteuid() or status.st_mode & 0o500 == 0o500:
                return fd, status
            os.close(fd)
        except PermissionError:
            pass
        head, _, name = path.rpartition(b"/")
        parent = open_directory(self._upper_fd, head)
        try:
            handle = os.open(name or b".", _HANDLE, dir_fd=parent)
        finally:
            os.close(parent)
        status = os.fstat(handle)
        mode = stat.S_IMODE(status.st_mode)
        self._opened_up.append((handle, mode))
        # fchmod(2) does not take an O_PATH descriptor.
        os.chmod(f"/proc/self/fd/{handle}", mode | 0o500)
        return open_directory(self._upper_fd, path), status

    @staticmethod
    def file(name: bytes, dir_fd: int, *, in_upper: bool) -> tuple[int, os.stat_result]:
        """Return a descriptor of a regular file, which the caller closes, and its status.

        Raises :class:`PermissionError` for a file of a lower layer that may not be read.
        """
        for flags in (os.O_NOATIME, 0):
            try:
                # Only the owner may use O_NOATIME.
                fd = os.open(name, _READ | flags, dir_fd=dir_fd)
            except PermissionError:
                if flags == 0 and not in_upper:
                    raise
            else:
                return fd, os.fstat(fd)
        handle = os.open(name, _HANDLE, dir_fd=dir_fd)
        try:
            status = os.fstat(handle)
            mode = stat.S_IMODE(status.st_mode)
            os.chmod(f"/proc/self/fd/{handle}", mode | 0o400)
            try:
                return os.open(name, _READ | os.O_NOATIME, dir_fd=dir_fd), status
            finally:
                os.chmod(f"/proc/self/fd/{handle}", mode)
        finally:
            os.close(handle)


def content(fd: int, size: int, shown: str) -> Iterator[bytes]:
    """Yield ``size`` bytes of a file in pieces. Raises :class:`LayerError` if there are fewer."""
    left = size
    while left:
        data = os.read(fd, min(left, CHUNK))
        if not data:
            raise LayerError(
                "write a layer",
                cause=f"{shown} became shorter while it was read",
                remedy="stop what writes to it before the layer is written",
            )
        left -= len(data)
        yield data


def kept_xattrs(fd: int) -> dict[bytes, bytes]:
    """Return the attributes for a layer: user's, capabilities, and access control lists."""
    found = {}
    for name in os.listxattr(fd):
        if name.startswith(PREFIXES) or not (name.startswith("user.") or name in _KEPT):
            continue
        try:
            found[os.fsencode(name)] = os.getxattr(fd, name)
        except OSError as error:
            # It has been removed since, or this user may not read it.
            if error.errno not in (errno.ENODATA, errno.EACCES, errno.EPERM):
                raise
    return found
