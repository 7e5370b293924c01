"""An ordinary user's directories that contain mounts are assembled, and can be written to."""

from __future__ import annotations

import errno
import os
import stat

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    content,
    errno_of,
    host_unchanged,
    in_sandbox,
    in_world,
    mark,
    marks,
    mkdir,
    mount_tmpfs,
    remount,
    reset,
    skip_unless,
    write,
)


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
