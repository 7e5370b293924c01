"""The mount table of ``/proc/self/mountinfo``, parsed, and which of its mounts are visible.

The format is that of proc_pid_mountinfo(5). A table also lists mounts that no path reaches any
more, since a later mount covers them or a directory above them. A sandbox has to show those mounts
only that a path lookup still finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple, final

from .untouched import open, os

_ESCAPE: Final = rb"\\([0-7]{3})"


@final
class Mount(NamedTuple):
    """One line of the table.

    Paths are decoded; bytes that are not UTF-8 become surrogate escapes (PEP 383).
    """

    id: int
    parent: int
    device: str
    root: str
    mountpoint: str
    options: frozenset[str]
    propagation: tuple[str, ...]
    fstype: str
    source: str
    super_options: str

    @property
    def read_only(self) -> bool:
        """Whether the mount or its filesystem refuses writes."""
        return "ro" in self.options or "ro" in self.super_options.split(",")

    @property
    def is_shared(self) -> bool:
        """Whether what is mounted below it appears in other namespaces (``shared:``)."""
        return any(tag.startswith("shared:") for tag in self.propagation)


def _decode(field: bytes) -> str:
    if b"\\" in field:
        field = re.sub(_ESCAPE, lambda match: bytes([int(match[1], 8)]), field)
    return field.decode("utf-8", "surrogateescape")


def parse(table: bytes) -> list[Mount]:
    """Parse the content of a mountinfo file. Returns its mounts, in its order.

    Raises :class:`ValueError` if a line does not have the documented format.
    """
    mounts = []
    # Not splitlines(): a mountpoint may contain a carriage return, which is not escaped.
    for line in table.split(b"\n"):
        if not line:
            continue
        fields = line.split(b" ")
        # A single hyphen ends the optional fields.
        dash = fields.index(b"-", 6)
        mounts.append(
            Mount(
                id=int(fields[0]),
                parent=int(fields[1]),
                device=fields[2].decode(),
                root=_decode(fields[3]),
                mountpoint=_decode(fields[4]),
                options=frozenset(fields[5].decode().split(",")),
                propagation=tuple(field.decode() for field in fields[6:dash]),
                fstype=fields[dash + 1].decode(),
                source=_decode(fields[dash + 2]),
                super_options=_decode(fields[dash + 3]) if len(fields) > dash + 3 else "",
            )
        )
    return mounts


def read(path: str = "/proc/self/mountinfo") -> list[Mount]:
    """The mounts of this process's mount namespace. Raises :class:`OSError` without ``/proc``."""
    with open(path, "rb") as file:
        return parse(file.read())


def is_below(path: str, directory: str) -> bool:
    """Whether ``path`` lies below ``directory``; both are absolute and normal."""
    return path != directory and (directory == "/" or path.startswith(directory + "/"))


def visible(mounts: Iterable[Mount]) -> list[Mount]:
    """The mounts that a path lookup finds, each mountpoint once, parents before children.

    The first one is the root, unless the table lacks it, as in a chroot that is no mountpoint.
    """
    mounts = list(mounts)
    ids = {mount.id for mount in mounts}
    children: dict[int, list[Mount]] = {}
    tops: list[Mount] = []
    for mount in mounts:
        if mount.parent in ids and mount.parent != mount.id:
            children.setdefault(mount.parent, []).append(mount)
        else:
            tops.append(mount)

    found: dict[str, Mount] = {}
    pending = [(mount, False) for mount in reversed(tops)]
    while pending:
        mount, hidden = pending.pop()
        below = children.get(mount.id, [])
        covered = any(child.mountpoint == mount.mountpoint for child in below)
        if not hidden and not covered:
            found[mount.mountpoint] = mount
        for child in reversed(below):
            # A mount below a covered mount, or below the mountpoint of a sibling, is out of reach.
            # A mount on the root of its parent is what covers it.
            buried = (covered and child.mountpoint != mount.mountpoint) or any(
                other is not child and is_below(child.mountpoint, other.mountpoint)
                for other in below
            )
            pending.append((child, hidden or buried))
    return sorted(found.values(), key=lambda mount: (mount.mountpoint != "/", mount.mountpoint))


def owning(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The one of the visible ``mounts`` that ``path``, absolute and normal, lies on."""
    owners = [m for m in mounts if m.mountpoint == path or is_below(path, m.mountpoint)]
    return max(owners, key=lambda m: len(m.mountpoint), default=None)


def out_of_reach(path: str) -> bool:
    """Whether a mountpoint lies in a directory that is closed to this user, and to tests."""
    try:
        os.lstat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return False
