"""Owner, mode, times and extended attributes: read, and copied from one path to another."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

from .overlayfs import PREFIXES
from .untouched import os

#: The id that the kernel shows for one that a user namespace does not map: the default of
#: /proc/sys/kernel/overflowuid and overflowgid, user_namespaces(7).
OVERFLOW_ID: Final = 65534


def read_xattrs(target: int | str, *, follow: bool = True) -> dict[str, bytes]:
    """The extended attributes that can be read.

    None are found where the filesystem has none, and through a descriptor opened with O_PATH.
    """
    found: dict[str, bytes] = {}
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError:
        return found
    for name in names:
        try:
            found[name] = os.getxattr(target, name, follow_symlinks=follow)
        except OSError:
            # ENODATA: it was removed meanwhile. EACCES: user attributes need read permission.
            continue
    return found


def without_overlay(xattrs: Mapping[str, bytes]) -> dict[str, bytes]:
    """The attributes that a sandbox shows; the others are OverlayFS's own."""
    return {name: xattrs[name] for name in xattrs if not name.startswith(PREFIXES)}


def copy_attributes(source: str | int, target: str | int, *, own: bool) -> None:
    """Copy mode, times and extended attributes; ``own``: the owner, too.

    ``source`` and ``target`` are paths or descriptors. An overlay shows the attributes of the
    upper directory for its root, so they should be close to those below: what the target's
    filesystem or this user cannot set, as a security label or a foreign owner, is left out.
    """
    status = os.stat(source)
    if own:
        try:
            os.chown(target, status.st_uid, status.st_gid)
        except OSError:
            # The user namespace does not map the id.
            pass
    os.chmod(target, stat.S_IMODE(status.st_mode))
    try:
        names = os.listxattr(source)
    except OSError:
        names = []
    for name in names:
        if not name.startswith(PREFIXES):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError:
                pass
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
