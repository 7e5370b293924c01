"""Changes read from an upper against a walk of both trees, after any sequence of operations."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_mountns.engine.changes.changes import Changes
from tests.helpers.overlays import (
    Box,
    Make,
    Run,
    build,
    make_symlink,
    remove,
    rewrite,
)

START: dict[str, Make] = {
    "a/a/a": "x",
    "a/a/b/c": "x",
    "a/b": make_symlink,
    "a/c/a": "y",
    "b/a": "x",
    "b/b/a": "x",
    "c": "long",
}


@dataclass(frozen=True)
class Operation:
    """What to do. Paths are numbers, which choose from what is there by then."""

    what: str
    number: int
    other: int
    name: str
    content: str
    thorough: bool


IN_PLACE = ("write", "rewrite", "truncate", "open", "chmod", "mark", "age")
ELSEWHERE = ("remove", "create", "rename", "rename", "link", "remake")
operations = st.builds(
    Operation,
    st.sampled_from([*IN_PLACE, *ELSEWHERE]),
    st.integers(0, 15),
    st.integers(0, 7),
    st.sampled_from("abc"),
    st.sampled_from(["", "x", "y", "long"]),
    st.booleans(),
)


def make(path: Path, operation: Operation) -> None:
    makers: list[Make] = [operation.content, operation.content, None, None, make_symlink, os.mkfifo]
    build(path.parent, {path.name: makers[operation.other % len(makers)]})
    if operation.thorough:
        os.utime(path, (1, 1), follow_symlinks=False)


def perform(root: Path, operation: Operation) -> None:
    existing = sorted(root.rglob("*")) or [root / operation.name]
    directories = [root, *(path for path in existing if path.is_dir() and not path.is_symlink())]
    path = existing[operation.number % len(existing)]
    target = directories[operation.other % len(directories)] / operation.name
    what, content = operation.what, operation.content
    if (target if what == "create" else path).is_fifo() and what in ("write", "rewrite", "create"):
        return  # would wait for a reader for ever
    if what == "write":
        path.write_text(content)
    elif what == "rewrite":
        rewrite(path, path.read_text())
    elif what == "truncate":
        os.truncate(path, len(content))
    elif what == "open":
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW))
    elif what == "chmod":
        path.chmod(0o700 if operation.thorough else 0o750)
    elif what == "mark":
        os.setxattr(path, "user.mark", content.encode())
    elif what == "age":
        os.utime(path, (1, 1), follow_symlinks=False)
    elif what == "remove":
        remove(path)
    elif what == "create":
        make(target, operation)
    elif what == "remake":
        remove(path)
        make(path, operation)
    elif what == "link":
        os.link(path, target, follow_symlinks=False)
    else:
        if operation.thorough and os.path.lexists(target) and target not in path.parents:
            remove(target)
        path.rename(target)


def perform_all(root: Path, sequence: Sequence[Operation]) -> None:
    for operation in sequence:
        try:
            perform(root, operation)
        except OSError:
            continue  # not everything is possible in every tree


Node = tuple[int, object, object]


def walk(root: Path) -> dict[str, Node]:
    """Every path below: its type, what it holds, its metadata.

    The mtime of files is among them: it is read from the two trees just like the changes are, so
    the clock cannot make them disagree. That of directories, which never counts, is not.
    """
    nodes: dict[str, Node] = {}
    pending = [root]
    while pending:
        path = pending.pop()
        status = path.lstat()
        form = stat.S_IFMT(status.st_mode)
        mark: object = None
        holds: object = None
        if form == stat.S_IFREG:
            holds = path.read_bytes()
        elif form == stat.S_IFLNK:
            holds = os.readlink(path)
        elif form == stat.S_IFDIR:
            pending += path.iterdir()
        if form in (stat.S_IFREG, stat.S_IFDIR):
            mark = [(name, os.getxattr(path, name)) for name in os.listxattr(path)]
        mtime = None if form == stat.S_IFDIR else status.st_mtime_ns
        name = f"/{path.relative_to(root)}" if path != root else ""
        nodes[name] = (form, holds, (status.st_mode, mtime, mark))
    return nodes


def verify(changes: Changes, lower: Mapping[str, Node], merged: Mapping[str, Node]) -> None:
    """Assert that lower tree and changes together describe exactly the merged tree."""
    by_path = {"" if change.path == "/" else change.path: change for change in changes}
    assert len(by_path) == len(changes)
    sources = {change.source for change in changes}
    explained = set()

    def children(nodes: Collection[str], parent: str) -> set[str]:
        return {
            path.rpartition("/")[2] for path in nodes if path.rpartition("/")[0] == parent and path
        }

    def check(path: str, below: str | None) -> None:
        """Compare a path with the lower tree's entry at `below`, None if there is none to see."""
        change = by_path.pop(path, None)
        there = below in lower
        if change is None:
            assert below is not None
            if below in sources and path not in merged:
                return
            assert merged[path] == lower[below], path
        elif change.kind == "deleted":
            assert there, change
            assert below not in sources, change
            assert path not in merged, change
            return
        elif change.kind == "added":
            assert not there, change
            below = None
        elif change.kind == "renamed":
            assert change.source in lower, change
            assert change.source != below, change
            assert merged[path][0] == stat.S_IFDIR, change
            below = change.source
        else:
            assert below is not None
            form, holds, metadata = lower[below]
            form_now, holds_now, metadata_now = merged[path]
            if change.kind == "replaced":
                assert form != form_now or form == stat.S_IFDIR, change
                if form != form_now:
                    below = None
            else:
                assert form == form_now, change
                assert (holds != holds_now) == (change.kind == "modified"), change
                assert change.kind == "modified" or metadata != metadata_now, change
        explained.add(path)
        if merged[path][0] != stat.S_IFDIR:
            return
        names = children(by_path, path)
        if below is not None:
            names |= children(lower, below)
        for name in names:
            check(f"{path}/{name}", None if below is None else f"{below}/{name}")

    check("", "")
    assert explained == set(merged)
    assert not by_path


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    before=st.lists(operations, max_size=4),
    after=st.lists(operations, min_size=1, max_size=12),
)
def test_changes_explain_any_difference(
    run: Run, before: Sequence[Operation], after: Sequence[Operation]
) -> None:
    def job(box: Box) -> tuple[Changes, dict[str, Node], dict[str, Node]]:
        build(box.lower, START)
        for path in box.lower.rglob("*"):
            os.utime(path, (1, 1), follow_symlinks=False)
        perform_all(box.lower, before)
        box.mount()
        perform_all(box.merged, after)
        return box.changes(), walk(box.lower), walk(box.merged)

    verify(*run(job))
