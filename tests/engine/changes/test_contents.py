"""What changes say of themselves, in the sandbox and after it: contents, diffs, text, JSON."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import stat
import unicodedata
from collections.abc import Callable
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from pytest_mountns.engine.changes.changes import Change, Changes
from pytest_mountns.engine.changes.diffs import LARGEST, printable, unified
from pytest_mountns.engine.changes.entries import Entry
from pytest_mountns.engine.changes.render import Limits, describe, diffs, styled, tree
from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.linux.namespaces import enter_user_namespace
from pytest_mountns.engine.plan.model import UppersDescription
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.sandbox.create import enter
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from pytest_mountns.engine.sandbox.written import Written
from tests.helpers.worlds import (
    Mode,
    in_sandbox,
    in_world,
    plan_here,
    reset,
    set_attribute,
    skip_unless_in_memory,
    write,
)

T = TypeVar("T")


def changed(
    mode: Mode,
    prepare: Callable[[], object],
    act: Callable[[], object],
    look: Callable[[Changes], T],
) -> T:
    """What ``look`` returns in the sandbox for the changes that ``act`` has made there."""

    def world() -> T:
        prepare()

        def test(sandbox: Sandbox) -> T:
            act()
            return look(sandbox.changes())

        return in_sandbox(test, mode=mode)

    return in_world(world, mode)


def test_both_sides_have_type_size_mode_and_content(mode: Mode) -> None:
    def act() -> None:
        write("/srv/f", "longer\n", mode=0o600)
        os.unlink("/srv/gone")
        os.symlink("f", "/srv/link")

    def look(changes: Changes) -> object:
        f, gone, link = changes["/srv/f"], changes["/srv/gone"], changes["/srv/link"]
        assert f.before is not None
        assert f.after is not None
        assert gone.before is not None
        assert gone.after is None
        assert link.before is None
        assert link.after is not None
        with pytest.raises(ValueError, match="symlink has no content"):
            link.after.read_bytes()
        return (
            (f.type, f.before.type, f.before.size, f.before.mode, f.before.read_text()),
            (f.after.size, f.after.mode, f.after.read_bytes(), f.after.read_bytes(3)),
            (gone.type, gone.before.read_text(), link.type, link.after.target()),
        )

    def prepare() -> None:
        write("/srv/f", "old\n", mode=0o644)
        write("/srv/gone", "was here")

    assert changed(mode, prepare, act, look) == (
        ("file", "file", 4, 0o644, "old\n"),
        (7, 0o600, b"longer\n", b"lon"),
        ("file", "was here", "symlink", "f"),
    )


def test_what_a_test_hides_from_itself_is_read_all_the_same(mode: Mode) -> None:
    def act() -> None:
        write("/srv/secret/f", "x\n")
        os.chmod("/srv/secret/f", 0)
        os.chmod("/srv/secret", 0)

    def look(changes: Changes) -> tuple[object, str]:
        return changes.as_dict(), changes["/srv/secret/f"].diff()

    kinds, text = changed(mode, lambda: None, act, look)
    assert kinds == {"/srv/secret": "added", "/srv/secret/f": "added"}
    assert text.endswith("+x\n")


def test_extended_attributes_of_both_sides(mode: Mode) -> None:
    def prepare() -> None:
        write("/srv/f", "x")
        if not set_attribute("/srv/f", "user.mark", b"old"):
            pytest.skip("tmpfs takes no such attributes here")

    def look(changes: Changes) -> object:
        (change,) = changes
        assert change.before is not None
        assert change.after is not None
        marks = [side.xattrs().get("user.mark") for side in (change.before, change.after)]
        return change.kind, marks, describe(change)

    def act() -> None:
        os.setxattr("/srv/f", "user.mark", b"new")

    assert changed(mode, prepare, act, look) == (
        "metadata",
        [b"old", b"new"],
        "extended attributes",
    )


def test_nothing_can_be_read_after_a_reset(mode: Mode) -> None:
    def world() -> str:
        def test(sandbox: Sandbox) -> str:
            write("/srv/f", "x")
            change = sandbox.changes()["/srv/f"]
            reset(sandbox)
            write("/srv/f", "y")
            with pytest.raises(SandboxError) as caught:
                change.diff()
            return str(caught.value)

        return in_sandbox(test, mode=mode)

    assert "reset" in in_world(world, mode)


def test_a_fifo_in_the_place_of_a_file_is_not_waited_for(mode: Mode) -> None:
    def look(changes: Changes) -> object:
        change = changes["/srv/f"]
        os.unlink("/srv/f")
        os.mkfifo("/srv/f")
        assert change.after is not None
        return change.after.read_bytes()

    assert changed(mode, lambda: None, lambda: write("/srv/f", "x"), look) == b""


def test_a_renamed_directory_has_the_other_place_before() -> None:
    def look(changes: Changes) -> object:
        (change,) = changes
        assert change.before is not None
        return change.kind, change.source, change.before.type, describe(change), change.diff()

    found = changed("root", lambda: write("/srv/a/f"), lambda: os.rename("/srv/a", "/srv/b"), look)
    assert found == ("renamed", "/srv/a", "directory", "from /srv/a", "")


# From outside, after the end ---------------------------------------------------------------------


def remains_of(mode: Mode, act: Callable[[], object], look: Callable[[Changes], T]) -> T:
    """What ``look`` returns outside, after the process that has done ``act`` was killed."""
    skip_unless_in_memory(mode)

    def world() -> T:
        write("/srv/f", "old\n")
        plan = plan_here(SandboxSpec(), mode)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            try:
                if mode == "user":
                    enter_user_namespace()
                sandbox = enter(plan)
                act()
                data = pickle.dumps(sandbox.describe_uppers())
                socket.send_fds(theirs, [data], [sandbox.scratch])
                os.kill(os.getpid(), signal.SIGKILL)
            finally:
                syscalls.exit_now(1)
        theirs.close()
        data, fds, _, _ = socket.recv_fds(ours, 1 << 20, 1)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        description: UppersDescription = pickle.loads(data)
        with Written.of(plan, fds[0], description).changes() as changes:
            found = look(changes)
        with pytest.raises(SandboxError, match="ended"):
            changes["/srv/f"].diff()
        return found

    return in_world(world, mode)


def test_a_killed_process_leaves_its_changes(mode: Mode) -> None:
    def act() -> None:
        write("/srv/f", "new\n")
        write("/srv/d/g", "x\n")
        os.chmod("/srv/d", 0)

    def look(changes: Changes) -> tuple[object, str, str, str]:
        f = changes["/srv/f"]
        assert f.before is not None
        assert f.after is not None
        return changes.as_dict(), f.before.read_text(), f.after.read_text(), f.diff()

    kinds, before, after, text = remains_of(mode, act, look)
    # Nothing else: an owner without a mapping in the test's user namespace is no change.
    assert kinds == {"/srv/d": "added", "/srv/d/g": "added", "/srv/f": "modified"}
    assert (before, after) == ("old\n", "new\n")
    assert text == "--- /srv/f\n+++ /srv/f\n@@ -1 +1 @@\n-old\n+new\n"


# Text --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        (b"a\n", b"a\n", ""),
        (None, b"a\n", "--- /dev/null\n+++ /f\n@@ -0,0 +1 @@\n+a\n"),
        (b"a\n", None, "--- /f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"),
        (None, b"", "--- /dev/null\n+++ /f\n"),
        (
            b"a",
            b"a\n",
            "--- /f\n+++ /f\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n",
        ),
        (b"a\r\n", b"a\n", "--- /f\n+++ /f\n@@ -1 +1 @@\n-a\\r\n+a\n"),
        (b"", b"\x1b[31mred\n", "--- /f\n+++ /f\n@@ -0,0 +1 @@\n+\\x1b[31mred\n"),
        (b"a\n", b"\0", "Binary file /f differs\n"),
        (b"a\n", b"\xff\n", "Binary file /f differs\n"),
        (b"", b"x" * (LARGEST + 1), "File /f is too large for a diff\n"),
        (b"", b"\n" * 5001, "File /f has too many lines for a diff\n"),
    ],
)
def test_unified(before: bytes | None, after: bytes | None, text: str) -> None:
    assert unified("/f", before, after) == text


def test_nothing_printable_moves_the_cursor() -> None:
    every = "".join(map(chr, range(0x100))) + "\udcff\ud800\u2028"
    shown = printable(every)
    assert not {unicodedata.category(c) for c in shown if c != "\t"} & {"Cc", "Cs", "Zl", "Zp"}
    assert shown.encode()
    assert printable("/a\n\udcff") == "/a\\n\\xff"


def entry(mode: int, size: int = 0, mtime: int = 0, owner: int = 0) -> Entry:
    status = SimpleNamespace(
        st_mode=mode, st_size=size, st_uid=owner, st_gid=owner, st_mtime_ns=mtime * 10**9
    )
    return Entry(cast(os.stat_result, status))


FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


def test_the_tree_names_each_directory_once() -> None:
    changes = Changes(
        [
            Change("/etc/a/b", "added", None, None, entry(FILE, 3)),
            Change("/etc/a-b", "modified", None, entry(FILE, 1), entry(FILE, 2)),
            Change("/etc/a", "metadata", None, entry(DIRECTORY), entry(stat.S_IFDIR | 0o700)),
            Change("/srv/x/y/z", "deleted", None, entry(FILE, 1), None),
            Change("/srv/x/new\n", "replaced", None, entry(FILE, 1), entry(DIRECTORY)),
        ]
    )
    assert [*tree(changes)] == [
        "          /etc/",
        "metadata    a/  (mode 0755 -> 0700)",
        "added         b  (3 bytes)",
        "modified    a-b  (1 -> 2 bytes)",
        "          /srv/x/",
        "replaced    new\\n/  (1 bytes -> directory)",
        "            y/",
        "deleted       z",
    ]


def test_the_tree_is_cut_where_it_is_long() -> None:
    new = [Change("/new", "added", None, None, entry(DIRECTORY))]
    new += [Change(f"/new/{n:03}", "added", None, None, entry(FILE, n)) for n in range(100)]
    other = [Change(f"/x/{n:03}", "deleted", None, entry(FILE), None) for n in range(100)]
    lines = [*tree(Changes([*new, *other]), Limits(paths=20, siblings=5))]
    assert "          ... and 95 more in /new" in lines
    assert lines[-1] == "... and 86 more changes"
    assert len(lines) == 20 + 4


def test_each_line_has_a_style_of_its_own() -> None:
    text = (
        "          /etc/\nmodified    f  (1 bytes)\n\n--- /etc/f\n+++ /etc/f\n@@ -1 +1,2 @@\n"
        "-a\n+b\n++++ c\n d\n\n--- /etc/g\n+++ /etc/g\n@@ -1 +0,0 @@\n-e"
    )
    assert [style for style, _ in styled(text)] == [
        *("place", "modified", "", "", "", "place", "removed", "inserted", "inserted", ""),
        *("", "", "", "place", "removed"),
    ]
    assert "\n".join(line for _, line in styled(text)) == text


def test_diffs_keep_to_the_limits(mode: Mode) -> None:
    def act() -> None:
        for n in range(5):
            write(f"/srv/{n}", "x\n" * 50)
        write("/srv/.binary", b"\0")
        write("/srv/large", "x\n" * 5000)

    def look(changes: Changes) -> list[str]:
        return [*diffs(changes, Limits(files=2, lines=10, size=5000))]

    lines = changed(mode, lambda: None, act, look)
    assert [line for line in lines if line.startswith("+++")] == ["+++ /srv/0", "+++ /srv/1"]
    assert lines.count("... and 43 more lines") == 2
    assert lines[-1] == "... and 3 more files, whose diffs are not shown"


def test_json_has_all_but_the_contents() -> None:
    changes = Changes(
        [
            Change("/b\udcff", "renamed", "/a", entry(DIRECTORY), entry(DIRECTORY)),
            Change("/c", "metadata", None, entry(FILE, 3), entry(FILE, 3, 2, 12)),
        ]
    )
    text = changes.to_json()
    assert text.isascii()
    data = json.loads(text)
    assert data["format"] == 1
    renamed, metadata = data["changes"]
    assert (renamed["path"], renamed["source"]) == ("/b\udcff", "/a")
    assert metadata["before"] == {
        "type": "file",
        "mode": "0644",
        "uid": 0,
        "gid": 0,
        "size": 3,
        "mtime_ns": 0,
    }
    assert metadata["after"]["uid"] == 12
    assert metadata["after"]["mtime_ns"] == 2 * 10**9


def test_changes_are_found_by_path() -> None:
    change = Change("/a", "added")
    changes = Changes([change, Change("/b", "deleted")])
    assert changes["/a"] is change
    with pytest.raises(KeyError, match="/c"):
        changes["/c"]
