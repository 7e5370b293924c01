"""The root of the next sandbox is made ahead, and given to it only if it is what is made then."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from pytest_mountns.engine.linux.call_list import is_available
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.mount import root_calls
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
]

VOLUME = f"{BASE}/volume"
SPEC = SandboxSpec(volumes=(Volume(VOLUME, VOLUME),))


@contextmanager
def managing(mode: Mode) -> Iterator[SandboxManager]:
    manager = SandboxManager([])
    if mode == "user":
        manager.move_to_user_namespace()
    try:
        yield manager
    finally:
        manager.close()


def prepare() -> None:
    mkdir("volume")
    write("volume/file", "first")


def is_ahead(manager: SandboxManager, make: Callable[[], Sandbox]) -> bool:
    """Whether the sandbox that is made has a mount namespace that was there before. Closes it."""
    before = set(descriptors().values())
    sandbox = make()
    here = os.readlink(f"/proc/self/fd/{sandbox.namespace}") in before
    manager.release([sandbox])
    return here


def seen(sandbox: Sandbox, path: str) -> str:
    """What a process sees in the sandbox at a path."""

    def look() -> str:
        home = os.readlink("/proc/self/ns/mnt")
        sandbox.enter("/")
        assert os.readlink("/proc/self/ns/mnt") != home
        return content(path)

    return in_child(look)


def test_the_next_sandbox_has_the_root_that_was_made_ahead(mode: Mode) -> None:
    skip_unless(mode)

    def run() -> list[object]:
        plan = plan_here(SPEC, mode)
        found: list[object] = []
        with managing(mode) as manager:
            first = manager.make(plan)
            manager.release([first])
            manager.make_ahead(first)
            # There is one at a time.
            manager.make_ahead(first)
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            manager.make_ahead(first)
            write("volume/file", "second")
            write("new", "of the host")
            sandbox = manager.make(plan)
            found += [seen(sandbox, f"{VOLUME}/file"), seen(sandbox, f"{BASE}/new")]
            manager.release([sandbox])
        return found

    assert in_world(run, mode, prepare) == [True, False, "second", "of the host"]


def _other_plan(manager: SandboxManager, plan: Plan) -> Sandbox:
    return manager.make(plan._replace())


def _volume_replaced(manager: SandboxManager, plan: Plan) -> Sandbox:
    os.rename(VOLUME, f"{VOLUME}-before")
    prepare()
    return manager.make(plan)


def _mode_of_a_root(manager: SandboxManager, plan: Plan) -> Sandbox:
    os.chmod(BASE, 0o700)
    return manager.make(plan)


def _attribute_of_a_root(manager: SandboxManager, plan: Plan) -> Sandbox:
    if not set_attribute(BASE, "user.x", b"x"):
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


CHANGES = [
    _other_plan,
    _volume_replaced,
    _mode_of_a_root,
    _attribute_of_a_root,
    _caches_dropped,
    _not_shared,
    _on_layers,
    _dropped,
]


@pytest.mark.parametrize("change", CHANGES)
def test_another_root_than_was_made_ahead_is_made_anew(
    mode: Mode, change: Callable[[SandboxManager, Plan], Sandbox]
) -> None:
    skip_unless(mode)

    def run() -> tuple[bool, set[str]]:
        plan = plan_here(SPEC, mode)
        with managing(mode) as manager:
            first = manager.make(plan)
            manager.release([first])
            without = set(descriptors().values())
            manager.make_ahead(first)
            made = set(descriptors().values()) - without
            assert made
            found = is_ahead(manager, lambda: change(manager, plan))
            return found, made.intersection(descriptors().values())

    # Nothing of what was made in vain is open any more.
    assert in_world(run, mode, prepare) == (False, set())


def test_a_file_that_is_copied_and_then_changed_is_copied_anew() -> None:
    """As containers have ``/etc/hosts``: a mounted file that a test may write to."""
    skip_unless("root")

    def prepare_files() -> None:
        prepare()
        mkdir("etc")
        for name in ("hosts", "etc/hosts"):
            write(name, "first")
        bind("hosts", "etc/hosts")

    def run() -> list[object]:
        plan = plan_here(SPEC, "root")
        found: list[object] = []
        with managing("root") as manager:
            first = manager.make(plan)
            manager.release([first])
            # It was changed a moment ago, and may be again within one tick of the clock.
            manager.make_ahead(first)
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            root_calls._TICK = 0  # type: ignore[misc]
            manager.make_ahead(first)
            found.append(is_ahead(manager, lambda: manager.make(plan)))
            manager.make_ahead(first)
            write("hosts", "later")
            os.chmod(f"{BASE}/etc", 0o700)
            sandbox = manager.make(plan)
            found.append(seen(sandbox, f"{BASE}/etc/hosts"))
            manager.release([sandbox])
        return found

    assert in_world(run, "root", prepare_files) == [False, True, "later"]


def test_no_more_are_made_where_they_are_made_in_vain(mode: Mode) -> None:
    skip_unless(mode)

    def run() -> list[bool]:
        plan = plan_here(SPEC, mode)
        found = []
        with managing(mode) as manager:
            first = manager.make(plan)
            manager.release([first])
            for used in (False, False, True, False, False, False, True):
                manager.make_ahead(first)
                if used:
                    found.append(is_ahead(manager, lambda: manager.make(plan)))
                else:
                    manager.drop_ahead()
        return found

    assert in_world(run, mode, prepare) == [True, False]


@pytest.mark.parametrize("call", ["fsopen", "fspick", "unshare", "move_mount"])
def test_a_refused_call_leaves_nothing(call: str) -> None:
    """The sandbox is made later, and that says what is refused."""
    skip_unless("root")

    def run() -> bool:
        plan = plan_here(SPEC, "root")
        with managing("root") as manager:
            first = manager.make(plan)
            manager.release([first])
            before, home = descriptors(), os.readlink("/proc/self/ns/mnt")
            install(refuse([call], errno.ENOMEM))
            manager.make_ahead(first)
            return descriptors() == before and os.readlink("/proc/self/ns/mnt") == home

    assert in_world(run, "root", prepare)


def test_a_root_whose_overlays_cannot_be_refreshed_is_not_taken() -> None:
    skip_unless("root")

    def run() -> bool:
        plan = plan_here(SPEC, "root")
        with managing("root") as manager:
            first = manager.make(plan)
            manager.release([first])
            assert first.template is not None
            assert first.template.overlays
            manager.make_ahead(first)
            # The roots that are made after this are not made at once, but step by step.
            install(refuse(["fspick"], errno.ENOMEM))
            return is_ahead(manager, lambda: manager.make(plan))

    with pytest.raises(SandboxError, match="ENOMEM"):
        in_world(run, "root", prepare)
