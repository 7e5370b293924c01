"""Looks into a process whose system call waits: its memory, its descriptors, its paths.

The process could change its memory after it was read here. A supervisor that lets a call go on is
therefore no security boundary, seccomp_unotify(2). It need not be one: what is tested has no reason
to deceive its test, and the worst that a race can do is a crash point with the wrong name.

The kernel asks for the rights of ptrace(2): the same user and a dumpable process, or CAP_SYS_PTRACE
in the user namespace of the process. The supervisor has that where the sandbox has one.
"""

from __future__ import annotations

import errno
import mmap
import stat
from dataclasses import dataclass
from typing import Final, final

from ..linux import syscalls
from ..linux.errors import SandboxError, said
from ..linux.syscalls import AT_FDCWD
from ..linux.untouched import open as open_file
from ..linux.untouched import os

_PATH_MAX: Final = 4096
#: IOV_MAX of <limits.h>.
_MOST_PIECES: Final = 1024
#: How many symbolic links a path may lead through, path_resolution(7).
_MOST_LINKS: Final = 40


@final
class Gone(Exception):
    """The process has ended, or what its call names does not exist; the kernel answers that."""


def read_memory(pid: int, address: int, size: int) -> bytes:
    """Read memory of a process, as much of it as is mapped. Raises :class:`Gone`.

    Raises :class:`SandboxError` if this process may not.
    """
    # The kernel transfers whole pieces only, so that none may cross into an unmapped page.
    pieces: list[tuple[int, int]] = []
    start = address
    while start < address + size and len(pieces) < _MOST_PIECES:
        end = min(address + size, (start // mmap.PAGESIZE + 1) * mmap.PAGESIZE)
        pieces.append((start, end - start))
        start = end
    try:
        return syscalls.process_vm_readv(pid, pieces)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EFAULT):
            raise Gone from None
        raise SandboxError(
            "read the memory of a supervised process",
            said(error),
            "the process has changed its user, or a security module forbids it",
            "run as root, or sysctl kernel.yama.ptrace_scope=1",
        ) from error


def write_memory(pid: int, address: int, content: bytes) -> None:
    """Write into the memory of a process. Raises :class:`Gone` if that is not there."""
    try:
        written = syscalls.process_vm_writev(pid, address, content)
    except OSError:
        raise Gone from None
    if written != len(content):
        raise Gone


def read_path(pid: int, address: int) -> bytes:
    """Read a path from the memory of a process. Raises :class:`Gone` if there is none."""
    if not address:
        raise Gone
    # Most paths end on the page that they begin on.
    first = mmap.PAGESIZE - address % mmap.PAGESIZE
    text, end, _ = read_memory(pid, address, min(first, 512)).partition(b"\0")
    if not end:
        text, end, _ = read_memory(pid, address, _PATH_MAX).partition(b"\0")
    if not end:
        raise Gone
    return text


@final
@dataclass(slots=True)
class Place:
    """A name in a directory, whether it exists or not."""

    #: An ``O_PATH`` descriptor of the directory; whoever has the object closes it.
    directory: int
    name: bytes

    @property
    def path(self) -> str:
        """The path, for people."""
        base = os.readlink(f"/proc/self/fd/{self.directory}")
        return os.path.join(base, os.fsdecode(self.name))

    def status(self) -> os.stat_result | None:
        """What is there, None for nothing. Symbolic links are not followed."""
        try:
            return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)
        except OSError:
            return None

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.directory)


def resolve(pid: int, path: bytes, directory: int | None, *, follows: bool) -> Place:
    """Find the place that a path leads a process to.

    ``directory``: the descriptor, in that process, at which a relative path starts; None for the
    working directory. ``follows``: whether a symbolic link at the end is followed. The caller
    closes the place. Raises :class:`Gone` if there is no such directory.
    """
    start = b"/proc/%d/cwd" % pid
    if directory is not None and directory != AT_FDCWD:
        start = b"/proc/%d/fd/%d" % (pid, directory)
    place = _open(pid, start, path)
    if not follows:
        return place
    for _ in range(_MOST_LINKS):
        status = place.status()
        if status is None or not stat.S_ISLNK(status.st_mode):
            return place
        try:
            target = os.readlink(place.name, dir_fd=place.directory)
            following = _open(pid, b"/proc/self/fd/%d" % place.directory, target)
        except OSError:
            break
        finally:
            place.close()
        place = following
    raise Gone


def _open(pid: int, start: bytes, path: bytes) -> Place:
    """Open the directory that ``path`` leads to, relative to ``start`` or absolute."""
    whole = os.path.join(start, path)
    if path.startswith(b"/"):
        # The process may have another root than this one, chroot(2).
        whole = b"/proc/%d/root" % pid + _own(pid, path)
    parent, _, name = whole.rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise Gone
    try:
        fd = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        raise Gone from None
    return Place(fd, name)


def _own(pid: int, path: bytes) -> bytes:
    """A path below ``/proc/self`` as it is called by another process."""
    for link, target in (
        (b"/proc/self/", b"/proc/%d/" % pid),
        (b"/proc/thread-self/", b"/proc/%d/" % pid),
        (b"/dev/fd/", b"/proc/%d/fd/" % pid),
    ):
        if path.startswith(link):
            return target + path[len(link) :]
    return path


@final
@dataclass(frozen=True, slots=True)
class Descriptor:
    """A descriptor of a process, proc_pid_fdinfo(5)."""

    #: The offset in the file.
    position: int
    #: The flags of the open.
    flags: int
    #: The mount that the file was opened on, as in mountinfo.
    mount: int


def fdinfo(pid: int | str, fd: int) -> Descriptor:
    """What the kernel says of a descriptor. Raises :class:`Gone` if it is not open."""
    try:
        info = os.open(f"/proc/{pid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Gone from None
    try:
        fields = os.read(info, 4096).split()
    except OSError:
        raise Gone from None
    finally:
        os.close(info)
    values = dict(zip(fields[::2], fields[1::2], strict=False))
    return Descriptor(int(values[b"pos:"]), int(values[b"flags:"], 8), int(values[b"mnt_id:"]))


def has_returned(thread: int, number: int) -> bool:
    """Whether a thread is certainly not in a system call any more, by the number of that.

    False of a thread that runs: it may do so in the kernel or outside of it, proc_pid_syscall(5).
    """
    try:
        with open_file(f"/proc/{thread}/stat", "rb") as file:
            # The name of the program may have any characters in it.
            if file.read().rpartition(b") ")[2][:1] in (b"Z", b"X"):
                return True
        with open_file(f"/proc/{thread}/syscall", "rb") as file:
            first = file.read().split(None, 1)[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    except OSError:
        return False
    return first != b"running" and int(first) != number


def open_path(path: str | bytes, directory: int | None = None) -> int:
    """An ``O_PATH`` descriptor of a file, itself and not what it links to.

    Raises :class:`Gone` if it does not exist.
    """
    try:
        return os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        raise Gone from None


def open_descriptor(pid: int, fd: int) -> int:
    """An ``O_PATH`` descriptor of what a descriptor of a process leads to. Raises :class:`Gone`."""
    try:
        return os.open(f"/proc/{pid}/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        raise Gone from None
