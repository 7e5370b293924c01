"""Plans follow what is mounted on the machine after a session has begun."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import Unavailable
from pytest_mountns.engine.plan.model import Plan
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox.manager import SandboxManager
from tests.helpers.worlds import (
    BASE,
    Mode,
    descriptors,
    hide_shared_directories,
    in_child,
    in_world,
    mkdir,
    mount_tmpfs,
    skip_unless,
    write,
)


def test_a_mount_that_appears_is_in_the_next_plan() -> None:
    mode: Mode = "root"
    skip_unless(mode)

    def host() -> None:
        planner = Planner([BASE])
        try:
            first = planner.plan(SandboxSpec())
            assert planner.plan(SandboxSpec()) is first
            mkdir("late")
            mount_tmpfs("late")
            second = planner.plan(SandboxSpec())
            before = [o.target for o in first.overlays]
            assert {"/", BASE} <= set(before)
            assert sorted(o.target for o in second.overlays) == sorted([*before, f"{BASE}/late"])
            assert planner.plan(SandboxSpec()) is second
            syscalls.umount("late")
            assert planner.plan(SandboxSpec()) == first
        finally:
            planner.close()

    in_world(host, mode)


def _mount_something() -> None:
    mkdir("late")
    mount_tmpfs("late")


def _use_shm() -> None:
    with open("/dev/shm/of-this-run", "x"):
        pass


@pytest.mark.parametrize("change", [_mount_something, _use_shm])
def test_nothing_made_from_old_plans_is_kept(change: Callable[[], None]) -> None:
    """Their templates would be open until the end of the session, and no test can use them."""
    skip_unless("root")

    def host() -> None:
        hide_shared_directories()
        manager = SandboxManager([])
        planner = Planner([BASE], mounts_changed=manager.drop_caches)
        plans, counts = [], []
        for _ in range(2):
            plans.append(planner.plan(SandboxSpec()))
            manager.release([manager.make(plans[-1])])
            counts.append(len(descriptors()))
            if len(plans) == 1:
                change()
        assert plans[0] is not plans[1]
        assert counts[0] == counts[1]
        planner.close()
        manager.close()

    in_world(host, "root")


@pytest.mark.layered
@pytest.mark.parametrize("forked", [False, True], ids=["inline", "forked"])
def test_a_layer_that_a_test_adds_changes_no_later_plan(forked: bool) -> None:
    """Its stage may not show what was mounted since it was made, and the next test is to see it."""
    skip_unless("root")

    def host() -> None:
        manager = SandboxManager([BASE])
        planner = Planner([BASE], mounts_changed=manager.drop_caches)
        mkdir("layer")
        first = planner.plan(SandboxSpec())
        sandbox = manager.make(first)
        spec = SandboxSpec(layers=(f"{BASE}/layer",))

        def add_layer() -> None:
            with sandbox.on_stage():
                assert f"{BASE}/late" not in _targets(planner.plan_on_stage(spec))
            # The stage is still open.
            with sandbox.on_stage():
                pass

        _mount_something()
        if forked:
            in_child(add_layer)
        else:
            add_layer()
        assert f"{BASE}/late" in _targets(planner.plan(SandboxSpec()))
        assert f"{BASE}/late" in _targets(planner.plan(spec))
        manager.release([sandbox])
        planner.close()
        manager.close()

    in_world(host, "root")


def _targets(plan: Plan) -> list[str]:
    return [overlay.target for overlay in plan.overlays]


def test_a_directory_of_its_own_needs_a_kernel_that_mounts_it() -> None:
    skip_unless("root")

    def host() -> None:
        planner = Planner([BASE])
        found = planner.findings
        assert found.features is not None
        features = found.features._replace(detached_uppers=False)
        planner.findings = found._replace(features=features)
        try:
            assert planner.plan(SandboxSpec())
            with pytest.raises(Unavailable, match="tmp_path a mount of its own") as info:
                planner.plan(SandboxSpec(tmp_path="own"))
            assert "6.15" in info.value.cause
            assert 'tmp_path="shared"' in info.value.remedy
        finally:
            planner.close()

    in_world(host, "root")


def test_a_late_mount_that_is_no_lower_is_shown_read_only() -> None:
    mode: Mode = "root"
    skip_unless(mode)

    def nest(level: int) -> str:
        """It is an overlay on an overlay, and the kernel stacks no third one on it."""
        lower = "nested/0"
        write(f"{lower}/file", "x")
        for number in range(1, level + 1):
            for name in ("upper", "work"):
                mkdir(f"nested/{number}.{name}")
            mkdir(f"nested/{number}")
            options = f"lowerdir={lower},upperdir=nested/{number}.upper"
            syscalls.mount(
                "overlay",
                f"nested/{number}",
                "overlay",
                0,
                f"{options},workdir=nested/{number}.work",
            )
            lower = f"nested/{number}"
        return lower

    def host() -> None:
        planner = Planner([BASE])
        try:
            planner.plan(SandboxSpec())
            path = f"{BASE}/{nest(2)}"
            described = planner.plan(SandboxSpec()).describe()
        finally:
            planner.close()
        assert f"read-only bind {path}" in described
        assert f"overlay {BASE}/nested/1 " in described

    in_world(host, mode)
