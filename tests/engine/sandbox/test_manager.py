"""The manager's way into a user namespace, what stops it, and its ways in and out of sandboxes."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Mapping

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.background_close import BackgroundCloser
from pytest_mountns.engine.linux.errors import SandboxError, Unavailable
from pytest_mountns.engine.linux.namespaces import WayBack, high, make_stage
from pytest_mountns.engine.linux.syscalls import CLONE_NEWUSER
from pytest_mountns.engine.mount.executor import PlanExecutor
from pytest_mountns.engine.plan.model import Bind, Plan
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox.create import make
from pytest_mountns.engine.sandbox.manager import SandboxManager
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from pytest_mountns.engine.sandbox.stack import SandboxStack
from pytest_mountns.engine.sandbox.written import Written
from tests.helpers.environments import ENVIRONMENTS
from tests.helpers.interruptions import Bell, Interruption
from tests.helpers.seccomp import Refusal, install
from tests.helpers.worlds import (
    BASE,
    Mode,
    bind,
    descriptors,
    hide_shared_directories,
    in_world,
    mkdir,
    plan_here,
    skip_unless,
    write,
)

BY_NAME = {environment.name: environment for environment in ENVIRONMENTS}


def refusal() -> Unavailable:
    """Why this process cannot move; it is then where it was, and its manager can be closed."""
    # Where this process is in a user namespace already, it would go on in that.
    syscalls.capset(0, 0, 0)
    manager = SandboxManager([])
    before = os.readlink("/proc/self/ns/mnt")
    with pytest.raises(Unavailable) as info:
        manager.move_to_user_namespace()
    assert not manager.in_user_namespace
    assert os.readlink("/proc/self/ns/mnt") == before
    manager.close()
    return info.value


def refused_in(name: str) -> Unavailable:
    """Why a process cannot move in one of the known environments."""
    error = BY_NAME[name].run(refusal)
    assert isinstance(error, Unavailable)
    return error


def unshare_answers(number: int) -> Callable[[], Unavailable]:
    """A process of which unshare(CLONE_NEWUSER) answers so."""

    def refused() -> Unavailable:
        install([Refusal("unshare", number, CLONE_NEWUSER)])
        return refusal()

    return refused


def _written(sandbox: Sandbox) -> Mapping[str, str]:
    """Read on the host, as it is after a test that is kept."""
    with Written.of_sandbox(sandbox).changes() as changes:
        return {change.path: change.kind for change in changes.matching(BASE)}


def _run_a_test(manager: SandboxManager, planner: Planner) -> None:
    """While it runs, a wider fixture that it has asked for drops what is kept for reuse."""
    old = manager.make(planner.plan(SandboxSpec()))
    assert old.template is not None
    assert BASE in [one.mountpoint for one in old.template.overlays]
    stack = SandboxStack(old, manager.release)
    manager.enter(old, "/", lambda: stack.sandbox)
    write(f"{BASE}/one")
    with manager.on_host():
        manager.drop_caches()
        # The numbers of what was closed are taken again.
        taken = [high(os.open("/dev/null", os.O_RDONLY)) for _ in range(20)]
        new = manager.make(planner.plan(SandboxSpec()))
        assert new.stage != old.stage
        assert new.template is not old.template
    old.bind(f"{BASE}/source", f"{BASE}/source")
    assert old.changes().matching(BASE) == {f"{BASE}/one": "added"}
    with stack.checkpoint():
        assert os.path.exists(f"{BASE}/one")
        write(f"{BASE}/two")
    assert not os.path.exists(f"{BASE}/two")
    manager.leave()
    manager.release([new])
    manager.drop_caches()
    assert _written(old) == {f"{BASE}/one": "added"}
    stack.close()
    for fd in taken:
        os.close(fd)


@pytest.mark.layered
def test_what_an_open_sandbox_was_made_from_is_not_closed() -> None:
    skip_unless("root")

    def host() -> None:
        hide_shared_directories()
        mkdir("source")
        before = descriptors()
        manager = SandboxManager([])
        planner = Planner([], mounts_changed=manager.drop_caches)
        wider = manager.make(planner.plan(SandboxSpec()), shared=False)
        counts = set()
        for _ in range(3):
            _run_a_test(manager, planner)
            manager.drop_caches()
            counts.add(len(descriptors()))
        # Nothing is kept but what the sandbox of a wider fixture was made from.
        assert len(counts) == 1
        assert wider.template is not None
        assert stat.S_ISDIR(os.fstat(wider.template.scratch).st_mode)
        manager.release([wider])
        planner.close()
        manager.close()
        assert len(descriptors()) == len(before)

    in_world(host, "root")


def test_several_threads() -> None:
    def with_threads() -> Unavailable:
        end = threading.Event()
        threads = [threading.Thread(target=end.wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            return refusal()
        finally:
            end.set()
            for thread in threads:
                thread.join()

    error = in_world(with_threads, "user")
    assert "EINVAL" in error.kernel
    assert "it has 3 threads" in error.cause
    assert "run as root" in error.remedy


@pytest.mark.no_mountns(reason="a sandbox is no chroot, and has no other")
def test_a_chroot() -> None:
    def prepare() -> None:
        mkdir("jail/proc")
        bind("/proc", "jail/proc")
        os.chroot("jail")
        os.chdir("/")

    error = in_world(refusal, "user", prepare)
    assert "EPERM" in error.kernel
    assert "chroot" in error.cause
    assert "AppArmor" not in error.cause
    assert "outside of the chroot" in error.remedy


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.EPERM, "a seccomp filter forbids it", "seccomp=unconfined"),
        (errno.EUSERS, "nested too deep", "further out"),
        (errno.ENOSPC, "user.max_user_namespaces", "sysctl -w user.max_user_namespaces"),
    ],
    ids=["EPERM", "EUSERS", "ENOSPC"],
)
def test_the_kernel_refuses_the_namespace(number: int, cause: str, remedy: str) -> None:
    error = in_world(unshare_answers(number), "user")
    assert error.tried == "make a user namespace"
    assert errno.errorcode[number] in error.kernel
    assert cause in error.cause
    assert remedy in error.remedy


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_a_limit_of_none() -> None:
    error = refused_in("no-user-namespaces")
    assert "ENOSPC" in error.kernel
    assert error.cause == "user.max_user_namespaces is 0"


@pytest.mark.no_mountns(reason="writes to /proc/sys")
@pytest.mark.parametrize(
    ("name", "tried", "kernel"),
    [("apparmor", "/proc/self/setgroups", "EACCES"), ("apparmor-late", "mount namespace", "EPERM")],
)
def test_apparmor(name: str, tried: str, kernel: str) -> None:
    error = refused_in(name)
    assert tried in error.tried
    assert kernel in error.kernel
    assert error.cause.startswith("AppArmor")
    assert "apparmor_restrict_unprivileged_userns=0" in error.remedy


def test_the_maps_may_not_be_written_and_nobody_knows_why() -> None:
    # The call says that it has made the namespace, and has not.
    error = in_world(unshare_answers(0), "user")
    assert "/proc/self/setgroups" in error.tried
    assert "EACCES" in error.kernel or "EPERM" in error.kernel
    assert "gives no rights" in error.cause or "seccomp" in error.cause
    assert error.remedy


@pytest.mark.parametrize("at", ["before", "within"])
@pytest.mark.parametrize("when", ["begin", "end"])
def test_a_handler_raises_on_the_way_to_the_host_or_back(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, when: str, at: str
) -> None:
    """The process is in the sandbox again, with no more rights than before."""

    def interrupted(manager: SandboxManager, bell: Bell) -> None:
        bell.is_armed = when == "begin"
        with manager.on_host():
            bell.is_armed = when == "end"

    def run() -> None:
        plan = plan_here(SandboxSpec(), mode)
        manager = SandboxManager([])
        if mode == "user":
            manager.move_to_user_namespace()
        sandbox = manager.make(plan)
        host = os.readlink("/proc/self/ns/mnt")
        manager.enter(sandbox, "/")
        inside = os.readlink("/proc/self/ns/mnt")
        capabilities = syscalls.capget()
        bell = Bell(monkeypatch)
        bell.put_at_mask(at)
        with pytest.raises(Interruption):
            interrupted(manager, bell)
        assert os.readlink("/proc/self/ns/mnt") == inside != host
        assert syscalls.capget() == capabilities
        with manager.on_host():
            assert os.readlink("/proc/self/ns/mnt") == host
        manager.leave()
        assert os.readlink("/proc/self/ns/mnt") == host
        manager.release([sandbox])
        manager.close()

    in_world(run, mode)


def _make_at_once(manager: SandboxManager, plan: Plan) -> None:
    manager.make(plan)


def _make_on_a_template(manager: SandboxManager, plan: Plan) -> None:
    manager.make(plan, bound=[Bind(BASE, f"{BASE}/target", False, create=True)])


def _make_without_a_template(manager: SandboxManager, plan: Plan) -> None:
    make(plan, manager.stage)


def _make_a_template(manager: SandboxManager, plan: Plan) -> None:
    # It is of this object.
    manager.make(plan._replace())


@pytest.mark.layered
@pytest.mark.parametrize(
    "action", [_make_at_once, _make_on_a_template, _make_without_a_template, _make_a_template]
)
def test_a_handler_raises_when_a_root_was_made_and_nothing_is_left(
    mode: Mode,
    monkeypatch: pytest.MonkeyPatch,
    action: Callable[[SandboxManager, Plan], None],
) -> None:
    def run() -> None:
        plan = plan_here(SandboxSpec(), mode)
        manager = SandboxManager([])
        if mode == "user":
            manager.move_to_user_namespace()
        manager.make(plan).close()
        before = descriptors()
        bell = Bell(monkeypatch)
        # It waits until this process is back from the stage.
        bell.put_after(WayBack, "away")
        bell.is_armed = True
        with pytest.raises(Interruption):
            action(manager, plan)
        assert descriptors() == before
        manager.make(plan).close()
        manager.close()

    in_world(run, mode)


def test_a_handler_raises_when_a_stage_was_made_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> None:
        before = descriptors()
        bell = Bell(monkeypatch)
        bell.put_after(WayBack, "away")
        bell.is_armed = True
        with pytest.raises(Interruption):
            make_stage()
        assert descriptors() == before

    in_world(run, "root")


@pytest.mark.layered
def test_a_template_that_cannot_be_made_leaves_nothing_open(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> None:
        plan = plan_here(SandboxSpec(), mode)
        manager = SandboxManager([])
        if mode == "user":
            manager.move_to_user_namespace()
        manager.make(plan).close()
        before = descriptors()
        for failing in ("execute", "__init__"):
            with monkeypatch.context() as patch:
                patch.setattr(PlanExecutor, failing, _refuse)
                with pytest.raises(SandboxError):
                    manager.make(plan._replace())
            assert descriptors() == before, failing
        manager.make(plan).close()
        manager.close()

    in_world(run, mode)


def _refuse(*_: object) -> None:
    raise SandboxError("mount a part of the root")


def test_other_sandboxes_are_released_if_the_first_is_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run() -> None:
        plan = plan_here(SandboxSpec(), "root")
        manager = SandboxManager([])
        manager.release([manager.make(plan)])
        before = descriptors()
        sandboxes = [manager.make(plan) for _ in range(3)]
        bell = Bell(monkeypatch)
        bell.put_after(BackgroundCloser, "close")
        bell.is_armed = True
        with pytest.raises(Interruption):
            manager.release(sandboxes)
        assert descriptors() == before
        manager.close()

    in_world(run, "root")
