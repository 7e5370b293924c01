"""The helper process that performs lists of system calls while this process does something else."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from pytest_mountns.engine.linux import call_helper, processes
from pytest_mountns.engine.linux import syscalls as sys
from pytest_mountns.engine.linux.call_helper import CallHelper
from pytest_mountns.engine.linux.call_list import Call, CallList, Result, is_available
from pytest_mountns.engine.sandbox.manager import SandboxManager
from tests.helpers.worlds import BASE, Mode, descriptors, in_child, in_world, skip_unless, write

T = TypeVar("T")

_PR_SET_CHILD_SUBREAPER = 36

pytestmark = [
    pytest.mark.layered,
    pytest.mark.skipif(not is_available(), reason="installed without a C compiler"),
]


@contextmanager
def helping(mode: Mode) -> Iterator[tuple[CallHelper, int]]:
    """A helper, and the mount namespace that lists are performed in."""
    manager = SandboxManager([])
    if mode == "user":
        manager.move_to_user_namespace()
    helper = CallHelper(dropped=mode == "user")
    yield helper, manager.stage
    helper.close()
    manager.close()


def opening(*paths: str) -> tuple[CallList, list[Result]]:
    """A list that opens these paths."""
    calls = CallList()
    flags = os.O_RDONLY | os.O_CLOEXEC
    return calls, [calls.open(Call.OPENAT, sys.AT_FDCWD, path.encode(), flags) for path in paths]


def run_with_helper(mode: Mode, action: Callable[[CallHelper, int], T]) -> T:
    skip_unless(mode)

    def run() -> T:
        write("one", "1")
        write("two", "2")
        with helping(mode) as (helper, stage):
            return action(helper, stage)

    return in_world(run, mode)


def read(descriptors: list[int] | None) -> list[bytes] | None:
    if descriptors is None:
        return None
    content = [os.read(fd, 10) for fd in descriptors]
    for fd in descriptors:
        os.close(fd)
    return content


def helpers() -> list[int]:
    """The helpers that share the memory of this process."""
    found = []
    channel = [link for link in descriptors().values() if link.startswith("socket:")]
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            if Path(f"/proc/{pid}/comm").read_bytes().strip() == processes.HELPER_NAME:
                own = Path(f"/proc/{pid}/maps").read_bytes() == Path("/proc/self/maps").read_bytes()
                found += [pid] * (own and bool(channel))
        except OSError:
            continue
    return found


def test_it_returns_what_a_list_has_opened(mode: Mode) -> None:
    def twice(helper: CallHelper, stage: int) -> list[object]:
        calls, results = opening(f"{BASE}/one", f"{BASE}/two")
        before = len(descriptors())
        found: list[object] = []
        for _ in range(2):
            found.append(helper.begin(calls, stage, results))
            # Nothing of it is here until it is asked for.
            found.append(helper.is_busy)
            found.append(read(helper.end()))
        # Its channel, of which this process has one end.
        return [*found, helper.is_busy, len(descriptors()) - before]

    once = [True, True, [b"1", b"2"]]
    assert run_with_helper(mode, twice) == [*once, *once, False, 1]


def test_a_list_may_be_given_descriptors(mode: Mode) -> None:
    def given(helper: CallHelper, stage: int) -> list[bytes] | None:
        directory = os.open(BASE, os.O_PATH)
        calls = CallList()
        base = calls.give(directory)
        opened = calls.open(Call.OPENAT, base, b"two", os.O_RDONLY | os.O_CLOEXEC)
        assert helper.begin(calls, stage, [opened])
        os.close(directory)
        return read(helper.end())

    assert run_with_helper(mode, given) == [b"2"]


def test_where_a_call_fails_nothing_is_returned(mode: Mode) -> None:
    def fail(helper: CallHelper, stage: int) -> list[object]:
        calls, results = opening(f"{BASE}/one", f"{BASE}/missing")
        found: list[object] = [helper.begin(calls, stage, results)]
        before = descriptors()
        found.append(helper.end())
        found.append(descriptors() == before)
        # The next one is performed.
        write("missing", "3")
        assert helper.begin(calls, stage, results)
        return [*found, read(helper.end())]

    assert run_with_helper(mode, fail) == [True, None, True, [b"1", b"3"]]


def test_one_list_is_performed_at_a_time(mode: Mode) -> None:
    def two(helper: CallHelper, stage: int) -> list[object]:
        calls, results = opening(f"{BASE}/one")
        others, their_results = opening(f"{BASE}/two")
        begun = [helper.begin(calls, stage, results), helper.begin(others, stage, their_results)]
        return [*begun, read(helper.end()), helper.end()]

    assert run_with_helper(mode, two) == [True, False, [b"1"], None]


def test_it_is_no_child_and_holds_nothing(mode: Mode) -> None:
    def look(helper: CallHelper, stage: int) -> tuple[list[int], list[str], str]:
        calls, results = opening(f"{BASE}/one")
        kept = os.open(BASE, os.O_PATH)
        assert helper.begin(calls, stage, results)
        assert read(helper.end())
        os.close(kept)
        (pid,) = helpers()
        deadline = time.monotonic() + 60
        # It closes what it has sent after that.
        while len(os.listdir(f"/proc/{pid}/fd")) > 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        here = os.readlink("/proc/self/ns/mnt")
        assert os.readlink(f"/proc/{pid}/ns/mnt") == here
        kinds = sorted(link.partition(":")[0] for link in links)
        return processes.own_children(), kinds, os.readlink(f"/proc/{pid}/cwd")

    skip_unless("root")
    assert run_with_helper("root", look) == ([], ["anon_inode", "mnt", "socket"], "/")


def _kill(helper: CallHelper) -> None:
    (pid,) = helpers()
    os.kill(pid, signal.SIGKILL)


def _stop(helper: CallHelper) -> None:
    call_helper._PATIENCE = 100  # type: ignore[misc]
    (pid,) = helpers()
    os.kill(pid, signal.SIGSTOP)


def _close_channel(helper: CallHelper) -> None:
    # As a test may: all that it did not open itself.
    os.closerange(3, 1000)


def _reuse_channel(helper: CallHelper) -> None:
    numbers = [fd for fd, link in descriptors().items() if link.startswith("socket:")]
    for fd in numbers:
        os.dup2(1, fd)


@pytest.mark.parametrize("harm", [_kill, _stop, _close_channel, _reuse_channel])
def test_without_a_helper_nothing_is_waited_for_twice(harm: Callable[[CallHelper], None]) -> None:
    skip_unless("root")

    def lose() -> list[object]:
        write("one", "1")
        manager = SandboxManager([])
        helper = CallHelper(dropped=False)
        calls, results = opening(f"{BASE}/one")
        stage = manager.stage
        assert helper.begin(calls, stage, results)
        assert read(helper.end())
        found: list[object] = []
        lost = helpers()
        harm(helper)
        begun = helper.begin(calls, stage, results)
        found.append(helper.end())
        found += [helper.begin(calls, stage, results), helper.end(), helper.is_busy]
        if harm is _stop:
            assert begun
            os.kill(lost[0], signal.SIGCONT)
        return found

    def protected() -> list[object]:
        # What is closed there are descriptors that the world needs.
        return in_child(lose) if harm is not _close_channel else _in_fork(lose)

    assert in_world(protected, "root") == [None, False, None, False]


def _in_fork(function: Callable[[], list[object]]) -> list[object]:
    """For a function that closes all descriptors: only its success gets here."""
    child = processes.fork()
    if child == 0:
        usual = False
        try:
            usual = function() == [None, False, None, False]
        finally:
            os._exit(0 if usual else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return [None, False, None, False]


class _Interruption(Exception):
    """Raised by a handler of a signal."""


@pytest.mark.parametrize("raised", [_Interruption, TimeoutError, KeyboardInterrupt])
def test_an_interrupted_wait_leaves_no_answer_for_the_next_list(
    raised: type[BaseException],
) -> None:
    skip_unless("root")

    def interrupt(helper: CallHelper, stage: int) -> list[object]:
        def handle(number: int, frame: object) -> None:
            raise raised

        first, results = opening(f"{BASE}/one")
        second, their_results = opening(f"{BASE}/two")
        before = descriptors()
        assert helper.begin(first, stage, results)
        assert read(helper.end()) == [b"1"]
        (pid,) = helpers()
        os.kill(pid, signal.SIGSTOP)
        assert helper.begin(first, stage, results)
        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(raised):
            helper.end()
        os.kill(pid, signal.SIGCONT)
        begun = helper.begin(second, stage, their_results)
        return [begun, helper.is_busy, helper.end(), descriptors() == before]

    assert run_with_helper("root", interrupt) == [False, False, None, True]


def test_it_has_left_the_stage_when_it_answers() -> None:
    """What is on the host may be unmounted then."""
    skip_unless("root")

    def look(helper: CallHelper, stage: int) -> list[object]:
        calls, results = opening(f"{BASE}/one")
        found: list[object] = []
        for _ in range(20):
            assert helper.begin(calls, stage, results)
            assert read(helper.end())
            (pid,) = helpers()
            found.append(os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt"))
            helper.finish()
            found.append(len(os.listdir(f"/proc/{pid}/fd")) == 3)
        return found

    assert all(run_with_helper("root", look))


def test_none_is_started_where_it_would_be_a_child() -> None:
    """A test may wait for all its children, and would wait for the helper."""
    skip_unless("root")

    def start(helper: CallHelper, stage: int) -> bool:
        sys.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        calls, results = opening(f"{BASE}/one")
        return helper.begin(calls, stage, results)

    assert not run_with_helper("root", start)


def test_a_fork_does_not_take_the_answer(mode: Mode) -> None:
    def fork(helper: CallHelper, stage: int) -> list[object]:
        calls, results = opening(f"{BASE}/one")
        assert helper.begin(calls, stage, results)
        in_fork = in_child(
            lambda: [helper.is_busy, helper.end(), helper.begin(calls, stage, results)]
        )
        return [*in_fork, read(helper.end())]

    assert run_with_helper(mode, fork) == [False, None, False, [b"1"]]


def test_it_ends_with_the_process(mode: Mode) -> None:
    def end(helper: CallHelper, stage: int) -> bool:
        calls, results = opening(f"{BASE}/one")
        assert helper.begin(calls, stage, results)
        assert read(helper.end())
        (pid,) = helpers()
        watched = os.pidfd_open(pid)
        helper.close()
        return _is_ready(watched)

    assert run_with_helper(mode, end)


def _is_ready(fd: int, seconds: int = 60) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def test_it_is_worth_it_where_lists_are_done_in_time() -> None:
    """Otherwise no processor is idle for it."""
    skip_unless("root")

    def count(helper: CallHelper, stage: int) -> list[bool]:
        call_helper._TRIALS = 4  # type: ignore[misc]
        calls, results = opening(f"{BASE}/one")
        before = descriptors()
        found = []
        for late in [False] * 4 + [True] * 5:
            if late:
                (pid,) = helpers()
                os.kill(pid, signal.SIGSTOP)
            assert helper.begin(calls, stage, results)
            (channel,) = set(descriptors()) - set(before)
            if late:
                child = processes.fork()
                if child == 0:
                    time.sleep(0.1)
                    os.kill(pid, signal.SIGCONT)
                    os._exit(0)
                assert read(helper.end())
                os.waitpid(child, 0)
            else:
                assert _is_ready(channel)
                assert read(helper.end())
            found.append(helper.is_worth_it)
        return found

    assert run_with_helper("root", count) == [True] * 7 + [False] * 2
