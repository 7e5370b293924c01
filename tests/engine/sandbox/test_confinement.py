"""Nothing in a sandbox leads to the host, and the system's own trees are safe in it."""

from __future__ import annotations

import errno
import multiprocessing.synchronize
import os
import stat
import subprocess

import pytest

from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    Mode,
    content,
    descriptors,
    errno_of,
    host_unchanged,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    skip_unless,
    write,
)

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
                    # The scratch directory is a filesystem of its own, with nothing above its root.
                    if not os.path.samestat(here, root):
                        assert set(os.listdir(".")) <= scratch_names, os.listdir(".")
            os.chdir(BASE)
            write("secret/new")
            # What was open is still open, and leads to the sandbox's files.
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
        # A program that it starts has no capabilities either.
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
        # The whiteout needs a copy of the directory, which belongs to another user as well.
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
            # The value that it has already, in case the write is let through.
            value = content("/proc/sys/kernel/printk_ratelimit")
            write("/proc/sys/kernel/printk_ratelimit", value)

        assert errno_of(set_again) in refused
        if os.path.isdir("/sys/kernel"):
            assert errno_of(lambda: os.mkdir("/sys/kernel/x")) in {*refused, errno.EPERM}
        assert content("/proc/self/comm")

    in_world(lambda: in_sandbox(test, mode=mode, api=api), mode)
