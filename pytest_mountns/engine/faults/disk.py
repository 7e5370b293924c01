"""A model of a disk: what of a sequence of changes is still there after a power cut.

It is pure: files are any hashable objects (here called nodes), and whoever uses it reads their
content when the model asks for it. It takes notes only of what is *not* durable: the state of
before the first change since the last sync. Everything else on the disk is as it is.

There are two ways in which what was not synced can be lost, and :meth:`Disk.survivors` gives both:

*names kept*
    What ext4 does in its default mode, ``data=ordered`` with delayed allocation: changes of names
    and of sizes reach the journal soon and in their order, and written data reach the disk later
    (Documentation/filesystems/ext4/journal.rst; "Delayed allocation and the zero-length file
    problem", T. Ts'o, 2009). So every name is as it is, every file has the content of its last
    sync, and cutting a file short or extending it takes place at once: a file that was emptied
    and written anew is empty.
*names lost*
    What POSIX promises and no more, fsync(2): content, size and attributes as of the last sync of
    the file, and a name as of the last fsync of the directory that it stands in ("Calling fsync()
    does not necessarily ensure that the entry in the directory containing the file has also reached
    disk").

What syncs a part of a file, as msync(2) of some pages does, makes the pages of that part durable,
and with them the size that the file needs for it and the changes of size that were made by a call:
the kernel writes these pages and then commits the inode. Other pages stay as they were.

A rename from one directory into another is durable as a whole when either of them is synced: no
journaling file system takes it apart.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar, final

NodeT = TypeVar("NodeT", bound=Hashable)


def resized(content: bytes, size: int) -> bytes:
    """The content of a file after truncate(2): cut off, or extended by zeros."""
    return content[:size].ljust(size, b"\0")


@final
@dataclass(frozen=True, slots=True)
class Name(Generic[NodeT]):
    """An entry of a directory."""

    directory: NodeT
    name: bytes


@dataclass(slots=True)
class _Content:
    """The content of a file that has changed since its last sync."""

    #: As of that sync.
    synced: bytes
    #: The same, with the changes of size since.
    sized: bytes


@final
@dataclass(frozen=True, slots=True)
class Survivors(Generic[NodeT]):
    """What is not, after a power cut, as it is now."""

    #: Files and the content that they have.
    contents: dict[NodeT, bytes] = field(default_factory=dict)
    #: Names and what they stand for; None for nothing.
    names: dict[Name[NodeT], NodeT | None] = field(default_factory=dict)
    #: Files and their attributes: what the caller has read.
    attributes: dict[NodeT, object] = field(default_factory=dict)


@final
class Disk(Generic[NodeT]):
    """What has changed since it was synced. All was synced in the beginning."""

    def __init__(self) -> None:
        self._contents: dict[NodeT, _Content] = {}
        self._names: dict[Name[NodeT], NodeT | None] = {}
        self._attributes: dict[NodeT, object] = {}
        #: Renames from one directory into another that are not durable, in their order: of each
        #: the two names, and what they stand for since.
        self._moves: list[tuple[tuple[Name[NodeT], NodeT | None], ...]] = []
        #: Files that a process can write to without a system call.
        self._mapped: dict[NodeT, Callable[[], bytes]] = {}

    def content_changes(self, node: NodeT, read: Callable[[], bytes]) -> None:
        """The content of a file is about to change. ``read`` returns the present one."""
        if node not in self._contents:
            content = read()
            self._contents[node] = _Content(content, content)

    def is_mapped(self, node: NodeT, read: Callable[[], bytes]) -> None:
        """From now on the content may change at any time. ``read`` returns the present one."""
        self.content_changes(node, read)
        self._mapped[node] = read

    def size_changed(self, node: NodeT, size: int) -> None:
        """The size of a file has changed, by a call that changes no other content."""
        content = self._contents.get(node)
        if content is not None:
            content.sized = resized(content.sized, size)

    def name_changes(self, name: Name[NodeT], node: NodeT | None) -> None:
        """A name is about to change. ``node``: what it stands for, None for nothing."""
        self._names.setdefault(name, node)

    def moved(self, *names: tuple[Name[NodeT], NodeT | None]) -> None:
        """A rename has changed several names, and this is what they stand for now."""
        if len({name.directory for name, _ in names}) > 1:
            self._moves.append(names)

    def attributes_change(self, node: NodeT, read: Callable[[], object]) -> None:
        """Mode, owner or extended attributes are about to change."""
        if node not in self._attributes:
            self._attributes[node] = read()

    def sync(self, node: NodeT, *, data_only: bool = False) -> None:
        """Make a file durable: its content, and unless ``data_only`` its attributes; fsync(2)."""
        self._contents.pop(node, None)
        if not data_only:
            self.sync_attributes(node)
        if (read := self._mapped.get(node)) is not None:
            self.content_changes(node, read)

    def sync_attributes(self, node: NodeT) -> None:
        """Make the attributes of a file durable."""
        self._attributes.pop(node, None)

    def sync_part(self, node: NodeT, start: int, end: int, read: Callable[[], bytes]) -> None:
        """Make the content of a file durable from one offset up to another, in whole pages.

        ``read`` returns the present content.
        """
        if node not in self._contents:
            return
        now, durable = read(), self._contents[node].sized
        start -= start % mmap.PAGESIZE
        end = min(end + -end % mmap.PAGESIZE, len(now))
        if start < end:
            durable = durable[:start].ljust(start, b"\0") + now[start:end] + durable[end:]
        if durable == now and node not in self._mapped:
            del self._contents[node]
        else:
            self._contents[node] = _Content(durable, durable)

    def sync_names(self, directory: NodeT) -> None:
        """Make the names in a directory durable, as fsync(2) of the directory does."""
        for name in [name for name in self._names if name.directory == directory]:
            del self._names[name]
        waiting = []
        for move in self._moves:
            if all(name.directory != directory for name, _ in move):
                waiting.append(move)
                continue
            for name, node in move:
                # In the other directory there may have been other changes of the name since.
                if name in self._names:
                    self._names[name] = node
        self._moves = waiting

    def sync_all(self, within: Callable[[NodeT], bool] = lambda _: True) -> None:
        """Make all files and directories durable that lie ``within`` a filesystem, syncfs(2)."""
        for node in filter(within, {*self._contents, *self._attributes}):
            self.sync(node)
        for directory in filter(within, {name.directory for name in self._names}):
            self.sync_names(directory)

    @property
    def can_lose_names(self) -> bool:
        """Whether the two kinds of survivors may differ."""
        sizes = any(one.synced != one.sized for one in self._contents.values())
        return bool(self._names or self._attributes) or sizes

    def survivors(self, *, lose_names: bool) -> Survivors[NodeT]:
        """What a power cut now brings back. ``lose_names``: see the top of this module."""
        if not lose_names:
            return Survivors({node: one.sized for node, one in self._contents.items()})
        return Survivors(
            {node: one.synced for node, one in self._contents.items()},
            dict(self._names),
            dict(self._attributes),
        )
