"""A writable directory that contains mounts, put together from its parts.

In a user namespace the kernel refuses an overlay of a directory with a mount somewhere below (the
inherited mounts are locked together, mount_namespaces(7)). A home directory with one FUSE mount in
it would be read-only as a whole. So its *entries* are taken one by one:

* subdirectories without mounts get an overlay each where the user can write, else a read-only
  bind; those that are mounts or contain some, a read-only bind of all, which later steps of the
  plan may cover;
* the user's own regular files are copied, small ones at least, and symbolic links, FIFOs and
  sockets made again (nobody listens on the sockets);
* everything else (large files, other owners' or groups' files, device nodes) is a read-only bind:
  writing there is EROFS.

The copies are the *lower* of an overlay on the directory itself, so it can be written to like any
other, and its upper tells what changed just as elsewhere. What differs from the host: what is
mounted (subdirectories too) can be emptied but not removed or renamed (EBUSY), a rename from one
subdirectory to another is EXDEV, and hard links of copied files are cut.

A directory with too many entries is left as the read-only bind it is, with overlays over its
writable subdirectories.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Final, final

from ..linux.attributes import copy_attributes
from ..plan.model import Assemble, Plan

# A mount for each subdirectory: 100 cost about 10 ms.
_MOST_ENTRIES: Final = 512
_LARGEST_COPY: Final = 1 << 20
_MOST_COPIED: Final = 4 << 20


@final
@dataclass(slots=True)
class Parts:
    """What is to be mounted, by name: overlays, and read-only binds.

    ``whole``: there is a lower; else the directory stays as it is.
    """

    whole: bool
    overlays: list[str]
    binds: list[str]


def gather(step: Assemble, plan: Plan, lower: str) -> Parts:
    """Make the directory ``lower`` and in it what of ``step.target`` needs no mount.

    Entries that vanish meanwhile are left out. Raises :class:`OSError`.
    """
    with os.scandir(step.target) as listing:
        entries = list(listing)
    limits = plan.upper
    if len(entries) > min(_MOST_ENTRIES, (limits.inodes or 4 * _MOST_ENTRIES) // 4):
        ours = [e.name for e in entries if e.name not in step.mounted and _is_ours(e)]
        return Parts(False, ours[:_MOST_ENTRIES], [])
    os.mkdir(lower)
    parts = Parts(True, [], [])
    plain: list[tuple[int, os.DirEntry[str]]] = []
    for entry in entries:
        if entry.name in step.mounted:
            # By the type of the listing: to stat the root of a mount can hang or be refused.
            _placeholder(f"{lower}/{entry.name}", directory=entry.is_dir(follow_symlinks=False))
            if entry.name not in step.dead:
                parts.binds.append(entry.name)
        elif entry.is_dir(follow_symlinks=False):
            _placeholder(f"{lower}/{entry.name}", directory=True)
            (parts.overlays if _is_ours(entry) else parts.binds).append(entry.name)
        else:
            try:
                plain.append((entry.stat(follow_symlinks=False).st_size, entry))
            except FileNotFoundError:
                continue
    room = min(_MOST_COPIED, (limits.size or 4 * _MOST_COPIED) // 4)
    # Small files first, for the room there is.
    for size, entry in sorted(plain, key=lambda pair: pair[0]):
        place = f"{lower}/{entry.name}"
        if not _is_own(entry.stat(follow_symlinks=False), min(room, _LARGEST_COPY)):
            _placeholder(place, directory=False)
            parts.binds.append(entry.name)
        elif _copy(entry, place):
            room -= size
    copy_attributes(step.target, lower, own=False)
    return parts


def _placeholder(place: str, *, directory: bool) -> None:
    if directory:
        os.mkdir(place, 0o700)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _is_ours(entry: os.DirEntry[str]) -> bool:
    """Whether it is a directory the user could write to."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    try:
        owner = entry.stat(follow_symlinks=False).st_uid
    except OSError:
        return False
    return owner == os.geteuid() or os.access(entry.path, os.W_OK | os.X_OK)


def _is_own(status: os.stat_result, room: int) -> bool:
    """Whether a copy is as good as the original; it would belong to the user in any case."""
    if stat.S_ISLNK(status.st_mode):
        return True
    if status.st_uid != os.geteuid() or status.st_gid != os.getegid():
        return False
    if stat.S_ISREG(status.st_mode):
        return status.st_size <= room
    return stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)


def _copy(entry: os.DirEntry[str], place: str) -> bool:
    status = entry.stat(follow_symlinks=False)
    try:
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(entry.path), place)
            times = (status.st_atime_ns, status.st_mtime_ns)
            os.utime(place, ns=times, follow_symlinks=False)
            return True
        if stat.S_ISREG(status.st_mode):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC
            with open(os.open(entry.path, flags), "rb") as source, open(place, "xb") as file:
                file.write(source.read())
        else:
            os.mknod(place, status.st_mode)
        copy_attributes(entry.path, place, own=False)
    except FileNotFoundError:
        return False
    return True
