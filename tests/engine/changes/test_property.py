"""Changes against the difference of two full walks, after any sequence of operations.

`MOUNTNS_SEQUENCES=2000` runs as many sequences, other ones each time; the suite's own run is short
and always the same. Every sequence runs in a sandbox as the plugin makes it, on a machine of its
own (:mod:`tests.helpers.worlds`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_mountns.engine.changes.changes import Changes
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import BASE, Mode, in_sandbox, in_world

ROOT: Final = Path(BASE)
SEQUENCES: Final = int(os.environ.get("MOUNTNS_SEQUENCES", "0"))


@dataclass(frozen=True)
class Operation:
    """What to do. Paths are numbers, which choose from what is there by then."""

    what: str
    number: int
    other: int
    name: str
    content: str
    flag: bool


WHAT: Final = (
    *("write", "append", "rewrite", "open", "truncate", "create", "create", "mkdir", "mkdir"),
    *("symlink", "fifo", "socket", "unlink", "rmtree", "remake", "link"),
    *("rename", "rename", "rename over", "chmod", "chown", "xattr", "xattr", "rmxattr", "utime"),
)

operations = st.builds(
    Operation,
    st.sampled_from(WHAT),
    st.integers(0, 24),
    st.integers(0, 9),
    st.sampled_from(["a", "b", "c", "d e"]),
    st.sampled_from(["", "x", "y", "long\n"]),
    st.booleans(),
)


def start(root: Path) -> None:
    """What is there before: every type, nested directories, hard links, attributes."""
    for name, content in {
        "a/a/a": "x",
        "a/a/b/c": "x",
        "a/c/a": "y",
        "b/a": "x",
        "b/b/a": "x",
        "c": "long\n",
        "d e/d e": "",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (root / "a/b").symlink_to("c")
    (root / "b/c").symlink_to("../a")
    os.mkfifo(root / "b/d e")
    os.link(root / "c", root / "a/d e")
    (root / "a/c/empty").mkdir()
    (root / "b").chmod(0o700)
    with contextlib.suppress(OSError):
        os.setxattr(root / "a/a/a", "user.mark", b"old")
        os.setxattr(root / "a/c", "user.mark", b"old")
    for path in [root, *root.rglob("*")]:
        os.utime(path, (1, 1), follow_symlinks=False)


def perform(operation: Operation, root: Path) -> None:
    """Do it. Raises :class:`OSError` where that is not possible in the tree as it is by then."""
    existing = sorted(root.rglob("*")) or [root]
    directories = [root, *(p for p in existing if p.is_dir() and not p.is_symlink())]
    path = existing[operation.number % len(existing)]
    target = directories[operation.other % len(directories)] / operation.name
    content, flag = operation.content, operation.flag
    regular = stat.S_ISREG(path.lstat().st_mode)
    match operation.what:
        case "write" | "append" if regular:
            with path.open("a" if operation.what == "append" else "w") as file:
                file.write(content)
        case "rewrite" if regular:
            # The same content again and, in half of the cases, the same time.
            status, same = path.stat(), path.read_bytes()
            path.write_bytes(same)
            if flag:
                os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        case "open" if regular:
            os.close(os.open(path, os.O_RDWR | os.O_NOFOLLOW))
        case "truncate" if regular:
            os.truncate(path, len(content))
        case "create":
            with open(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "w") as file:
                file.write(content)
            if flag:
                os.utime(target, (1, 1))
        case "mkdir":
            target.mkdir()
        case "symlink":
            target.symlink_to(["c", "a", "/nowhere"][operation.number % 3])
        case "fifo":
            os.mkfifo(target)
        case "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(target))
        case "unlink":
            path.unlink()
        case "rmtree" if path.is_dir():
            shutil.rmtree(path)
        case "remake":
            # A directory made over a deleted one, or over a file.
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            path.mkdir()
        case "rename":
            path.rename(target)
        case "rename over":
            other = existing[operation.other % len(existing)]
            path.rename(other)
        case "link":
            os.link(path, target, follow_symlinks=False)
        case "chmod" if not path.is_symlink():
            path.chmod((0o700 if flag else 0o755) if path.is_dir() else (0o600 if flag else 0o444))
        case "chown":
            if os.geteuid() == 0:
                os.chown(path, 12 if flag else 0, 12, follow_symlinks=False)
        case "xattr" if not path.is_symlink():
            os.setxattr(path, "user.mark", content.encode())
        case "rmxattr" if not path.is_symlink():
            os.removexattr(path, "user.mark")
        case "utime":
            os.utime(path, (1, 1 if flag else 2), follow_symlinks=False)


@dataclass(frozen=True)
class Node:
    """One path of a walk. ``number`` is its inode, which a directory keeps when it is renamed."""

    form: int
    content: object
    metadata: tuple[object, ...]
    number: int


Walk: TypeAlias = Mapping[str, Node]


def walk(root: Path) -> dict[str, Node]:
    """Every path at and below, as any program sees it."""
    nodes = {}
    pending = [root]
    while pending:
        path = pending.pop()
        status = path.lstat()
        form = stat.S_IFMT(status.st_mode)
        content: object = None
        if form == stat.S_IFREG:
            content = path.read_bytes()
        elif form == stat.S_IFLNK:
            content = os.readlink(path)
        elif form == stat.S_IFDIR:
            pending += path.iterdir()
        marks: tuple[object, ...] = ()
        if form in (stat.S_IFREG, stat.S_IFDIR):
            marks = tuple(
                (name, os.getxattr(path, name))
                for name in sorted(os.listxattr(path))
                if name.startswith("user.")
            )
        # Times of directories do not count: every entry made in them changes them.
        mtime = None if form == stat.S_IFDIR else status.st_mtime_ns
        metadata = (status.st_mode, status.st_uid, status.st_gid, mtime, marks)
        nodes[str(path)] = Node(form, content, metadata, status.st_ino)
    return nodes


Found: TypeAlias = dict[str, tuple[str, str | None]]


def difference(before: Walk, after: Walk, root: str) -> Found:
    """The kind, and the source of a renamed directory, of each path that two walks differ in."""
    homes = {node.number: path for path, node in before.items() if node.form == stat.S_IFDIR}
    found: Found = {}
    moved: set[str] = set()
    gone: list[tuple[str, str]] = []
    pending: list[tuple[str, str | None, bool]] = [(root, root, False)]
    while pending:
        # `remade`: within a directory that was made anew, of which that is said once.
        path, origin, remade = pending.pop()
        now = after[path]
        was = None if origin is None else before.get(origin)
        # What the children of a directory are compared with; None if there is nothing.
        base = origin if was is not None else None
        home = homes.get(now.number) if now.form == stat.S_IFDIR else None
        if home is not None and home != origin:
            found[path] = ("renamed", home)
            moved.add(home)
            base, remade = home, False
        elif was is None:
            found[path] = ("added", None)
        elif was.form != now.form:
            found[path] = ("replaced", None)
            base = None
        elif now.form == stat.S_IFDIR and now.number != was.number and not remade:
            found[path] = ("replaced", None)
            remade = True
        elif was.content != now.content:
            found[path] = ("modified", None)
        elif was.metadata != now.metadata:
            found[path] = ("metadata", None)
        if home is not None and home == origin:
            moved.add(home)
        if now.form != stat.S_IFDIR:
            continue
        pending += [
            (f"{path}/{child}", None if base is None else f"{base}/{child}", remade)
            for child in children(after, path)
        ]
        if base is not None:
            gone += [
                (f"{path}/{child}", f"{base}/{child}")
                for child in children(before, base) - children(after, path)
            ]
    for path, origin in gone:
        if origin not in moved:
            found[path] = ("deleted", None)
    return found


def children(nodes: Walk, parent: str) -> set[str]:
    depth = len(parent) + 1
    return {p[depth:] for p in nodes if p.startswith(f"{parent}/") and "/" not in p[depth:]}


def check_entries(changes: Changes, before: Walk, after: Walk) -> None:
    """Assert that sizes, modes and contents are those of the walks."""
    for change in changes:
        if change.kind == "added":
            assert change.before is None
        elif change.kind != "renamed":
            assert change.before is not None
        if change.kind == "deleted":
            assert change.after is None
        else:
            now = after[change.path]
            assert change.after is not None
            assert change.after.st_mode == now.metadata[0]
            if now.form == stat.S_IFREG:
                assert change.after.read_bytes() == now.content
                assert change.after.size == len(now.content)
            elif now.form == stat.S_IFLNK:
                assert change.after.target() == now.content
        if change.source is None and change.before is not None and change.path in before:
            was = before[change.path]
            if was.form == stat.S_IFREG and change.before.type == "file":
                assert isinstance(change.before.read_bytes(), bytes)


def run(mode: Mode, sequence: Sequence[Operation]) -> tuple[Found, Found]:
    """The changes that the plugin reports, and those that two walks find."""

    def world() -> tuple[Found, Found]:
        start(ROOT)

        def test(sandbox: Sandbox) -> tuple[Found, Found]:
            before = walk(ROOT)
            for operation in sequence:
                with contextlib.suppress(OSError):
                    perform(operation, ROOT)
            after = walk(ROOT)
            changes = sandbox.changes()
            check_entries(changes, before, after)
            ours: Found = {change.path: (change.kind, change.source) for change in changes}
            return ours, difference(before, after, BASE)

        return in_sandbox(test, mode=mode)

    return in_world(world, mode)


@settings(
    max_examples=SEQUENCES or 40,
    deadline=None,
    derandomize=not SEQUENCES,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(sequence=st.lists(operations, min_size=1, max_size=14))
def test_changes_are_the_difference_of_two_walks(mode: Mode, sequence: Sequence[Operation]) -> None:
    ours, theirs = run(mode, sequence)
    assert ours == theirs
