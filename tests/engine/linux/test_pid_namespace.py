"""PID namespaces: an init that reaps, and an end that nothing survives.

All processes of a sandbox hold a pipe open; its end shows that they have ended.
"""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

import pytest

from pytest_mountns.engine.linux.namespaces import enter_user_namespace
from pytest_mountns.engine.linux.pid_namespace import die_with_parent, enter_pid_namespace
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.sandbox.create import enter
from pytest_mountns.engine.sandbox.disk_uppers import DiskUppers
from tests.helpers.worlds import Mode, has_pid_namespaces, in_world, plan_here, skip_unless

_SECONDS = 20


@dataclass
class Started:
    """The processes of a sandbox with a PID namespace: the waiter, and pipes from the others."""

    waiter: int
    status: int
    said: int
    held: int

    def wait(self) -> tuple[int, str]:
        """Wait until all are gone. Returns the wait status of the test process, and its answer."""
        ended(self.held)
        os.waitpid(self.waiter, 0)
        with open(self.status, "rb") as status, open(self.said) as said:
            return int.from_bytes(status.read(), "little"), said.read()


# In a root's sandbox /proc has read-only covers, and a user namespace is refused a fresh one there.
pytestmark = pytest.mark.no_mountns(reason="makes PID namespaces of an ordinary user")


def ended(held: int) -> None:
    """Fail unless every process that holds the other end is gone, now or soon."""
    ready, _, _ = select.select([held], [], [], _SECONDS)
    assert ready, "something is still alive"
    assert os.read(held, 1) == b""
    os.close(held)


def start(test: Callable[[], object], mode: Mode) -> Started:
    """Run ``test`` in a sandbox with a PID namespace, made as the plugin makes it."""
    skip_unless(mode)
    if not has_pid_namespaces(mode):
        pytest.skip("no PID namespaces here")
    plan = plan_here(SandboxSpec(pid=True), mode)
    parent = os.getpid()
    readers, writers = zip(*(os.pipe() for _ in range(3)), strict=True)
    status, said, _held = writers
    waiter = os.fork()
    if waiter == 0:
        try:
            for fd in readers:
                os.close(fd)
            die_with_parent(parent)
            # A guard removes it when this process ends.
            directory = DiskUppers().new() if plan.upper.medium == "disk" else None
            if mode == "user":
                enter_user_namespace()
                die_with_parent(parent)
            enter_pid_namespace(lambda: enter(plan, directory) and None, status, mode == "user")
            os.close(status)
            answer = test()
            os.write(said, str(answer).encode())
        finally:
            os._exit(0)
    for fd in writers:
        os.close(fd)
    return Started(waiter, *readers)


def pause_for_ever() -> NoReturn:
    while True:
        signal.pause()


def spawn_stubborn() -> None:
    """A process in a session of its own that ignores what can be ignored."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            pause_for_ever()
        os._exit(0)


def test_the_test_is_an_ordinary_process_below_init(mode: Mode) -> None:
    def test() -> str:
        pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
        return f"{os.getpid()} {os.getppid()} {pids}"

    status, said = in_world(lambda: start(test, mode).wait(), mode)
    assert (status, said) == (0, "2 1 [1, 2]")


def test_init_reaps_orphans(mode: Mode) -> None:
    def test() -> list[int]:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                os.fork()
                os._exit(0)
            os.waitpid(child, 0)
        deadline = time.monotonic() + _SECONDS
        while True:
            pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
            if pids == [1, 2] or time.monotonic() > deadline:
                return pids

    assert in_world(lambda: start(test, mode).wait(), mode) == (0, "[1, 2]")


def test_everything_ends_with_the_test_process(mode: Mode) -> None:
    def test() -> str:
        for _ in range(3):
            spawn_stubborn()
        return "done"

    assert in_world(lambda: start(test, mode).wait(), mode) == (0, "done")


@pytest.mark.parametrize("code", [0, 7, 255])
def test_the_exit_status_arrives(mode: Mode, code: int) -> None:
    status, _ = in_world(lambda: start(lambda: os._exit(code), mode).wait(), mode)
    assert os.waitstatus_to_exitcode(status) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_the_signal_that_ended_the_test_arrives(mode: Mode, number: signal.Signals) -> None:
    def test() -> NoReturn:
        # As PID 1 it would not die of the last two signals (pid_namespaces(7)).
        os.kill(os.getpid(), number)
        pause_for_ever()

    status, _ = in_world(lambda: start(test, mode).wait(), mode)
    assert os.waitstatus_to_exitcode(status) == -number


def test_interrupts_do_not_end_waiter_or_init(mode: Mode) -> None:
    def test() -> str:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.kill(1, signal.SIGINT)
        os.kill(0, signal.SIGINT)
        return "done"

    def host() -> tuple[int, str]:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return start(test, mode).wait()

    assert in_world(host, mode) == (0, "done")


def test_nothing_survives_a_killed_waiter(mode: Mode) -> None:
    def test() -> NoReturn:
        spawn_stubborn()
        os.write(1, b"")
        pause_for_ever()

    def host() -> None:
        started = start(test, mode)
        os.kill(started.waiter, signal.SIGKILL)
        status, said = started.wait()
        assert (status, said) == (0, "")

    in_world(host, mode)


def test_nothing_survives_a_parent_killed_at_any_instant(mode: Mode) -> None:
    def test() -> NoReturn:
        spawn_stubborn()
        pause_for_ever()

    def kill_after(seconds: float) -> None:
        held, alive = os.pipe()
        parent = os.fork()
        if parent == 0:
            try:
                os.close(held)
                start(test, mode)
                pause_for_ever()
            finally:
                os._exit(0)
        os.close(alive)
        time.sleep(seconds)
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        ended(held)

    def host() -> None:
        instants = random.Random(2)
        for _ in range(25):
            kill_after(instants.uniform(0, 0.02))

    in_world(host, mode)
