"""Uppers on disk: they work, and nothing of them outlives the session."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_mountns.engine.linux import processes, untouched
from pytest_mountns.engine.linux.errors import SandboxError, Unavailable
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.sandbox import disk_guard, disk_uppers
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.processes import fork
from tests.helpers.worlds import BASE, Mode, content, host_unchanged, in_sandbox, in_world, write


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where uppers on disk are made in this test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def gone(path: Path | str) -> bool:
    """Whether the path vanishes, now or soon."""
    deadline = time.monotonic() + 20
    while os.path.lexists(path):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def guard_of(uppers: disk_uppers.DiskUppers) -> int:
    """A descriptor of the process."""
    assert uppers._guard is not None
    return os.pidfd_open(uppers._guard.pid)


def has_ended(process: int) -> bool:
    ready, _, _ = select.select([process], [], [], 20)
    return bool(ready)


def test_an_upper_on_disk_takes_the_writes(mode: Mode, api: str) -> None:
    def test(sandbox: Sandbox) -> None:
        write("file", "changed")
        os.mkdir("new")
        os.unlink("removed")
        assert sandbox.changes() == {
            f"{BASE}/file": "modified",
            f"{BASE}/new": "added",
            f"{BASE}/removed": "deleted",
        }
        # The scratch is the directory on disk.
        assert os.fstat(sandbox.scratch).st_ino == inode

    inode = 0

    def host() -> None:
        nonlocal inode
        write("file", "x")
        write("removed", "x")
        os.mkdir("/srv/uppers")
        inode = os.stat("uppers").st_ino
        spec = SandboxSpec(upper="disk")
        in_sandbox(test, spec, mode=mode, api=api, directory=f"{BASE}/uppers")
        assert content("file") == "x"
        left = [f"{path}/work" for path, names, _ in os.walk("uppers") if "work" in names]
        assert left
        assert {stat.S_IMODE(os.stat(path).st_mode) for path in left} == {0}
        disk_uppers.remove(f"{BASE}/uppers")
        assert sorted(os.listdir(".")) == ["file", "removed"]

    in_world(host, mode)


def test_without_a_directory_it_says_so(mode: Mode) -> None:
    def host() -> None:
        in_sandbox(lambda _: None, SandboxSpec(upper="disk"), mode=mode)

    with pytest.raises(SandboxError, match="needs a directory"):
        in_world(host, mode)


def test_uppers_are_removed_at_the_end(place: Path) -> None:
    uppers = disk_uppers.DiskUppers()
    try:
        first, second = uppers.new(), uppers.new()
        assert first != second
        assert os.path.dirname(first) == os.path.dirname(second)
        assert stat.S_IMODE(os.stat(os.path.dirname(first)).st_mode) == 0o700
        os.makedirs(f"{first}/0.work/work")
        os.chmod(f"{first}/0.work/work", 0)
        guard = guard_of(uppers)
    finally:
        uppers.close()
    assert list(place.iterdir()) == []
    assert has_ended(guard)
    os.close(guard)


def test_nothing_is_made_before_it_is_needed(place: Path) -> None:
    disk_uppers.DiskUppers().close()
    assert list(place.iterdir()) == []


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _kill_group(pid: int) -> None:
    os.killpg(pid, signal.SIGKILL)


@pytest.mark.parametrize("kill", [_kill, _kill_group])
def test_uppers_are_removed_when_the_session_is_killed(
    place: Path, kill: Callable[[int], None]
) -> None:
    ours, theirs = socket.socketpair()
    session = fork()
    if session == 0:
        try:
            os.setpgid(0, 0)
            uppers = disk_uppers.DiskUppers()
            directory = uppers.new()
            os.makedirs(f"{directory}/0.work/work/deep")
            os.chmod(f"{directory}/0.work/work", 0)
            socket.send_fds(theirs, [b"."], [guard_of(uppers)])
            signal.pause()
        finally:
            os._exit(0)
    theirs.close()
    try:
        guard = socket.recv_fds(ours, 1, 1)[1][0]
        assert [path.name[:15] for path in place.iterdir()] == ["mountns-uppers-"]
    finally:
        kill(session)
        os.waitpid(session, 0)
        ours.close()
    assert has_ended(guard)
    os.close(guard)
    assert list(place.iterdir()) == []


def test_removing_opens_what_is_closed_and_follows_no_link(mode: Mode) -> None:
    def host() -> None:
        write("outside/file", "x")
        os.chmod("outside", 0o500)
        write("u/closed/deep/file", "x")
        os.symlink(f"{BASE}/outside", "u/closed/link")
        os.symlink(f"{BASE}/outside", "u/link")
        for path in ("u/closed/deep", "u/closed"):
            os.chmod(path, 0)
        before = os.stat("outside").st_mode
        disk_uppers.remove(f"{BASE}/u")
        assert os.listdir(".") == ["outside"]
        assert os.stat("outside").st_mode == before
        assert content("outside/file") == "x"

    in_world(host, mode)


def test_removing_what_is_not_there_is_fine(tmp_path: Path) -> None:
    disk_uppers.remove(str(tmp_path / "missing"))


def test_without_any_place_on_disk_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untouched.os, "access", lambda *_: False)
    with pytest.raises(SandboxError, match="no directory for an upper on disk") as info:
        disk_uppers.DiskUppers().new()
    assert "TMPDIR" in info.value.remedy


def test_the_hosts_tree_is_not_written_to(mode: Mode, api: str) -> None:
    def host() -> None:
        write("file", "x")
        os.mkdir("/srv/uppers")
        spec = SandboxSpec(upper="disk")
        with host_unchanged():
            in_sandbox(
                lambda _: write("file", "y"),
                spec,
                mode=mode,
                api=api,
                directory=f"{BASE}/uppers",
            )
            disk_uppers.remove(f"{BASE}/uppers")
            os.mkdir("/srv/uppers")

    in_world(host, mode)


@pytest.mark.parametrize(("call", "succeed"), [("mkdir", 0), ("mkdir", 1), ("fork", 0)])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_an_upper_that_cannot_be_made_is_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, call: str, succeed: int, number: int
) -> None:
    """The first ``succeed`` calls succeed."""
    where: Any = {"mkdir": untouched.os, "fork": disk_guard}[call]
    original = getattr(where, call)
    calls = 0

    def fails(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls <= succeed:
            return original(*arguments)
        raise OSError(number, os.strerror(number))

    uppers = disk_uppers.DiskUppers()
    with monkeypatch.context() as patched:
        patched.setattr(where, call, fails)
        with pytest.raises(Unavailable) as info:
            uppers.new()
    assert errno.errorcode[number] in info.value.kernel
    assert info.value.cause
    # The next time it can be removed.
    assert uppers.new().startswith(str(place))
    uppers.close()
    assert list(place.iterdir()) == []


def test_uppers_are_closed_whoever_has_ended_the_guard(place: Path) -> None:
    uppers = disk_uppers.DiskUppers()
    uppers.new()
    guard = guard_of(uppers)
    signal.pidfd_send_signal(guard, signal.SIGKILL)
    assert has_ended(guard)
    os.close(guard)
    uppers.close()
    assert list(place.iterdir()) == []


def test_the_guard_is_no_child(place: Path) -> None:
    """A program that waits for all of its children does not wait for the guard."""
    uppers = disk_uppers.DiskUppers()
    before = set(processes.children(os.getpid()))
    uppers.new()
    try:
        assert set(processes.children(os.getpid())) == before
    finally:
        uppers.close()


def test_the_guard_waits_as_long_as_the_session_lasts(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uppers that were removed in the middle of a session would be missed by its tests."""
    noted = tmp_path / "timeouts"
    real = select.poll

    class Poll:
        def __init__(self) -> None:
            self._real = real()
            self.register = self._real.register

        def poll(self, timeout: float | None = None) -> object:
            with noted.open("a") as file:
                print(timeout, file=file)
            return self._real.poll(timeout)

    uppers = disk_uppers.DiskUppers()
    with monkeypatch.context() as patched:
        patched.setattr(untouched.select, "poll", Poll)
        directory = uppers.new()
        while not noted.exists() or not noted.read_text().endswith("\n"):
            time.sleep(0.01)
    assert noted.read_text() == "None\n"
    assert os.path.isdir(directory)
    uppers.close()


def test_without_pidfds_the_guard_is_a_child(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    uppers = disk_uppers.DiskUppers()
    before = set(processes.children(os.getpid()))
    with monkeypatch.context() as patched:
        patched.setattr(untouched.os, "pidfd_open", fails)
        uppers.new()
    assert len(set(processes.children(os.getpid())) - before) == 1
    uppers.close()
    assert set(processes.children(os.getpid())) == before
    assert list(place.iterdir()) == []


def test_removing_never_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    (tmp_path / "upper/deep").mkdir(parents=True)
    monkeypatch.setattr(untouched.time, "sleep", lambda _: None)
    for name in ("rmdir", "unlink", "open", "scandir"):
        monkeypatch.setattr(untouched.os, name, fails)
    disk_uppers.remove(str(tmp_path / "upper"))
    monkeypatch.undo()
    assert (tmp_path / "upper").exists()
