"""Owner, mode, times and extended attributes, from one path to another."""

from __future__ import annotations

import os
import stat
from typing import Final

_OVERLAY: Final = ("trusted.overlay.", "user.overlay.")


def copy_attributes(source: str | int, target: str | int, *, own: bool) -> None:
    """Give ``target`` what ``source`` has, paths or descriptors. ``own``: the owner too.

    What the target's filesystem or this user cannot hold (a label, a foreign owner) is left out:
    an overlay shows the attributes of the upper directory for its root, and close is better
    than none.
    """
    status = os.stat(source)
    if own:
        try:
            os.chown(target, status.st_uid, status.st_gid)
        except OSError:
            # An id that this user namespace does not map.
            pass
    os.chmod(target, stat.S_IMODE(status.st_mode))
    try:
        names = os.listxattr(source)
    except OSError:
        names = []
    for name in names:
        if not name.startswith(_OVERLAY):
            try:
                os.setxattr(target, name, os.getxattr(source, name))
            except OSError:
                pass
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
