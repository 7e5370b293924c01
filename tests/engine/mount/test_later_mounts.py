"""What the host mounts while a sandbox is there does not appear in it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from typing import TypeVar

import pytest

from pytest_mountns.engine.linux import ablation, syscalls
from pytest_mountns.engine.plan.model import Bind
from pytest_mountns.engine.plan.spec import SandboxSpec, Volume
from pytest_mountns.engine.sandbox.create import enter
from pytest_mountns.engine.sandbox.manager import SandboxManager
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    Mode,
    by_api,
    features_of,
    in_child,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    plan_here,
    skip_unless,
    write,
)

T = TypeVar("T")

#: Directories in which the host mounts something later: two volumes, one of them read-only.
SHOWN = (f"{BASE}/rw", f"{BASE}/ro")
SPEC = SandboxSpec(volumes=(Volume(SHOWN[0], SHOWN[0]), Volume(SHOWN[1], SHOWN[1], read_only=True)))


class _Host:
    """A process of the host that mounts a filesystem in each of the directories when it is told."""

    def __init__(self) -> None:
        self._told, self._tell = os.pipe()
        self._wait, self._done = os.pipe()

    def prepare(self) -> None:
        """In a world, with the privileges to mount."""
        # As systemd does it: every mount of the host appears in copies of its namespace.
        syscalls.mount(None, "/", None, syscalls.MS_SHARED | syscalls.MS_REC)
        for path in SHOWN:
            mkdir(f"{path}/later")
        if os.fork() == 0:
            status = 1
            try:
                os.close(self._tell)
                if os.read(self._told, 1):
                    for path in SHOWN:
                        mount_tmpfs(f"{path}/later")
                        write(f"{path}/later/file", "of the host")
                    os.write(self._done, b"+")
                    status = 0
            finally:
                os._exit(status)
        os.close(self._told)
        os.close(self._done)

    def mount(self) -> None:
        """Have it mount now."""
        os.write(self._tell, b"+")
        assert os.read(self._wait, 1) == b"+"


def _look(host: _Host) -> dict[str, object]:
    """What is seen in a sandbox of what the host mounts meanwhile. It is removed, if possible."""
    host.mount()
    found: dict[str, object] = {}
    for path in SHOWN:
        found[path] = os.listdir(f"{path}/later")
        with contextlib.suppress(OSError):
            os.unlink(f"{path}/later/file")
    return found


def _visit(sandbox: Sandbox, function: Callable[[], T]) -> T:
    def visit() -> T:
        home = os.readlink("/proc/self/ns/mnt")
        sandbox.enter("/")
        assert os.readlink("/proc/self/ns/mnt") != home
        return function()

    return in_child(visit)


def _make_shown() -> None:
    for path in SHOWN:
        mkdir(path)


def _contents() -> list[list[str]]:
    return [os.listdir(f"{path}/later") for path in SHOWN]


UNSEEN: dict[str, object] = {path: [] for path in SHOWN}
KEPT = [["file"], ["file"]]


@pytest.mark.parametrize("api", ["new", "attached", "classic"])
def test_later_mounts_do_not_appear(mode: Mode, api: str) -> None:
    """A test could write to them, even in a tree that is read-only."""
    skip_unless(mode)
    by_api(features_of(mode), api)
    host = _Host()

    def run() -> tuple[object, object]:
        return in_sandbox(lambda _: _look(host), SPEC, mode=mode, api=api), _contents()

    assert in_world(run, mode, host.prepare) == (UNSEEN, KEPT)


@pytest.mark.layered
@pytest.mark.parametrize("left_out", ["", "root_calls", "templates"])
def test_later_mounts_do_not_appear_in_roots_of_templates(mode: Mode, left_out: str) -> None:
    skip_unless(mode)
    host = _Host()

    def run() -> tuple[object, object]:
        ablation.LEFT_OUT = frozenset(filter(None, [left_out]))  # type: ignore[misc]
        plan = plan_here(SPEC, mode)
        manager = SandboxManager([])
        if mode == "user":
            manager.move_to_user_namespace()
        # The second one is made by a list of calls, where there is one.
        manager.release([manager.make(plan)])
        sandbox = manager.make(plan)
        found = _visit(sandbox, lambda: _look(host))
        manager.release([sandbox])
        manager.close()
        return found, _contents()

    assert in_world(run, mode, host.prepare) == (UNSEEN, KEPT)


def test_later_mounts_do_not_appear_in_a_volume_of_a_running_test(mode: Mode) -> None:
    skip_unless(mode)
    host = _Host()

    def run() -> tuple[object, object]:
        def visit(sandbox: Sandbox) -> object:
            for path in SHOWN:
                sandbox.bind(path, path)
            return _look(host)

        return in_sandbox(visit, mode=mode), _contents()

    by_api(features_of(mode), "attached")
    assert in_world(run, mode, host.prepare) == (UNSEEN, KEPT)


def test_a_bind_that_cannot_be_made_read_only_is_taken_away() -> None:
    """With mount(2), a tree is attached before its mounts become read-only one by one."""
    skip_unless("root")
    path = SHOWN[1]

    def run() -> list[str]:
        wanted = plan_here(SPEC, "root", api="classic")
        steps = tuple(
            step._replace(optional=True) if isinstance(step, Bind) and step.source == path else step
            for step in wanted.steps
        )
        assert steps != wanted.steps
        home = os.readlink("/proc/self/ns/mnt")
        mount = syscalls.mount

        def refuse(
            source: str | None, target: str, fstype: str | None, flags: int, *data: str
        ) -> None:
            if flags & syscalls.MS_REMOUNT and target.endswith(path):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            mount(source, target, fstype, flags, *data)

        def test() -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(syscalls, "mount", refuse)
                enter(wanted._replace(steps=steps), None)
            assert os.readlink("/proc/self/ns/mnt") != home
            write(f"{path}/of-the-test", "written")

        in_child(test)
        return os.listdir(path)

    assert in_world(run, "root", _make_shown) == []
