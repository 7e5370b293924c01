"""How a test is run, by its spec and by what the process is like."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_mountns.engine.linux.threads import StuckThread
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.runners.choice import Choice, choose

STUCK = StuckThread(7, "stubborn", "it blocks the signal that would move it", True)
NATIVE = StuckThread(8, "rayon-1", "fork(2) leaves it behind", False)


def chosen(process: Any, *, obstacle: str = "", **facts: Any) -> Choice:
    found = {"stuck": [], "lost": [], "libraries": [], **facts}
    return choose(SandboxSpec(process=process), obstacle=obstacle, **found)


@pytest.mark.parametrize("process", ["auto", "inline"])
def test_inline_where_all_threads_can_move(process: str) -> None:
    assert chosen(process) == Choice("inline")
    assert chosen(process, lost=[NATIVE]) == Choice("inline")


def test_fork_if_asked_for() -> None:
    assert chosen("fork", stuck=[STUCK], lost=[NATIVE]) == Choice("fork")


@pytest.mark.parametrize(
    "key", [{"pid": True}, {"network": "none"}, {"hostname": "box"}, {"user": "nobody"}]
)
@pytest.mark.parametrize("process", ["auto", "inline"])
def test_fork_if_the_test_needs_a_process(process: Any, key: dict[str, Any]) -> None:
    spec = SandboxSpec(process=process, **key)
    assert choose(spec, obstacle="", stuck=[], lost=[], libraries=[]) == Choice("fork")


@pytest.mark.parametrize("process", ["auto", "inline"])
def test_fork_if_a_thread_cannot_move(process: str) -> None:
    choice = chosen(process, stuck=[STUCK])
    assert (choice.process, choice.error) == ("fork", None)
    assert "stubborn" in choice.why_not_inline


def test_fork_if_the_process_cannot_enter_a_sandbox() -> None:
    assert chosen("auto", obstacle="no namespace") == Choice("fork", "no namespace")


def test_neither_way_names_threads_libraries_and_what_helps() -> None:
    choice = chosen("auto", stuck=[STUCK], lost=[NATIVE], libraries=["Polars"])
    text = str(choice.error)
    for part in ("stubborn", "rayon-1 (tid 8)", "Polars", "OMP_NUM_THREADS=1", 'process="fork"'):
        assert part in text


def test_inline_that_was_asked_for_is_forked_all_the_same() -> None:
    assert chosen("inline", stuck=[STUCK], lost=[NATIVE]).error is None
