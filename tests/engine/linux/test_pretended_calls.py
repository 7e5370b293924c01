"""System calls that are answered by somebody else than the kernel: with success, and to no effect.

What is mounted then would be mounted on the host. So these tests do everything in a mount namespace
of their own, which they have checked before anything pretends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.linux.namespaces import enter_mount_namespace, make_stage
from pytest_mountns.engine.linux.threads import is_alone
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox.manager import SandboxManager
from tests.helpers.seccomp import Refusal, install, refuse
from tests.helpers.worlds import Lost, in_child, private_mounts

T = TypeVar("T")

_MS_SHARED = 1 << 20

_SUITE = """
def test_it(overlay_root):
    open("ran", "x").close()
    # What a test as root must not be able to write to.
    try:
        with open("/proc/sys/kernel/hostname", "r+") as file:
            pass
    except OSError:
        pass
    else:
        raise AssertionError("it can be written to")
"""

pytestmark = [
    pytest.mark.layered,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user can mount nothing on the host"),
]


def mounts() -> list[str]:
    """The mount table without the numbers of mounts."""
    return [line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def refused(action: Callable[[], object]) -> str:
    """What ``action`` is refused with. Nothing is mounted by it."""
    before = mounts()
    with pytest.raises(SandboxError) as raised:
        action()
    assert mounts() == before
    return str(raised.value)


def in_shared_mounts(action: Callable[[], T]) -> T:
    """Call ``action`` where each mount of it would appear in another namespace as well.

    So it is on a host whose ``/`` is shared, as systemd has it.
    """

    def outer() -> T:
        private_mounts()
        syscalls.mount(None, "/", None, _MS_SHARED | syscalls.MS_REC)
        before = mounts()

        def inner() -> T:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            return action()

        found = in_child(inner)
        assert mounts() == before
        return found

    return in_child(outer)


def pretend(call: str) -> None:
    """From now on a call that moves to another mount namespace does nothing, and says it has."""
    # Other flags are the kernel's business.
    install([Refusal(call, 0, syscalls.CLONE_NEWNS if call == "unshare" else 0)])


@pytest.mark.parametrize("action", [make_stage, lambda: enter_mount_namespace(False)])
def test_a_mount_namespace_that_was_not_made_is_noticed(action: Callable[[], object]) -> None:
    def run() -> str:
        pretend("unshare")
        return refused(action)

    said = in_shared_mounts(run)
    assert "unshare(CLONE_NEWNS), which something else than the kernel has answered" in said
    assert "seccomp filter" in said


def test_the_stage_is_not_made_where_nobody_returns_from_it() -> None:
    def run() -> None:
        pretend("setns")
        make_stage()

    # It is not known any more where this process is.
    with pytest.raises(Lost, match=str(-signal.SIGABRT)):
        in_shared_mounts(run)


@pytest.mark.parametrize("call", ["unshare", "setns"])
@pytest.mark.parametrize("moment", ["before it is made", "before it is entered"])
def test_calls_that_pretend_from_some_moment_on_are_noticed(moment: str, call: str) -> None:
    """As when a test has installed the filter. Or the sandbox does without these calls."""

    def run() -> tuple[str, bool]:
        manager, planner = SandboxManager([]), Planner([])
        plan = planner.plan(SandboxSpec())
        # What is made once is there.
        first = manager.make(plan)
        manager.enter(first, "/")
        manager.leave()
        sandbox = manager.make(plan) if moment == "before it is entered" else None
        before, here = mounts(), os.stat("/")
        pretend(call)
        said = ""
        try:
            manager.enter(sandbox or manager.make(plan), "/")
            assert mounts() != before
        except SandboxError as error:
            said = str(error)
            assert mounts() == before
        return said, os.path.samestat(os.stat("/"), here)

    try:
        said, is_on_host = in_shared_mounts(run)
    except Lost as error:
        # It has noticed that it could not return.
        assert str(-signal.SIGABRT) in str(error)  # noqa: PT017 - there are two good outcomes
        return
    assert bool(said) == is_on_host
    assert not said or "something else than the kernel has answered" in said


def test_an_inline_test_that_was_not_left_is_noticed() -> None:
    def run() -> None:
        manager, planner = SandboxManager([]), Planner([])
        manager.enter(manager.make(planner.plan(SandboxSpec())), "/")
        pretend("setns")
        manager.leave()

    with pytest.raises(Lost, match=str(-signal.SIGABRT)):
        in_shared_mounts(run)


def test_threads_are_seen_where_unshare_always_works() -> None:
    def run() -> bool:
        import threading

        install(refuse(("unshare",), 0))
        end = threading.Event()
        thread = threading.Thread(target=end.wait)
        thread.start()
        try:
            return is_alone()
        finally:
            end.set()
            thread.join()

    assert not in_child(run)


def _isolated_run(process: str, calls: Sequence[str]) -> tuple[str, bool]:
    """Run the suite where these calls pretend.

    Returns what it says, and whether it has mounted something or written to the host's root.
    """
    arguments = ["--mountns", f"--mountns-process={process}", "-pno:cacheprovider", "-q"]

    def run() -> tuple[str, bool]:
        private_mounts()
        before = mounts(), sorted(os.listdir("/"))
        install(refuse(calls, 0))
        found = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments, "--mountns-unavailable=error"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=40,
            stdin=subprocess.DEVNULL,
        )
        return found.stdout, (mounts(), sorted(os.listdir("/"))) != before

    return in_child(run)


@pytest.mark.parametrize("call", ["unshare", "setns"])
@pytest.mark.parametrize("process", ["inline", "fork", "module"])
def test_no_test_runs_on_the_host(pytester: pytest.Pytester, process: str, call: str) -> None:
    """Without setns(2) there is a way that needs no return: a process in a user namespace."""
    pytester.makepyfile(_SUITE)
    said, has_left_traces = _isolated_run(process, [call])
    assert not has_left_traces
    if call == "unshare":
        assert "1 error" in said or "1 failed" in said
        assert "something else than the kernel has answered" in said
    else:
        assert "1 passed" in said or "1 error" in said or "1 failed" in said
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "calls",
    [
        ["pivot_root"],
        ["move_mount"],
        ["mount_setattr"],
        ["mount"],
        ["umount2"],
        ["open_tree"],
        ["pivot_root", "umount2"],
        ["fsconfig"],
        ["fsmount"],
        ["fsopen", "mount"],
        ["fsopen", "fsconfig", "fsmount", "mount"],
        ["open_tree", "move_mount"],
        ["mount", "move_mount", "pivot_root", "umount2"],
    ],
    ids="+".join,
)
@pytest.mark.parametrize("process", ["inline", "fork"])
def test_no_test_runs_where_mounts_are_pretended(
    pytester: pytest.Pytester, process: str, calls: list[str]
) -> None:
    """Either the sandbox is what it is elsewhere, or there is none."""
    pytester.makepyfile(_SUITE)
    said, has_left_traces = _isolated_run(process, calls)
    assert not has_left_traces
    assert "1 passed" in said or "1 error" in said
    assert not Path("ran").exists()
    if calls == ["mount_setattr"]:
        assert "can be written to in a sandbox" in said


@pytest.mark.parametrize(
    ("keys", "flag"),
    [("pid=True", syscalls.CLONE_NEWPID), ("network='none'", syscalls.CLONE_NEWNET)],
)
def test_no_test_is_isolated_in_name_only(pytester: pytest.Pytester, keys: str, flag: int) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mountns({keys})
        def test_it(overlay_root):
            raise AssertionError("it has run")
        """
    )

    def run() -> str:
        private_mounts()
        install([Refusal("unshare", 0, flag)])
        found = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--mountns-unavailable=error"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=40,
            stdin=subprocess.DEVNULL,
        )
        return found.stdout

    said = in_child(run)
    assert "1 error" in said or "1 failed" in said
    assert "it has run" not in said
    assert "something else than the kernel has answered" in said
