"""The helper process that closes descriptors: what it closes, and when."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pytest_mountns.engine.linux import background_close, compiled, processes, syscalls
from pytest_mountns.engine.linux.background_close import BackgroundCloser
from tests.helpers.worlds import in_child

_NEVER = 3_600_000
_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(params=["compiled", "forked"], autouse=True)
def is_compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the compiled library starts the helper, or it is forked."""
    if request.param == "forked":
        monkeypatch.setattr(background_close, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("installed without a C compiler")
    return bool(request.param == "compiled")


@pytest.fixture
def closer() -> Iterator[BackgroundCloser]:
    """One whose helper keeps what was sent last until something is sent after it."""
    made = BackgroundCloser(at_rest=_NEVER)
    yield made
    made.stop()


class _Pipe:
    """Its reader sees the end when the last descriptor of its writer is closed."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()

    def is_closed(self, *, within: float) -> bool:
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        return bool(poll.poll(within * 1000))


def test_this_process_is_never_the_last_to_close(closer: BackgroundCloser) -> None:
    """Or it would wait for the kernel to unmount; so the helper keeps its copies for longer."""
    first, second = _Pipe(), _Pipe()
    closer.close([first.writer], may_start=True)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(first.writer)
    assert not first.is_closed(within=0)
    closer.close([second.writer], may_start=True)
    # By now this process has closed its descriptor of the first one for certain.
    assert first.is_closed(within=60)
    assert not second.is_closed(within=0)


def test_all_is_closed_when_finish_returns(closer: BackgroundCloser) -> None:
    """What is on the host may be unmounted then: nothing keeps it busy."""
    pipes = [_Pipe() for _ in range(30)]
    for pipe in pipes:
        closer.close([pipe.writer], may_start=True)
    closer.finish()
    assert all(pipe.is_closed(within=0) for pipe in pipes)
    closer.finish()


def test_the_last_ones_are_closed_after_a_moment() -> None:
    closer = BackgroundCloser(at_rest=1)
    pipe = _Pipe()
    closer.close([pipe.writer], may_start=True)
    assert pipe.is_closed(within=60)
    closer.stop()


def test_the_last_ones_are_closed_when_it_is_stopped(closer: BackgroundCloser) -> None:
    pipe = _Pipe()
    closer.close([pipe.writer], may_start=True)
    closer.stop()
    assert pipe.is_closed(within=60)


def test_a_fork_of_the_process_waits_for_nobody(closer: BackgroundCloser) -> None:
    """It closes copies, and the socket is not its own."""
    pipe = _Pipe()
    closer.close([os.dup(pipe.writer)], may_start=True)
    child = processes.fork()
    if child == 0:
        closer.finish()
        closer.close([pipe.writer], may_start=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(pipe.writer)
    assert not pipe.is_closed(within=0)


def test_none_is_started_where_it_would_be_a_child() -> None:
    """A test may wait for all its children, and would wait for the helper."""

    def wait() -> bool:
        syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)
        own = BackgroundCloser(at_rest=_NEVER)
        pipe = _Pipe()
        own.close([pipe.writer], may_start=True)
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, 0)
        return pipe.is_closed(within=0)

    assert in_child(wait)


def _helper_of(pipe: _Pipe) -> int:
    """The helper that keeps the writer of this pipe. Other tests have helpers as well."""
    wanted = os.readlink(f"/proc/self/fd/{pipe.reader}")
    for _ in range(600):
        for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
            with suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_bytes().strip() != processes.HELPER_NAME:
                    continue
                numbers = os.listdir(f"/proc/{pid}/fd")
                if wanted in [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in numbers]:
                    return pid
        time.sleep(0.1)
    raise AssertionError("no helper has the writer")


def test_the_helper_has_nothing_of_this_process_but_its_channel(closer: BackgroundCloser) -> None:
    pipe = _Pipe()
    kept = os.open("/", os.O_PATH)
    closer.close([os.dup(pipe.writer)], may_start=True)
    helper = _helper_of(pipe)
    assert helper not in processes.own_children()
    # The channel, what says that this process has ended, and what was sent.
    numbers = os.listdir(f"/proc/{helper}/fd")
    opened = [os.readlink(f"/proc/{helper}/fd/{fd}") for fd in numbers]
    assert all(one.startswith(("socket:", "anon_inode:", "pipe:", "/dev/null")) for one in opened)
    assert os.readlink(f"/proc/{helper}/cwd") == "/"
    os.close(kept)
    os.close(pipe.writer)
    closer.stop()
    assert pipe.is_closed(within=60)


def test_signals_do_not_end_the_helper(closer: BackgroundCloser, is_compiled: bool) -> None:
    """Those of a terminal. Nor does a handler of this process run in it, whose memory it shares."""
    heard: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        first, second = _Pipe(), _Pipe()
        closer.close([first.writer], may_start=True)
        helper = _helper_of(first)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            os.kill(helper, number)
        if is_compiled:
            os.kill(helper, signal.SIGUSR1)
        closer.close([second.writer], may_start=True)
        assert first.is_closed(within=60)
        closer.finish()
        assert second.is_closed(within=0)
        assert heard == []
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_many_helpers_serve_at_once() -> None:
    closers = [BackgroundCloser(at_rest=_NEVER) for _ in range(8)]
    pipes = [_Pipe() for _ in range(64)]
    for index, pipe in enumerate(pipes):
        closers[index % 8].close([pipe.writer], may_start=True)
    for closer in closers:
        closer.finish()
    assert all(pipe.is_closed(within=0) for pipe in pipes)
    for closer in closers:
        closer.stop()


def test_a_helper_that_was_killed_leaves_the_work_to_this_process(closer: BackgroundCloser) -> None:
    pipe = _Pipe()
    closer.close([pipe.writer], may_start=True)
    helper = _helper_of(pipe)
    os.kill(helper, signal.SIGKILL)
    pipes = [_Pipe() for _ in range(3)]
    for pipe in pipes:
        closer.close([pipe.writer], may_start=True)
    closer.finish()
    assert pipes[-1].is_closed(within=60)


@pytest.mark.parametrize("raised", [TimeoutError, RuntimeError])
def test_what_a_handler_raises_meanwhile_is_raised_when_all_is_closed(
    closer: BackgroundCloser, raised: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a test's alarm would be lost."""
    reader, writer = os.pipe()
    closer.close([os.dup(writer)], may_start=True)
    socket = closer._socket
    assert socket is not None

    class Interrupted:
        """The socket, while a signal comes."""

        def sendmsg(self, *arguments: Any) -> None:
            raise raised

        def __getattr__(self, name: str) -> object:
            return getattr(socket, name)

    monkeypatch.setattr(closer, "_socket", Interrupted())
    with pytest.raises(raised):
        closer.close([writer], may_start=False)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writer)
    monkeypatch.setattr(closer, "_socket", socket)
    closer.finish()
    # Nobody has the writing end any more.
    assert os.read(reader, 1) == b""
    os.close(reader)
