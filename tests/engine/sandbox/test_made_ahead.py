"""The root of the next sandbox is made ahead, and given to it only if it is what is made then."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pytest_mountns.engine.linux.call_list import is_available
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.mount.executor import LARGEST_SEED
from pytest_mountns.engine.mount.root import NewRoot, RootAhead
from pytest_mountns.engine.plan.model import Plan
from pytest_mountns.engine.plan.spec import SandboxSpec, Volume
from pytest_mountns.engine.sandbox.manager import SandboxManager
from pytest_mountns.engine.sandbox.sandbox import Layers, Sandbox
from tests.helpers.seccomp import install, refuse
from tests.helpers.worlds import (
    BASE,
    Mode,
    bind,
    content,
    descriptors,
    hide_shared_directories,
    in_child,
    in_world,
    mkdir,
    plan_here,
    set_attribute,
    skip_unless,
    write,
)

pytestmark = [
    pytest.mark.layered,
    pytest.mark.skipif(not is_available(), reason="installed without a C compiler"),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor"),
]

#: Whether a helper makes the root.
BESIDE = pytest.mark.parametrize("beside", [False, True], ids=["waiting", "beside"])
VOLUME = f"{BASE}/volume"
SPEC = SandboxSpec(volumes=(Volume(VOLUME, VOLUME),))


@contextmanager
def begun(mode: Mode) -> Iterator[tuple[SandboxManager, Plan, Sandbox]]:
    """A manager that has made a sandbox of this plan, and released it."""
    plan = plan_here(SPEC, mode)
    manager = SandboxManager([])
    if mode == "user":
        manager.move_to_user_namespace()
    try:
        first = manager.make(plan)
        manager.release([first])
        yield manager, plan, first
    finally:
        manager.close()


def prepare() -> None:
    hide_shared_directories()
    _make_volume()


def _make_volume() -> None:
    mkdir("volume")
    write("volume/file", "first")


def is_ahead(manager: SandboxManager, make: Callable[[], Sandbox]) -> bool:
    """Whether the sandbox that is made has a root that was there before. Closes it."""
    taken: list[bool] = []

    def take(self: RootAhead, *arguments: Any) -> NewRoot | None:
        root = original(self, *arguments)
        taken.append(root is not None)
        return root

    original = RootAhead.take
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RootAhead, "take", take)
        sandbox = make()
    manager.release([sandbox])
    return any(taken)


def seen(sandbox: Sandbox, path: str, read: Callable[[str], str | bytes] = content) -> str | bytes:
    """What a process sees in the sandbox at a path."""

    def look() -> str | bytes:
        home = os.readlink("/proc/self/ns/mnt")
        sandbox.enter("/")
        assert os.readlink("/proc/self/ns/mnt") != home
        return read(path)

    return in_child(look)


@BESIDE
def test_the_next_sandbox_has_the_root_that_was_made_ahead(mode: Mode, beside: bool) -> None:
    skip_unless(mode)

    def run() -> list[object]:
        found: list[object] = []
        with begun(mode) as (manager, plan, first):
            manager.make_ahead(first, beside=beside)
            # There is one at a time.
            manager.make_ahead(first, beside=beside)
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            manager.make_ahead(first, beside=beside)
            write("volume/file", "second")
            write("new", "of the host")
            sandbox = manager.make(plan)
            found += [seen(sandbox, f"{VOLUME}/file"), seen(sandbox, f"{BASE}/new")]
            manager.release([sandbox])
        return found

    assert in_world(run, mode, prepare) == [True, False, "second", "of the host"]


@BESIDE
def test_a_directory_with_attributes_does_not_hinder_it(mode: Mode, beside: bool) -> None:
    """With SELinux each directory has one."""
    skip_unless(mode)

    def prepare_attribute() -> None:
        prepare()
        if not set_attribute(BASE, "user.label", b"of the host"):
            pytest.skip("no extended attributes here")

    def run() -> list[object]:
        found: list[object] = []
        with begun(mode) as (manager, plan, sandbox):
            manager.make_ahead(sandbox, beside=beside)
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            # Since the first change the directory has an overlay of its own.
            for value in (b"second", b"third"):
                manager.make_ahead(sandbox, beside=beside)
                os.setxattr(BASE, "user.label", value)
                sandbox = manager.make(plan)
                found.append(seen(sandbox, BASE, lambda path: os.getxattr(path, "user.label")))
                manager.release([sandbox])
                # That is what is expected now.
                manager.make_ahead(sandbox, beside=beside)
                found.append(is_ahead(manager, lambda: manager.make(plan)))
        return found

    assert in_world(run, mode, prepare_attribute) == [True, b"second", True, b"third", True]


@functools.cache
def _another(plan: Plan) -> Plan:
    """An equal plan. It is the same each time: the templates of each plan are kept."""
    return plan._replace()


def _other_plan(manager: SandboxManager, plan: Plan) -> Sandbox:
    return manager.make(_another(plan))


def _volume_replaced(manager: SandboxManager, plan: Plan) -> Sandbox:
    os.rename(VOLUME, f"{VOLUME}-before-{len(os.listdir(BASE))}")
    _make_volume()
    return manager.make(plan)


def _mode_of_a_root(manager: SandboxManager, plan: Plan) -> Sandbox:
    os.chmod(BASE, 0o700 ^ os.stat(BASE).st_mode & 0o055)
    return manager.make(plan)


def _attribute_of_a_root(manager: SandboxManager, plan: Plan) -> Sandbox:
    if not set_attribute(BASE, f"user.x{len(os.listxattr(BASE))}", b"x"):
        pytest.skip("no extended attributes here")
    return manager.make(plan)


def _caches_dropped(manager: SandboxManager, plan: Plan) -> Sandbox:
    manager.drop_caches()
    return manager.make(plan)


def _not_shared(manager: SandboxManager, plan: Plan) -> Sandbox:
    return manager.make(plan, shared=False)


def _on_layers(manager: SandboxManager, plan: Plan) -> Sandbox:
    below = Layers({BASE: (VOLUME,)}, manager.stage, frozenset())
    return manager.make(plan, layers=below)


def _dropped(manager: SandboxManager, plan: Plan) -> Sandbox:
    manager.drop_ahead()
    return manager.make(plan)


def _other_group(manager: SandboxManager, plan: Plan) -> Sandbox:
    if os.geteuid():
        pytest.skip("this user has one group")
    os.setegid(7 - os.getegid())
    return manager.make(plan)


CHANGES = [
    _other_group,
    _other_plan,
    _volume_replaced,
    _mode_of_a_root,
    _attribute_of_a_root,
    _caches_dropped,
    _not_shared,
    _on_layers,
    _dropped,
]


@BESIDE
@pytest.mark.parametrize("change", CHANGES)
def test_another_root_than_was_made_ahead_is_made_anew(
    mode: Mode, change: Callable[[SandboxManager, Plan], Sandbox], beside: bool
) -> None:
    skip_unless(mode)

    def run() -> tuple[bool, int]:
        numbers = []
        with begun(mode) as (manager, plan, first):
            for _ in range(2):
                manager.make_ahead(first, beside=beside)
                found = is_ahead(manager, lambda: change(manager, plan))
                numbers.append(len(descriptors()))
            return found, numbers[1] - numbers[0]

    # Nothing of what was made in vain is open any more.
    assert in_world(run, mode, prepare) == (False, 0)


@BESIDE
def test_a_file_that_is_copied_is_that_of_now(beside: bool) -> None:
    """As containers have ``/etc/hosts``: a mounted file that a test may write to."""
    skip_unless("root")

    def prepare_files() -> None:
        prepare()
        mkdir("etc")
        for name in ("hosts", "etc/hosts"):
            write(name, "first")
        bind("hosts", "etc/hosts")

    def run() -> list[object]:
        found: list[object] = []
        with begun("root") as (manager, plan, first):
            manager.make_ahead(first, beside=beside)
            write("hosts", "later")
            os.chmod(f"{BASE}/etc", 0o700)
            sandbox = manager.make(plan)
            found.append(seen(sandbox, f"{BASE}/etc/hosts"))
            manager.make_ahead(first, beside=beside)
            write("hosts", "x" * (LARGEST_SEED + 1))
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            manager.release([sandbox])
        return found

    assert in_world(run, "root", prepare_files) == ["later", False]


@BESIDE
def test_no_more_are_made_where_they_are_made_in_vain(mode: Mode, beside: bool) -> None:
    skip_unless(mode)

    def run() -> list[bool]:
        found: list[bool] = []
        with begun(mode) as (manager, plan, first):
            for used in (False, False, True, False, False, False, True):
                manager.make_ahead(first, beside=beside)
                if used:
                    found.append(is_ahead(manager, lambda: manager.make(plan)))
                else:
                    manager.drop_ahead()
        return found

    assert in_world(run, mode, prepare) == [True, False]


@BESIDE
def test_none_is_made_on_one_processor(beside: bool) -> None:
    """There it costs time."""
    skip_unless("root")

    def run() -> bool:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        with begun("root") as (manager, plan, first):
            manager.make_ahead(first, beside=beside)
            return is_ahead(manager, lambda: manager.make(plan))

    assert not in_world(run, "root", prepare)


@pytest.mark.parametrize("call", ["fsopen", "fspick", "unshare", "move_mount"])
def test_a_refused_call_leaves_nothing(call: str) -> None:
    """The sandbox is made later, and that says what is refused."""
    skip_unless("root")

    def run() -> bool:
        with begun("root") as (manager, _, first):
            before, home = descriptors(), os.readlink("/proc/self/ns/mnt")
            install(refuse([call], errno.ENOMEM))
            manager.make_ahead(first)
            return descriptors() == before and os.readlink("/proc/self/ns/mnt") == home

    assert in_world(run, "root", prepare)


def test_a_root_whose_overlays_cannot_be_refreshed_is_not_taken() -> None:
    skip_unless("root")

    def run() -> bool:
        with begun("root") as (manager, plan, first):
            assert first.template is not None
            assert first.template.overlays
            manager.make_ahead(first)
            # The roots that are made after this are not made at once, but step by step.
            install(refuse(["fspick"], errno.ENOMEM))
            return is_ahead(manager, lambda: manager.make(plan))

    with pytest.raises(SandboxError, match="ENOMEM"):
        in_world(run, "root", prepare)
