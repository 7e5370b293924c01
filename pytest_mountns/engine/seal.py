"""A sandbox in which nothing has changed serves the next test: it is as good as a new one.

Most tests write nothing, and to make a sandbox takes longer than to look whether one has changed.
What can change in one, and where that is seen:

* Files of its overlays: an upper is empty as long as nothing was written, renamed, deleted or
  given other attributes; the upper itself stands for the mountpoint.
* ``/dev``: its directories and nodes. What is in no upper has a change time, which every change
  moves; since Linux 6.13 also if it was looked at a moment before.
* Mounts, with their flags and propagation: the mount table, which the kernel says has changed or
  not, proc_pid_mountinfo(5), and which is compared.
* What could change it later: an open descriptor, a process, a thread. That is for the caller.

What the host has changed meanwhile, a new overlay would see and an old one does not always: it
remembers which names it has not found. It forgets that when it is configured anew, fsconfig(2)
``FSCONFIG_CMD_RECONFIGURE``.
"""

from __future__ import annotations

import os
import posix
import select
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias, final

from . import syscalls as sys
from .build import device_paths
from .moving import high
from .plan import Bind, MakeDev, Overlay, Plan, Protect

if TYPE_CHECKING:
    from .upper import Layered

_Mark: TypeAlias = "tuple[int, ...]"
_PAGE = 4096
_TABLE = "/proc/thread-self/mountinfo"


def can_be_sealed(plan: Plan) -> bool:
    """Whether a look can tell that nothing in a sandbox of this plan has changed."""
    # The kernel's change times are exact where layered uppers are, and not long before.
    if not plan.capabilities.layered_uppers or plan.upper.medium != "memory":
        return False
    if not all(isinstance(step, Overlay | Bind | Protect | MakeDev) for step in plan.steps):
        return False
    # Each overlay has to be found where it is mounted.
    targets = [step.target for step in plan.steps if isinstance(step, Overlay | Bind | MakeDev)]
    return all(targets.count(overlay.target) == 1 for overlay in plan.overlays)


def are_empty(scratch: int, overlays: Sequence[Layered]) -> bool:
    """Whether nothing lies in the uppers. Raises :class:`OSError`."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    for overlay in overlays:
        fd = posix.open(overlay.upper, flags, dir_fd=scratch)
        try:
            if posix.listdir(fd):
                return False
        finally:
            posix.close(fd)
    return True


@final
class Seal:
    """What a sandbox was like before a test. This thread is in there, with all capabilities.

    ``scratch`` and ``overlays``: as of the sandbox, whose uppers are empty. Raises
    :class:`OSError`.
    """

    def __init__(self, plan: Plan, scratch: int, overlays: Sequence[Layered]) -> None:
        self._scratch = scratch
        self._uppers = [overlay.upper for overlay in overlays]
        devices = (device_paths(step) for step in plan.steps if isinstance(step, MakeDev))
        self._places = ["/", *chain.from_iterable(devices)]
        self._fds: list[int] = []
        try:
            self._keep(posix.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC))
            for overlay in overlays:
                self._keep(sys.fspick(overlay.mountpoint))
            self._poll = select.poll()
            self._poll.register(self._fds[0], select.POLLPRI)
            self._uppers_then = self._look_at_uppers()
            self._devices_then = self._look_at_devices()
            self._mounts = self._table()
        except BaseException:
            self.close()
            raise

    def _keep(self, fd: int) -> None:
        self._fds.append(fd)
        self._fds[-1] = high(fd)

    @property
    def descriptors(self) -> Sequence[int]:
        """Its own."""
        return self._fds

    def is_whole(self) -> bool:
        """Whether nothing has changed, as seen by this thread, which is in there."""
        try:
            return (
                self._uppers_then == self._look_at_uppers()
                and not self._poll.poll(0)
                and self._devices_then == self._look_at_devices()
                and self._mounts == self._table()
            )
        except OSError:
            # Something is gone, or a descriptor was closed.
            return False

    def is_unwritten(self) -> bool:
        """Whether the uppers are as they were, as seen from outside."""
        try:
            return self._uppers_then == self._look_at_uppers()
        except OSError:
            return False

    @property
    def contexts(self) -> Sequence[int]:
        """For :meth:`.Reaper.freshen`."""
        return self._fds[1:]

    def _look_at_uppers(self) -> tuple[_Mark, ...]:
        # What is in a directory for work, or was written to and removed, is in no upper.
        stock = posix.fstatvfs(self._scratch)
        marks = (_mark(posix.stat(upper, dir_fd=self._scratch)) for upper in self._uppers)
        return (stock.f_ffree, stock.f_bfree), *marks

    def _look_at_devices(self) -> list[_Mark]:
        return [_mark(posix.lstat(place)) for place in self._places]

    def _table(self) -> bytes:
        parts: list[bytes] = []
        offset = 0
        while part := posix.pread(self._fds[0], _PAGE, offset):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Let go of it. What a test has closed meanwhile is closed."""
        for fd in self._fds:
            try:
                posix.close(fd)
            except OSError:
                continue
        self._fds.clear()


def _mark(status: os.stat_result) -> _Mark:
    return (
        status.st_dev,
        status.st_ino,
        status.st_mode,
        status.st_uid,
        status.st_gid,
        status.st_nlink,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
