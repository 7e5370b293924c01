"""Removes a directory tree of any depth, whose directories may be closed to their owner."""

from __future__ import annotations

import stat

from .openat import DIRECTORY, lstat
from .untouched import os


def remove_tree(name: str, dir_fd: int | None = None) -> None:
    """Remove the tree ``name`` below ``dir_fd`` or, without one, below the working directory.

    Nothing else may be changing it. A tree that does not exist is passed over. Raises
    :class:`OSError` if something cannot be removed.
    """
    status = lstat(os.fsencode(name), dir_fd)
    if status is None:
        return
    if not stat.S_ISDIR(status.st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return
    fd = _opened_up(os.fsencode(name), dir_fd)
    # There is one descriptor, whatever the depth. `parents` are the names of the directories from
    # the top to that one, and `pending` the directories that are left to remove in each of them.
    parents: list[bytes] = []
    pending = [_emptied(fd)]
    try:
        while pending:
            if pending[-1]:
                below = pending[-1].pop()
                inner = _opened_up(below, fd)
                os.close(fd)
                fd = inner
                parents.append(below)
                pending.append(_emptied(fd))
                continue
            pending.pop()
            if parents:
                outer = os.open("..", DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = outer
                os.rmdir(parents.pop(), dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=dir_fd)


def _opened_up(name: bytes, dir_fd: int | None) -> int:
    """A descriptor of a directory, whose mode is changed if it keeps its owner out."""
    try:
        fd = os.open(name, DIRECTORY, dir_fd=dir_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=dir_fd)
        return os.open(name, DIRECTORY, dir_fd=dir_fd)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        os.fchmod(fd, 0o700)
    return fd


def _emptied(fd: int) -> list[bytes]:
    """Remove everything except directories. Returns the names of the directories."""
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
