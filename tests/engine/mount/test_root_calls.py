"""Roots that one list of system calls makes are those that are made step by step."""

from __future__ import annotations

import os
import re
import resource
import stat
from typing import Any

import pytest

from pytest_mountns.engine.linux import ablation, syscalls
from pytest_mountns.engine.linux.attributes import read_xattrs
from pytest_mountns.engine.linux.call_list import Call, is_available
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.plan.model import Bind, MakeDev, Overlay, Seed, Upper
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs, Volume
from pytest_mountns.engine.sandbox.disk_uppers import DiskUppers
from pytest_mountns.engine.sandbox.manager import SandboxManager
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.seccomp import install, refuse
from tests.helpers.worlds import (
    ACCESS_LIST,
    BASE,
    Mode,
    descriptors,
    in_world,
    mkdir,
    mount_tmpfs,
    plan_here,
    set_attribute,
    skip_unless,
    write,
)

pytestmark = [
    pytest.mark.layered,
    pytest.mark.skipif(not is_available(), reason="installed without a C compiler"),
]

SPECS = {
    "default": SandboxSpec(),
    "tmpfs": SandboxSpec(tmpfs=(Tmpfs(f"{BASE}/here"),)),
    "limits": SandboxSpec(size=1 << 20, inodes=1000),
    "read-only": SandboxSpec(read_only=True),
    "volume": SandboxSpec(volumes=(Volume("/usr", f"{BASE}/volume"),)),
    # As the cache directory of pytest is one, of every suite that was run before.
    "own-volume": SandboxSpec(volumes=(Volume(f"{BASE}/cache", f"{BASE}/cache"),)),
    "disk": SandboxSpec(upper="disk"),
    "devices": SandboxSpec(devices=("/dev/kmsg",)),
}


def read_text(path: str) -> str:
    with open(path) as file:
        return file.read()


def _manager(mode: Mode) -> SandboxManager:
    manager = SandboxManager([])
    if mode == "user":
        manager.move_to_user_namespace()
    return manager


def _description() -> dict[str, object]:
    """What this process sees of its root: the mounts, and the attributes of what was made."""
    mounts = []
    with open("/proc/self/mountinfo") as file:
        for line in file:
            # Numbers of mounts, of devices and of inodes differ.
            fields = line.split()[3:]
            mounts.append(re.sub(r"/fd/\d+", "/fd/N", " ".join(fields)))
    found: dict[str, object] = {"mounts": sorted(mounts)}
    for path in ("/", BASE, *(f"/dev/{name}" for name in sorted(os.listdir("/dev")))):
        status = os.lstat(path)
        link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
        found[path] = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev, link)
    found["times"] = [os.stat(path).st_mtime_ns for path in ("/", BASE)]
    found["attributes"] = read_xattrs(BASE)
    return found


def _visit(manager: SandboxManager, sandbox: Sandbox) -> dict[str, object]:
    home = os.readlink("/proc/self/ns/mnt")
    manager.enter(sandbox, "/")
    try:
        assert os.readlink("/proc/self/ns/mnt") != home
        return _description()
    finally:
        manager.leave()
        manager.release([sandbox])


def test_the_list_knows_each_field_of_the_steps_that_it_makes() -> None:
    """A field that it does not know would be left out of roots without a word."""
    known: dict[Any, set[str]] = {
        Overlay: {"target", "lowers", "name", "attributes", "model", "pieces"},
        Seed: {"path"},
        Bind: {"source", "target", "read_only", "create", "optional"},
        MakeDev: {"devices", "bind", "mqueue", "target", "more", "host_shm", "part"},
        Upper: {"medium", "size", "inodes"},
    }
    for step, fields in known.items():
        assert set(step._fields) == fields, f"does root_calls.py handle the new field of {step}?"


@pytest.mark.parametrize("name", SPECS)
def test_a_root_is_the_same_as_step_by_step(mode: Mode, name: str) -> None:
    skip_unless(mode)

    def both() -> list[tuple[bool, dict[str, object]]]:
        mkdir("cache")
        write("cache/file", "of the host")
        plan = plan_here(SPECS[name], mode)
        found = []
        for left_out in (False, True):
            ablation.LEFT_OUT = frozenset(["root_calls"] * left_out)  # type: ignore[misc]
            manager = _manager(mode)
            uppers = DiskUppers()
            directory = uppers.new() if plan.upper.medium == "disk" else None
            sandbox = manager.make(plan, directory=directory)
            has_calls = sandbox.template is not None and sandbox.template.calls is not None
            found.append((has_calls, _visit(manager, sandbox)))
            manager.close()
            uppers.close()
        return found

    (at_once, one), (step_by_step, other) = in_world(both, mode)
    assert not step_by_step
    if name in ("default", "own-volume"):
        assert at_once
    if name in ("tmpfs", "volume"):
        # A directory to mount it on was made just now.
        del one["times"], other["times"]
    assert one == other


def test_a_root_has_the_extended_attributes_of_the_hosts(mode: Mode) -> None:
    """As security labels, which every directory has with SELinux."""
    skip_unless(mode)
    wanted = {"user.note": b"a\0b", "user.empty": b""}
    if os.geteuid() == 0:
        # A user namespace takes no list that names a user whom it does not map.
        wanted["system.posix_acl_access"] = ACCESS_LIST
    if mode == "root":
        wanted["security.note"] = b"label"

    def prepare() -> None:
        for name, value in wanted.items():
            if not set_attribute(BASE, name, value):
                pytest.skip("a tmpfs takes no extended attributes here")

    def look() -> list[tuple[bool, object]]:
        plan = plan_here(SandboxSpec(), mode)
        manager = _manager(mode)
        found: list[tuple[bool, object]] = []
        # Changed as by restorecon(8); since the first time the directory has an overlay of its own.
        for value in (b"a\0b", b"second", b"third"):
            os.setxattr(BASE, "user.note", value)
            sandbox = manager.make(plan)
            assert sandbox.template is not None
            calls = sandbox.template.calls
            made_at_once = calls is not None and calls.look_at_files() is not None
            found.append((made_at_once, _visit(manager, sandbox)["attributes"]))
        manager.close()
        return found

    found = in_world(look, mode, prepare)
    assert [made_at_once for made_at_once, _ in found] == [True, True, True]
    shown, second, third = (attributes for _, attributes in found)
    assert isinstance(shown, dict)
    assert second == {**shown, "user.note": b"second"}
    assert third == {**shown, "user.note": b"third"}
    if mode == "user":
        wanted.pop("system.posix_acl_access", None)
        shown.pop("system.posix_acl_access", None)
    assert shown == wanted


def test_a_volume_at_its_own_path_is_the_hosts(mode: Mode) -> None:
    """Also while the host removes it, makes it anew, or puts a link in its place."""
    skip_unless(mode)

    def volume() -> list[object]:
        place = f"{BASE}/cache"
        os.mkdir(place)
        plan = plan_here(SandboxSpec(volumes=(Volume(place, place),)), mode)
        manager = _manager(mode)
        found: list[object] = []
        for step in ("there", "anew", "gone", "link"):
            if step == "anew":
                os.rename(place, f"{BASE}/before")
                os.mkdir(place)
            elif step == "gone":
                os.rename(place, f"{BASE}/later")
            elif step == "link":
                os.symlink(f"{BASE}/before", place)
            try:
                sandbox = manager.make(plan)
            except SandboxError as error:
                found.append(type(error).__name__)
                continue
            manager.enter(sandbox, "/")
            try:
                write(f"{place}/{step}", step)
            finally:
                manager.leave()
                manager.release([sandbox])
            found.append((step, os.listdir(f"{BASE}/before" if step == "link" else place)))
        manager.close()
        return found

    found = in_world(volume, mode)
    assert found[:2] == [("there", ["there"]), ("anew", ["anew"])]
    assert found[2] == "SandboxError"
    # Nothing but the directory that the link leads to may have changed on the host.
    assert found[3] in ("SandboxError", ("link", ["there", "link"]), ("link", ["link", "there"]))


def test_a_mounted_file_in_a_volume_keeps_its_content(mode: Mode) -> None:
    """What is copied for the sandbox lies below the volume then, which is the host's."""
    skip_unless(mode)

    def volume() -> list[str]:
        plan = plan_here(SandboxSpec(volumes=(Volume(f"{BASE}/app", f"{BASE}/app"),)), mode)
        manager = _manager(mode)
        for _ in range(3):
            sandbox = manager.make(plan)
            manager.enter(sandbox, "/")
            manager.leave()
            manager.release([sandbox])
        manager.close()
        return [read_text(f"{BASE}/app/file"), read_text(f"{BASE}/source")]

    def prepare() -> None:
        mkdir("app")
        write("app/file", "below")
        write("source", "of the host")
        syscalls.mount("source", "app/file", None, syscalls.MS_BIND)

    assert in_world(volume, mode, prepare) == ["of the host", "of the host"]


def test_attributes_are_those_of_the_host_now(mode: Mode) -> None:
    """A suite changes a directory between two tests, in each way that a list has to notice."""
    skip_unless(mode)

    def change() -> None:
        manager = _manager(mode)
        plan = plan_here(SandboxSpec(), mode)
        manager.release([first := manager.make(plan)])
        assert first.template is not None
        assert first.template.calls is not None
        for step in range(4):
            if step == 0:
                os.chmod(BASE, 0o2751)
            elif step == 1:
                os.utime(BASE, (1000, 2000))
            elif step == 2 and mode == "root":
                os.chown(BASE, 4321, 1234)
            elif step == 3 and not set_attribute(BASE, "user.name", b"x"):
                continue
            host = os.stat(BASE)
            names = os.listxattr(BASE)
            sandbox = manager.make(plan)
            manager.enter(sandbox, "/")
            try:
                shown, also = os.stat(BASE), os.listxattr(BASE)
            finally:
                manager.leave()
                manager.release([sandbox])
            assert shown.st_mode == host.st_mode
            assert shown.st_mtime_ns == host.st_mtime_ns
            assert (shown.st_uid, shown.st_gid) == (host.st_uid, host.st_gid)
            assert also == names
        manager.close()

    in_world(change, mode)


def test_where_a_call_fails_a_root_is_made_step_by_step(mode: Mode) -> None:
    skip_unless(mode)

    def without_high_descriptors() -> None:
        manager = _manager(mode)
        plan = plan_here(SandboxSpec(), mode)
        sandbox = manager.make(plan)
        assert sandbox.template is not None
        assert sandbox.template.calls is not None
        _visit(manager, sandbox)
        for limit in (400, resource.getrlimit(resource.RLIMIT_NOFILE)[1]):
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, most))
            before = len(descriptors())
            sandbox = manager.make(plan)
            made = {sandbox.namespace, sandbox.scratch}
            # Others if something was written to a directory of the host meanwhile, as to /tmp: its
            # overlay is then made anew. No more in any case.
            assert len(set(descriptors()) - made) <= before
            assert all((fd < 400) == (limit == 400) for fd in made)
            _visit(manager, sandbox)
        manager.close()

    in_world(without_high_descriptors, mode)


def test_a_refused_call_is_named_as_step_by_step(mode: Mode) -> None:
    skip_unless(mode)

    def refused() -> str:
        manager = _manager(mode)
        plan = plan_here(SandboxSpec(), mode)
        manager.release([manager.make(plan)])
        home = os.readlink("/proc/self/ns/mnt")
        before = os.getcwd(), set(descriptors())
        install(refuse(["fsmount"], 1))
        with pytest.raises(Exception, match="fsmount") as info:
            manager.make(plan)
        assert os.getcwd() == before[0]
        # Those of a template are closed if the host has written to one of its directories.
        assert not set(descriptors()) - before[1]
        assert os.readlink("/proc/self/ns/mnt") == home
        return str(info.value)

    assert "EPERM" in in_world(refused, mode)


def test_what_a_test_writes_to_a_shared_overlay_is_gone(mode: Mode) -> None:
    skip_unless(mode)

    def covered() -> None:
        manager = _manager(mode)
        plan = plan_here(SandboxSpec(), mode)
        for _ in range(3):
            sandbox = manager.make(plan)
            manager.enter(sandbox, "/")
            try:
                assert os.listdir(f"{BASE}/inner") == ["host"]
                write(f"{BASE}/inner/test", "x")
                os.unlink(f"{BASE}/inner/host")
            finally:
                manager.leave()
                manager.release([sandbox])
            assert os.listdir(f"{BASE}/inner") == ["host"]
        manager.close()

    def prepare() -> None:
        mkdir("inner")
        mount_tmpfs(os.path.abspath("inner"), "mode=1777")
        write("inner/host", "host")

    in_world(covered, mode, prepare)


def test_an_older_library_performs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In an editable installation it is compiled when the package is installed."""
    monkeypatch.setattr(Call, "KINDS", Call.KINDS + 1)
    assert not is_available()
