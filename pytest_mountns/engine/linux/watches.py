"""Directories that are watched for changes, inotify(7)."""

from __future__ import annotations

from typing import Final, final

from . import syscalls as sys
from .namespaces import high
from .untouched import os, posix, select, struct

#: What changes a directory or the attributes of what is in it. That a device node was written to
#: changes neither.
_CHANGES: Final = (
    sys.IN_ATTRIB | sys.IN_CREATE | sys.IN_DELETE | sys.IN_MOVED_FROM | sys.IN_MOVED_TO
)
#: The watch descriptor of an event, and three further numbers. The last one is the length of a name
#: that follows.
_EVENT: Final = struct.Struct("=iIII")
_ROOM: Final = 1 << 14
#: Of the event that says that events were lost.
_OVERFLOW: Final = -1


@final
class Watches:
    """Watches any number of directories by one descriptor.

    A user may have 128 of these (``/proc/sys/fs/inotify/max_user_instances``), and tests need some.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._poll = select.poll()
        self._owner = os.getpid()
        self._watches: set[int] = set()
        self._changed: set[int] = set()

    def add(self, path: str) -> int:
        """Watch a directory. Returns the number of the watch. Raises :class:`OSError`."""
        self._forget_parents()
        if self._fd < 0:
            fd = high(sys.inotify_init())
            self._poll = select.poll()
            self._poll.register(fd, select.POLLIN)
            self._fd = fd
        watch = sys.inotify_add_watch(self._fd, path, _CHANGES)
        self._watches.add(watch)
        return watch

    def have_seen(self, watches: frozenset[int]) -> bool:
        """Whether a directory that one of these watches was changed, or may have been.

        In a forked process all may have been: only the process that watches is told.
        """
        self._forget_parents()
        if not watches <= self._watches:
            return True
        self._read()
        return not self._changed.isdisjoint(watches) or _OVERFLOW in self._changed

    def remove(self, watches: frozenset[int]) -> None:
        """Stop watching these."""
        self._forget_parents()
        for watch in watches & self._watches:
            sys.inotify_rm_watch(self._fd, watch)
        # The kernel says that they are gone. It never gives a number twice.
        self._watches -= watches
        if self._fd >= 0:
            self._read()
        self._changed -= watches

    def _forget_parents(self) -> None:
        # A forked process shares the descriptor with its parent, and would take its events.
        if self._owner != os.getpid():
            self.close()
            self._owner = os.getpid()

    def _read(self) -> None:
        while self._poll.poll(0):
            data = posix.read(self._fd, _ROOM)
            if not data:
                # A test has closed it, and its number stands for something else.
                self._changed |= self._watches
                return
            at = 0
            while at < len(data):
                watch, _, _, length = _EVENT.unpack_from(data, at)
                self._changed.add(watch)
                at += _EVENT.size + length

    def close(self) -> None:
        """Stop watching everything."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._watches.clear()
        self._changed.clear()
