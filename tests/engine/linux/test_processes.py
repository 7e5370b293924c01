"""Processes that are killed and waited for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import processes
from tests.helpers.worlds import in_child

#: Seconds that a wait takes that has no end but its limit.
_LIMIT = 10.0
_PTRACE_SEIZE = 0x4206
_SOMEBODY = 65534
#: Traces a process.
_TRACER = f"""
import ctypes, signal, sys

failed = ctypes.CDLL(None).ptrace({_PTRACE_SEIZE}, int(sys.argv[1]), None, None)
print("failed" if failed else "traces", flush=True)
signal.pause()
"""


def children() -> list[int]:
    return processes.children(os.getpid())


def test_what_was_ended_is_gone() -> None:
    """Children are reaped; their children have ended."""

    def run() -> tuple[set[int], list[int], list[bool]]:
        program = "import subprocess; subprocess.run(['sleep', '1000'])"
        parent = subprocess.Popen([sys.executable, "-c", program])
        while not (own := processes.children(parent.pid)):
            time.sleep(0.01)
        killed = processes.end([parent.pid])
        parent.returncode = -signal.SIGKILL
        return killed - {parent.pid, *own}, children(), [processes.has_ended(pid) for pid in own]

    assert in_child(run) == (set(), [], [True])


def started(program: str, *arguments: str) -> subprocess.Popen[bytes]:
    """A process of Python that runs ``program``. It is ended when the caller's context ends."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, start_new_session=True
    )


@contextmanager
def traced(child: int) -> Iterator[None]:
    """Another process traces this one meanwhile."""
    with started(_TRACER, str(child)) as tracer:
        try:
            assert tracer.stdout is not None
            if tracer.stdout.readline() != b"traces\n":
                pytest.skip("this process may not be traced")
            yield
        finally:
            tracer.kill()
            tracer.wait()


def test_a_process_whose_first_thread_has_ended_has_not_ended() -> None:
    program = """
import ctypes, threading, time

threading.Thread(target=time.sleep, args=(1000,)).start()
print("ready", flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""

    def run() -> tuple[bytes, bool, bool]:
        with started(program) as child:
            try:
                assert child.stdout is not None
                assert child.stdout.readline() == b"ready\n"
                while processes.state(child.pid) != b"Z":
                    time.sleep(0.01)
                before = processes.has_ended(child.pid)
                processes.end([child.pid])
                return processes.state(child.pid), before, processes.has_ended(child.pid)
            finally:
                child.kill()

    assert in_child(run) == (b"X", False, True)


def test_nobody_waits_for_what_another_process_traces() -> None:
    """Its parent can reap it only when that process has let go of it, ptrace(2)."""

    def run() -> tuple[float, bytes]:
        child = subprocess.Popen(["sleep", "1000"])
        try:
            with traced(child.pid):
                before = time.monotonic()
                processes.end([child.pid])
                return time.monotonic() - before, processes.state(child.pid)
        finally:
            child.kill()
            child.wait()

    took, state = in_child(run)
    assert state in (b"Z", b"X")
    assert took < _LIMIT


def test_a_child_is_reaped_when_it_has_ended() -> None:
    def run() -> tuple[int | None, int | None, bool]:
        child = subprocess.Popen(["sh", "-c", "sleep 0.05; exit 7"])
        try:
            late = processes.reap_soon(child.pid, until=0.0)
            status = processes.reap_soon(child.pid)
            return late, status, processes.state(child.pid) == b"X"
        finally:
            child.wait()

    late, status, gone = in_child(run)
    assert late is None
    assert gone
    assert status is not None
    assert os.waitstatus_to_exitcode(status) == 7


def test_the_wait_for_a_child_that_does_not_end_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a server of files does not answer. One that is traced cannot be reaped either."""
    monkeypatch.setattr(processes, "ENDS_WITHIN", 0.2)

    def run() -> tuple[int | None, str, int | None]:
        child = subprocess.Popen(["sleep", "1000"])
        with traced(child.pid):
            child.kill()
            first = processes.reap_soon(child.pid)
            said = processes.describe_unended(child.pid)
        return first, said.replace(str(child.pid), "N"), processes.reap_soon(child.pid)

    first, said, second = in_child(run)
    assert first is None
    assert "process N has not ended" in said
    assert "cat /proc/N/status" in said
    assert second is not None
    assert os.waitstatus_to_exitcode(second) == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a process of another user")
def test_what_may_not_be_killed_is_not_waited_for_and_reaped_when_it_has_ended() -> None:
    def run() -> tuple[set[int], float, list[int]]:
        left, ended = subprocess.Popen(["sleep", "1000"]), subprocess.Popen(["true"])
        try:
            while processes.state(ended.pid) != b"Z":
                time.sleep(0.01)
            try:
                os.setresuid(_SOMEBODY, _SOMEBODY, 0)
            except OSError:
                pytest.skip("there is no other user here")
            before = time.monotonic()
            killed = processes.end([left.pid, ended.pid])
            took, there = time.monotonic() - before, children()
            os.setresuid(0, 0, 0)
            return killed & {left.pid}, took, [pid for pid in there if pid == ended.pid]
        finally:
            left.kill()
            left.wait()
            ended.wait()

    killed, took, unreaped = in_child(run)
    assert (killed, unreaped) == (set(), [])
    assert took < _LIMIT


def test_this_process_has_children_as_long_as_there_are_some() -> None:
    def run() -> list[bool]:
        found = [processes.has_children()]
        child = subprocess.Popen(["sleep", "1000"])
        found.append(processes.has_children())
        child.kill()
        while not Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].startswith(" Z"):
            time.sleep(0.01)
        found.append(processes.has_children())
        child.wait()
        return [*found, processes.has_children()]

    assert in_child(run) == [False, True, True, False]
