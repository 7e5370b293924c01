"""The plugin beside this file, at work on a suite of its own."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.no_mountns(reason="starts a pytest of its own, with sandboxes")

SUITE = """
import os
from pathlib import Path

import pytest


def test_good(overlay_root):
    Path.home().joinpath("file").write_text("x")


def test_leaves_a_program_for_everybody_to_write(overlay_root):
    program = Path.home() / "program"
    program.write_text("#!/bin/sh")
    program.chmod(0o777)


def test_writes_too_much(overlay_root):
    with pytest.raises(OSError, match="No space left"):
        (Path.home() / "big").write_bytes(bytes(65 << 20))
    (Path.home() / "big").unlink()
"""


@pytest.fixture
def home(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    home = pytester.path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))


@pytest.mark.sandboxes
@pytest.mark.usefixtures("home")
def test_the_policy(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]")
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "examples.policy.machine_policy")
    # It is found out when the test has ended, so that is an error of the teardown.
    result.assert_outcomes(passed=3, errors=1)
    result.stdout.fnmatch_lines(["*/home/program is left writable by everybody"])
