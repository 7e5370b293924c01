"""The one way in which a helper process answers."""

from __future__ import annotations

import os
import signal
import time

import pytest

from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.linux.helper_process import call_in_helper
from pytest_mountns.engine.linux.processes import children


def test_result_and_descriptors() -> None:
    reader, writer = os.pipe()
    try:
        here = os.getpid()
        (pid, text), (copy,) = call_in_helper(lambda: ((os.getpid(), "x" * 10**6), [writer]), "try")
        assert pid != here
        assert len(text) == 10**6
        os.write(copy, b"through the copy")
        assert os.read(reader, 100) == b"through the copy"
        os.close(copy)
    finally:
        os.close(reader)
        os.close(writer)


def test_none_is_a_result() -> None:
    assert call_in_helper(lambda: (None, ()), "try") == (None, [])


def raise_(error: BaseException) -> tuple[None, tuple[int, ...]]:
    raise error


def test_errors() -> None:
    with pytest.raises(SandboxError, match="tried: that") as own:
        call_in_helper(lambda: raise_(SandboxError("tried: that", cause="why")), "try this")
    assert own.value.cause == "why"
    with pytest.raises(SandboxError, match="try this") as kernels:
        call_in_helper(lambda: raise_(OSError(28, "No space left on device")), "try this")
    assert "ENOSPC" in kernels.value.kernel
    with pytest.raises(SandboxError, match="no attribute") as other:
        call_in_helper(lambda: raise_(AttributeError("no attribute")), "try this")
    assert other.value.tried == "try this"


def test_a_helper_that_dies() -> None:
    def die() -> tuple[None, tuple[int, ...]]:
        os.kill(os.getpid(), signal.SIGKILL)
        return None, ()

    with pytest.raises(SandboxError, match="SIGKILL"):
        call_in_helper(die, "try")
    assert children(os.getpid()) == []


def test_a_helper_that_does_not_answer() -> None:
    """It waits with all signals blocked and handled, as in a suite that does so."""

    def wait() -> tuple[None, tuple[int, ...]]:
        time.sleep(3600)
        return None, ()

    before = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        with pytest.raises(SandboxError, match="more than 1 s"):
            call_in_helper(wait, "try", timeout=1)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert children(os.getpid()) == []
