"""Opens what lies in a tree that others write to: by descriptors, never by a whole path.

Access times are left alone where the caller may do so, open(2) ``O_NOATIME``.
"""

from __future__ import annotations

from typing import Final

from .untouched import os

#: PATH_MAX without the NUL: no system call takes a longer path.
LONGEST_PATH: Final = 4095
#: Flags to open a directory with. Links are not followed.
DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: Flags to open a file with. O_NONBLOCK, since what was a file when it was listed may be a FIFO
#: when it is opened.
FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def open_at(path: str | bytes, flags: int, dir_fd: int) -> int:
    """Open a path below a directory, without a new access time where that is allowed.

    Raises :class:`OSError` if it cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        # O_NOATIME is for the owner of the file and for root.
        return os.open(path, flags, dir_fd=dir_fd)


def open_directory(root: int, path: str | bytes, *, unreadable: bool = False) -> int:
    """Open the directory at a relative path of any length; "" is ``root`` itself.

    ``unreadable``: one that the caller may not read is opened with O_PATH. Raises
    :class:`OSError` if it cannot be opened.
    """
    rest = os.fsencode(path) or b"."
    at = root
    try:
        while len(rest) > LONGEST_PATH:
            cut = rest.rindex(b"/", 0, LONGEST_PATH)
            step = os.open(rest[:cut], DIRECTORY | os.O_PATH, dir_fd=at)
            if at != root:
                os.close(at)
            at, rest = step, rest[cut + 1 :]
        try:
            return open_at(rest, DIRECTORY, at)
        except PermissionError:
            if not unreadable:
                raise
            return os.open(rest, DIRECTORY | os.O_PATH, dir_fd=at)
    finally:
        if at != root:
            os.close(at)


def lstat(name: bytes, dir_fd: int | None) -> os.stat_result | None:
    """The status of what has that name, links not followed; None if nothing has."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
