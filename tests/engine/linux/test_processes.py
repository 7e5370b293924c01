"""Processes that are killed and waited for."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import processes
from tests.helpers.worlds import in_child

#: Seconds that a wait takes that has no end but its limit.
_LIMIT = 10.0
_PTRACE_SEIZE = 0x4206
_SOMEBODY = 65534


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


def test_a_process_whose_first_thread_has_ended_has_not_ended() -> None:
    def run() -> tuple[bytes, bool, bool]:
        child = os.fork()
        if child == 0:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            ctypes.CDLL(None).pthread_exit(None)
        while processes.state(child) != b"Z":
            time.sleep(0.01)
        before = processes.has_ended(child)
        processes.end([child])
        return processes.state(child), before, processes.has_ended(child)

    assert in_child(run) == (b"X", False, True)


def test_nobody_waits_for_what_another_process_traces() -> None:
    """Its parent can reap it only when that process has let go of it, ptrace(2)."""

    def run() -> tuple[float, bytes]:
        reader, writer = os.pipe()
        child = subprocess.Popen(["sleep", "1000"])
        tracer = os.fork()
        if tracer == 0:
            failed = ctypes.CDLL(None).ptrace(_PTRACE_SEIZE, child.pid, None, None)
            os.write(writer, b"-" if failed else b"+")
            signal.pause()
        if os.read(reader, 1) == b"-":
            pytest.skip("this process may not be traced")
        before = time.monotonic()
        processes.end([child.pid])
        took, state = time.monotonic() - before, processes.state(child.pid)
        processes.end([tracer])
        child.wait()
        return took, state

    took, state = in_child(run)
    assert state in (b"Z", b"X")
    assert took < _LIMIT


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a process of another user")
def test_what_may_not_be_killed_is_not_waited_for_and_reaped_when_it_has_ended() -> None:
    def run() -> tuple[set[int], float, list[int]]:
        left = subprocess.Popen(["sleep", "1000"])
        ended = subprocess.Popen(["true"])
        while processes.state(ended.pid) != b"Z":
            time.sleep(0.01)
        os.setresuid(_SOMEBODY, _SOMEBODY, 0)
        before = time.monotonic()
        killed = processes.end([left.pid, ended.pid])
        took, there = time.monotonic() - before, children()
        os.setresuid(0, 0, 0)
        left.kill()
        left.wait()
        ended.returncode = 0
        return killed & {left.pid}, took, [pid for pid in there if pid == ended.pid]

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
