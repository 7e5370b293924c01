"""Landlock: a process that takes rights from itself, and from all that it starts.

The rights are those of ``include/uapi/linux/landlock.h``, landlock(7). Each version of the
interface (its "ABI") adds some. A kernel refuses rights that it does not know, so a ruleset has
those that the kernel knows. An interface that is newer than this module has all rights of this
module.

Things that Landlock does not cover, whatever the kernel: chmod(2), chown(2), utime(2), setxattr(2)
and their relatives, fcntl(2), and what is written by way of a descriptor that was open before.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterable
from typing import Final, final

from . import syscalls as sys
from .untouched import os, posix, struct

_WRITE_FILE: Final = 1 << 1
_REMOVE_DIR: Final = 1 << 4
_REMOVE_FILE: Final = 1 << 5
_MAKE_CHAR: Final = 1 << 6
_MAKE_DIR: Final = 1 << 7
_MAKE_REG: Final = 1 << 8
_MAKE_SOCK: Final = 1 << 9
_MAKE_FIFO: Final = 1 << 10
_MAKE_BLOCK: Final = 1 << 11
_MAKE_SYM: Final = 1 << 12
_REFER: Final = 1 << 13
_TRUNCATE: Final = 1 << 14
_IOCTL_DEV: Final = 1 << 15

#: The rights that change files, by the version of the interface that brings them: 1 is Linux 5.13,
#: 2 is 5.19, 3 is 6.2, 5 is 6.10.
_WRITE_RIGHTS: Final = {
    1: _WRITE_FILE
    | (_REMOVE_DIR | _REMOVE_FILE)
    | (_MAKE_CHAR | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _MAKE_FIFO | _MAKE_BLOCK | _MAKE_SYM),
    2: _REFER,
    3: _TRUNCATE,
    5: _IOCTL_DEV,
}
#: Those that a rule for a file may have; the kernel refuses the others with EINVAL.
_OF_FILES: Final = _WRITE_FILE | _TRUNCATE | _IOCTL_DEV

_BIND_TCP: Final = 1 << 0
_CONNECT_TCP: Final = 1 << 1
_SCOPE_ABSTRACT_UNIX_SOCKET: Final = 1 << 0
#: The version that can forbid TCP: Linux 6.7.
NETWORK_ABI: Final = 4
#: The version that can keep a process from abstract Unix sockets of others: Linux 6.12.
_SCOPE_ABI: Final = 6
#: The version that can forbid truncate(2): Linux 6.2.
TRUNCATE_ABI: Final = 3


def write_rights(abi: int) -> int:
    """The rights that change files and that version ``abi`` of the interface knows."""
    return sum(rights for since, rights in _WRITE_RIGHTS.items() if since <= abi)


def ruleset_attributes(abi: int, *, network: bool) -> bytes:
    """``struct landlock_ruleset_attr`` of a ruleset that forbids to change files.

    ``network``: whether it forbids TCP as well, and abstract Unix sockets of other processes. The
    version has to be :data:`NETWORK_ABI` at least, else there is no such right.
    """
    fields = [write_rights(abi)]
    if abi >= NETWORK_ABI:
        fields.append(_BIND_TCP | _CONNECT_TCP if network else 0)
    if abi >= _SCOPE_ABI:
        fields.append(_SCOPE_ABSTRACT_UNIX_SOCKET if network else 0)
    return struct.pack(f"={len(fields)}Q", *fields)


@final
class Ruleset:
    """A ruleset that forbids to change files, but for those below some paths.

    ``network``: see :func:`ruleset_attributes`. Raises :class:`OSError` where the kernel has no
    Landlock.
    """

    def __init__(self, abi: int, *, network: bool = False) -> None:
        self._rights = write_rights(abi)
        self._fd = sys.landlock_create_ruleset(ruleset_attributes(abi, network=network))

    def allow(self, path: str) -> None:
        """Allow every change below the directory ``path``, or of the file ``path``.

        Raises :class:`OSError` if it cannot be opened.
        """
        fd = posix.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            is_directory = stat.S_ISDIR(posix.fstat(fd).st_mode)
            rights = self._rights if is_directory else self._rights & _OF_FILES
            sys.landlock_add_path_rule(self._fd, fd, rights)
        finally:
            posix.close(fd)

    def enforce(self) -> None:
        """Take the rights from this thread, and from what it starts, for good.

        From now on execve(2) gives no process more rights, as ``sudo`` has them (no_new_privs,
        prctl(2)); a process that has ``CAP_SYS_ADMIN`` need not be kept from that. Raises
        :class:`OSError` if the kernel refuses.
        """
        try:
            sys.landlock_restrict_self(self._fd)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            sys.prctl(sys.PR_SET_NO_NEW_PRIVS, 1)
            sys.landlock_restrict_self(self._fd)

    def close(self) -> None:
        """Close the ruleset; processes on which it is enforced keep it."""
        posix.close(self._fd)


def files_open_for_writing() -> Iterable[str]:
    """Paths below ``/proc/self/fd`` of the regular files that this process has open for writing.

    It can write to them anyway. A rule for each lets programs that it starts open them once more,
    as the shell does for ``> /dev/stderr``. Raises :class:`OSError` without ``/proc``.
    """
    for name in posix.listdir("/proc/self/fd"):
        path = f"/proc/self/fd/{name}"
        try:
            status = posix.stat(path)
            # The mode of the link says how the descriptor was opened, proc_pid_fd(5).
            writes = posix.lstat(path).st_mode & stat.S_IWUSR
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and writes:
            yield path
