"""What a spec can ask for: read-only, limits, tmpfs, volumes."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs, Volume
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    ODD_NAMES,
    Mode,
    content,
    errno_of,
    host_unchanged,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    skip_unless,
    skip_unless_in_memory,
    write,
)


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
        # These were made for the mounts, and are not changes of the test.
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
        (
            Volume(f"{BASE}/v", f"{BASE}/file/x"),
            "a component of the target's path is not a directory",
        ),
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
        # It leads to the host's files, where nothing may be made.
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
