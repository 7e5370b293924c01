"""The helper process that closes descriptors: what it closes, and when."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from pytest_mountns.engine.linux import processes
from pytest_mountns.engine.linux.background_close import BackgroundCloser

_NEVER = 3_600_000


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
