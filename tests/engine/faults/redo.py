"""Another model of a disk, for comparison: it keeps a log of everything, and replays it.

The model of the plugin keeps what has to be undone. This one begins with what was there and redoes
what a power cut leaves, so that the two have nothing in common but what they promise:

* a name is as after the last change of it that is durable; with kept names all changes are;
* a write is redone if the file was synced after it; a change of size always with kept names, and
  otherwise if the file was synced after it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

TOP = 0


@dataclass
class Entry:
    """A directory's name as it is after a change."""

    time: int
    directory: int
    name: str
    node: int | None
    #: Directories of which one has to be synced.
    either: frozenset[int]


@dataclass
class Redo:
    """A tree of files, and the log of what was done to it."""

    #: The present names in each directory.
    directories: dict[int, dict[str, int]] = field(default_factory=lambda: {TOP: {}})
    contents: dict[int, bytearray] = field(default_factory=dict)
    modes: dict[int, int] = field(default_factory=dict)
    names: list[Entry] = field(default_factory=list)
    #: Of each file what was done: "write" (offset, bytes), "size" (size), "mode" (mode).
    log: dict[int, list[tuple[int, str, object]]] = field(default_factory=dict)
    synced: dict[int, int] = field(default_factory=dict)
    synced_modes: dict[int, int] = field(default_factory=dict)
    time: int = 0

    def node(self, path: str) -> int:
        found = TOP
        for name in filter(None, path.split("/")):
            found = self.directories[found][name]
        return found

    def split(self, path: str) -> tuple[int, str]:
        parent, _, name = path.rpartition("/")
        return self.node(parent), name

    def everything(self) -> Iterator[tuple[str, int]]:
        pending = [("", TOP)]
        while pending:
            path, node = pending.pop()
            for name, below in sorted(self.directories[node].items()):
                inner = f"{path}/{name}" if path else name
                yield inner, below
                if below in self.directories:
                    pending.append((inner, below))

    def _name(self, *changes: tuple[int, str, int | None]) -> None:
        either = frozenset(directory for directory, _, _ in changes)
        for directory, name, node in changes:
            self.names.append(Entry(self.time, directory, name, node, either))
            if node is None:
                del self.directories[directory][name]
            else:
                self.directories[directory][name] = node

    def do(self, operation: str, *arguments: object) -> None:
        """Do it, and write it down."""
        self.time += 1
        getattr(self, f"_do_{operation}")(*arguments)

    def _new(self) -> int:
        return 1 + max([TOP, *self.contents, *self.directories])

    def _do_create(self, path: str) -> None:
        node = self._new()
        self.contents[node], self.modes[node], self.log[node] = bytearray(), 0o644, []
        self._name((*self.split(path), node))

    def _do_mkdir(self, path: str) -> None:
        node = self._new()
        self.directories[node], self.modes[node], self.log[node] = {}, 0o755, []
        self._name((*self.split(path), node))

    def _do_write(self, path: str, offset: int, content: bytes) -> None:
        node = self.node(path)
        self.log[node].append((self.time, "write", (offset, content)))
        _write(self.contents[node], offset, content)

    def _do_truncate(self, path: str, size: int) -> None:
        node = self.node(path)
        self.log[node].append((self.time, "size", size))
        _resize(self.contents[node], size)

    def _do_chmod(self, path: str, mode: int) -> None:
        node = self.node(path)
        self.log[node].append((self.time, "mode", mode))
        self.modes[node] = mode

    def _do_unlink(self, path: str) -> None:
        self._name((*self.split(path), None))

    _do_rmdir = _do_unlink

    def _do_link(self, old: str, new: str) -> None:
        self._name((*self.split(new), self.node(old)))

    def _do_rename(self, old: str, new: str) -> None:
        node = self.node(old)
        self._name((*self.split(new), node), (*self.split(old), None))

    def _do_fsync(self, path: str) -> None:
        node = self.node(path)
        self.synced[node] = self.synced_modes[node] = self.time

    def _do_fdatasync(self, path: str) -> None:
        self.synced[self.node(path)] = self.time

    def settle(self) -> None:
        """Everything so far is on the disk."""
        for node in [TOP, *self.contents, *self.directories]:
            self.synced[node] = self.synced_modes[node] = self.time

    def survivors(self, *, lose_names: bool) -> dict[str, tuple[int, bytes | None]]:
        """Mode and content (None for directories) of all that is there after a power cut."""
        names: dict[int, dict[str, int | None]] = {}
        for entry in self.names:
            durable = any(self.synced.get(one, -1) >= entry.time for one in entry.either)
            if durable or not lose_names:
                names.setdefault(entry.directory, {})[entry.name] = entry.node
        found: dict[str, tuple[int, bytes | None]] = {}
        pending = [("", TOP)]
        while pending:
            path, node = pending.pop()
            for name, below in names.get(node, {}).items():
                if below is None:
                    continue
                inner = f"{path}/{name}" if path else name
                found[inner] = self._redo(below, lose_names)
                if below in self.directories:
                    pending.append((inner, below))
        return found

    def _redo(self, node: int, lose_names: bool) -> tuple[int, bytes | None]:
        content = bytearray()
        mode = 0o755 if node in self.directories else 0o644
        last, last_mode = self.synced.get(node, -1), self.synced_modes.get(node, -1)
        for time, what, argument in self.log[node]:
            if what == "write" and time <= last:
                _write(content, *argument)  # type: ignore[misc]
            elif what == "size" and (time <= last or not lose_names):
                _resize(content, argument)  # type: ignore[arg-type]
            elif what == "mode" and (time <= last_mode or not lose_names):
                mode = argument  # type: ignore[assignment]
        return mode, None if node in self.directories else bytes(content)


def _write(content: bytearray, offset: int, written: bytes) -> None:
    content.extend(b"\0" * (offset - len(content)))
    content[offset : offset + len(written)] = written


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(b"\0" * (size - len(content)))


Operation = tuple[str, tuple[object, ...]]


def draw(dice: random.Random, redo: Redo) -> Operation | None:
    """An operation that is possible now; None if the one that was drawn is not."""
    paths = [path for path, _ in redo.everything()]
    files = [path for path in paths if redo.node(path) in redo.contents]
    directories = ["", *(path for path in paths if redo.node(path) in redo.directories)]

    def fresh() -> str:
        parent = dice.choice(directories)
        name = dice.choice("abcd")
        return f"{parent}/{name}" if parent else name

    def write() -> Operation:
        path = dice.choice(files)
        size = len(redo.contents[redo.node(path)])
        content = bytes(dice.choice(b"xyz") for _ in range(dice.randint(1, 5)))
        return "write", (path, dice.choice([0, size, dice.randint(0, 8)]), content)

    def truncate() -> Operation:
        return "truncate", (dice.choice(files), dice.choice([0, 0, dice.randint(1, 10)]))

    def chmod() -> Operation:
        return "chmod", (dice.choice(files), dice.choice([0o600, 0o640, 0o666]))

    def create() -> Operation | None:
        path = fresh()
        return None if path in paths else (dice.choice(["create", "create", "mkdir"]), (path,))

    def unlink() -> Operation:
        return "unlink", (dice.choice(files),)

    def rmdir() -> Operation | None:
        empty = [one for one in directories[1:] if not redo.directories[redo.node(one)]]
        return ("rmdir", (dice.choice(empty),)) if empty else None

    def link() -> Operation | None:
        path = fresh()
        return None if path in paths else ("link", (dice.choice(files), path))

    def rename() -> Operation | None:
        old, new = dice.choice(paths), fresh()
        node = redo.node(old)
        if new == old or new.startswith(f"{old}/"):
            return None
        if new in paths:
            # Over a file or an empty directory of the same kind. Nothing happens to hard links.
            other = redo.node(new)
            same = (node in redo.contents) == (other in redo.contents)
            if not same or other == node or redo.directories.get(other):
                return None
        return "rename", (old, new)

    def sync() -> Operation:
        what = dice.choice(["file", "file", "data", "directory", "directory"])
        if what == "directory":
            return "fsync", (dice.choice(directories),)
        return ("fsync" if what == "file" else "fdatasync"), (dice.choice(files),)

    choices: list[Callable[[], Operation | None]] = [create, write, write, rename, sync, sync]
    choices += [truncate, chmod, unlink, rmdir, link, rename]
    chosen = dice.choice(choices)
    if not files and chosen in (write, truncate, chmod, unlink, link, sync):
        return None
    if not paths and chosen is rename:
        return None
    return chosen()


def sequence(seed: int, length: int) -> tuple[Redo, list[Operation]]:
    """A tree that is on the disk, and operations that are possible on it one after the other."""
    dice = random.Random(seed)
    redo = Redo()
    for operation, *arguments in (
        ("create", "a"),
        ("write", "a", 0, b"first"),
        ("mkdir", "d"),
        ("create", "d/b"),
        ("write", "d/b", 0, b"second"),
        ("mkdir", "d/e"),
    ):
        redo.do(str(operation), *arguments)
    redo.settle()
    after = Redo()
    vars(after).update({name: _copied(value) for name, value in vars(redo).items()})
    operations: list[Operation] = []
    while len(operations) < length:
        if (drawn := draw(dice, after)) is not None:
            after.do(drawn[0], *drawn[1])
            operations.append(drawn)
    return redo, operations


def _copied(value: object) -> object:
    import copy

    return copy.deepcopy(value)
