"""The mount table of ``/proc/self/mountinfo``, parsed, and which of its mounts can be seen.

Format: proc_pid_mountinfo(5). A table lists mounts that nobody can reach any more (covered by a
later mount of the same place or of a directory above it); what a sandbox has to rebuild is only
what a path lookup still finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, final

from .untouched import open

_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@final
@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. Paths are decoded; undecodable bytes as surrogate escapes."""

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
        """The mount, or the filesystem under it, refuses writes."""
        return "ro" in self.options or "ro" in self.super_options.split(",")


def _decode(field: bytes) -> str:
    raw = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)
    return raw.decode("utf-8", "surrogateescape")


def parse(table: bytes) -> list[Mount]:
    """All mounts of a mountinfo file's content, in its order.

    Raises :class:`ValueError` for a line that is not of the documented format.
    """
    mounts = []
    # Not splitlines(): a mountpoint may hold a carriage return, which the kernel leaves as it is.
    for line in table.split(b"\n"):
        if not line:
            continue
        fields = line.split(b" ")
        # Optional fields are zero or more, closed by a lone hyphen.
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
    """The mounts of this process's namespace. Raises :class:`OSError` without ``/proc``."""
    with open(path, "rb") as file:
        return parse(file.read())


def is_below(path: str, directory: str) -> bool:
    """Whether ``path`` lies strictly below ``directory``; both absolute and normal."""
    return path != directory and (directory == "/" or path.startswith(directory + "/"))


def visible(mounts: Iterable[Mount]) -> list[Mount]:
    """The mounts a path lookup finds, each mountpoint once, parents before children.

    The first is the root when the table has one (in a chroot that is no mountpoint it does not).
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
            # What hangs below a covered mount, or below a sibling's mountpoint, is out of reach.
            # A mount on the very root of its parent is the cover itself.
            buried = (covered and child.mountpoint != mount.mountpoint) or any(
                other is not child and is_below(child.mountpoint, other.mountpoint)
                for other in below
            )
            pending.append((child, hidden or buried))
    return sorted(found.values(), key=lambda mount: (mount.mountpoint != "/", mount.mountpoint))


def owning(mounts: Iterable[Mount], path: str) -> Mount | None:
    """Which of the visible ``mounts`` the absolute, normal ``path`` lies on."""
    owners = [m for m in mounts if m.mountpoint == path or is_below(path, m.mountpoint)]
    return max(owners, key=lambda m: len(m.mountpoint), default=None)
