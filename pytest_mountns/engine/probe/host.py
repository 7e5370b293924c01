"""Reads what the host shows: its mounts, the kinds of its mountpoints, where the user can write."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from typing import Final

from ..linux import syscalls
from ..linux.errors import Unavailable
from ..linux.mountinfo import Mount, is_below, read, visible
from ..linux.processes import fork
from ..linux.untouched import os, select, signal, time
from ..plan.model import PROTECTED_PROC, PSEUDO, Host

#: Device nodes that a sandbox has if the host has them.
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
#: How deep below ``/`` directories are looked for that the user can write to.
_SCAN_DEPTH: Final = 2
_SYSTEM: Final = ("/proc", "/sys", "/dev")
#: Filesystems whose server may be gone; then system calls on their files can block forever.
_REMOTE: Final = frozenset(
    [
        "9p",
        "afs",
        "ceph",
        "cifs",
        "coda",
        "glusterfs",
        "gfs2",
        "lustre",
        "nfs",
        "nfs4",
        "smb3",
        "smbfs",
    ]
)
#: Filesystems on disks of this machine, and in its memory.
_LOCAL: Final = frozenset(
    [
        "bcachefs",
        "btrfs",
        "devtmpfs",
        "erofs",
        "exfat",
        "ext2",
        "ext3",
        "ext4",
        "f2fs",
        "iso9660",
        "jfs",
        "ntfs3",
        "overlay",
        "ramfs",
        "rootfs",
        "squashfs",
        "tmpfs",
        "udf",
        "vfat",
        "xfs",
        "zfs",
    ]
)
#: Seconds that a remote mount has to answer.
_PATIENCE: Final = 2.0


def survey(
    *, user_namespace: bool, places: Sequence[str], unlayerable: frozenset[str] = frozenset()
) -> Host:
    """Read the mount table and, for a user namespace, find where its user can write.

    ``places`` are directories in which tests must be able to write (home, project, temporary
    directory). Others are found by looking two levels deep. ``unlayerable`` are directories that
    cannot be the lower of an overlay. Raises :class:`OSError` if there is no ``/proc``, and
    :class:`Unavailable` if this process is in a chroot whose ``/`` is not a mountpoint.
    """
    table = visible(read())
    dead = _dead(table)
    mounts = tuple(mount for mount in table if mount.mountpoint not in dead)
    if not mounts or mounts[0].mountpoint != "/":
        raise Unavailable(
            "find the mount of /",
            "/proc/self/mountinfo has none",
            "the process is in a chroot whose / is no mountpoint",
            "run outside of it, or make / a mount before entering it: mount --bind DIR DIR",
        )
    files, specials = set(), set()
    for mount in mounts:
        if mount.fstype == "autofs":
            # It is always a directory. A system call on it could trigger its mount, autofs(5).
            continue
        try:
            mode = os.lstat(mount.mountpoint).st_mode
        except OSError:
            continue
        if stat.S_ISREG(mode):
            files.add(mount.mountpoint)
        elif not stat.S_ISDIR(mode):
            specials.add(mount.mountpoint)
    points = [mount.mountpoint for mount in table]
    untouchable = {mount.mountpoint for mount in table if mount.fstype == "autofs"} | dead
    writable, mixed = _writable(places, points, untouchable) if user_namespace else (set(), set())
    return Host(
        mounts=mounts,
        files=frozenset(files),
        specials=frozenset(specials),
        writable=tuple(sorted(writable)),
        mixed=tuple(sorted(mixed)),
        dead=tuple(sorted(dead)),
        unlayerable=unlayerable,
        protected=tuple(path for path in PROTECTED_PROC if os.path.exists(path)),
        devices=tuple(name for name in _DEVICES if os.path.exists(f"/dev/{name}")),
        has_proc=os.path.isdir("/proc/self"),
        has_sys="/sys" in points,
    )


def _writable(
    places: Iterable[str], mountpoints: Sequence[str], untouchable: set[str]
) -> tuple[set[str], set[str]]:
    """The highest directories that the user can write to.

    Returns those without mounts below them, and those with mounts. In the latter only directories
    with mounts are looked into, since the other entries are found when a sandbox is made.
    """
    candidates = {os.path.realpath(place) for place in places}
    writable: set[str] = set()
    mixed: set[str] = set()
    pending = [("/", 0)]
    while pending:
        path, depth = pending.pop()
        if path in _SYSTEM or path in untouchable or os.path.islink(path):
            continue
        mounted_below = any(is_below(point, path) for point in mountpoints)
        if os.access(path, os.W_OK | os.X_OK):
            if not mounted_below:
                writable.add(path)
                continue
            if path != "/":
                mixed.add(path)
        leads_to_known = mounted_below or any(c == path or is_below(c, path) for c in candidates)
        if depth >= _SCAN_DEPTH and not leads_to_known:
            continue
        for child in _subdirectories(path):
            # A sandbox assembles a directory with mounts from its entries. An entry without mounts
            # that the user can write to gets an overlay by that.
            below = any(point == child or is_below(point, child) for point in mountpoints)
            if path not in mixed or below or not os.access(child, os.W_OK | os.X_OK):
                pending.append((child, depth + 1))
    for place in candidates:
        writable.update(_needing_own_overlay(place, writable))
    return writable, mixed


def _needing_own_overlay(place: str, tops: Iterable[str]) -> list[str]:
    """Writable directories on the way to ``place`` that need an overlay of their own.

    ``tops`` are the directories that have one. To write in a directory below, the kernel copies
    all directories up that are between the two. In a user namespace that fails with EOVERFLOW if
    one of them belongs to another user or group, as root's directory in
    ``/tmp/of-root/of-the-user``. The root of an overlay is never copied up.
    """
    top = next((top for top in tops if is_below(place, top)), None)
    if top is None:
        return []
    found = []
    cut = False
    path = top
    for name in place[len(top) :].strip("/").split("/"):
        path = os.path.join(path, name)
        try:
            status = os.lstat(path)
        except OSError:
            break
        cut = cut or (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid())
        if cut and os.access(path, os.W_OK | os.X_OK):
            found.append(path)
            cut = False
    return found


def _subdirectories(path: str) -> list[str]:
    """The directories in ``path``; none if it cannot be read."""
    try:
        with os.scandir(path) as entries:
            return [
                os.path.join(path, entry.name)
                for entry in entries
                if entry.is_dir(follow_symlinks=False)
            ]
    except OSError:
        return []


def never_waits(mount: Mount) -> bool:
    """Whether it is of a kind that answers by itself: not over a network, nor from a process."""
    return mount.fstype in _LOCAL or mount.fstype in PSEUDO


def _is_remote(mount: Mount) -> bool:
    return mount.fstype in _REMOTE or mount.fstype.partition(".")[0] in ("fuse", "fuseblk")


def _dead(mounts: Iterable[Mount]) -> set[str]:
    """Mountpoints of remote filesystems that do not answer, and those below them.

    A process is forked for each, as it may block for ever.
    """
    mounts = list(mounts)
    remote = [mount.mountpoint for mount in mounts if mount.mountpoint != "/" and _is_remote(mount)]
    asked = {path: fork() or _look_and_exit(path) for path in remote}
    deadline = time.monotonic() + _PATIENCE
    silent = [path for path, child in asked.items() if not _answers(child, deadline)]
    return {
        mount.mountpoint
        for mount in mounts
        if any(mount.mountpoint == path or is_below(mount.mountpoint, path) for path in silent)
    }


def _look_and_exit(path: str) -> int:
    """In a forked process: make the system calls that block if the filesystem does not answer."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.statvfs(path)
        os.stat(path)
    except OSError:
        # An error is an answer as well, as the refusal of another user's FUSE mount.
        pass
    finally:
        syscalls.exit_now(0)


def _answers(child: int, deadline: float) -> bool:
    """Whether the process ``child`` ends before ``deadline``. Ends it if not."""
    try:
        watch = os.pidfd_open(child)
    except OSError:
        watch = -1
    try:
        if watch >= 0:
            poll = select.poll()
            poll.register(watch, select.POLLIN)
            poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        while not _has_ended(child):
            if time.monotonic() < deadline and watch < 0:
                time.sleep(0.01)
                continue
            os.kill(child, signal.SIGKILL)
            # A process that blocks in the kernel may not end even then, so the wait is short.
            for _ in range(100):
                if _has_ended(child):
                    break
                time.sleep(0.01)
            return False
        return True
    finally:
        if watch >= 0:
            os.close(watch)


def _has_ended(child: int) -> bool:
    try:
        return os.waitpid(child, os.WNOHANG)[0] != 0
    except ChildProcessError:
        # SIGCHLD is ignored, and then the kernel itself reaps children: see waitpid(2).
        return True
