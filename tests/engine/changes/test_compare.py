"""Changes read from uppers that a real kernel wrote.

Every case runs in a forked child with a mount namespace (and, for an ordinary user, a user
namespace) of its own, on a tmpfs that only this child sees: nothing here can reach the machine.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import stat
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest

from pytest_mountns.engine.changes import compare
from pytest_mountns.engine.changes.changes import Change, Changes
from pytest_mountns.engine.plan.model import Layered
from tests.helpers.overlays import (
    CLONE_NEWUSER,
    Box,
    Diff,
    Make,
    Run,
    build,
    checked,
    drop_capabilities,
    libc,
    make_symlink,
    remake,
    remove,
    rewrite,
    skip_unless_permitted,
)

# Files -------------------------------------------------------------------------------------------


def test_nothing_done_is_nothing_changed(diff: Diff) -> None:
    changes = diff({"etc/hosts": "x"}, lambda root: (root / "etc/hosts").read_text())
    assert changes == {}
    assert len(changes) == 0


@pytest.mark.parametrize("content", ["longer than before", "new", ""])
def test_a_written_file_is_modified(diff: Diff, content: str) -> None:
    changes = diff({"etc/hosts": "old"}, lambda root: rewrite(root / "etc/hosts", content))
    assert changes == {"/etc/hosts": "modified"}


def test_a_difference_beyond_the_first_chunk_is_found(diff: Diff) -> None:
    size = (3 << 20) + 1

    def flip_last_byte(root: Path) -> None:
        rewrite(root / "same", "x" * size)
        rewrite(root / "other", "x" * (size - 1) + "y")

    changes = diff({"same": "x" * size, "other": "x" * size}, flip_last_byte)
    assert changes == {"/other": "modified"}


def test_opening_for_writing_changes_nothing(diff: Diff) -> None:
    assert diff({"f": "x"}, lambda root: os.close(os.open(root / "f", os.O_RDWR))) == {}


def test_the_same_content_at_another_time_is_metadata(diff: Diff) -> None:
    assert diff({"f": "x"}, lambda root: os.utime(root / "f", (1, 1))) == {"/f": "metadata"}


def test_the_same_content_and_times_are_no_change(diff: Diff) -> None:
    assert diff({"f": "x"}, lambda root: rewrite(root / "f", "x")) == {}


def test_chmod_is_metadata(diff: Diff) -> None:
    def act(root: Path) -> None:
        (root / "f").chmod(0o600)
        (root / "d").chmod(0o700)

    changes = diff({"f": "x", "d/g": "x"}, act)
    assert changes == {"/d": "metadata", "/f": "metadata"}


def test_chown_is_metadata(diff: Diff) -> None:
    def act(root: Path) -> None:
        os.chown(root / "f", 12, -1)
        os.chown(root / "d", -1, 12)
        os.chown(root / "l", 12, 12, follow_symlinks=False)

    tree: dict[str, Make] = {"f": "x", "d": None, "l": lambda path: path.symlink_to("f")}
    changes = skip_unless_permitted(lambda: diff(tree, act))
    assert changes == {"/d": "metadata", "/f": "metadata", "/l": "metadata"}


def test_times_of_directories_are_ignored(diff: Diff) -> None:
    assert diff({"d/f": "x"}, lambda root: os.utime(root / "d", (1, 1))) == {}


def test_extended_attributes_are_metadata(diff: Diff) -> None:
    def mark(path: Path) -> None:
        path.write_text("x")
        os.setxattr(path, "user.mark", b"1")

    def act(root: Path) -> None:
        os.setxattr(root / "d", "user.mark", b"1")
        os.setxattr(root / "other", "user.mark", b"2")
        os.removexattr(root / "removed", "user.mark")
        os.utime(root / "kept", ns=(1, (root / "kept").stat().st_mtime_ns))

    tree: dict[str, Make] = {"d": None, "kept": mark, "other": mark, "removed": mark}
    changes = skip_unless_permitted(lambda: diff(tree, act))
    assert changes == {"/d": "metadata", "/other": "metadata", "/removed": "metadata"}


def test_extended_attributes_of_symlinks_are_metadata(diff: Diff) -> None:
    def act(root: Path) -> None:
        os.setxattr(root / "l", "trusted.mark", b"1", follow_symlinks=False)

    changes = skip_unless_permitted(lambda: diff({"l": lambda path: path.symlink_to("x")}, act))
    assert changes == {"/l": "metadata"}


def test_writing_one_of_several_hard_links_detaches_it(diff: Diff) -> None:
    def act(root: Path) -> None:
        (root / "a").write_text("new")
        assert (root / "b").read_text() == "old"

    tree: dict[str, Make] = {"a": "old", "b": lambda path: os.link(path.parent / "a", path)}
    assert diff(tree, act) == {"/a": "modified"}


def test_a_new_hard_link_does_not_change_the_file(diff: Diff) -> None:
    assert diff({"a": "x"}, lambda root: os.link(root / "a", root / "b")) == {"/b": "added"}


def test_a_renamed_file_is_deleted_and_added(diff: Diff) -> None:
    changes = diff({"a": "x"}, lambda root: (root / "a").rename(root / "b"))
    assert changes == {"/a": "deleted", "/b": "added"}


def test_a_file_moved_over_a_like_one_changes_only_its_old_place(diff: Diff) -> None:
    def link(path: Path) -> None:
        os.link(path.parent / "a", path)

    def act(root: Path) -> None:
        (root / "c").write_text("x")
        os.utime(root / "c", ns=(1, (root / "a").stat().st_mtime_ns))
        (root / "c").rename(root / "a")

    assert diff({"a": "x", "b": link}, act) == {}


@pytest.mark.parametrize("kind", ["mode", "mtime", "content"])
def test_a_file_that_may_not_be_read_is_judged_by_its_metadata(run: Run, kind: str) -> None:
    def job(box: Box) -> Changes:
        for name in ("secret", "changed"):
            build(box.lower, {name: "old"})
            (box.lower / name).chmod(0)
        box.mount()
        for name in ("secret", "changed"):
            os.close(os.open(box.merged / name, os.O_RDWR))
        if kind == "mode":
            (box.merged / "changed").chmod(0o200)
        elif kind == "mtime":
            os.utime(box.merged / "changed", (1, 1))
        else:
            (box.merged / "changed").write_text("longer")
        drop_capabilities()
        return box.changes()

    assert run(job) == {"/changed": "metadata" if kind == "mode" else "modified"}


# Other types -------------------------------------------------------------------------------------


def test_a_symlink_with_another_target_is_modified(diff: Diff) -> None:
    def act(root: Path) -> None:
        (root / "l").unlink()
        (root / "l").symlink_to("y")

    assert diff({"l": lambda path: path.symlink_to("x")}, act) == {"/l": "modified"}


def test_symlinks_are_never_followed(diff: Diff) -> None:
    def act(root: Path) -> None:
        (root / "new").symlink_to("d")
        (root / "d/back").symlink_to("..")
        (root / "dangling").symlink_to("/nonexistent")

    changes = diff({"d/f": "x"}, act)
    assert changes == {"/d/back": "added", "/dangling": "added", "/new": "added"}


def test_special_files_are_added_like_others(diff: Diff) -> None:
    def act(root: Path) -> None:
        os.mkfifo(root / "fifo")
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(root)
            server.bind("socket")

    assert diff({}, act) == {"/fifo": "added", "/socket": "added"}


def test_special_files_below_are_compared_without_being_opened(diff: Diff) -> None:
    def listen(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            os.chdir(path.parent)
            server.bind(path.name)
            os.chdir("..")

    def act(root: Path) -> None:
        for name in ("fifo", "socket"):
            (root / name).chmod(0o600)
        for name in ("fifo2", "socket2"):
            times = (root / name).stat()
            os.utime(root / name, ns=(1, times.st_mtime_ns))
        for name in ("fifo3", "socket3"):
            (root / name).unlink()
            (root / name).write_text("")

    tree: dict[str, Make] = {f"fifo{n}": os.mkfifo for n in ("", 2, 3)}
    tree |= {f"socket{n}": listen for n in ("", 2, 3)}
    assert diff(tree, act) == {
        "/fifo": "metadata",
        "/fifo3": "replaced",
        "/socket": "metadata",
        "/socket3": "replaced",
    }


def test_another_device_number_is_modified(diff: Diff) -> None:
    def null(path: Path) -> None:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))

    def act(root: Path) -> None:
        (root / "node").unlink()
        os.mknod(root / "node", stat.S_IFCHR | 0o666, os.makedev(1, 5))
        null(root / "new")

    changes = skip_unless_permitted(lambda: diff({"node": null}, act))
    assert changes == {"/new": "added", "/node": "modified"}


TYPES: dict[str, Make] = {
    "file": "x",
    "directory": None,
    "symlink": make_symlink,
    "fifo": os.mkfifo,
}


@pytest.mark.parametrize("new", TYPES)
@pytest.mark.parametrize("old", TYPES)
def test_another_type_is_replaced(diff: Diff, old: str, new: str) -> None:
    def act(root: Path) -> None:
        remove(root / "p")
        build(root, {"p": TYPES[new]})
        if new == "directory":
            (root / "p/new").touch()
        else:
            os.utime(root / "p", (1, 1), follow_symlinks=False)

    tree = {"p": TYPES[old]} | ({"p/old": ""} if old == "directory" else {})
    expected = {"/p": "replaced"}
    if new == "directory":
        expected["/p/new"] = "added"
        if old == "directory":
            expected["/p/old"] = "deleted"
    elif new == old:
        expected["/p"] = "metadata"
    assert diff(tree, act) == expected


# Directories -------------------------------------------------------------------------------------


def test_an_added_directory_is_listed_with_its_contents(diff: Diff) -> None:
    changes = diff({"d": None}, lambda root: build(root, {"d/e/f/g": "x", "d/e/h": None}))
    assert changes == dict.fromkeys(["/d/e", "/d/e/f", "/d/e/f/g", "/d/e/h"], "added")


def test_only_the_topmost_deleted_path_is_listed(diff: Diff) -> None:
    changes = diff({"d/e/f": "x", "g/h": "x"}, lambda root: shutil.rmtree(root / "d"))
    assert changes == {"/d": "deleted"}


def test_a_file_deleted_in_a_kept_directory(diff: Diff) -> None:
    assert diff({"d/f": "x"}, lambda root: (root / "d/f").unlink()) == {"/d/f": "deleted"}


def test_what_comes_and_goes_leaves_nothing(diff: Diff) -> None:
    def act(root: Path) -> None:
        build(root, {"d/new/f": "x", "d/g": "x"})
        shutil.rmtree(root / "d/new")
        (root / "d/g").unlink()

    assert diff({"d": None}, act) == {}


def test_a_whiteout_of_nothing_is_no_change(run: Run) -> None:
    def job(box: Box) -> Changes:
        build(box.lower, {"f": "x"})
        box.mount()
        for name in ("f", "nothing"):
            os.mknod(f"0/upper/{name}", stat.S_IFCHR, os.makedev(0, 0))
        os.mkdir("0/upper/new")
        os.mknod("0/upper/new/nothing", stat.S_IFCHR, os.makedev(0, 0))
        return box.changes()

    assert run(job) == {"/f": "deleted", "/new": "added"}


def test_a_directory_made_anew_is_compared_with_the_old_one(diff: Diff) -> None:
    def act(root: Path) -> None:
        times = (root / "d/same").stat()
        remake(root / "d", {"same": "x", "other": "new", "new": "", "sub/same": "x", "type": None})
        for name in ("same", "sub/same"):
            os.utime(root / "d" / name, ns=(1, times.st_mtime_ns))
        (root / "d/sub/deeper").mkdir()

    def same_times(path: Path) -> None:
        path.write_text("x")
        os.utime(path, ns=(1, (path.parent.parent / "same").stat().st_mtime_ns))

    tree: dict[str, Make] = {
        "d/same": "x",
        "d/other": "old",
        "d/gone": "x",
        "d/gone too/f": "x",
        "d/type": "",
        "d/sub/same": same_times,
        "d/sub/gone/f": "x",
    }
    assert diff(tree, act) == {
        "/d": "replaced",
        "/d/gone": "deleted",
        "/d/gone too": "deleted",
        "/d/new": "added",
        "/d/other": "modified",
        "/d/sub/deeper": "added",
        "/d/sub/gone": "deleted",
        "/d/type": "replaced",
    }


def test_metadata_within_a_directory_made_anew(diff: Diff) -> None:
    def act(root: Path) -> None:
        remake(root / "d", {"sub": None})
        (root / "d/sub").chmod(0o700)

    assert diff({"d/sub": None}, act) == {"/d": "replaced", "/d/sub": "metadata"}


def test_a_directory_moved_into_one_made_anew_was_not_made_anew_itself(diff: Diff) -> None:
    # It still has the opaque attribute that it got where it was made.
    def act(root: Path) -> None:
        build(root, {"new/f": "y"})
        remake(root / "d", {})
        (root / "new").rename(root / "d/sub")

    changes = diff({"d/sub/f": "x", "d/sub/g": "x"}, act)
    assert changes == {"/d": "replaced", "/d/sub/f": "modified", "/d/sub/g": "deleted"}


def test_a_directory_in_place_of_a_symlink_to_one(diff: Diff) -> None:
    # In the lower tree the same path still leads somewhere, through the symlink.
    def act(root: Path) -> None:
        (root / "l").unlink()
        build(root, {"l/f": "x"})

    tree: dict[str, Make] = {"d/f": "x", "d/g": "x", "l": lambda path: path.symlink_to("d")}
    assert diff(tree, act) == {"/l": "replaced", "/l/f": "added"}


def test_the_root_itself_has_metadata(diff: Diff) -> None:
    assert diff({}, lambda root: root.chmod(0o700)) == {"/": "metadata"}


def test_an_owner_that_could_not_be_given_to_the_root_is_no_change(run: Run) -> None:
    def job(box: Box) -> Sequence[Changes]:
        os.chown(box.lower, 12, 12)
        build(box.lower, {"d": None})
        box.mount()
        seen = box.changes()
        # From here on user 12 has no mapping, as root has none in an ordinary user's namespace.
        checked(libc.unshare(CLONE_NEWUSER), "unshare")
        for name, content in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
            Path("/proc/self", name).write_text(content)
        unmapped = box.changes()
        Path("0/upper").chmod(0o700)
        return seen, unmapped, box.changes()

    seen, unmapped, changed = skip_unless_permitted(lambda: run(job))
    assert seen == {"/": "metadata"}
    assert unmapped == {}
    assert changed == {"/": "metadata"}


def test_a_directory_that_may_not_be_read_is_still_told_about(run: Run) -> None:
    def job(box: Box) -> Changes:
        build(box.lower, {"d/f": "x", "hidden/f": "x"})
        (box.lower / "hidden").chmod(0)
        box.mount()
        (box.merged / "d").chmod(0)
        (box.merged / "hidden").chmod(0o700)
        (box.merged / "hidden/f").unlink()
        drop_capabilities()
        return box.changes()

    assert run(job) == {"/d": "metadata", "/hidden": "metadata", "/hidden/f": "deleted"}


# Renamed directories -----------------------------------------------------------------------------


def kinds_and_sources(changes: Changes) -> dict[str, str]:
    return {change.path: change.source or change.kind for change in changes}


@pytest.mark.usefixtures("renames_directories")
class TestRenamed:
    def test_in_place(self, diff: Diff) -> None:
        changes = diff({"a/f": "x"}, lambda root: (root / "a").rename(root / "b"))
        assert list(changes) == [Change("/b", "renamed", "/a")]

    def test_to_another_directory(self, diff: Diff) -> None:
        changes = diff({"a/b/c/f": "x", "d": None}, lambda r: (r / "a/b/c").rename(r / "d/e"))
        assert list(changes) == [Change("/d/e", "renamed", "/a/b/c")]

    def test_into_an_added_directory(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "new").mkdir()
            (root / "a").rename(root / "new/b")

        changes = diff({"a/f": "x"}, act)
        assert kinds_and_sources(changes) == {"/new": "added", "/new/b": "/a"}

    def test_there_and_back(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a/b").rename(root / "b")
            (root / "b").rename(root / "a/b")
            (root / "a").rename(root / "c")
            (root / "c").rename(root / "a")

        assert diff({"a/b/f": "x"}, act) == {}

    def test_there_and_back_into_a_directory_made_anew(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a/b").rename(root / "b")
            remake(root / "a", {})
            (root / "b").rename(root / "a/b")

        assert diff({"a/b/f": "x", "a/c": ""}, act) == {"/a": "replaced", "/a/c": "deleted"}

    def test_contents_are_compared_with_the_old_place(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a").rename(root / "b")
            (root / "b/changed").write_text("new")
            (root / "b/gone").unlink()
            (root / "b/new").touch()
            os.close(os.open(root / "b/opened", os.O_RDWR))
            (root / "b/sub").chmod(0o700)

        tree = dict.fromkeys(["a/changed", "a/gone", "a/opened", "a/sub/f"], "x")
        assert kinds_and_sources(diff(tree, act)) == {
            "/b": "/a",
            "/b/changed": "modified",
            "/b/gone": "deleted",
            "/b/new": "added",
            "/b/sub": "metadata",
        }

    def test_within_a_renamed_directory(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a").rename(root / "b")
            (root / "b/sub").rename(root / "b/other")
            (root / "b/other/f").unlink()
            remake(root / "b/remade", {})

        assert kinds_and_sources(diff({"a/sub/f": "x", "a/remade/g": ""}, act)) == {
            "/b": "/a",
            "/b/other": "/a/sub",
            "/b/other/f": "deleted",
            "/b/remade": "replaced",
            "/b/remade/g": "deleted",
        }

    def test_out_of_a_renamed_directory(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a").rename(root / "b")
            (root / "b/sub").rename(root / "c")

        changes = diff({"a/sub/f": "x"}, act)
        assert kinds_and_sources(changes) == {"/b": "/a", "/c": "/a/sub"}

    def test_two_change_places(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a").rename(root / "t")
            (root / "b").rename(root / "a")
            (root / "t").rename(root / "b")

        changes = diff({"a/f": "x", "b/g": "x"}, act)
        assert kinds_and_sources(changes) == {"/a": "/b", "/b": "/a"}

    def test_something_new_at_the_old_place(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a").rename(root / "b")
            build(root, {"a/new": "x"})
            (root / "c").rename(root / "d")
            (root / "c").touch()

        assert kinds_and_sources(diff({"a/old": "x", "c/f": ""}, act)) == {
            "/a": "replaced",
            "/a/new": "added",
            "/a/old": "deleted",
            "/b": "/a",
            "/c": "replaced",
            "/d": "/c",
        }

    def test_out_of_a_deleted_directory(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a/b").rename(root / "c")
            shutil.rmtree(root / "a")

        changes = diff({"a/b/f": "x", "a/g": ""}, act)
        assert kinds_and_sources(changes) == {"/a": "deleted", "/c": "/a/b"}

    def test_out_of_a_directory_made_anew(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a/b").rename(root / "c")
            remake(root / "a", {})

        changes = diff({"a/b/f": "x", "a/g": ""}, act)
        assert kinds_and_sources(changes) == {"/a": "replaced", "/a/g": "deleted", "/c": "/a/b"}

    def test_and_deleted(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "a").rename(root / "b")
            shutil.rmtree(root / "b")

        assert diff({"a/f": "x"}, act) == {"/a": "deleted"}

    def test_over_an_empty_directory(self, diff: Diff) -> None:
        changes = diff({"a/f": "x", "b": None}, lambda root: (root / "a").rename(root / "b"))
        assert kinds_and_sources(changes) == {"/b": "/a"}

    def test_in_an_overlay_that_is_not_the_root(self, diff: Diff) -> None:
        def act(root: Path) -> None:
            (root / "home/u/a").rename(root / "home/v")
            (root / "home/w").rename(root / "home/x")

        tree: dict[str, Make] = {"home/u/a/f": "x", "home/w": None}
        changes = diff(tree, act, mountpoints=["/home"])
        assert kinds_and_sources(changes) == {"/home/v": "/home/u/a", "/home/x": "/home/w"}

    def test_whose_names_are_not_utf8(self, diff: Diff) -> None:
        old, new = (os.fsdecode(name) for name in (b"\xff\n", b"\xfe%"))
        changes = diff({f"{old}/{old}/f": "x"}, lambda root: (root / old / old).rename(root / new))
        assert list(changes) == [Change(f"/{new}", "renamed", f"/{old}/{old}")]

    def test_a_source_that_leads_nowhere_is_no_source(self, run: Run) -> None:
        def job(box: Box) -> Changes:
            build(box.lower, {"file": "x"})
            box.mount()
            for number, value in enumerate([b"/nowhere", b"nowhere", b"/file", b""]):
                path = f"0/upper/{number}"
                os.mkdir(path)
                os.setxattr(path, "trusted.overlay.redirect", value)
            return box.changes()

        assert run(job) == dict.fromkeys(["/0", "/1", "/2", "/3"], "added")

    def test_directories_that_are_listed_by_source_too(self, diff: Diff) -> None:
        changes = diff({"a": None}, lambda root: (root / "a").rename(root / "b"))
        assert changes.matching("/a") == changes.matching("/b") == changes
        assert repr(changes) == "Changes('/b': renamed from '/a')"


# Several overlays, names, depth ------------------------------------------------------------------


def test_each_overlay_reports_what_is_in_it(diff: Diff) -> None:
    def act(root: Path) -> None:
        (root / "home/u/f").unlink()
        (root / "home/new").touch()
        (root / "etc").rmdir()

    tree: dict[str, Make] = {"home/u/f": "x", "etc": None}
    changes = diff(tree, act, mountpoints=["/", "/home"])
    assert changes == {"/etc": "deleted", "/home/new": "added", "/home/u/f": "deleted"}


def test_a_covered_directory_is_reported_by_what_covers_it(run: Run) -> None:
    def job(box: Box) -> tuple[Changes, Changes]:
        build(box.lower, {"home/f": "x"})
        box.mount()
        (box.merged / "home").chmod(0o700)
        box.mount("/home")
        before = box.changes()
        (box.merged / "home").chmod(0o711)
        return before, box.changes()

    before, after = run(job)
    assert before == {}
    assert list(after) == [Change("/home", "metadata")]


def test_an_overlay_where_there_was_nothing(run: Run) -> None:
    def job(box: Box) -> Sequence[Changes]:
        box.mount()
        build(box.merged, {"new/f": "x"})
        box.overlays = [Layered("/made/for/it", "0/upper")]
        return box.changes(), box.changes(ignore=["/made/for/it"])

    reported, ignored = run(job)
    inside = dict.fromkeys(["/made/for/it/new", "/made/for/it/new/f"], "added")
    assert reported == {"/made/for/it": "added"} | inside
    assert ignored == inside


def test_ignored_paths_are_silent_only_when_added(diff: Diff) -> None:
    def act(root: Path) -> None:
        build(root, {"srv/volume/f": "x", "file": "x", "proc/x": ""})
        (root / "etc").chmod(0o700)
        (root / "gone").unlink()
        remake(root / "remade", {})

    tree: dict[str, Make] = {"etc": None, "gone": "x", "remade": None}
    ignore = {"/srv", "/srv/volume", "/file", "/etc", "/gone", "/remade", "/proc"}
    assert diff(tree, act, ignore=ignore) == {
        "/etc": "metadata",
        "/gone": "deleted",
        "/proc/x": "added",
        "/remade": "replaced",
        "/srv/volume/f": "added",
    }


ODD = [os.fsdecode(b"\xff\xfe"), "a\nb", " ", "\\", "'", "*", "[a]", "é", "x" * 255, "-", "..."]


def test_odd_names(diff: Diff) -> None:
    def act(root: Path) -> None:
        for name in ODD:
            (root / "old" / name).unlink()
            (root / "new" / name).mkdir()
            (root / "new" / name / name).touch()

    tree: dict[str, Make] = {f"old/{name}": "x" for name in ODD}
    changes = diff(tree | {"new": None}, act)
    assert changes.paths("deleted") == sorted(f"/old/{name}" for name in ODD)
    added = [f"/new/{name}" for name in ODD] + [f"/new/{name}/{name}" for name in ODD]
    assert changes.paths("added") == sorted(added)


def test_a_tree_deeper_than_any_limit(run: Run) -> None:
    name, depth = "n" * 10, 1200  # a path of 13,200 bytes, more directories than frames or files

    def descend(root: Path) -> None:
        os.chdir(root)
        for _ in range(depth):
            os.makedirs(name, exist_ok=True)
            os.chdir(name)

    def job(box: Box) -> Sequence[Changes]:
        descend(box.lower)
        Path("old").touch()
        Path("gone").touch()
        os.chdir(box.scratch)
        box.mount()
        descend(box.merged)
        Path("old").write_text("x")
        Path("gone").unlink()
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        changed = box.changes()
        descend(box.merged)
        Path("new").mkdir()
        descend(Path("new"))
        return changed, box.changes()

    changed, added = run(job)
    deep = f"/{name}" * depth
    assert changed == {f"{deep}/gone": "deleted", f"{deep}/old": "modified"}
    assert len(added.paths("added")) == depth + 1
    assert added.paths("added")[-1] == f"{deep}/new{deep}"


def test_access_times_below_stay_as_they_were(run: Run) -> None:
    def job(box: Box) -> bool:
        build(box.lower, {"d/f": "x", "e/g": "x"})
        places = [box.lower / name for name in ("d", "d/f", "e", "e/g")]
        for place in places:
            os.utime(place, ns=(1, place.stat().st_mtime_ns))
        before = [place.stat().st_atime_ns for place in places]
        box.mount()
        os.close(os.open(box.merged / "d/f", os.O_RDWR))
        remake(box.merged / "e", {"g": "x"})
        box.changes()
        return before == [place.stat().st_atime_ns for place in places]

    assert run(job)


def test_what_vanishes_while_it_is_read_is_passed_over(run: Run) -> None:
    def job(box: Box) -> list[Changes]:
        build(box.lower, {"kept": "x", "d/f": "x"})
        box.mount()
        (box.merged / "kept").unlink()
        churning = os.fork()
        if churning == 0:
            while True:
                build(box.merged, {f"d/{n}/{m}/f": "x" for n in range(5) for m in range(5)})
                remake(box.merged / "d", {"f": "x"})
        try:
            return [box.changes().matching("/kept") for _ in range(200)]
        finally:
            os.kill(churning, signal.SIGKILL)
            os.waitpid(churning, 0)

    assert run(job) == [Changes([Change("/kept", "deleted")])] * 200


def test_what_vanishes_in_the_worst_moment_is_passed_over(run: Run) -> None:
    def job(box: Box) -> Changes:
        build(box.lower, {"below/f": "x", "cut": "x", "file": "x", "directory/f": "x"})
        box.mount()
        for name in ("below/f", "cut", "directory/f", "file"):
            rewrite(box.merged / name, "y")

        def stat_and_spoil(name: str, dir_fd: int) -> os.stat_result | None:
            status = stat_below(name, dir_fd)
            if name == "below":
                shutil.rmtree(box.lower / name)
            elif name == "cut":
                os.truncate(box.lower / name, 0)
            elif name in ("directory", "file"):
                remove(box.scratch / "0/upper" / name)
            return status

        stat_below = compare._stat
        with mock.patch.object(compare, "_stat", stat_and_spoil):
            return box.changes()

    assert run(job) == {"/below/f": "added", "/cut": "modified"}


def test_an_upper_that_is_not_there_is_an_error(run: Run) -> None:
    def job(box: Box) -> Changes:
        box.overlays = [Layered("/", "nowhere/upper")]
        return box.changes()

    with pytest.raises(FileNotFoundError):
        run(job)
