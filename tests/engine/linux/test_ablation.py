"""The switch that leaves out the parts that exist for speed alone."""

from __future__ import annotations

import contextlib
import os

import pytest

from pytest_mountns.engine.linux import ablation
from pytest_mountns.engine.linux.background_close import BackgroundCloser
from pytest_mountns.engine.linux.fork_pages import ForkPages
from pytest_mountns.engine.linux.mountinfo import Mount
from pytest_mountns.engine.mount.template import can_share_mounts
from pytest_mountns.engine.plan.decide import plan
from pytest_mountns.engine.plan.model import Features, Host
from pytest_mountns.engine.plan.spec import SandboxSpec

both = pytest.mark.parametrize("left_out", [False, True])


def _leave_out(monkeypatch: pytest.MonkeyPatch, part: ablation.Part, left_out: bool) -> None:
    names = frozenset([part]) if left_out else frozenset()
    monkeypatch.setattr(ablation, "LEFT_OUT", names)


def _sockets() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        # The listing's own descriptor is closed by now.
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/self/fd/{fd}"))
    return {link for link in found if link.startswith("socket:")}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("templates", ["templates"]),
        (" fork_pages, background_close,", ["background_close", "fork_pages"]),
    ],
)
def test_value_of_the_variable(text: str, names: list[str]) -> None:
    assert sorted(ablation.parse(text)) == names


def test_a_misspelt_name_is_an_error_that_lists_the_right_ones() -> None:
    with pytest.raises(ValueError, match=r"no part template; there are: fork_pages, .*, templates"):
        ablation.parse("fork_pages,template")


@both
def test_without_fork_pages_no_child_is_learned_from(
    monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    _leave_out(monkeypatch, "fork_pages", left_out)
    pages = ForkPages(1)
    asked = [pages.before_fork() is not None for _ in range(10)]
    pages.close()
    assert any(asked) is not left_out


@both
def test_without_background_close_this_process_closes(
    monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    _leave_out(monkeypatch, "background_close", left_out)
    reader, writer = os.pipe()
    os.close(writer)
    before = _sockets()
    closer = BackgroundCloser()
    closer.close([reader], may_start=True)
    # One leads to the process in the background, if there is one.
    more = _sockets() - before
    closer.stop()
    assert bool(more) is not left_out
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


@both
def test_without_templates_every_sandbox_is_mounted_step_by_step(
    monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    _leave_out(monkeypatch, "templates", left_out)
    root = Mount(1, 0, "8:1", "/", "/", frozenset(["rw"]), (), "ext4", "x", "rw")
    assert can_share_mounts(plan(SandboxSpec(), Host((root,)), Features(False))) is not left_out
