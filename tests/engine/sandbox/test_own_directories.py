"""Directories of a sandbox that are mounts of their own, without an overlay."""

from __future__ import annotations

import os
import stat

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs, Volume
from pytest_mountns.engine.sandbox.disk_uppers import DiskUppers
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    Mode,
    content,
    errno_of,
    host_unchanged,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    skip_unless,
    write,
)

pytestmark = pytest.mark.layered


@pytest.mark.parametrize("upper", ["memory", "disk"])
def test_flags_and_attributes_are_those_of_the_overlay(mode: Mode, upper: str) -> None:
    skip_unless(mode)

    def prepare() -> None:
        mkdir("strict")
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        if (mode, upper) != ("user", "disk"):
            # A user namespace may not change this of the host's disk.
            flags |= syscalls.MS_NOATIME
        syscalls.mount("tmpfs", "strict", "tmpfs", flags, "mode=1777")

    def test(sandbox: Sandbox) -> None:
        for place in ("strict", "."):
            path = os.path.abspath(f"{place}/own")
            mkdir(path)
            os.chmod(path, 0o2751)
            os.utime(path, (1000, 2000))
            os.setxattr(path, "user.name", b"x")
            before, flags = os.stat(path), os.statvfs(path).f_flag
            assert sandbox.make_own(path)
            after = os.stat(path)
            assert os.path.ismount(path)
            assert os.statvfs(path).f_flag == flags
            assert stat.S_IMODE(after.st_mode) == 0o2751
            assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
            assert after.st_mtime == 2000
            assert os.getxattr(path, "user.name") == b"x"
            write(f"{path}/file", "x")
        assert {os.path.dirname(one) for one in sandbox.changes().paths("added")} == {
            *(BASE, f"{BASE}/strict", f"{BASE}/own", f"{BASE}/strict/own"),
        }

    def host() -> None:
        uppers = DiskUppers()
        spec = SandboxSpec(upper="disk") if upper == "disk" else SandboxSpec()
        try:
            directory = uppers.new() if upper == "disk" else None
            with host_unchanged():
                in_sandbox(test, spec, mode=mode, places=[BASE], directory=directory)
        finally:
            uppers.close()

    in_world(host, mode, prepare)


def test_what_lies_on_no_overlay_of_the_sandbox_is_left_alone(mode: Mode) -> None:
    skip_unless(mode)
    spec = SandboxSpec(
        volumes=(Volume(f"{BASE}/v", f"{BASE}/v"),), tmpfs=(Tmpfs(f"{BASE}/t"), Tmpfs("/mnt"))
    )

    def test(sandbox: Sandbox) -> None:
        for place in (f"{BASE}/v", f"{BASE}/t", "/mnt"):
            mkdir(f"{place}/own")
            assert not sandbox.make_own(f"{place}/own")
            assert not os.path.ismount(f"{place}/own")
        assert not sandbox.own

    def host() -> None:
        mkdir("v")
        mkdir("t")
        in_sandbox(test, spec, mode=mode)

    in_world(host, mode)


def test_what_the_test_has_mounted_is_left_alone() -> None:
    skip_unless("root")

    def test(sandbox: Sandbox) -> None:
        mkdir("place")
        mount_tmpfs("place")
        mkdir("place/own")
        assert not sandbox.make_own(f"{BASE}/place/own")

    in_world(lambda: in_sandbox(test, mode="root"), "root")


def test_it_is_found_through_a_link(mode: Mode) -> None:
    skip_unless(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("place/own")
        os.symlink("place", "link")
        assert sandbox.make_own(f"{BASE}/link/own")
        write("link/own/file", "x")
        assert content("place/own/file") == "x"
        assert f"{BASE}/place/own/file" in sandbox.changes().paths()

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_nothing_else_of_the_uppers_can_be_reached_from_it(mode: Mode) -> None:
    skip_unless(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("own")
        assert sandbox.make_own(f"{BASE}/own")
        assert os.path.samefile("own/..", BASE)
        fd = os.open("own", os.O_RDONLY)
        os.chdir("own")
        assert os.path.samefile("..", BASE)
        assert os.path.samestat(os.stat("..", dir_fd=fd), os.stat(BASE))
        os.close(fd)

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_two_of_them(mode: Mode) -> None:
    skip_unless(mode)

    def test(sandbox: Sandbox) -> None:
        for name in ("one", "one/in", "other"):
            mkdir(name)
            # One in another has no overlay already.
            assert sandbox.make_own(f"{BASE}/{name}") == (name != "one/in")
            write(f"{name}/file", name)
        assert errno_of(lambda: os.rename("one/file", "other/more"))
        assert set(sandbox.changes().paths()) == {
            f"{BASE}/{path}"
            for path in ("one", "one/file", "one/in", "one/in/file", "other", "other/file")
        }

    in_world(lambda: in_sandbox(test, mode=mode), mode)
