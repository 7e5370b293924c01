"""A writable directory that contains mounts, assembled from its entries.

In a user namespace the kernel refuses an overlay whose lower has a mount somewhere below: the
inherited mounts are locked together, mount_namespaces(7). A home directory with one FUSE mount in
it would be read-only as a whole. So its *entries* are taken one by one:

* A subdirectory without mounts gets an overlay of its own if the user can write there, otherwise a
  read-only bind mount. A subdirectory that is a mountpoint or contains one gets a read-only bind
  mount of everything in it, which later steps of the plan may cover.
* The user's own small regular files are copied. Symbolic links, FIFOs and sockets are made again;
  nobody listens on such a socket.
* Everything else (large files, files of another owner or group, device nodes) gets a read-only
  bind mount. Writing there fails with EROFS.

The copies are the *lower* of an overlay on the directory itself. So it can be written to like any
other directory, and its upper tells what has changed as elsewhere. Some things differ from the
host: entries that are mounted, subdirectories too, can be emptied but not removed or renamed
(EBUSY), a rename from one subdirectory to another fails with EXDEV, and hard links between copied
files are cut.

A directory with too many entries stays the read-only bind mount that it is, with overlays on its
writable subdirectories.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final, final

from ..linux.attributes import copy_attributes
from ..linux.untouched import open, os
from ..plan.model import Assemble, Plan

#: Each subdirectory takes a mount. 100 mounts take about 10 ms.
_MOST_ENTRIES: Final = 512
#: The largest file that is copied, and how much is copied of one directory, in bytes.
_LARGEST_COPY: Final = 1 << 20
_MOST_COPIED: Final = 4 << 20


@final
@dataclass(slots=True, eq=False, repr=False)
class Parts:
    """What is to be mounted in an assembled directory, each by its name in there."""

    #: Whether there is a lower for an overlay on the directory itself.
    has_lower: bool
    #: Subdirectories that an overlay is to be mounted on.
    overlays: list[str]
    #: Entries that a read-only bind mount of the host's is to be mounted on.
    binds: list[str]


def make_lower(step: Assemble, plan: Plan, lower: str) -> Parts:
    """Make the directory ``lower``, with what can be copied there of the entries of a directory.

    Returns what is to be mounted on the rest. An entry that vanishes meanwhile is left out. Raises
    :class:`OSError` if the directory cannot be read or the lower not be made.
    """
    with os.scandir(step.target) as listing:
        entries = list(listing)
    limits = plan.upper
    if len(entries) > min(_MOST_ENTRIES, (limits.inodes or 4 * _MOST_ENTRIES) // 4):
        ours = [e.name for e in entries if e.name not in step.mounted and _is_writable(e)]
        return Parts(False, ours[:_MOST_ENTRIES], [])
    os.mkdir(lower)
    parts = Parts(True, [], [])
    plain: list[tuple[int, os.DirEntry[str]]] = []
    for entry in entries:
        place = f"{lower}/{entry.name}"
        if entry.name in step.mounted:
            # By the type in the listing: stat(2) of the root of a mount can hang or be refused.
            _make_placeholder(place, directory=entry.is_dir(follow_symlinks=False))
            if entry.name not in step.dead:
                parts.binds.append(entry.name)
        elif entry.is_dir(follow_symlinks=False):
            _make_placeholder(place, directory=True)
            (parts.overlays if _is_writable(entry) else parts.binds).append(entry.name)
        else:
            try:
                plain.append((entry.stat(follow_symlinks=False).st_size, entry))
            except FileNotFoundError:
                continue
    left = min(_MOST_COPIED, (limits.size or 4 * _MOST_COPIED) // 4)
    # Small files first, so that as many as possible are copied.
    for size, entry in sorted(plain, key=lambda pair: pair[0]):
        place = f"{lower}/{entry.name}"
        if not _can_be_copied(entry.stat(follow_symlinks=False), min(left, _LARGEST_COPY)):
            _make_placeholder(place, directory=False)
            parts.binds.append(entry.name)
        elif _copy(entry, place):
            left -= size
    copy_attributes(step.target, lower, own=False)
    return parts


def _make_placeholder(place: str, *, directory: bool) -> None:
    """Make what something is mounted on."""
    if directory:
        os.mkdir(place, 0o700)
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))


def _is_writable(entry: os.DirEntry[str]) -> bool:
    """Whether it is a directory that the user can write, or can make writable as its owner."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    try:
        owner = entry.stat(follow_symlinks=False).st_uid
    except OSError:
        return False
    return owner == os.geteuid() or os.access(entry.path, os.W_OK | os.X_OK)


def _can_be_copied(status: os.stat_result, largest: int) -> bool:
    """Whether a copy, which belongs to the user, is as good as the original.

    ``largest`` is the size in bytes up to which a regular file is copied.
    """
    if stat.S_ISLNK(status.st_mode):
        return True
    if status.st_uid != os.geteuid() or status.st_gid != os.getegid():
        return False
    if stat.S_ISREG(status.st_mode):
        return status.st_size <= largest
    return stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode)


def _copy(entry: os.DirEntry[str], place: str) -> bool:
    """Copy what is no directory. Returns False if it has vanished."""
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
