"""Real plugins: the same as without isolation, or the run says why not.

Here, plugins that are not installed are left out. ``python -m tests.plugins`` has an environment
for each.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.recording import Recorded, Report

from .__main__ import WAYS, Result, Row, table
from .case import Case
from .cases import CASES
from .run import ISOLATED, PLAIN, Run, differences, false_green, lines_of, run, sound

CASE = Case("it", ("it",), {}, uses="something", said_forked="known", said="dropped")


def _is_installed(case: Case) -> bool:
    try:
        importlib.metadata.distribution(case.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return not case.program or shutil.which(case.program) is not None


@pytest.mark.sandboxes
@pytest.mark.parametrize("process", ["fork", "auto"])
@pytest.mark.parametrize(
    "case", [case for case in CASES if _is_installed(case)], ids=lambda case: case.name
)
def test_plugin(case: Case, process: str, tmp_path: Path) -> None:
    plain = [run(case, sys.executable, tmp_path, PLAIN) for _ in range(2)]
    assert not sound(case, plain[0]), plain[0].out
    isolated = run(case, sys.executable, tmp_path, (*ISOLATED, *WAYS[process]))
    words = case.words(forked=process == "fork")
    if not (words and words in isolated.said):
        assert differences(case, plain, isolated, several=False) == [], isolated.out
    assert false_green(plain[0], isolated) is False or words in isolated.said


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names))


def _report(nodeid: str = "t", outcome: str = "passed", text: str = "", **more: object) -> Report:
    fields: dict[str, Any] = {
        "wasxfail": None,
        "longrepr_type": "str",
        "sections": [],
        "keywords": [],
    }
    fields |= {"context": "None", "properties": "[]", "when": "call", **more}
    return Report(nodeid=nodeid, outcome=outcome, text=text, **fields)


def _run(*reports: Report, status: int | None = 0, out: str = "", **files: Sequence[str]) -> Run:
    recorded = Recorded(status or 0, list(reports or (_report(),)), out="", err="")
    return Run(status, recorded, {name: list(one) for name, one in files.items()}, None, out)


@pytest.mark.parametrize(
    ("isolated", "found"),
    [
        pytest.param(_run(a=["x"]), [], id="same"),
        pytest.param(_run(), ["a is not written"], id="file missing"),
        pytest.param(_run(a=["y"]), ["content of a"], id="content"),
        pytest.param(_run(a=["x"], b=[]), ["b is written"], id="file added"),
        pytest.param(_run(a=["x"], out="a line"), ["the terminal"], id="terminal"),
        pytest.param(_run(a=["x"], status=1), ["exit status 0 becomes 1"], id="status"),
        pytest.param(_run(a=["x"], status=None), ["does not end"], id="time"),
        pytest.param(_run(_report(text="no"), a=["x"]), ["reports"], id="text"),
        pytest.param(_run(_report(outcome="failed"), a=["x"]), ["outcomes"], id="outcome"),
        pytest.param(Run(4, None, {}, None, ""), ["stops with exit status 4"], id="stops"),
    ],
)
def test_what_differs_is_named(isolated: Run, found: list[str]) -> None:
    plain = _run(a=["x"])
    assert differences(CASE, [plain, plain], isolated, several=False) == found


def test_what_two_plain_runs_do_not_share_is_not_compared() -> None:
    plain = [_run(a=["same", "noon"]), _run(a=["same", "midnight"])]
    assert differences(CASE, plain, _run(a=["same", "evening"]), several=False) == []
    assert differences(CASE, plain, _run(a=["evening"]), several=False) == ["content of a"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"tests": [{"name": "a"}, {"name": "b"}]}', '{"tests": [{"name": "b"}, {"name": "a"}]}'),
        (
            '<run><case id="1">a</case><case id="2"/></run>',
            '<run><case id="1"/><case id="2">a</case></run>',
        ),
    ],
)
def test_documents_of_several_workers_have_any_order(one: str, other: str) -> None:
    plain, isolated = _run(a=lines_of(one)), _run(a=lines_of(other))
    assert differences(CASE, [plain, plain], isolated, several=True) == []
    assert differences(CASE, [plain, plain], isolated, several=False) == ["content of a"]


def test_times_are_not_compared() -> None:
    runs = [_run(out=f"##[finished duration='{n}']\nin {n}.5 s at 12:00:{n}") for n in (10, 10, 11)]
    assert differences(CASE, runs[:2], runs[2], several=False) == []


def test_marks_of_several_workers_have_any_order() -> None:
    plain = _run(out="t.py s.F\nsaid\n.E\nok 1 a\nnot ok 2 b")
    isolated = _run(out="t.py F\nnot ok 1 b\nsaid\nok 2 a\nt.py .Es.")
    assert differences(CASE, [plain, plain], isolated, several=True) == []
    isolated = _run(out="t.py s.F\n.E\nok 1 a\nnot ok 2 b")
    assert differences(CASE, [plain, plain], isolated, several=True) == ["the terminal"]


def test_a_false_green() -> None:
    failed, passed = _run(_report(outcome="failed"), status=1), _run()
    assert false_green(failed, passed)
    assert false_green(failed, Run(0, None, {}, None, ""))
    assert not false_green(failed, failed)
    assert not false_green(passed, failed)
    assert not false_green(failed, Run(4, None, {}, None, ""))


@pytest.mark.parametrize(
    ("way", "differs", "told", "green", "unexpected"),
    [
        ("auto", [], "", False, False),
        ("auto", ["warnings"], "", False, True),
        ("auto", ["warnings"], "known", False, False),
        ("fork", ["warnings"], "", False, False),
        ("fork", ["outcomes"], "", True, True),
        ("fork", ["does not end"], "known", False, True),
    ],
)
def test_what_no_run_may_be(
    way: str, differs: list[str], told: str, green: bool, unexpected: bool
) -> None:
    assert Result(way, "root", differs, told, False, green).unexpected is unexpected


def test_the_table() -> None:
    results = [
        Result("auto", "root", [], "", False, False),
        Result("auto", "user", ["warnings"], "", False, False),
        Result("fork", "root", ["outcomes"], "known", True, False),
    ]
    name = CASES[0].name
    lines = list(table([Row(name, "1.0", results), Row(CASES[1].name, "", [], "no docker here")]))
    assert lines[2] == (
        f"| {name} 1.0 | {CASES[0].uses} | root: same; user: differs: warnings"
        ' | refused: "known" | - | - |'
    )
    assert lines[3].endswith("| not run: no docker here |  |  |  |")
