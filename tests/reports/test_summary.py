"""The line at the end of a run: how many tests were isolated, or could not be."""

from __future__ import annotations

import pytest

from tests.session.test_unavailable import run

SUITE = """
import pytest
@pytest.mark.parametrize("n", [1, 2])
def test_marked(n, overlay_root): assert n == 1
def test_unmarked(): pass
"""


def _said(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("mountns: ")]


@pytest.mark.sandboxes
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["mountns: 2 tests isolated"]),
        (["--mountns-process=inline", "-k", "1"], ["mountns: 1 test isolated"]),
        (["-p", "xdist.plugin", "-n2"], ["mountns: 2 tests isolated"]),
        (["-q"], []),
        (["-k", "unmarked"], []),
        (
            ["--no-mountns", "-k", "marked"],
            ["mountns: off, tests that ask for a sandbox are skipped"],
        ),
    ],
    ids=" ".join,
)
def test_the_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], said: list[str]
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "pytest_mountns.plugin", *options)
    assert _said(result) == said


@pytest.mark.sandboxes
def test_it_is_the_last_but_the_outcomes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-rA", "--color=yes")
    assert result.outlines[-2] == "mountns: 2 tests isolated"


@pytest.mark.sandboxes
@pytest.mark.no_mountns(reason="writes to /proc/sys")
@pytest.mark.parametrize(("columns", "advice"), [("80", " (pytest --mountns-doctor)"), ("60", "")])
def test_a_machine_that_cannot_isolate(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, columns: str, advice: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    pytester.makepyfile(SUITE)
    result = run(pytester)
    result.assert_outcomes(passed=1, skipped=2)
    assert _said(result) == [f"mountns: 2 skipped as this machine cannot isolate{advice}"]
