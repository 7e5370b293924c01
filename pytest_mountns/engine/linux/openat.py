"""Opening what lies in a tree that others write to, by descriptors and never by a whole path.

Access times are left alone where the caller may do so, open(2) ``O_NOATIME``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

# Below PATH_MAX (4096 bytes with the NUL); longer paths are opened in stretches.
_STRETCH: Final = 4000
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what was a file when it was listed may be a FIFO when it is opened.
FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Written by overlays for their own use; the second prefix is that of `userxattr` mounts.
_OVERLAY_XATTRS: Final = ("trusted.overlay.", "user.overlay.")


def open_at(path: str | bytes, flags: int, dir_fd: int) -> int:
    """openat(2), without a new access time where that is allowed. Raises OSError."""
    try:
        return os.open(path, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:  # O_NOATIME is for the owner and for root
        return os.open(path, flags, dir_fd=dir_fd)


def open_directory(root: int, path: str) -> int:
    """The directory at a relative path of any length, "" for `root` itself.

    One that the caller may not read comes back as an O_PATH descriptor. Raises OSError.
    """
    rest = os.fsencode(path) or b"."
    at = root
    try:
        while len(rest) > _STRETCH:
            cut = rest.rindex(b"/", 0, _STRETCH)
            step = os.open(rest[:cut], _DIRECTORY | os.O_PATH, dir_fd=at)
            if at != root:
                os.close(at)
            at, rest = step, rest[cut + 1 :]
        try:
            return open_at(rest, _DIRECTORY, at)
        except PermissionError:
            return os.open(rest, _DIRECTORY | os.O_PATH, dir_fd=at)
    finally:
        if at != root:
            os.close(at)


def read_xattrs(target: int | str, *, follow: bool = True) -> dict[str, bytes]:
    """All that can be read; nothing where the filesystem or an O_PATH descriptor has none."""
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return found
    for name in names:
        try:
            found[name] = os.getxattr(target, name, follow_symlinks=follow)
        except OSError:
            continue  # ENODATA: removed meanwhile; EACCES: a user attribute wants read permission
    return found


def visible(xattrs: Mapping[str, bytes]) -> dict[str, bytes]:
    """Those that a sandbox can see; the others belong to overlays."""
    return {name: xattrs[name] for name in xattrs if not name.startswith(_OVERLAY_XATTRS)}
