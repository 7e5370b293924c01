"""What survives a power cut, in the model, without any file."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable

import pytest

from pytest_mountns.engine.faults.disk import Disk, Name
from tests.engine.faults import redo as other
from tests.engine.faults.redo import TOP, Redo, sequence

SEQUENCES = int(os.environ.get("MOUNTNS_SEQUENCES", "2000"))


def test_what_was_written_is_lost_without_a_sync() -> None:
    disk: Disk[str] = Disk()
    disk.content_changes("file", lambda: b"before")
    assert disk.survivors(lose_names=False).contents == {"file": b"before"}
    disk.sync("file")
    assert disk.survivors(lose_names=False).contents == {}


def test_a_file_that_was_emptied_is_empty_with_kept_names_and_as_before_with_lost_ones() -> None:
    disk: Disk[str] = Disk()
    disk.content_changes("file", lambda: b"before")
    disk.size_changed("file", 0)
    assert disk.survivors(lose_names=False).contents == {"file": b""}
    assert disk.survivors(lose_names=True).contents == {"file": b"before"}


def test_a_name_is_durable_when_its_directory_is_synced() -> None:
    disk: Disk[str] = Disk()
    disk.name_changes(Name("directory", b"new"), None)
    disk.sync("file")
    assert disk.survivors(lose_names=True).names == {Name("directory", b"new"): None}
    assert disk.survivors(lose_names=False).names == {}
    disk.sync_names("directory")
    assert disk.survivors(lose_names=True).names == {}


@pytest.mark.parametrize("synced", ["from", "to"])
def test_a_move_to_another_directory_is_durable_as_a_whole(synced: str) -> None:
    disk: Disk[str] = Disk()
    old, new = Name("from", b"a"), Name("to", b"a")
    disk.name_changes(old, "file")
    disk.name_changes(new, None)
    disk.moved((old, None), (new, "file"))
    disk.sync_names(synced)
    survivors = disk.survivors(lose_names=True).names
    left = {old: None} if synced == "to" else {new: "file"}
    assert survivors == left


def test_a_mapped_file_is_as_of_its_last_sync_whenever_it_was_written_to() -> None:
    disk: Disk[str] = Disk()
    content = [b"before"]
    disk.is_mapped("file", lambda: content[0])
    content[0] = b"synced"
    disk.sync("file")
    content[0] = b"later"
    assert disk.survivors(lose_names=False).contents == {"file": b"synced"}


def test_a_part_that_is_synced_is_durable_in_whole_pages_and_nothing_else_is() -> None:
    page = mmap.PAGESIZE
    for lose_names in (False, True):
        disk: Disk[str] = Disk()
        disk.content_changes("file", lambda: b"a" * 3 * page)
        disk.sync_part("file", page + 5, page + 6, lambda: b"b" * 4 * page)
        expected = b"a" * page + b"b" * page + b"a" * page
        assert disk.survivors(lose_names=lose_names).contents == {"file": expected}
        # What lies before the part and was never written is a hole.
        disk.sync_part("file", 5 * page, 5 * page + 1, lambda: b"b" * (5 * page + 3))
        expected += bytes(2 * page) + b"bbb"
        assert disk.survivors(lose_names=lose_names).contents == {"file": expected}
        disk.sync_part("file", 0, 5 * page, lambda: b"b" * (5 * page + 3))
        assert disk.survivors(lose_names=lose_names).contents == {}


def test_changes_of_size_are_durable_with_a_part() -> None:
    disk: Disk[str] = Disk()
    disk.content_changes("file", lambda: b"before")
    disk.size_changed("file", 3)
    disk.sync_part("file", mmap.PAGESIZE, 2 * mmap.PAGESIZE, lambda: b"new")
    assert not disk.can_lose_names
    assert disk.survivors(lose_names=True).contents == {"file": b"bef"}


def test_a_sync_of_one_filesystem_leaves_others_alone() -> None:
    disk: Disk[str] = Disk()
    for one in ("here", "there"):
        disk.content_changes(f"{one}/file", lambda: b"before")
        disk.name_changes(Name(f"{one}/directory", b"new"), None)
        disk.attributes_change(f"{one}/file", lambda: 0o600)
        disk.attributes_change(f"{one}/directory", lambda: 0o700)
    disk.sync_all(lambda node: node.startswith("here/"))
    survivors = disk.survivors(lose_names=True)
    assert survivors.contents == {"there/file": b"before"}
    assert survivors.names == {Name("there/directory", b"new"): None}
    assert survivors.attributes == {"there/file": 0o600, "there/directory": 0o700}


def test_sync_makes_everything_durable() -> None:
    disk: Disk[str] = Disk()
    disk.content_changes("file", lambda: b"before")
    disk.name_changes(Name("directory", b"new"), None)
    disk.attributes_change("file", lambda: 0o600)
    disk.sync_all()
    assert not disk.can_lose_names
    for lose_names in (False, True):
        survivors = disk.survivors(lose_names=lose_names)
        assert (survivors.contents, survivors.names, survivors.attributes) == ({}, {}, {})


def _undo(redo: Redo, operations: list[other.Operation], *, lose_names: bool) -> object:
    """Tell the model of the operations, and apply to the tree what it says."""
    disk: Disk[int] = Disk()
    for operation, arguments in operations:
        _tell(disk, redo, operation, arguments)
    survivors = disk.survivors(lose_names=lose_names)
    for entry, node in survivors.names.items():
        there = redo.directories[entry.directory]
        there.pop(entry.name.decode(), None)
        if node is not None:
            there[entry.name.decode()] = node
    found: dict[str, tuple[int, bytes | None]] = {}
    for path, node in redo.everything():
        now = bytes(redo.contents[node]) if node in redo.contents else None
        content = survivors.contents.get(node, now)
        mode = survivors.attributes.get(node, redo.modes[node])
        assert isinstance(mode, int)
        found[path] = mode, content
    return found


def _tell(disk: Disk[int], redo: Redo, operation: str, arguments: tuple[object, ...]) -> None:
    """What the supervisor does: look before the operation, and again after it."""
    path = str(arguments[0])
    after: Callable[[], None] = lambda: None  # noqa: E731 - most operations need no second look

    def entry(path: str) -> tuple[Name[int], int | None]:
        directory, name = redo.split(path)
        return Name(directory, name.encode()), redo.directories[directory].get(name)

    if operation in ("create", "mkdir", "unlink", "rmdir"):
        disk.name_changes(*entry(path))
    elif operation == "link":
        disk.name_changes(*entry(str(arguments[1])))
    elif operation == "rename":
        (old, moved), (new, replaced) = entry(path), entry(str(arguments[1]))
        disk.name_changes(old, moved)
        disk.name_changes(new, replaced)
        after = lambda: disk.moved((old, None), (new, moved))  # noqa: E731
    else:
        node = redo.node(path)
        if operation in ("write", "truncate"):
            disk.content_changes(node, lambda: bytes(redo.contents[node]))
        if operation == "truncate":
            after = lambda: disk.size_changed(node, int(str(arguments[1])))  # noqa: E731
        if operation == "chmod":
            disk.attributes_change(node, lambda: redo.modes[node])
        if operation in ("fsync", "fdatasync"):
            if node in redo.directories:
                disk.sync_names(node)
            disk.sync(node, data_only=operation == "fdatasync")
    redo.do(operation, *arguments)
    after()


@pytest.mark.parametrize("lose_names", [False, True], ids=["kept", "lost"])
def test_random_sequences_survive_as_in_a_model_that_was_written_independently(
    lose_names: bool,
) -> None:
    for seed in range(SEQUENCES):
        length = random.Random(seed).randint(1, 30)
        redo, operations = sequence(seed, length)
        found = _undo(redo, operations, lose_names=lose_names)
        assert found == redo.survivors(lose_names=lose_names), (seed, operations)


def test_the_top_is_a_directory_that_is_always_there() -> None:
    redo, _ = sequence(0, 0)
    assert redo.node("") == TOP
    assert redo.survivors(lose_names=True) == redo.survivors(lose_names=False)
