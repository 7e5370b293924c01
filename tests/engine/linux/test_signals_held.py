"""A context in which no handler of a signal runs."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator

import pytest

from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.linux.namespaces import explained, signals_held


class Interruption(Exception):
    """Raised by a handler, as a timeout is."""


@pytest.fixture
def raising() -> Iterator[None]:
    """The handler of the alarm raises."""

    def interrupt(number: int, frame: object) -> None:
        raise Interruption

    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("raising")
def test_a_signal_that_comes_meanwhile_is_handled_afterwards() -> None:
    reached = []

    def interrupt_inside() -> None:
        with signals_held():
            signal.raise_signal(signal.SIGALRM)
            reached.append("end of the context")
        reached.append("after it")

    with pytest.raises(Interruption):
        interrupt_inside()
    assert reached == ["end of the context"]


@pytest.mark.usefixtures("raising")
def test_whenever_a_handler_raises_the_mask_is_as_before() -> None:
    """Also when the signal has come at the very moment in which it is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for number in range(4000):
        # Interruption may come anywhere up to the end of this context, and out of its end.
        with contextlib.suppress(Interruption):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + number % 40))
                for _ in range(20):
                    with signals_held():
                        pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.usefixtures("raising")
def test_contexts_may_be_nested() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with signals_held():
        with signals_held():
            pass
        assert signal.SIGALRM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_what_a_handler_raises_is_not_taken_for_a_failed_call() -> None:
    """An alarm often raises a TimeoutError, which is an OSError."""

    def interrupt(number: int, frame: object) -> None:
        raise TimeoutError("of the test")

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(TimeoutError, match="of the test"), explained("mount", False):
            signal.raise_signal(signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(SandboxError, match="ETIMEDOUT"), explained("mount", False):
        raise TimeoutError(errno.ETIMEDOUT, "of the kernel")
