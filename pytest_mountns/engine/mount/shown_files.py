"""What a root takes over from files of the host when it is made.

A root that is made some time before it is used shows the host of then. These functions look at all
that matters for that, so that two moments can be compared.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, final

from ..linux.untouched import os
from ..plan.model import Bind, MakeDev, Overlay, Plan, Protect, Seed, Step

#: Of directories whose attributes uppers have: mode, owner, group, and the times of access and
#: modification in nanoseconds.
Models: TypeAlias = "tuple[tuple[int, int, int, int, int], ...]"


@final
class ShownFiles(NamedTuple):
    """What a root takes over from files of the host when it is made, but for copies of files.

    A root that is made later from the same template is the same if this is the same then, and if
    the process has the same user and group.
    """

    #: See :data:`Models`.
    models: Models
    #: Of the lowers of overlays and the sources of bind mounts: device and inode.
    sources: tuple[tuple[int, int], ...]
    #: Of the directories in which something is mounted, what stat(2) says of identity, mode, owner
    #: and time of change. An overlay goes on to use what it knows of them, as long as it is there.
    parents: tuple[tuple[int, ...], ...]


def sources_of(step: Step) -> list[str]:
    """The paths of the host that a step mounts."""
    match step:
        case Overlay(lowers=(lower,)):
            return [lower]
        case Bind(source=source):
            return [source]
        case MakeDev(bind=True, part=part) if part != "shm":
            return [f"/dev/{name}" for name in step.devices]
    return []


def parents_in_overlays(plan: Plan) -> dict[str, list[str]]:
    """The directories of the host in which something is mounted, as overlays of the plan show them.

    By the mountpoint of the overlay: all directories that it has looked up in its lower, but for
    its root.
    """
    places = {step.path if isinstance(step, Seed) else step.target for step in plan.steps}
    shown = {step.target: step for step in plan.steps if not isinstance(step, Seed | Protect)}
    found: dict[str, dict[str, None]] = {}
    for place in places:
        parent = os.path.dirname(place)
        while parent != "/":
            mountpoint = parent
            while mountpoint not in shown and mountpoint != "/":
                mountpoint = os.path.dirname(mountpoint)
            step = shown.get(mountpoint)
            if isinstance(step, Overlay) and mountpoint != parent:
                source = os.path.join(step.lowers[0], os.path.relpath(parent, mountpoint))
                found.setdefault(mountpoint, {})[source] = None
            parent = os.path.dirname(parent)
    return {mountpoint: sorted(sources) for mountpoint, sources in found.items()}


def state_of_directory(path: str) -> tuple[int, ...]:
    """What tells whether a directory was replaced or changed. Raises :class:`OSError`."""
    status = os.stat(path)
    identity = status.st_dev, status.st_ino
    # An extended attribute changes nothing but the last of these.
    times = status.st_mtime_ns, status.st_ctime_ns
    return *identity, status.st_mode, status.st_uid, status.st_gid, *times
