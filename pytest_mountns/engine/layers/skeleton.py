"""Skeletons: a user's own copies of directories that belong to others, as lowers of overlays.

In a user namespace the kernel copies nothing up whose owner or group is not mapped (EOVERFLOW), and
nothing in a directory of such an owner. So an ordinary user's overlay of ``/etc`` is read-only in
effect. It is not if a copy of the user's own lies between: directories without their content, and
copies of the small files that programs edit in place. Files that are replaced, as by dpkg, need no
copy. See "Inode properties" in Documentation/filesystems/overlayfs.rst and user_namespaces(7).

* A directory that the user may not read is *opaque*: it shows nothing of the one below.
* A copy of a file that the user may not read is empty, as that of ``/etc/shadow``.
* A directory that is the user's own needs no copy, and neither does what lies in it.

A skeleton of one directory *alone* has no lower beneath it: what it lacks is missing. It is for a
directory that contains mounts, since the kernel takes no lower that does, mount_namespaces(7). Its
directories, and the files that cannot be copied, are empty and there to be mounted on; but for
some, of which it has everything.
"""

from __future__ import annotations

import hashlib
import json
import os.path
import shutil
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, final

from ..linux.mountinfo import is_below
from ..linux.overlayfs import USER
from ..linux.untouched import open, os, time
from .unpack import Unpacked

Kind = Literal["directory", "opaque", "file", "link", "place"]

#: The largest file in bytes that is copied, by the directory that it lies in; the nearest counts.
_LARGEST: Final[Mapping[str, int]] = {
    "/etc": 1 << 20,
    "/run": 1 << 16,
    "/usr/local": 1 << 20,
    "/var": 1 << 16,
    # Lists of packages are replaced, and so are the databases of apt. Its locks are opened.
    "/var/cache": 1 << 12,
    "/var/cache/debconf": 4 << 20,
    "/var/lib/apt/lists": 1 << 12,
    "/var/lib/dpkg": 1 << 20,
    "/var/lib/dpkg/info": 0,
    "/var/log": 1 << 20,
    # The databases of rpm are edited in place.
    "/var/lib/rpm": 256 << 20,
    "/usr/lib/sysimage/rpm": 256 << 20,
}
#: The largest file that is copied into a skeleton that stands alone, and of what it has whole.
_LARGEST_ALONE: Final = 1 << 20
_LARGEST_WHOLE: Final = 64 << 20
#: What a skeleton holds at most: bytes of files, and entries. What is further down is left out.
_MOST_BYTES: Final = 512 << 20
_MOST_ENTRIES: Final = 200_000
#: Where files are written to all the time: that they have changed does not make a skeleton old.
_GROWING: Final = ("/var/log/", "/run/")
#: Above the granularity of a file's times (10 ms at most, one tick of the kernel's clock).
_TICK: Final = 20_000_000
#: Stands for the time of the last change where that is not to be asked for.
_UNKNOWN: Final = -1
_VERSION: Final = 1


class Entry(NamedTuple):
    """One entry of a skeleton, as it was found on the host."""

    #: Relative to the directory of the skeleton; "" for that itself.
    path: str
    #: A "place" is an empty file to mount on.
    kind: Kind
    mode: int
    #: When it was changed last, ``st_ctime_ns``; 0 if that was a moment ago.
    changed: int
    #: When it was written to last.
    mtime: int
    #: Where a link leads.
    link: str = ""


@final
@dataclass(frozen=True, slots=True)
class Skeleton:
    """What a skeleton of one directory is to have: found, and not made yet."""

    #: The directory of the host, absolute and without symbolic links.
    directory: str
    #: Parents before children.
    entries: Sequence[Entry]

    @property
    def diff_id(self) -> str:
        """Names its content."""
        known = json.dumps([_VERSION, _boot(), self.directory, self.entries])
        return f"sha256:{hashlib.sha256(known.encode()).hexdigest()}"

    def _grows(self, entry: Entry) -> bool:
        return os.path.join(self.directory, entry.path).startswith(_GROWING)

    def facts(self) -> dict[str, Any]:
        """What :func:`is_current` and :func:`mounted_on` need, as plain types."""
        return {
            "boot": _boot(),
            "diff_id": self.diff_id,
            "changed": {
                entry.path: entry.changed
                for entry in self.entries
                if entry.changed != _UNKNOWN and not (entry.kind == "file" and self._grows(entry))
            },
            "places": [entry.path for entry in self.entries if entry.kind == "place"],
        }


def question(directory: str, *, alone: bool, whole: Collection[str] = ()) -> str:
    """What names the facts of a skeleton in the cache: for one user, since owners matter."""
    user = (os.geteuid(), os.getegid())
    about = ["skeleton", _VERSION, directory, alone, sorted(whole), user]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()


def is_current(directory: str, facts: Mapping[str, Any]) -> bool:
    """Whether what a skeleton was made from is as it was: one lstat(2) for each entry.

    One of before the machine was started again is not: nobody has waited until it was on disk.
    """
    if facts.get("boot") != _boot():
        return False
    try:
        return all(
            os.lstat(f"{directory}/{path}").st_ctime_ns == changed
            for path, changed in facts["changed"].items()
        )
    except OSError:
        return False


def _boot() -> str:
    """What is different each time that the machine is started, random(4)."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


def survey(
    directory: str,
    *,
    alone: bool,
    whole: Collection[str] = (),
    untouched: Collection[str] = (),
) -> Skeleton:
    """Find what a skeleton of ``directory`` has to have.

    ``alone``: of its entries only, and to stand without a lower beneath. ``whole`` are directories
    of which it has everything even so: this one, or in it. ``untouched`` are mountpoints, on which
    a system call may block for ever: nothing is asked about them. Raises :class:`OSError` if it
    cannot be looked at.
    """
    own = (os.geteuid(), os.getegid())
    now = time.time_ns()
    entries: list[Entry] = []
    size = 0

    def note(path: str, kind: Kind, status: os.stat_result, link: str = "") -> None:
        changed = status.st_ctime_ns if now - status.st_ctime_ns > _TICK else 0
        mode = stat.S_IMODE(status.st_mode)
        entries.append(Entry(path, kind, mode, changed, status.st_mtime_ns, link))

    note("", "directory", os.lstat(directory))
    pending = [""]
    # Breadth first, so that what is left out of a tree that is too large lies deep.
    for path in pending:
        place = os.path.join(directory, path) if path else directory
        is_whole = any(place == one or is_below(place, one) for one in whole)
        largest = _LARGEST_WHOLE if is_whole else _LARGEST_ALONE if alone else _largest(place)
        for entry in _listing(place):
            name = f"{path}/{entry.name}" if path else entry.name
            try:
                if entry.path in untouched:
                    raise OSError
                status = entry.stat(follow_symlinks=False)
            except OSError:
                # Another user's FUSE mount refuses to be looked at; it is mounted as it is.
                if alone and entry.is_dir(follow_symlinks=False):
                    entries.append(Entry(name, "directory", 0o755, _UNKNOWN, 0))
                continue
            if len(entries) >= _MOST_ENTRIES:
                break
            form = stat.S_IFMT(status.st_mode)
            if form == stat.S_IFDIR:
                if alone:
                    note(name, "directory", status)
                    pending += [name] if is_whole or entry.path in whole else []
                elif (status.st_uid, status.st_gid) != own:
                    readable = os.access(entry.path, os.R_OK | os.X_OK)
                    note(name, "directory" if readable else "opaque", status)
                    pending += [name] if readable else []
            elif form == stat.S_IFREG and status.st_size <= largest:
                size += status.st_size
                if size <= _MOST_BYTES and (alone or (status.st_uid, status.st_gid) != own):
                    note(name, "file", status)
            elif alone and form == stat.S_IFLNK:
                note(name, "link", status, os.readlink(entry.path))
            elif alone:
                note(name, "place", status)
    return Skeleton(directory, entries)


def _listing(place: str) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except OSError:
        # It has vanished, or another security module forbids it.
        return []


def _largest(directory: str) -> int:
    place = directory
    while place not in _LARGEST and place != "/":
        place = os.path.dirname(place)
    return _LARGEST.get(place, 0)


def fill(skeleton: Skeleton, fd: int) -> Unpacked:
    """Make a skeleton in the empty directory ``fd``. Raises :class:`OSError`."""
    result = Unpacked(members=len(skeleton.entries))
    here = f"/proc/self/fd/{fd}"
    for entry in skeleton.entries:
        if not entry.path:
            continue
        source, target = f"{skeleton.directory}/{entry.path}", f"{here}/{entry.path}"
        match entry.kind:
            case "directory" | "opaque":
                os.mkdir(entry.path, 0o700, dir_fd=fd)
                if entry.kind == "opaque":
                    os.setxattr(target, f"{USER}opaque", b"y")
            case "link":
                os.symlink(entry.link, entry.path, dir_fd=fd)
            case "file":
                result.bytes += _copy(source, target)
            case "place":
                os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    for entry in reversed(skeleton.entries):
        # Inner ones first: whatever is made in a directory changes its times.
        if entry.kind not in ("link", "place"):
            target = f"{here}/{entry.path}"
            # The user must be able to remove it.
            os.chmod(target, entry.mode | (0o700 if entry.kind != "file" else 0))
            os.utime(target, ns=(entry.mtime, entry.mtime))
    return result


def _copy(source: str, target: str) -> int:
    """Copy a file. The copy is empty if the original may not be read. Returns its size."""
    with open(target, "xb") as file:
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with open(os.open(source, flags), "rb") as original:
                shutil.copyfileobj(original, file)
        except OSError:
            return 0
        return file.tell()
