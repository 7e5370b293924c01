"""The system calls that matter for files, as data: their numbers, and where their arguments stand.

The numbers are those of ``<asm/unistd_64.h>`` on x86_64 and of ``<asm-generic/unistd.h>``, which
aarch64 uses. Both have 64-bit times only, so there are no ``time64`` variants. Calls that are
younger than Linux 5.1 have the same number everywhere. :data:`ARCHITECTURES` lists what is known;
another architecture needs a column in :data:`CALLS` and in :data:`REFUSED`.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from ..linux.errors import Unavailable
from ..linux.untouched import os


@final
@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture whose system calls are known."""

    #: As uname(2) says it.
    machine: str
    #: ``AUDIT_ARCH_*`` of ``<linux/audit.h>``, which a seccomp filter sees.
    audit: int
    #: Its column in :data:`CALLS` and :data:`REFUSED`.
    column: int


ARCHITECTURES: Final = {
    one.machine: one
    for one in (
        Architecture("x86_64", 0xC000003E, 0),
        Architecture("aarch64", 0xC00000B7, 1),
    )
}


class Kind(enum.Enum):
    """What a call does to files."""

    #: It reads content.
    READ = "read"
    #: It writes content.
    WRITE = "write"
    #: It opens a file; by its flags it may make or empty it.
    OPEN = "open"
    #: It changes the size of a file.
    RESIZE = "resize"
    #: It reserves, frees or zeroes ranges of a file, and may change its size.
    ALLOCATE = "allocate"
    #: It makes a directory, link, or device node.
    MAKE = "make"
    #: It removes a name.
    REMOVE = "remove"
    #: It gives a file another name.
    RENAME = "rename"
    #: It changes mode, owner, times or extended attributes.
    METADATA = "metadata"
    #: It makes the content of a file durable.
    SYNC = "sync"
    #: It makes everything durable.
    SYNC_ALL = "sync all"
    #: It maps a file into memory.
    MAP = "map"
    #: It makes what was written through a mapping durable.
    SYNC_MAP = "sync map"


#: Kinds that change files. The others are of interest for what survives, or can fail.
CHANGING: Final = frozenset(
    {
        *(Kind.WRITE, Kind.OPEN, Kind.RESIZE, Kind.ALLOCATE),
        *(Kind.MAKE, Kind.REMOVE, Kind.RENAME, Kind.METADATA),
    }
)
SYNCING: Final = frozenset({Kind.SYNC, Kind.SYNC_ALL, Kind.SYNC_MAP})


@final
@dataclass(frozen=True, slots=True)
class PathArgument:
    """Where a path stands among the arguments of a call."""

    #: The index of the pointer to the path.
    path: int
    #: The index of the descriptor of the directory at which a relative path starts; None for the
    #: working directory.
    directory: int | None = None
    #: Whether a symbolic link at the end of the path is followed.
    follows: bool = False
    #: The index of the ``AT_*`` flags, which may say otherwise.
    flags: int | None = None


@final
@dataclass(frozen=True, slots=True)
class Call:
    """One system call."""

    name: str
    #: Its numbers on x86_64 and aarch64; None where there is no such call.
    numbers: tuple[int | None, int | None]
    kind: Kind
    #: The index of the descriptor of the file that it works on.
    descriptor: int | None = None
    #: The path that it works on; of a rename or link the new one.
    path: PathArgument | None = None
    #: Of a rename or link the path of before.
    source: PathArgument | None = None
    #: The index of what more has to be known: the flags of an open, a length, a mode.
    detail: int | None = None


def _both(number: int) -> tuple[int, int]:
    return number, number


_at = PathArgument

CALLS: Final[tuple[Call, ...]] = (
    Call("read", (0, 63), Kind.READ, 0, detail=2),
    Call("pread64", (17, 67), Kind.READ, 0, detail=2),
    Call("readv", (19, 65), Kind.READ, 0),
    Call("preadv", (295, 69), Kind.READ, 0),
    Call("preadv2", (327, 286), Kind.READ, 0),
    Call("getdents64", (217, 61), Kind.READ, 0),
    Call("write", (1, 64), Kind.WRITE, 0, detail=2),
    Call("pwrite64", (18, 68), Kind.WRITE, 0, detail=2),
    Call("writev", (20, 66), Kind.WRITE, 0),
    Call("pwritev", (296, 70), Kind.WRITE, 0),
    Call("pwritev2", (328, 287), Kind.WRITE, 0),
    Call("sendfile", (40, 71), Kind.WRITE, 0, detail=3),
    Call("copy_file_range", (326, 285), Kind.WRITE, 2, detail=4),
    Call("splice", (275, 76), Kind.WRITE, 2, detail=4),
    Call("open", (2, None), Kind.OPEN, path=_at(0, follows=True), detail=1),
    Call("creat", (85, None), Kind.OPEN, path=_at(0, follows=True)),
    Call("openat", (257, 56), Kind.OPEN, path=_at(1, 0, follows=True), detail=2),
    Call("openat2", _both(437), Kind.OPEN, path=_at(1, 0, follows=True), detail=2),
    Call("truncate", (76, 45), Kind.RESIZE, path=_at(0, follows=True), detail=1),
    Call("ftruncate", (77, 46), Kind.RESIZE, 0, detail=1),
    Call("fallocate", (285, 47), Kind.ALLOCATE, 0, detail=1),
    Call("mkdir", (83, None), Kind.MAKE, path=_at(0)),
    Call("mkdirat", (258, 34), Kind.MAKE, path=_at(1, 0)),
    Call("mknod", (133, None), Kind.MAKE, path=_at(0)),
    Call("mknodat", (259, 33), Kind.MAKE, path=_at(1, 0)),
    Call("symlink", (88, None), Kind.MAKE, path=_at(1)),
    Call("symlinkat", (266, 36), Kind.MAKE, path=_at(2, 1)),
    Call("link", (86, None), Kind.MAKE, path=_at(1), source=_at(0)),
    Call("linkat", (265, 37), Kind.MAKE, path=_at(3, 2), source=_at(1, 0, flags=4)),
    Call("unlink", (87, None), Kind.REMOVE, path=_at(0)),
    Call("rmdir", (84, None), Kind.REMOVE, path=_at(0)),
    Call("unlinkat", (263, 35), Kind.REMOVE, path=_at(1, 0)),
    Call("rename", (82, None), Kind.RENAME, path=_at(1), source=_at(0)),
    Call("renameat", (264, 38), Kind.RENAME, path=_at(3, 2), source=_at(1, 0)),
    Call("renameat2", (316, 276), Kind.RENAME, path=_at(3, 2), source=_at(1, 0), detail=4),
    Call("chmod", (90, None), Kind.METADATA, path=_at(0, follows=True)),
    Call("fchmod", (91, 52), Kind.METADATA, 0),
    Call("fchmodat", (268, 53), Kind.METADATA, path=_at(1, 0, follows=True)),
    Call("fchmodat2", _both(452), Kind.METADATA, path=_at(1, 0, follows=True, flags=3)),
    Call("chown", (92, None), Kind.METADATA, path=_at(0, follows=True)),
    Call("lchown", (94, None), Kind.METADATA, path=_at(0)),
    Call("fchown", (93, 55), Kind.METADATA, 0),
    Call("fchownat", (260, 54), Kind.METADATA, path=_at(1, 0, follows=True, flags=4)),
    Call("utime", (132, None), Kind.METADATA, path=_at(0, follows=True)),
    Call("utimes", (235, None), Kind.METADATA, path=_at(0, follows=True)),
    Call("futimesat", (261, None), Kind.METADATA, path=_at(1, 0, follows=True)),
    # Without a path it works on the descriptor: utimensat(2), "glibc futimens".
    Call("utimensat", (280, 88), Kind.METADATA, path=_at(1, 0, follows=True, flags=3)),
    Call("setxattr", (188, 5), Kind.METADATA, path=_at(0, follows=True)),
    Call("lsetxattr", (189, 6), Kind.METADATA, path=_at(0)),
    Call("fsetxattr", (190, 7), Kind.METADATA, 0),
    Call("setxattrat", _both(463), Kind.METADATA, path=_at(1, 0, follows=True, flags=2)),
    Call("removexattr", (197, 14), Kind.METADATA, path=_at(0, follows=True)),
    Call("lremovexattr", (198, 15), Kind.METADATA, path=_at(0)),
    Call("fremovexattr", (199, 16), Kind.METADATA, 0),
    Call("removexattrat", _both(466), Kind.METADATA, path=_at(1, 0, follows=True, flags=2)),
    Call("fsync", (74, 82), Kind.SYNC, 0),
    Call("fdatasync", (75, 83), Kind.SYNC, 0),
    Call("sync_file_range", (277, 84), Kind.SYNC, 0, detail=3),
    Call("sync", (162, 81), Kind.SYNC_ALL),
    Call("syncfs", (306, 267), Kind.SYNC_ALL, 0),
    Call("mmap", (9, 222), Kind.MAP, 4),
    Call("msync", (26, 227), Kind.SYNC_MAP),
)

BY_NAME: Final[Mapping[str, Call]] = {call.name: call for call in CALLS}


@final
@dataclass(frozen=True, slots=True)
class Refused:
    """A system call that always fails, so that programs use calls of :data:`CALLS` instead."""

    name: str
    #: Its numbers on x86_64 and aarch64.
    numbers: tuple[int, int]
    #: What it fails with.
    error: int
    #: Values of its second argument, of 32 bits, with which it fails. Without any it always does.
    requests: tuple[int, ...] = ()


# <linux/fs.h>: the same on both architectures.
_FICLONE: Final = 0x40049409
_FICLONERANGE: Final = 0x4020940D

REFUSED: Final[tuple[Refused, ...]] = (
    # What is read and written through a ring, or by requests in memory, makes no calls of its own.
    Refused("io_uring_setup", _both(425), errno.ENOSYS),
    Refused("io_setup", (206, 0), errno.ENOSYS),
    # As on a filesystem that has no clones.
    Refused("ioctl", (16, 29), errno.EOPNOTSUPP, (_FICLONE, _FICLONERANGE)),
)

# <asm-generic/fcntl.h>; the same on both architectures.
O_TMPFILE: Final = 0o20000000
#: Flags of an open that may change something.
MAKING_FLAGS: Final = os.O_CREAT | os.O_TRUNC | O_TMPFILE
#: The calls whose flags decide whether they change anything, and the index of these. Those of
#: openat2(2) are behind a pointer.
OPEN_FLAGS: Final = {"open": 1, "openat": 2}
MAP_SHARED: Final = 1


def architecture() -> Architecture:
    """The architecture of this machine. Raises :class:`Unavailable` if its calls are not known."""
    machine = os.uname().machine
    known = ARCHITECTURES.get(machine)
    if known is None:
        raise Unavailable(
            "supervise system calls",
            cause=f"the numbers of the system calls of {machine} are not known to this plugin",
            remedy=f"run these tests on {' or '.join(ARCHITECTURES)}",
        )
    return known


def numbered(architecture: Architecture) -> dict[int, Call]:
    """The calls of an architecture by their numbers."""
    found = {}
    for call in CALLS:
        number = call.numbers[architecture.column]
        if number is not None:
            found[number] = call
    return found
