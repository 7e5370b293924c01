"""Real sandboxes, as root and as an ordinary user, with both mount APIs.

Every test runs on a machine of its own (:mod:`.worlds`): "the host" is a tmpfs that only this test
sees.
"""

from __future__ import annotations

import errno
import multiprocessing.synchronize
import os
import select
import shutil
import signal
import stat
import subprocess
import threading
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import SandboxError, Unavailable
from pytest_mountns.engine.linux.mountinfo import read, visible
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs, Volume
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.probe import host as engine_host
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
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
    private_mounts,
    remount,
    reset,
    skip_unless,
    skip_unless_binding,
    skip_unless_in_memory,
    tree,
    write,
)

ODD_NAMES = [
    "with space",
    "new\nline",
    "tab\there",
    "carriage\rreturn",
    "comma,comma",
    "colon:colon",
    "back\\slash",
    "#hash",
    "equals=",
    "quote\"'",
    "not-utf8-\udcff",
    "x" * 250,
    "/".join(["d" * 100] * 4),
]


def mounted(path: str) -> str:
    """The type of the filesystem that is mounted at ``path``, "" if none is."""
    return next((m.fstype for m in visible(read()) if m.mountpoint == path), "")


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
            # The pipe of the process this runs in comes on top.
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


# No way out.


def test_nothing_leads_back_to_the_host(mode: Mode, api: str) -> None:
    def host() -> None:
        write("secret/file")
        kept = [os.open(path, os.O_RDONLY) for path in ("/", BASE, "secret")]
        kept.append(os.open("secret", os.O_PATH))
        mkdir("gone")
        kept.append(os.open("gone", os.O_RDONLY))
        os.rmdir("gone")

        def test(_: Sandbox) -> None:
            root = os.stat("/")
            for fd in list(descriptors()):
                if not stat.S_ISDIR(os.fstat(fd).st_mode):
                    continue
                for way in (fd, f"/proc/self/fd/{fd}"):
                    os.chdir("/")
                    os.chdir(way)
                    for _step in range(10):
                        os.chdir("..")
                    here = os.stat(".")
                    # The scratch is a tree of its own, whose root is its end.
                    if not os.path.samestat(here, root):
                        assert set(os.listdir(".")) <= scratch_names, os.listdir(".")
            os.chdir(BASE)
            write("secret/new")
            # What was open is open still, on the sandbox's side.
            assert sorted(os.listdir(kept[2])) == ["file", "new"]

        scratch_names = {
            *(f"{n}.{part}" for n in range(100) for part in ("upper", "work")),
            "root",
        }
        with host_unchanged():
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode)


def test_an_upper_on_disk_does_not_lead_back_either(mode: Mode, api: str) -> None:
    def test(sandbox: Sandbox) -> None:
        write("file", "changed")
        assert sandbox.changes() == {f"{BASE}/file": "modified"}
        os.chdir(f"/proc/self/fd/{sandbox.scratch}")
        for _ in range(10):
            os.chdir("..")
        assert not os.path.lexists("srv")
        assert not os.path.lexists("file")

    def host() -> None:
        write("file", "x")
        mkdir("uppers")
        spec = SandboxSpec(upper="disk")
        in_sandbox(test, spec, mode=mode, api=api, directory=f"{BASE}/uppers")
        assert content("file") == "x"

    in_world(host, mode)


def test_a_user_has_no_privileges_in_it(api: str) -> None:
    skip_unless("user")

    def test(_: Sandbox) -> None:
        with open("/proc/self/status") as file:
            status = dict(line.split(":", 1) for line in file)
        assert int(status["CapEff"], 16) == 0
        os.chmod("own", 0)
        assert errno_of(lambda: content("own")) == errno.EACCES
        os.chmod("own", 0o400)
        assert content("own") == "x"
        assert errno_of(lambda: write("own", "y")) == errno.EACCES
        assert errno_of(lambda: mount_tmpfs(BASE)) == errno.EPERM
        # A program that is started has none either.
        output = subprocess.check_output(["grep", "^Cap[EP]", "/proc/self/status"], text=True)
        assert {int(line.split()[1], 16) for line in output.splitlines()} == {0}

    def host() -> None:
        write("own", "x")
        before = os.getresuid(), os.getresgid()

        def identity(sandbox: Sandbox) -> None:
            assert (os.getresuid(), os.getresgid()) == before
            assert os.stat("own").st_uid == os.getuid()
            test(sandbox)

        in_sandbox(identity, mode="user", api=api)

    in_world(host, "user")


def test_what_belongs_to_others_cannot_be_copied_up_by_a_user(api: str) -> None:
    skip_unless("user")
    if os.geteuid() != 0:
        pytest.skip("needs files of another owner")

    def prepare() -> None:
        write("mine/theirs", "x", 0o666)
        for path in ("mine/theirs", "mine"):
            os.chown(path, 0, 0)
            os.chmod(path, 0o777)

    def test(_: Sandbox) -> None:
        assert content("mine/theirs") == "x"
        assert errno_of(lambda: write("mine/theirs", "y")) == errno.EOVERFLOW
        # The whiteout needs the directory copied up, which is another's too.
        assert errno_of(lambda: os.unlink("mine/theirs")) == errno.EOVERFLOW

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, mode="user", api=api)

    in_world(host, "user", prepare)


# The system's own trees.


def test_devices_are_there_and_work(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        for name, (major, minor) in {
            "null": (1, 3),
            "zero": (1, 5),
            "full": (1, 7),
            "random": (1, 8),
            "urandom": (1, 9),
            "tty": (5, 0),
        }.items():
            status = os.stat(f"/dev/{name}")
            assert stat.S_ISCHR(status.st_mode)
            assert status.st_rdev == os.makedev(major, minor)
            assert stat.S_IMODE(status.st_mode) == 0o666
        write("/dev/null", "x")
        assert content("/dev/null") == ""
        with open("/dev/zero", "rb") as file:
            assert file.read(3) == b"\0\0\0"
        with open("/dev/urandom", "rb") as file:
            assert len(file.read(3)) == 3
        assert errno_of(lambda: write("/dev/full", "x")) == errno.ENOSPC
        first, second = os.openpty()
        os.write(first, b"hello\n")
        assert os.read(second, 6) == b"hello\n"
        assert os.ttyname(second).startswith("/dev/pts/")
        assert stat.S_IMODE(os.stat("/dev/shm").st_mode) == 0o1777
        write("/dev/shm/x")
        multiprocessing.get_context("fork").Semaphore().acquire()
        assert os.path.realpath("/dev/fd") == f"/proc/{os.getpid()}/fd"

    in_world(lambda: in_sandbox(test, mode=mode, api=api), mode)


def test_no_disk_is_among_the_devices(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        nodes = [
            os.path.join(place, name)
            for place, _, names in os.walk("/dev")
            for name in names
            if stat.S_ISBLK(os.lstat(os.path.join(place, name)).st_mode)
        ]
        assert nodes == []
        assert not os.path.exists("/dev/mem")

    in_world(lambda: in_sandbox(test, mode=mode, api=api), mode)


def test_shared_memory_of_the_host_is_not_seen(mode: Mode, api: str) -> None:
    def prepare() -> None:
        mount_tmpfs("/dev/shm", "mode=1777")
        write("/dev/shm/host")

    def test(_: Sandbox) -> None:
        assert os.listdir("/dev/shm") == []
        write("/dev/shm/new")

    def host() -> None:
        with host_unchanged("/dev/shm"):
            in_sandbox(test, mode=mode, api=api)

    in_world(host, mode, prepare)


def test_kernel_settings_cannot_be_written(mode: Mode, api: str) -> None:
    def test(_: Sandbox) -> None:
        refused = {errno.EROFS} if mode == "root" else {errno.EROFS, errno.EACCES}

        def set_again() -> None:
            # What it is already: in case it is let through.
            value = content("/proc/sys/kernel/printk_ratelimit")
            write("/proc/sys/kernel/printk_ratelimit", value)

        assert errno_of(set_again) in refused
        if os.path.isdir("/sys/kernel"):
            assert errno_of(lambda: os.mkdir("/sys/kernel/x")) in {*refused, errno.EPERM}
        assert content("/proc/self/comm")

    in_world(lambda: in_sandbox(test, mode=mode, api=api), mode)


# What a spec can ask for.


def test_read_only_refuses_every_write_to_the_root(mode: Mode, api: str) -> None:
    spec = SandboxSpec(
        read_only=True,
        tmpfs=(Tmpfs(f"{BASE}/m"), Tmpfs("/tmp")),
        volumes=(Volume(f"{BASE}/v", f"{BASE}/new"),),
    )

    def prepare() -> None:
        mkdir("m")
        mount_tmpfs("m", "mode=0777")

    def test(_: Sandbox) -> None:
        for path in (f"{BASE}/file", f"{BASE}/x"):
            assert errno_of(lambda path=path: write(path, "y")) == errno.EROFS  # type: ignore[misc]
        for path in ("m", "/tmp", "/dev/shm", "new"):
            write(f"{path}/x", "y")

    def host() -> None:
        write("file", "x")
        mkdir("v")
        in_sandbox(test, spec, mode=mode, api=api)
        assert content("v/x") == "y"

    in_world(host, mode, prepare)


@pytest.mark.parametrize("spec", [SandboxSpec(size=1 << 20), SandboxSpec(inodes=50)], ids=str)
def test_a_limited_upper_is_a_full_disk(mode: Mode, api: str, spec: SandboxSpec) -> None:
    skip_unless_in_memory(mode)

    def fill(_: Sandbox) -> int:
        def write_on() -> None:
            for number in range(100):
                write(f"new{number}", b"x" * (1 << 16))

        return errno_of(write_on)

    assert in_world(lambda: in_sandbox(fill, spec, mode=mode, api=api), mode) == errno.ENOSPC


def test_a_tmpfs_has_the_size_and_mode_asked_for(mode: Mode, api: str) -> None:
    spec = SandboxSpec(tmpfs=(Tmpfs(f"{BASE}/t", 1 << 16, 0o750), Tmpfs(f"{BASE}/t/deep/er")))

    def test(sandbox: Sandbox) -> None:
        assert stat.S_IMODE(os.stat("t").st_mode) == 0o750
        assert stat.S_IMODE(os.stat("t/deep/er").st_mode) == 0o1777
        assert errno_of(lambda: write("t/x", b"x" * (1 << 17))) == errno.ENOSPC
        assert not sandbox.changes()

    def host() -> None:
        with host_unchanged():
            in_sandbox(test, spec, mode=mode, api=api)

    in_world(host, mode)


@pytest.mark.parametrize("name", ODD_NAMES, ids=lambda name: ascii(name)[1:20])
def test_volumes_may_have_any_name(mode: Mode, api: str, name: str) -> None:
    source, target = f"{BASE}/v/{name}", f"{BASE}/t/{name}"

    def test(sandbox: Sandbox) -> None:
        write(f"{target}/new", "x")
        assert not sandbox.changes()

    def host() -> None:
        mkdir(source)
        spec = SandboxSpec(volumes=(Volume(source, target),))
        in_sandbox(test, spec, mode=mode, api=api)
        assert content(f"{source}/new") == "x"
        assert not os.path.lexists(f"{BASE}/t")

    in_world(host, mode)


def test_volumes_write_through_or_not_at_all(mode: Mode, api: str) -> None:
    spec = SandboxSpec(
        volumes=(
            Volume(f"{BASE}/v", f"{BASE}/rw"),
            Volume(f"{BASE}/v", f"{BASE}/ro", read_only=True),
            Volume(f"{BASE}/v/file", f"{BASE}/made/file"),
            Volume(f"{BASE}/v/file", f"{BASE}/made/ro", read_only=True),
        )
    )

    def prepare() -> None:
        mkdir("v/sub")
        mount_tmpfs("v/sub", "mode=0777")

    def test(sandbox: Sandbox) -> None:
        write("rw/new", "new")
        write("rw/sub/new", "new")
        for path in ("ro/x", "ro/sub/x", "made/ro"):
            assert errno_of(lambda path=path: write(path)) == errno.EROFS  # type: ignore[misc]
        write("made/file", "changed")
        assert content("ro/file") == content("made/ro") == "changed"
        # Made for the mounts, and not the test's doing.
        assert stat.S_IMODE(os.stat("made").st_mode) == 0o755
        assert os.stat("made").st_uid == os.getuid()
        write("made/own")
        assert sandbox.changes() == {f"{BASE}/made/own": "added"}

    def host() -> None:
        os.umask(0o077)
        write("v/file", "x", 0o644)
        in_sandbox(test, spec, mode=mode, api=api)
        assert content("v/new") == content("v/sub/new") == "new"
        assert content("v/file") == "changed"
        assert sorted(os.listdir(".")) == ["v"]

    in_world(host, mode, prepare)


def test_a_volume_shows_the_hosts_filesystem(mode: Mode, api: str) -> None:
    def prepare() -> None:
        mkdir("v")
        mount_tmpfs("v", "mode=0777")

    def host() -> None:
        device = os.stat("v").st_dev
        spec = SandboxSpec(volumes=(Volume(f"{BASE}/v", f"{BASE}/t"),))
        assert in_sandbox(lambda _: os.stat("t").st_dev, spec, mode=mode, api=api) == device

    in_world(host, mode, prepare)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (Volume(f"{BASE}/v", f"{BASE}/file"), "one is a directory and the other is not"),
        (Volume(f"{BASE}/file", f"{BASE}/v"), "one is a directory and the other is not"),
        (Volume(f"{BASE}/v", f"{BASE}/file/x"), "no directory stands on the way"),
        (Volume(f"{BASE}/v", f"{BASE}/link/x"), "symbolic link stands on the way"),
        (Volume(f"{BASE}/missing", f"{BASE}/x"), "does not exist on the host"),
    ],
    ids=lambda value: str(value) if isinstance(value, Volume) else "",
)
def test_a_volume_that_cannot_be_mounted_says_why(
    mode: Mode, api: str, volume: Volume, message: str
) -> None:
    def host() -> None:
        write("file")
        mkdir("v")
        # Where it leads is the host's: nothing may be made there.
        os.symlink(f"{BASE}/v", "link")
        with host_unchanged():
            in_sandbox(lambda _: None, SandboxSpec(volumes=(volume,)), mode=mode, api=api)

    with pytest.raises(SandboxError, match=message) as info:
        in_world(host, mode)
    assert info.value.remedy
    assert volume.target in str(info.value)


def test_a_target_that_a_user_cannot_make_is_named(api: str) -> None:
    skip_unless("user")

    def host() -> None:
        mkdir("v")
        spec = SandboxSpec(volumes=(Volume(f"{BASE}/v", "/usr/not/there"),))
        in_sandbox(lambda _: None, spec, mode="user", api=api)

    with pytest.raises(SandboxError, match="make /usr/not/there to be mounted on") as info:
        in_world(host, "user")
    assert "EROFS" in info.value.kernel
    assert "/usr/not" in info.value.kernel
    assert "exists already" in info.value.remedy


# In the middle of a test.


def test_a_directory_can_be_bound_later(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        os.umask(0o077)
        sandbox.bind(f"{BASE}/v", f"{BASE}/made/t")
        sandbox.bind(f"{BASE}/v", f"{BASE}/ro", read_only=True)
        sandbox.bind(f"{BASE}/v/file", f"{BASE}/made/file")
        write("made/t/new", "new")
        write("made/file", "changed")
        assert stat.S_IMODE(os.stat("made").st_mode) == 0o755
        assert errno_of(lambda: write("ro/x")) == errno.EROFS
        assert os.umask(0o077) == 0o077
        assert not sandbox.changes()

    def host() -> None:
        write("v/file", "x")
        in_sandbox(test, mode=mode)
        assert sorted(os.listdir(".")) == ["v"]
        assert content("v/new") == "new"
        assert content("v/file") == "changed"

    in_world(host, mode)


def test_binding_through_a_link_mounts_where_it_leads(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("place")
        os.symlink(f"{BASE}/place", "link")
        sandbox.bind(f"{BASE}/v", f"{BASE}/link")
        assert content("place/file") == "x"

    def host() -> None:
        write("v/file", "x")
        with host_unchanged():
            in_sandbox(test, mode=mode)

    in_world(host, mode)


def test_binding_what_is_not_there_says_so_and_changes_nothing(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        before = set(descriptors())
        table = read()
        with pytest.raises(SandboxError) as info:
            sandbox.bind(f"{BASE}/missing", f"{BASE}/t")
        assert str(info.value).splitlines() == [
            f"mountns: bind {BASE}/t (from {BASE}/missing)",
            f"  the kernel said: open_tree('{BASE}/missing', 0x88001): ENOENT"
            " (No such file or directory)",
            "  likely cause: the source does not exist on the host",
            "  remedy: create it before the tests run",
        ]
        assert set(descriptors()) == before
        assert read() == table
        assert os.listdir(BASE) == []
        # The next one works, and a reset does not stumble over the one that failed.
        mkdir("t")
        reset(sandbox)

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_what_the_test_has_made_is_not_a_source(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("mine")
        with pytest.raises(SandboxError, match="does not exist on the host"):
            sandbox.bind(f"{BASE}/mine", f"{BASE}/t")

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_before_the_new_mount_api_nothing_can_be_bound_later(mode: Mode) -> None:
    def test(sandbox: Sandbox) -> None:
        sandbox.bind(f"{BASE}/v", f"{BASE}/t")

    with pytest.raises(Unavailable, match=r"before Linux 5\.12") as info:
        in_world(lambda: in_sandbox(test, mode=mode, api="classic"), mode)
    assert "volumes=" in info.value.remedy


def test_another_thread_may_bind(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        here = os.getcwd()
        thread = threading.Thread(target=lambda: sandbox.bind(f"{BASE}/v", f"{BASE}/t"))
        thread.start()
        thread.join()
        assert content("t/file") == "x"
        assert os.getcwd() == here
        # With another one alive, too.
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        sandbox.bind(f"{BASE}/v", f"{BASE}/u")
        assert not sandbox.changes()
        stop.set()
        thread.join()
        assert content("u/file") == "x"

    def host() -> None:
        write("v/file", "x")
        in_sandbox(test, mode=mode)

    in_world(host, mode)


def test_a_chroot_of_the_test_is_kept(api: str) -> None:
    skip_unless("root")

    def test(sandbox: Sandbox) -> None:
        os.chroot("jail")
        os.chdir("/deep")
        assert not sandbox.changes()
        assert sorted(os.listdir("/")) == ["deep", "proc"]
        assert os.getcwd() == "/deep"

    def prepare() -> None:
        mkdir("jail/deep")
        mkdir("jail/proc")

    def in_jail(sandbox: Sandbox) -> None:
        bind("/proc", "jail/proc")
        test(sandbox)

    in_world(lambda: in_sandbox(in_jail, mode="root", api=api), "root", prepare)


def test_without_proc_the_way_back_is_not_left() -> None:
    mode: Mode = "root"
    skip_unless(mode)
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mount_tmpfs("/proc")
        inside = os.stat("/")
        for action in (sandbox.changes, lambda: reset(sandbox), lambda: sandbox.bind(BASE, "/t")):
            with pytest.raises(SandboxError, match="note the way back"):
                action()
        assert os.path.samestat(os.stat("/"), inside)

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_signals_wait_while_the_host_is_in_view(mode: Mode) -> None:
    def test(sandbox: Sandbox) -> None:
        inside = os.readlink("/proc/self/ns/mnt")
        seen: list[str] = []

        def handler(number: int, frame: object) -> None:
            seen.append(os.readlink("/proc/self/ns/mnt"))

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        for _ in range(200):
            assert not sandbox.changes()
        reset(sandbox)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert seen
        assert set(seen) <= {inside, os.readlink("/proc/self/ns/mnt")}

    in_world(lambda: in_sandbox(test, mode=mode), mode)


# A fresh start.


def test_reset_drops_writes_and_keeps_directory_volumes_and_binds(mode: Mode, api: str) -> None:
    spec = SandboxSpec(volumes=(Volume(f"{BASE}/v", f"{BASE}/t"),))

    def test(sandbox: Sandbox) -> None:
        if api != "classic":
            sandbox.bind(f"{BASE}/w", f"{BASE}/later/w")
        os.chdir("deep/down")
        write(f"{BASE}/file", "changed")
        write(f"{BASE}/added")
        shutil.rmtree(f"{BASE}/gone")
        write(f"{BASE}/t/one")
        before = set(descriptors())
        own = {sandbox.scratch, sandbox.namespace}
        reset(sandbox)
        assert set(descriptors()) - {sandbox.scratch, sandbox.namespace} == before - own
        assert os.getcwd() == f"{BASE}/deep/down"
        assert content(f"{BASE}/file") == "x"
        assert not os.path.exists(f"{BASE}/added")
        assert content(f"{BASE}/gone/file") == "x"
        assert not sandbox.changes()
        write(f"{BASE}/t/two")
        assert os.path.exists(f"{BASE}/t/one")
        if api != "classic":
            write(f"{BASE}/later/w/new")
        write(f"{BASE}/file", "again")
        assert sandbox.changes() == {f"{BASE}/file": "modified"}

    def host() -> None:
        for name in ("file", "gone/file", "deep/down/file"):
            write(name, "x")
        mkdir("v")
        mkdir("w")
        in_sandbox(test, spec, mode=mode, api=api)
        assert sorted(os.listdir("v")) == ["one", "two"]
        assert content("file") == "x"
        assert os.listdir("w") == ["new"] * (api != "classic")

    in_world(host, mode)


def test_a_working_directory_of_the_test_is_gone_after_a_reset(mode: Mode, api: str) -> None:
    def test(sandbox: Sandbox) -> str:
        mkdir("own/deep")
        os.chdir("own/deep")
        reset(sandbox)
        return os.getcwd()

    assert in_world(lambda: in_sandbox(test, mode=mode, api=api), mode) == "/"


def test_a_reset_that_fails_leaves_the_sandbox_as_it_was(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("own")
        os.chdir("own")
        sandbox.bind(f"{BASE}/v", f"{BASE}/own/v")
        root, inside = os.stat("/"), os.readlink("/proc/self/ns/mnt")
        before, created = set(descriptors()), set(sandbox.created)
        # Somebody removes the source of a volume on the host.
        write(f"{BASE}/own/v/remove")
        assert select.select([removed], [], [], 30)[0]
        with pytest.raises(SandboxError, match="does not exist on the host"):
            reset(sandbox)
        assert os.path.samestat(os.stat("/"), root)
        assert os.readlink("/proc/self/ns/mnt") == inside
        assert os.getcwd() == f"{BASE}/own"
        assert set(descriptors()) == before
        assert sandbox.created == created
        assert sandbox.changes() == {f"{BASE}/own": "added"}
        write("file")
        assert os.path.exists(f"{BASE}/own/file")

    removed, remove = os.pipe()

    def host() -> None:
        mkdir("v")
        helper = os.fork()
        if helper == 0:
            try:
                while not os.path.exists(f"{BASE}/v/remove"):
                    select.select([], [], [], 0.001)
                os.rename(f"{BASE}/v", f"{BASE}/elsewhere")
                os.write(remove, b"x")
            finally:
                os._exit(0)
        try:
            in_sandbox(test, mode=mode)
        finally:
            os.kill(helper, signal.SIGKILL)
            os.waitpid(helper, 0)

    try:
        in_world(host, mode)
    finally:
        os.close(removed)
        os.close(remove)


# The machine changes.


def test_a_mount_that_appears_is_in_the_next_plan() -> None:
    mode: Mode = "root"
    skip_unless(mode)

    def host() -> None:
        planner = Planner([BASE])
        try:
            first = planner.plan(SandboxSpec())
            assert planner.plan(SandboxSpec()) is first
            mkdir("late")
            mount_tmpfs("late")
            second = planner.plan(SandboxSpec())
            before = [o.target for o in first.overlays]
            assert {"/", BASE} <= set(before)
            assert [o.target for o in second.overlays] == [*before, f"{BASE}/late"]
            assert planner.plan(SandboxSpec()) is second
            syscalls.umount("late")
            assert planner.plan(SandboxSpec()) == first
        finally:
            planner.close()

    in_world(host, mode)


def test_a_late_mount_that_is_no_lower_is_shown_read_only() -> None:
    mode: Mode = "root"
    skip_unless(mode)

    def nest(level: int) -> str:
        """An overlay on an overlay: the kernel stacks no third on it."""
        lower = "nested/0"
        write(f"{lower}/file", "x")
        for number in range(1, level + 1):
            for name in ("upper", "work"):
                mkdir(f"nested/{number}.{name}")
            mkdir(f"nested/{number}")
            options = f"lowerdir={lower},upperdir=nested/{number}.upper"
            syscalls.mount(
                "overlay",
                f"nested/{number}",
                "overlay",
                0,
                f"{options},workdir=nested/{number}.work",
            )
            lower = f"nested/{number}"
        return lower

    def host() -> None:
        planner = Planner([BASE])
        try:
            planner.plan(SandboxSpec())
            path = f"{BASE}/{nest(2)}"
            described = planner.plan(SandboxSpec()).describe()
        finally:
            planner.close()
        assert f"read-only bind {path}" in described
        assert f"overlay {BASE}/nested/1 " in described

    in_world(host, mode)


# A user's directories that contain mounts.


def _mixed() -> None:
    """Mounts in the world's base: one plain, one read-only, one deeper."""
    for name in ("rw", "ro", "deep/down/m"):
        mkdir(name)
        mount_tmpfs(name, "mode=0777")
        write(f"{name}/file", name, 0o666)
    remount("ro", syscalls.MS_RDONLY)


def _entries() -> None:
    """Entries of every kind, the user's own."""
    write("sub/file", "x")
    write("small", "small", 0o640)
    write("secret", "secret", 0o400)
    write("large", b"x" * (2 << 20))
    os.utime("small", ns=(10**18, 10**18 + 7))
    mark("small")
    os.symlink("small", "link")
    os.mkfifo("fifo")
    write("\udcffodd, :name\\", "odd")
    os.chmod(".", 0o1777)


def test_a_users_directory_with_mounts_can_be_written_to(api: str) -> None:
    skip_unless("user")
    marked: list[bytes] = []

    def test(sandbox: Sandbox) -> None:
        status = os.stat("small")
        assert (status.st_mtime_ns, stat.S_IMODE(status.st_mode)) == (10**18 + 7, 0o640)
        assert marks("small") == marked
        assert stat.S_IMODE(os.stat(".").st_mode) == 0o1777
        assert os.readlink("link") == "small"
        assert stat.S_ISFIFO(os.stat("fifo").st_mode)
        assert content("\udcffodd, :name\\") == "odd"
        assert errno_of(lambda: content("secret")) == errno.EACCES
        assert os.stat("large").st_size == 2 << 20
        for name in ("rw", "ro", "deep/down/m"):
            assert content(f"{name}/file") == name
        assert content("sub/file") == "x"
        assert not sandbox.changes()

        write("new", "n")
        write("new-directory/file", "n")
        write("small", "changed")
        os.unlink("link")
        write("sub/file", "changed")
        write("sub/new")
        write("rw/file", "changed")
        write("deep/new")
        write("deep/down/new")
        write("deep/down/m/new")
        assert errno_of(lambda: write("large", "y")) == errno.EROFS
        assert errno_of(lambda: write("ro/file", "y")) == errno.EROFS
        assert sandbox.changes() == {
            f"{BASE}/{path}": kind
            for path, kind in {
                "new": "added",
                "new-directory": "added",
                "new-directory/file": "added",
                "small": "modified",
                "link": "deleted",
                "sub/file": "modified",
                "sub/new": "added",
                "rw/file": "modified",
                "deep/new": "added",
                "deep/down/new": "added",
                "deep/down/m/new": "added",
            }.items()
        }
        reset(sandbox)
        assert content("small") == "small"
        assert not os.path.exists("new")
        assert not sandbox.changes()

    def host() -> None:
        _entries()
        marked.extend(marks("small"))
        with host_unchanged():
            # The guard reads everything, without privileges.
            os.chmod("secret", 0)
            in_sandbox(test, mode="user", api=api)
            os.chmod("secret", 0o400)

    in_world(host, "user", _mixed)


def test_what_is_made_on_the_host_later_is_in_an_assembled_directory_too(api: str) -> None:
    skip_unless("user")

    def host() -> None:
        planner = Planner([BASE])
        planner.plan(SandboxSpec())
        write("late", "x")
        write("late-directory/file", "x")

        def test(_: Sandbox) -> None:
            assert content("late") == content("late-directory/file") == "x"
            write("late-directory/file", "y")

        try:
            with host_unchanged():
                in_sandbox(test, mode="user", api=api)
        finally:
            planner.close()

    in_world(host, "user", _mixed)


def test_read_only_holds_in_an_assembled_directory(api: str) -> None:
    skip_unless("user")
    spec = SandboxSpec(read_only=True, tmpfs=(Tmpfs(f"{BASE}/sub"),))

    def test(_: Sandbox) -> None:
        for path in ("new", "small", "other/new", "rw/new", "deep/new"):
            assert errno_of(lambda path=path: write(path)) == errno.EROFS, path  # type: ignore[misc]
        write("sub/new")

    def host() -> None:
        write("sub/file")
        write("other/file")
        write("small")
        in_sandbox(test, spec, mode="user", api=api)

    in_world(host, "user", _mixed)


def test_a_crowded_directory_with_mounts_keeps_its_subdirectories_writable(api: str) -> None:
    skip_unless("user")

    def test(_: Sandbox) -> None:
        assert errno_of(lambda: write("new")) == errno.EROFS
        write("sub/new")
        write("rw/new")
        assert len(os.listdir(".")) > 600

    def host() -> None:
        for number in range(600):
            os.symlink("x", f"link{number}")
        mkdir("sub")
        with host_unchanged():
            in_sandbox(test, mode="user", api=api)

    in_world(host, "user", _mixed)


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
