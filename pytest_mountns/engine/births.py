"""Whether any process or thread was started since: one look, in place of one at every child.

The kernel numbers them one after another and says the last number it gave, proc_loadavg(5). If
that is the same as before, nothing was started, not even what has left its parent by a double fork.
"""

from __future__ import annotations

import os
import posix
from typing import final

from . import processes

_FILE = "/proc/loadavg"
_SIZE = 256


def latest() -> int | None:
    """The last process or thread that was started in this PID namespace.

    None if that is not known: containers may have a file of their own there.
    """
    try:
        fd = posix.open(_FILE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if posix.fstat(fd).st_dev != posix.stat("/proc/self").st_dev:
                return None
            return int(posix.read(fd, _SIZE).split()[4])
        finally:
            posix.close(fd)
    except (OSError, ValueError, IndexError):
        return None


@final
class Children:
    """Those of this process that are there before a test, and those that come while it runs."""

    def __init__(self) -> None:
        self._latest: int | None = None
        self._before: frozenset[int] = frozenset()

    def note(self) -> int | None:
        """Before the test. Returns :func:`latest`."""
        now = latest()
        if now is None or now != self._latest:
            # Looked at after the number was read: what comes in between is seen then, or now.
            self._before = frozenset(processes.children(os.getpid()))
            self._latest = now
        return now

    def new(self) -> list[int]:
        """The children that were not there before."""
        if self._latest is not None and latest() == self._latest:
            return []
        return [pid for pid in processes.children(os.getpid()) if pid not in self._before]
