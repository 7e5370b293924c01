"""Sandboxes share a /dev one after another, and no test sees what another has done to it."""

from __future__ import annotations

import errno
import os
import pty
import socket
import stat
from collections.abc import Callable
from contextlib import suppress

import pytest

from pytest_mountns.engine.plan.spec import SandboxSpec, Tmpfs
from pytest_mountns.engine.sandbox.manager import SandboxManager
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.seccomp import install, refuse
from tests.helpers.worlds import Mode, in_child, in_world, plan_here, skip_unless

pytestmark = pytest.mark.layered


def _socket() -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("/dev/log")


def _replace_link() -> None:
    os.symlink("/etc/passwd", "/dev/other")
    os.rename("/dev/other", "/dev/stdin")


def _remove_all() -> None:
    for name in os.listdir("/dev"):
        if name not in ("pts", "shm"):
            os.unlink(f"/dev/{name}")


def _set_attribute() -> None:
    try:
        os.setxattr("/dev", "user.name", b"x")
    except OSError:
        os.chmod("/dev", 0o700)


_REFUSALS = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EBUSY, errno.EOVERFLOW)

#: What may be left open by :func:`_terminal`.
_opened: list[int] = []


def _terminal() -> None:
    _opened.extend(pty.openpty())


CHANGES: dict[str, Callable[[], object]] = {
    "a new file": lambda: os.close(os.open("/dev/new", os.O_CREAT)),
    "a file in a new directory": lambda: os.makedirs("/dev/new/inner"),
    "a node is removed": lambda: os.unlink("/dev/zero"),
    "a link is removed": lambda: os.unlink("/dev/stdout"),
    "a link is replaced": _replace_link,
    "a node is renamed": lambda: os.rename("/dev/full", "/dev/empty"),
    "a hard link": lambda: os.link("/dev/fd", "/dev/other", follow_symlinks=False),
    "all is removed": _remove_all,
    "its mode": lambda: os.chmod("/dev", 0o700),
    "the mode of a node": lambda: os.chmod("/dev/zero", 0o600),
    "the time of a node": lambda: os.utime("/dev/zero", (1, 1)),
    "the owner of a link": lambda: os.lchown("/dev/fd", 5, 5),
    "an attribute": _set_attribute,
    "a socket": _socket,
    "an open terminal": _terminal,
    "the mode of ptmx": lambda: os.chmod("/dev/pts/ptmx", 0o600),
    "the mode of pts": lambda: os.chmod("/dev/pts", 0o700),
}


def _looks() -> tuple[int, dict[str, object]]:
    """The device number of ``/dev``, and all that can be seen of it."""
    found: dict[str, object] = {}
    for directory in ("/dev", "/dev/pts", "/dev/shm"):
        for name in (".", *sorted(os.listdir(directory))):
            status = os.lstat(path := f"{directory}/{name}")
            link = os.readlink(path) if stat.S_ISLNK(status.st_mode) else ""
            found[path] = (
                *(status.st_mode, status.st_uid, status.st_gid, status.st_rdev, status.st_nlink),
                *(link, os.listxattr(path, follow_symlinks=False)),
                status.st_mtime_ns == 1_000_000_000,
            )
    with open("/proc/self/mountinfo") as file:
        lines = [line.split() for line in file]
    found["mounts"] = sorted(
        (fields[4], fields[5], fields[fields.index("-") + 1])
        for fields in lines
        if fields[4].startswith("/dev")
    )
    return os.stat("/dev").st_dev, found


class _Visits:
    """Visits one sandbox after another, and keeps them, so that no device number is given twice."""

    def __init__(self, mode: Mode, spec: SandboxSpec | None = None) -> None:
        self.manager = SandboxManager([])
        if mode == "user":
            self.manager.move_to_user_namespace()
        self._plan = plan_here(spec or SandboxSpec(), mode)
        self._kept: list[Sandbox] = []

    def make(self) -> Sandbox:
        self._kept.append(self.manager.make(self._plan))
        return self._kept[-1]

    def visit(self, do: Callable[[], object] = lambda: None) -> tuple[int, dict[str, object]]:
        """What a sandbox looks like before ``do`` is done in it."""
        home = os.readlink("/proc/self/ns/mnt")
        self.manager.enter(self.make(), "/")
        try:
            assert os.readlink("/proc/self/ns/mnt") != home
            seen = _looks()
            do()
            return seen
        finally:
            self.manager.leave()

    def close(self) -> None:
        self.manager.release(self._kept)
        self.manager.close()


def _use() -> None:
    """Use the devices as tests do."""
    for name in ("null", "zero", "full"):
        with open(f"/dev/{name}", "r+b", buffering=0) as file:
            file.read(1)
            with suppress(OSError):
                file.write(b"x")
    with open("/dev/shm/segment", "w") as segment:
        segment.write("x")
    os.listdir("/dev/pts")


def test_it_is_shared_while_it_is_only_used(mode: Mode) -> None:
    skip_unless(mode)

    def run() -> list[tuple[int, dict[str, object]]]:
        visits = _Visits(mode)
        found = [visits.visit(_use) for _ in range(6)]
        visits.close()
        return found

    found = in_world(run, mode)
    # Once in a while it is made anew: another of the shared mounts has changed on this machine.
    assert len({device for device, _ in found}) < len(found)
    assert all(seen == found[0][1] for _, seen in found)
    targets = [(mount[0], mount[2]) for mount in found[0][1]["mounts"]]  # type: ignore[attr-defined]
    for expected in (("/dev", "tmpfs"), ("/dev/pts", "devpts"), ("/dev/shm", "tmpfs")):
        assert expected in targets


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_is_seen_by_the_next_test(mode: Mode, change: str) -> None:
    skip_unless(mode)

    def run() -> tuple[bool, list[tuple[int, dict[str, object]]]]:
        visits = _Visits(mode)
        found = [visits.visit()]
        done = True

        def make_change() -> None:
            nonlocal done
            try:
                CHANGES[change]()
            except OSError as error:
                # An ordinary user may not do everything.
                if mode == "root" or error.errno not in _REFUSALS:
                    raise
                done = False

        found.append(visits.visit(make_change))
        found += [visits.visit() for _ in range(2)]
        for fd in _opened:
            os.close(fd)
        visits.close()
        return done, found

    done, found = in_world(run, mode)
    first, second, third, fourth = found
    assert second[1] == first[1]
    assert third[1] == first[1]
    assert fourth[1] == first[1]
    if done:
        assert third[0] != first[0]


def test_a_mount_in_it_is_not_shared(mode: Mode) -> None:
    skip_unless(mode)

    def run() -> list[int]:
        visits = _Visits(mode, SandboxSpec(tmpfs=(Tmpfs("/dev/hugepages"),)))
        found = [visits.visit()[0] for _ in range(2)]
        visits.close()
        return found

    assert len(set(in_world(run, mode))) == 2


def test_a_forked_process_takes_nobody_s_notice(mode: Mode) -> None:
    """It has the same descriptor, and must neither read from it nor end the watch."""
    skip_unless(mode)

    def run() -> list[tuple[int, dict[str, object]]]:
        visits = _Visits(mode)
        found = [visits.visit()]

        sandbox = visits.make()

        def in_copy() -> tuple[int, dict[str, object]]:
            found = visits.visit(lambda: os.mkdir("/dev/copy"))
            visits.manager.enter(sandbox, "/")
            os.mkdir("/dev/new")
            visits.manager.leave()
            visits.manager.drop_caches()
            return found

        found.append(in_child(in_copy))
        found.append(visits.visit())
        visits.close()
        return found

    first, second, third = in_world(run, mode)
    assert first[1] == second[1]
    assert third[1] == first[1]
    assert first[0] not in (second[0], third[0])


@pytest.mark.parametrize("call", ["inotify_init1", "inotify_add_watch"])
def test_without_watches_each_has_its_own(mode: Mode, call: str) -> None:
    """A user may have no more of them: EMFILE, or ENOSPC."""
    skip_unless(mode)

    def run() -> list[tuple[int, dict[str, object]]]:
        install(refuse([call], errno.EMFILE))
        visits = _Visits(mode)
        found = [visits.visit() for _ in range(2)]
        visits.close()
        return found

    first, second = in_world(run, mode)
    assert first[0] != second[0]
    assert first[1] == second[1]
