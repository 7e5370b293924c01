"""System calls that are answered by somebody else than the kernel: with success, and to no effect.

What is mounted then would be mounted on the host. So these tests do everything in a mount namespace
of their own, which they have checked before anything pretends.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import Unavailable
from pytest_mountns.engine.linux.namespaces import enter_mount_namespace, make_stage
from pytest_mountns.engine.linux.threads import is_alone
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox.manager import SandboxManager
from tests.helpers.seccomp import Refusal, install, refuse
from tests.helpers.worlds import in_child, private_mounts

pytestmark = [
    pytest.mark.layered,
    pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user can mount nothing on the host"),
]


def mounts() -> list[str]:
    """The mount table without the numbers of mounts."""
    return [line.split(" ", 2)[2] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def pretending(call: str, action: Callable[[], object]) -> str:
    """What ``action`` is refused with where ``call`` pretends to work. Nothing is mounted."""

    def run() -> str:
        private_mounts()
        before = mounts()
        # Other flags than this one are the kernel's business.
        flags = syscalls.CLONE_NEWNS if call == "unshare" else 0
        install([Refusal(call, 0, flags)])
        with pytest.raises(Unavailable) as raised:
            action()
        assert mounts() == before
        return str(raised.value)

    return in_child(run)


@pytest.mark.parametrize("action", [make_stage, lambda: enter_mount_namespace(False)])
def test_a_mount_namespace_that_was_not_made_is_noticed(action: Callable[[], object]) -> None:
    said = pretending("unshare", action)
    assert "unshare(CLONE_NEWNS): success, and this process is where it was" in said
    assert "seccomp filter" in said


def test_the_stage_is_not_made_where_nobody_returns_from_it() -> None:
    def run() -> str:
        private_mounts()
        install(refuse(("setns",), 0))
        with pytest.raises(Unavailable) as raised:
            make_stage()
        return str(raised.value)

    assert "setns(CLONE_NEWNS): success, and this process is where it was" in in_child(run)


def test_a_sandbox_that_was_not_entered_is_noticed() -> None:
    """Also if the calls pretend only from the middle of the session on."""

    def run() -> tuple[str, bool]:
        private_mounts()
        manager, planner = SandboxManager([]), Planner([])
        sandbox = manager.make(planner.plan(SandboxSpec()))
        here = os.stat("/")
        install(refuse(("setns",), 0))
        with pytest.raises(Unavailable) as raised:
            manager.enter(sandbox, "/")
        return str(raised.value), os.path.samestat(os.stat("/"), here)

    said, is_on_host = in_child(run)
    assert "setns(CLONE_NEWNS): success, and this process is where it was" in said
    assert is_on_host


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


@pytest.mark.parametrize("call", ["unshare", "setns"])
@pytest.mark.parametrize("process", ["inline", "fork", "module"])
def test_no_test_runs_on_the_host(pytester: pytest.Pytester, process: str, call: str) -> None:
    """Without setns(2) there is a way that needs no return: a process in a user namespace."""
    pytester.makepyfile(
        """
        def test_it(overlay_root):
            open("ran", "x").close()
        """
    )
    arguments = ["--mountns", f"--mountns-process={process}", "-pno:cacheprovider", "-q"]

    def run() -> tuple[str, bool]:
        private_mounts()
        before = mounts()
        install(refuse((call,), 0))
        found = subprocess.run(
            [sys.executable, "-m", "pytest", *arguments, "--mountns-unavailable=error"],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )
        return found.stdout, mounts() == before

    said, nothing_is_mounted = in_child(run)
    assert nothing_is_mounted
    if call == "unshare":
        assert "1 error" in said or "1 failed" in said
        assert "success, and this process is where it was" in said
    assert not Path("ran").exists()
