"""Real sandboxes, as root and as an ordinary user, with each mount API.

Every test runs on a machine of its own (:mod:`tests.helpers.worlds`): "the host" is a tmpfs that
only this test sees.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.linux.mountinfo import read, visible
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs
from pytest_mountns.engine.probe import host as engine_host
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    ODD_NAMES,
    Mode,
    bind,
    content,
    descriptors,
    errno_of,
    host_unchanged,
    in_sandbox,
    in_world,
    mark,
    marks,
    mkdir,
    mount_tmpfs,
    mounted,
    private_mounts,
    remount,
    skip_unless,
    skip_unless_in_memory,
    tree,
    write,
)

# What the root is made of.


def test_the_root_is_an_overlay_for_root_and_a_read_only_tree_for_a_user(
    mode: Mode, api: str
) -> None:
    def test(_: Sandbox) -> dict[str, str]:
        table = visible(read())
        return {m.mountpoint: m.fstype + " ro" * ("ro" in m.options) for m in table}

    def host() -> dict[str, str]:
        return in_sandbox(test, mode=mode, api=api)

    mounts = in_world(host, mode)
    if mode == "root":
        assert mounts["/"] == "overlay"
    else:
        assert mounts["/"].endswith(" ro")
    assert mounts[BASE] == "overlay"
    assert mounts["/dev"] == "tmpfs"
    assert mounts["/dev/pts"] == "devpts"
    assert mounts["/dev/shm"] == "tmpfs"
    assert mounts["/proc"] == "proc"


def test_root_may_do_anything_below_the_root_and_the_host_sees_nothing(api: str) -> None:
    mode: Mode = "root"
    skip_unless(mode)

    def prepare() -> None:
        # Not the machine's own /etc, even if isolation failed.
        mkdir("etc")
        shutil.copy("/etc/passwd", "etc/passwd")
        bind("etc", "/etc")

    def test(_: Sandbox) -> None:
        assert mounted("/etc") == "overlay"
        for name in os.listdir("/etc"):
            os.unlink(f"/etc/{name}")
        write("/brand/new", "x")
        os.rename("/brand", "/other")
        assert content("/other/new") == "x"

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)
        assert os.listdir("/etc") == ["passwd"]
        assert not os.path.lexists("/brand")
        assert not os.path.lexists("/other")

    in_world(host, mode, prepare)


def test_writes_stay_in_the_sandbox(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        assert content("kept") == "old"
        write("kept", "new")
        write("added/deep", "new")
        os.unlink("removed")
        os.rename("moved", "elsewhere")
        os.chmod("mode", 0o600)
        os.symlink("x", "link")

    def host() -> None:
        for name in ("kept", "removed", "moved", "mode"):
            write(name, "old", 0o644)
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode)


def test_the_working_directory_is_kept(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> str:
        assert os.path.exists("here")
        return os.getcwd()

    def host() -> str:
        write("deep/down/here")
        os.chdir("deep/down")
        return in_sandbox(test, mode=mode, api=api)

    assert in_world(host, mode) == f"{BASE}/deep/down"


def test_a_working_directory_that_is_gone_becomes_the_root(mode: Mode, api: str) -> None:
    def host() -> str:
        mkdir("gone")
        os.chdir("gone")
        os.rmdir(f"{BASE}/gone")
        return in_sandbox(lambda _: os.getcwd(), mode=mode, api=api)

    assert in_world(host, mode) == "/"


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_umask_and_descriptors_are_kept(mode: Mode, api: str, umask: int) -> None:
    def host() -> None:
        os.umask(umask)
        write("file")
        opened = os.open("file", os.O_RDONLY)
        before = descriptors()

        def test(sandbox: Sandbox) -> None:
            after = descriptors()
            extra = {sandbox.scratch, sandbox.stage, sandbox.namespace}
            # The process that this runs in has a pipe in addition.
            new = {fd for fd in after if fd not in before} - extra
            assert all(after[fd].startswith("pipe:") for fd in new)
            assert after[opened] == before[opened]
            assert all(not os.get_inheritable(fd) for fd in extra)
            assert min(extra) >= 500
            assert os.umask(0) == umask

        in_sandbox(test, mode=mode, api=api)

    in_world(host, mode)


def test_nothing_of_it_shows_on_a_host_with_shared_mounts(mode: Mode, api: str) -> None:
    def prepare() -> None:
        syscalls.mount(None, "/", None, 0x100000 | syscalls.MS_REC)  # MS_SHARED
        mkdir("sub")
        mount_tmpfs("sub", "mode=0777")

    def test(_: Sandbox) -> None:
        write("sub/new", "x")
        if mode == "root":
            mount_tmpfs("sub")

    def host() -> None:
        assert any(m.propagation for m in read())
        with host_unchanged():
            in_sandbox(test, SandboxSpec(tmpfs=(Tmpfs(f"{BASE}/t"),)), mode=mode, api=api)

    in_world(host, mode, prepare)


# What is mounted below the root.


def test_what_is_mounted_below_appears_and_is_isolated(mode: Mode, api: str) -> None:
    def prepare() -> None:
        mkdir("a")
        mount_tmpfs("a", "mode=0777")
        write("a/file", "a", 0o666)
        mkdir("a/b")
        mount_tmpfs("a/b", "mode=0777")
        write("a/b/file", "b", 0o666)

    def test(_: Sandbox) -> None:
        for path, expected in (("a/file", "a"), ("a/b/file", "b")):
            assert content(path) == expected
        write("a/b/file", "changed")
        write("a/b/new")

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


def test_a_file_mounted_over_a_file_shows_its_content_and_keeps_it(mode: Mode, api: str) -> None:
    def prepare() -> None:
        write("below", "below")
        write("source", "source", 0o640)
        bind("source", "below")

    def test(_: Sandbox) -> None:
        assert content("below") == "source"
        if mode == "root":
            assert stat.S_IMODE(os.stat("below").st_mode) == 0o640
            write("below", "changed")
            os.unlink("below")
            os.rename("source", "below")
        else:
            assert errno_of(lambda: write("below", "changed")) in (errno.EROFS, errno.EACCES)

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


def test_a_huge_file_mounted_over_a_file_is_shown_without_a_copy(api: str) -> None:
    mode: Mode = "root"
    skip_unless(mode)

    def prepare() -> None:
        write("below", "below")
        with open("source", "wb") as file:
            file.truncate(1 << 30)
        bind("source", "below")

    def test(_: Sandbox) -> None:
        assert os.stat("below").st_size == 1 << 30
        assert errno_of(lambda: write("below", "changed")) == errno.EROFS

    in_world(lambda: in_sandbox(test, mode=mode, api=api), mode, prepare)


def test_a_mount_in_a_directory_that_is_closed_to_the_user_is_no_obstacle(
    mode: Mode, api: str
) -> None:
    def prepare() -> None:
        # As the roots of containers below /var/lib.
        os.makedirs("closed/inner")
        syscalls.mount("tmpfs", "closed/inner", "tmpfs", 0, "mode=0777")
        os.chmod("closed", 0o700)

    def test(_: Sandbox) -> None:
        write("added")
        if mode == "user" and os.stat("closed").st_uid != os.geteuid():
            assert errno_of(lambda: write("closed/inner/file")) == errno.EACCES

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


def test_of_stacked_mounts_the_topmost_is_seen(mode: Mode, api: str) -> None:
    def prepare() -> None:
        mkdir("m")
        for text in ("first", "second", "third"):
            mount_tmpfs("m", "mode=0777")
            write("m/file", text)

    def test(_: Sandbox) -> None:
        assert content("m/file") == "third"
        write("m/new")

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[1:20])
def test_mountpoints_may_have_any_name(mode: Mode, api: str, name: str) -> None:
    def prepare() -> None:
        mkdir(name)
        mount_tmpfs(name, "mode=0777")
        write(f"{name}/file", "x")

    def test(sandbox: Sandbox) -> None:
        assert content(f"{name}/file") == "x"
        write(f"{name}/new")
        assert sandbox.changes() == {f"{BASE}/{name}/new": "added"}

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


def test_mounts_that_are_read_only_stay_so(mode: Mode, api: str) -> None:
    def prepare() -> None:
        for name in ("ro", "ro/rw"):
            mkdir(name)
            mount_tmpfs(name, "mode=0777")
            write(f"{name}/file", "x", 0o666)
        mkdir("ro/rw/ro")
        remount("ro", syscalls.MS_RDONLY)

    def test(_: Sandbox) -> None:
        assert content("ro/file") == "x"
        assert errno_of(lambda: write("ro/file", "y")) == errno.EROFS
        write("ro/rw/file", "y")

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


def test_noexec_is_kept(mode: Mode, api: str) -> None:
    def prepare() -> None:
        mount_tmpfs("/tmp", "mode=1777")
        remount("/tmp", syscalls.MS_NOEXEC)

    def test(_: Sandbox) -> None:
        write("/tmp/run", "#!/bin/sh\nexit 0\n", 0o755)
        with pytest.raises(PermissionError):
            subprocess.run(["/tmp/run"], check=False)
        write(f"{BASE}/run", "#!/bin/sh\nexit 0\n", 0o755)
        subprocess.run([f"{BASE}/run"], check=True)

    in_world(lambda: in_sandbox(test, mode=mode, api=api), mode, prepare)


def test_roots_of_overlays_look_like_what_they_cover(mode: Mode, api: str) -> None:
    def prepare() -> None:
        mkdir("m")
        mount_tmpfs("m", "mode=0711")
        mark("m")
        os.chmod(BASE, 0o1777)
        for path in ("m", BASE):
            os.utime(path, ns=(10**18, 10**18 + 5))

    def look() -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for path in ("/", BASE, f"{BASE}/m"):
            status = os.stat(path)
            owner = () if mode == "user" else (status.st_uid, status.st_gid)
            found.append((status.st_mode, status.st_mtime_ns, *owner))
        return [*found, (marks(f"{BASE}/m"),)]

    def host() -> None:
        assert look() == in_sandbox(lambda _: look(), mode=mode, api=api)

    in_world(host, mode, prepare)


def test_files_and_directories_are_on_one_device(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        mkdir("new/directory")
        write("new/file")
        devices = {os.lstat(p).st_dev for p in ("old", "old/file", "new", "new/file", ".")}
        assert len(devices) == 1

    def host() -> None:
        write("old/file")
        in_sandbox(test, mode=mode, api=api)

    in_world(host, mode)


def test_a_directory_from_below_can_be_renamed_by_root_only(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        number = errno_of(lambda: os.rename("old", "new"))
        assert number == (0 if mode == "root" else errno.EXDEV)
        shutil.move("old" if number else "new", "moved")
        assert content("moved/file") == "x"

    def host() -> None:
        write("old/file", "x")
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode)


def test_a_directory_from_below_can_be_removed_and_made_again(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        shutil.rmtree("old")
        mkdir("old")
        assert os.listdir("old") == []
        write("old/new", "y")

    def host() -> None:
        write("old/file", "x")
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode)


# Machines that are special.


def test_in_a_chroot_that_is_no_mountpoint_it_says_so() -> None:
    skip_unless("root")

    def host() -> None:
        mkdir("jail/proc")
        bind("/proc", "jail/proc")
        os.chroot("jail")
        os.chdir("/")
        in_sandbox(lambda _: None, mode="root")

    with pytest.raises(SandboxError, match="chroot whose / is no mountpoint") as info:
        in_world(host, "root")
    assert "mount --bind" in info.value.remedy


def test_a_mount_whose_server_is_silent_stops_nothing(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_host, "_PATIENCE", 0.2)
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        pytest.skip("needs /dev/fuse, and root to mount a filesystem that does not answer")

    def prepare() -> None:
        device = os.open("/dev/fuse", os.O_RDWR)
        for name in ("silent", "fine"):
            mkdir(name)
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
        syscalls.mount("nobody", "silent", "fuse.silent", 0, options)
        write("fine/file", "x", 0o666)

    def test(sandbox: Sandbox) -> None:
        write("fine/new")
        assert sandbox.changes() == {f"{BASE}/fine/new": "added"}

    in_world(lambda: in_sandbox(test, mode=mode), mode, prepare)


@pytest.mark.no_mountns(reason="nests as deep as it goes")
def test_a_sandbox_in_a_sandbox_works_and_a_third_says_why(mode: Mode) -> None:
    skip_unless_in_memory(mode)

    def third(_: Sandbox) -> None:
        in_sandbox(lambda _: write("third"), mode=mode)

    def second(sandbox: Sandbox) -> None:
        assert content("file") == "first"
        write("file", "second")
        assert sandbox.changes() == {f"{BASE}/file": "modified"}
        with pytest.raises(SandboxError, match="nest two deep") as info:
            in_sandbox(lambda _: None, mode=mode)
        assert "EINVAL" in info.value.kernel

    def first(sandbox: Sandbox) -> None:
        write("file", "first")
        in_sandbox(second, mode=mode)
        assert content("file") == "first"

    def host() -> None:
        write("file", "host")
        with host_unchanged():
            in_sandbox(first, mode=mode)

    in_world(host, mode)


def test_the_machines_own_mount_table_is_untouched(mode: Mode, api: str, tmp_path: Path) -> None:
    before = read(), set(descriptors())

    def machine() -> None:
        private_mounts()
        in_sandbox(lambda _: None, mode=mode, api=api)

    if mode == "root":
        in_world(machine, mode)
    else:
        in_world(lambda: in_sandbox(lambda _: None, mode=mode, api=api), mode)
    assert (read(), set(descriptors())) == before
    assert tree(str(tmp_path)) == {}
