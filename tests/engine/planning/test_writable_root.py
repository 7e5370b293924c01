"""What an ordinary user who is shown as root may write to, on a machine that belongs to root."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import pytest

from pytest_mountns.engine.layers import skeleton
from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.linux.mountinfo import read
from pytest_mountns.engine.linux.namespaces import drop_user_capabilities, enter_user_namespace
from pytest_mountns.engine.linux.syscalls import MS_RDONLY
from pytest_mountns.engine.plan.decide import plan
from pytest_mountns.engine.plan.model import Plan
from pytest_mountns.engine.plan.spec import SandboxSpec, SpecError
from pytest_mountns.engine.planning.writable_root import Copies
from pytest_mountns.engine.probe.host import survey
from pytest_mountns.engine.sandbox.create import enter
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    ODD_NAMES,
    bind,
    by_api,
    content,
    errno_of,
    features_of,
    host_unchanged,
    in_child,
    in_world,
    mount_tmpfs,
    remount,
    skip_unless_in_memory,
    tree,
)

T = TypeVar("T")
TREE: Final = f"{BASE}/tree"
CACHE: Final = f"{BASE}/cache"

pytestmark = pytest.mark.as_root


def roots(path: str, text: str | None = None, mode: int | None = None) -> None:
    """Make a file or directory of root's."""
    if text is None:
        os.makedirs(path, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(path).write_text(text)
    if mode is not None:
        os.chmod(path, mode)


def prepare() -> None:
    roots(f"{TREE}/a/b/c/file", "old")
    roots(f"{TREE}/file", "old")
    roots(f"{TREE}/closed/secret", "secret")
    roots(f"{TREE}/closed", mode=0o700)
    roots(f"{TREE}/set", mode=0o2775)
    os.symlink("a/b", f"{TREE}/link")
    for name in ODD_NAMES:
        roots(f"{TREE}/odd/{name}")


def planned(writable: tuple[str, ...] | None, copies: Copies, api: str) -> Plan:
    features = by_api(features_of("user"), api)
    host = survey(user_namespace=True, places=[BASE])
    made = copies.make(copies.divide(writable, host))
    spec = SandboxSpec(user="root", writable=writable)
    return plan(spec, host._replace(writable_root=made), features)


def as_root_of(
    function: Callable[[Sandbox], T],
    writable: tuple[str, ...] | None = (TREE,),
    prepare: Callable[[], object] = prepare,
    api: str = "best",
) -> T:
    """Call ``function`` in the sandbox of a user who is shown as root. Root's tree stays."""

    def world() -> T:
        copies = Copies(cache=Cache(CACHE))
        wanted = planned(writable, copies, api)

        def test() -> T:
            outside = os.readlink("/proc/self/ns/mnt")
            enter_user_namespace(as_root=True)
            sandbox = enter(wanted)
            assert os.readlink("/proc/self/ns/mnt") != outside
            assert os.geteuid() == 0
            return function(sandbox)

        try:
            with host_unchanged(TREE):
                return in_child(test)
        finally:
            copies.close()

    skip_unless_in_memory("user")
    return in_world(world, "user", prepare)


def test_whatever_root_may_do_below() -> None:
    def test(sandbox: Sandbox) -> dict[str, str]:
        os.chdir(TREE)
        os.mkdir("a/b/c/new")
        os.unlink("a/b/c/file")
        Path("a/b/c/new/file").write_text("new")
        Path("replaced").write_text("new")
        os.rename("replaced", "file")
        os.chmod("a", 0o700)
        os.unlink("link")
        for name in ODD_NAMES:
            Path("odd", name, "file").write_text("new")
        shutil.rmtree("odd")
        return {k: v for k, v in sandbox.changes().as_dict().items() if k.startswith(TREE)}

    assert as_root_of(test) == {
        f"{TREE}/a": "metadata",
        f"{TREE}/a/b/c/file": "deleted",
        f"{TREE}/a/b/c/new": "added",
        f"{TREE}/a/b/c/new/file": "added",
        f"{TREE}/file": "modified",
        f"{TREE}/link": "deleted",
        f"{TREE}/odd": "deleted",
    }


def test_it_looks_as_on_the_host() -> None:
    def look() -> dict[str, tuple[int, int]]:
        found = {}
        for place, directories, files in os.walk(TREE):
            for name in (*directories, *files):
                status = os.lstat(os.path.join(place, name))
                found[os.path.join(place, name)] = (status.st_mode, status.st_mtime_ns)
        del found[f"{TREE}/closed"]
        return found

    def test(sandbox: Sandbox) -> None:
        assert look() == before
        # What the user may not read is empty, and can be written to.
        assert os.listdir(f"{TREE}/closed") == []
        assert sandbox.changes().paths() == []
        Path(TREE, "closed", "new").write_text("")

    before: dict[str, tuple[int, int]] = {}

    def prepare_and_look() -> None:
        prepare()
        before.update(look())
        del before[f"{TREE}/closed/secret"]

    as_root_of(test, prepare=prepare_and_look)


def test_files_below_etc_are_edited_in_place() -> None:
    def test(sandbox: Sandbox) -> tuple[str, list[str]]:
        with open("/etc/passwd", "a") as file:
            file.write("x:x:7:7::/:/bin/false\n")
        subprocess.run(["sed", "-i", "s/7:7/8:8/", "/etc/passwd"], check=True)
        changed = sandbox.changes().matching("/etc").paths()
        return content("/etc/passwd").splitlines()[-1], changed

    before = content("/etc/passwd")
    assert as_root_of(test, ("/etc",)) == ("x:x:8:8::/:/bin/false", ["/etc/passwd"])
    assert content("/etc/passwd") == before


@pytest.mark.parametrize("api", ["best", "attached", "classic"])
def test_the_whole_root(api: str) -> None:
    """On newer kernels, on those before Linux 6.15, and by mount(2)."""

    def test(sandbox: Sandbox) -> tuple[bool, list[str]]:
        assert {name: os.path.realpath(f"/{name}") for name in os.listdir("/")} == on_host
        with open("/proc/self/mountinfo") as table:
            assert any(line.split()[4] == "/" and " - overlay " in line for line in table)
        subprocess.run(["rm", "-rf", doomed], check=True)
        os.mkdir("/directory of the test")
        Path("/usr/local/bin/program").write_text("")
        gone = not os.path.exists(doomed)
        return gone, [p for p in sandbox.changes().paths() if not p.startswith(f"{doomed}/")]

    # Container engines mount files below /etc. It cannot be removed then, nor what is in it: each
    # directory beside a mount is an overlay.
    doomed = "/etc"
    busy = [f"{mount.mountpoint}/" for mount in read()]
    if any(at.startswith("/etc/") for at in busy):
        doomed = next(
            str(path)
            for path in Path("/etc").glob("*/*")
            if path.is_dir()
            and path.resolve() == path
            and not any(at.startswith(f"{path.parent}/") for at in busy)
        )
    on_host = {name: os.path.realpath(f"/{name}") for name in os.listdir("/")}
    wanted = ["/directory of the test", doomed, "/usr/local/bin/program"]
    assert as_root_of(test, None, api=api) == (True, wanted)
    assert os.path.exists("/etc/passwd")


def test_mounts_in_the_way() -> None:
    def prepare_mounts() -> None:
        prepare()
        for place in (f"{TREE}/a/b/mount", f"{TREE}/a/read-only"):
            os.makedirs(place)
            mount_tmpfs(place)
            os.chown(place, 0, 0)
            roots(f"{place}/inner/file", "old")
        remount(f"{TREE}/a/read-only", MS_RDONLY)

    def test(sandbox: Sandbox) -> list[str]:
        os.chdir(TREE)
        for place in (".", "a", "a/b", "a/b/c", "a/b/mount", "a/b/mount/inner"):
            Path(place, "new").write_text("")
        assert errno_of(Path("a/read-only/new").touch) == errno.EROFS
        assert content("a/read-only/inner/file") == "old"
        assert content("a/b/mount/inner/file") == "old"
        assert content("a/b/c/file") == "old"
        shutil.rmtree("a/b/c/../mount/inner")
        return [path[len(TREE) :] for path in sandbox.changes().paths() if path.startswith(TREE)]

    assert as_root_of(test, prepare=prepare_mounts) == [
        *("/a/b/c/new", "/a/b/mount/inner", "/a/b/mount/new", "/a/b/new", "/a/new", "/new"),
    ]


@pytest.mark.parametrize("writable", [None, ("/etc",)], ids=["all", "etc"])
def test_a_file_that_is_mounted_over_another(writable: tuple[str, ...] | None) -> None:
    """As container engines mount /etc/hosts: it is shown, and the copy can be written to."""

    def prepare_hosts() -> None:
        prepare()
        roots(f"{BASE}/hosts", "mounted\n")
        bind(f"{BASE}/hosts", "/etc/hosts")

    def test(sandbox: Sandbox) -> tuple[str, list[str]]:
        with open("/etc/hosts", "a") as file:
            file.write("more\n")
        return content("/etc/hosts"), sandbox.changes().matching("/etc").paths()

    assert as_root_of(test, writable, prepare_hosts) == ("mounted\nmore\n", ["/etc/hosts"])


def test_a_mount_that_does_not_answer_is_left_alone() -> None:
    """It is an empty directory in the sandbox, and nothing asks about it."""

    def world() -> tuple[str, ...]:
        host = survey(user_namespace=True, places=[BASE])._replace(dead=(f"{TREE}/a/dead",))
        copies = Copies(cache=Cache(CACHE))
        division = copies.divide((TREE,), host)
        copies.close()
        found = skeleton.survey(f"{TREE}/a", alone=True, untouched=division.untouched)
        assert f"{TREE}/a" in division.parted
        return tuple(e.path for e in found.entries if e.path == "dead" and e.changed < 0)

    def prepare_dead() -> None:
        prepare()
        roots(f"{TREE}/a/dead")

    assert in_world(world, "user", prepare_dead) == ("dead",)


def test_copies_are_made_anew_when_the_host_has_changed() -> None:
    """Those that are current are taken from the cache; those that are old are removed."""

    def world() -> None:
        def lowers(writable: str) -> tuple[str, ...]:
            copies = Copies(cache=Cache(CACHE))
            try:
                host = survey(user_namespace=True, places=[BASE])
                made = copies.make(copies.divide((writable,), host))
                return next(lowers for path, lowers in made.overlays if path == writable)
            finally:
                copies.close()

        # What was changed a moment ago may change once more without another time.
        while time.time_ns() - os.stat(f"{BASE}/own/tree/a").st_ctime_ns < 50_000_000:
            time.sleep(0.01)
        first = lowers(f"{BASE}/own/tree")
        assert lowers(f"{BASE}/own/tree") == first
        assert len(os.listdir(f"{CACHE}/layers")) == 1
        before = tree(first[0])
        # Of another group than the user's, so that it is copied.
        os.mkdir(f"{BASE}/own/tree/a/new")
        second = lowers(f"{BASE}/own/tree")
        assert second != first
        assert len(os.listdir(f"{CACHE}/layers")) == 1
        assert "/a" in before

    def prepare_own() -> None:
        owner = os.stat(BASE)
        roots(f"{BASE}/own/tree/a")
        # Written to by the user, and yet of a group that no namespace of the user's maps.
        os.chown(f"{BASE}/own/tree/a", owner.st_uid, 0)

    in_world(world, "user", prepare_own)


def test_a_directory_that_does_not_exist() -> None:
    with pytest.raises(SpecError, match="no directory /nowhere"):
        as_root_of(lambda _: None, ("/nowhere",))


def test_a_volume_and_capabilities_are_as_ever() -> None:
    """Without ``user="root"`` nothing is copied, and the tree is read-only."""

    def world() -> bool:
        features = features_of("user")
        host = survey(user_namespace=True, places=[BASE])

        def test() -> bool:
            enter_user_namespace()
            enter(plan(SandboxSpec(), host, features))
            drop_user_capabilities()
            return os.access(TREE, os.W_OK)

        return in_child(test)

    skip_unless_in_memory("user")
    assert in_world(world, "user", prepare) is False
