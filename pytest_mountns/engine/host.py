"""What the machine shows: mounts, kinds of mountpoints, where the user can write."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final

from .mountinfo import is_below, read, visible
from .plan import PROTECTED_PROC, Host

_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_SCAN_DEPTH: Final = 2
_SYSTEM: Final = ("/proc", "/sys", "/dev")


def survey(
    *, user_namespace: bool, places: Sequence[str], unlayerable: frozenset[str] = frozenset()
) -> Host:
    """Read the mount table, and for a user namespace where its user can write.

    ``places``: directories that matter to this run (home, project, temporary directory);
    the others are found by looking two levels deep. Raises :class:`OSError` without ``/proc``.
    """
    mounts = tuple(visible(read()))
    files, specials = set(), set()
    for mount in mounts:
        # To stat an autofs or network mountpoint can hang; those are directories.
        if mount.fstype in ("autofs", "nfs", "nfs4", "cifs"):
            continue
        try:
            mode = os.lstat(mount.mountpoint).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            files.add(mount.mountpoint)
        elif not stat.S_ISDIR(mode):
            specials.add(mount.mountpoint)
    points = [mount.mountpoint for mount in mounts]
    return Host(
        mounts=mounts,
        files=frozenset(files),
        specials=frozenset(specials),
        writable=tuple(_writable(places, points)) if user_namespace else (),
        unlayerable=unlayerable,
        protected=tuple(path for path in PROTECTED_PROC if os.path.exists(path)),
        devices=tuple(name for name in _DEVICES if os.path.exists(f"/dev/{name}")),
        has_proc=os.path.isdir("/proc/self"),
        has_sys="/sys" in points,
    )


def _writable(places: Iterable[str], mountpoints: Sequence[str]) -> list[str]:
    """The highest directories the user can write and that contain no mount, sorted."""
    candidates = {os.path.realpath(place) for place in places}
    found: set[str] = set()
    pending = [("/", 0)]
    while pending:
        path, depth = pending.pop()
        if path in _SYSTEM or os.path.islink(path):
            continue
        writable = os.access(path, os.W_OK | os.X_OK)
        mounted_below = any(is_below(point, path) for point in mountpoints)
        if writable and not mounted_below:
            found.add(path)
            continue
        leads = mounted_below or any(c == path or is_below(c, path) for c in candidates)
        if depth < _SCAN_DEPTH or leads:
            pending.extend((child, depth + 1) for child in _subdirectories(path))
    return sorted(found)


def _subdirectories(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
