"""``pytest --debug``: what is planned, mounted, entered, sent, received and left."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.sandboxes


class Step(NamedTuple):
    """A traced step."""

    seconds: float
    process: int
    what: str
    detail: str


def traced(pytester: pytest.Pytester, *options: str) -> list[Step]:
    """The steps of a run, in the order in which they were written."""
    pytester.makepyfile(test_it="def test_it(overlay_root): pass")
    pytester.runpytest_subprocess("--debug", *options).assert_outcomes(passed=1)
    text = (pytester.path / "pytestdebug.log").read_text()
    pattern = re.compile(
        r"^ *(\d+\.\d{4}) (\d+) (\w+): (.*?)(?: \[config:mountns\])?$", re.MULTILINE
    )
    return [Step(float(a), int(b), c, d) for a, b, c, d in pattern.findall(text)]


def test_a_forked_test(pytester: pytest.Pytester) -> None:
    steps = traced(pytester)
    parent, test = (
        next(step.process for step in steps if step.what == what) for what in ("planned", "entered")
    )
    assert parent != test
    # Two processes write to the file, so that only the order within each of them is certain.
    of_parent, of_test = (
        [step for step in steps if step.process == process] for process in (parent, test)
    )
    for own in (of_parent, of_test):
        assert [step.seconds for step in own] == sorted(step.seconds for step in own)
    # Which process mounts depends on whether other threads are alive.
    ways = [step.what for step in of_parent if step.what not in ("received", "mounted")]
    assert ways == ["planned", "left"]
    assert [step.what for step in steps].count("mounted") == 1
    assert [step.what for step in of_test if step.what not in ("sent", "mounted")] == ["entered"]
    assert of_parent[0].detail == "test_it.py::test_it"
    sent = [step.detail for step in of_test if step.what == "sent"]
    received = [step.detail for step in of_parent if step.what == "received"]
    assert sent[-1] == received[-1] == "Leave"
    assert sent.count("Report") == received.count("Report") == 3


def test_an_inline_test(pytester: pytest.Pytester) -> None:
    # pytest-rerunfailures keeps a thread; an ordinary user's inline tests would be forked.
    steps = traced(pytester, "-pno:rerunfailures", "--mountns-process=inline")
    assert [step.what for step in steps] == ["planned", "mounted", "entered", "left"]
    assert len({step.process for step in steps}) == 1
    assert "/" in steps[1].detail or os.geteuid() != 0


def test_a_plan_is_shown_whole(pytester: pytest.Pytester) -> None:
    traced(pytester)
    text = (pytester.path / "pytestdebug.log").read_text()
    planned = text[text.index("planned: ") :]
    assert "pivot_root" in planned or "overlay" in planned


def test_nothing_is_traced_without_debug(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(overlay_root): pass")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
    assert not (pytester.path / "pytestdebug.log").exists()
