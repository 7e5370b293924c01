"""The matrix command: its judgement of two runs, its documents, its list, its page."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.compare import parse
from tests.matrix import documents, judge, page, scenarios, versions
from tests.matrix.run import Result

SCENARIO = scenarios.Scenario("some", "something")
FINISH = {"kind": "finish", "collected": 1, "pytest": "9"}
RAN = {"kind": "ran", "nodeid": "t", "isolated": True}


def entry(nodeid: str = "t", outcome: str = "passed", **more: object) -> dict[str, Any]:
    return {
        "kind": "report",
        "nodeid": nodeid,
        "when": "call",
        "outcome": outcome,
        "wasxfail": None,
        "context": None,
        "sections": [],
        "properties": [],
        "shape": None,
        "message": "",
        "text": "",
        **more,
    }


def observed(
    *entries: dict[str, Any], status: int | None = 0, finish: bool = True, **read: Sequence[str]
) -> judge.Observation:
    everything = (RAN, *(entries or (entry(),)), *((FINISH,) if finish else ()))
    recording = parse(map(json.dumps, everything), status)
    return judge.Observation(recording, {name: list(lines) for name, lines in read.items()})


def about(
    plain: judge.Observation,
    isolated: judge.Observation,
    scenario: scenarios.Scenario = SCENARIO,
) -> list[str]:
    return [one.about for one in judge.compare(scenario, [plain], [isolated])]


def test_equal_runs_do_not_differ() -> None:
    run = observed(entry(text="took 1.5s at 0x7f0011"), terminal=["1 passed"])
    other = observed(entry(text="took 2.5s at 0x7fbbbb"), terminal=["1 passed"])
    assert about(run, other) == []


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(entry(outcome="failed", message="E"), id="outcome"),
        pytest.param(entry(text="other words"), id="text"),
        pytest.param(entry(shape="list"), id="shape"),
        pytest.param(entry(sections=[["Captured stdout call", "x"]]), id="sections"),
        pytest.param(entry(properties=[["colour", "'red'"]]), id="properties"),
    ],
)
def test_a_report_that_differs_is_named(other: dict[str, Any]) -> None:
    assert about(observed(), observed(other)) == ["t (call)"]


def test_order_counts_unless_the_scenario_says_otherwise() -> None:
    runs = observed(entry("t"), entry("u")), observed(entry("u"), entry("t"))
    assert about(*runs) == ["order"]
    assert about(*runs, replace(SCENARIO, ordered=False)) == []


def test_warnings_documents_and_status_are_compared() -> None:
    warning = {"kind": "warning", "category": "W", "message": "m", "when": "x", "nodeid": "t"}
    plain = observed(entry(), warning, report=["a", "b"])
    assert about(plain, observed(entry(), status=1, report=["a", "c"])) == [
        "warnings",
        "report",
        "exit status",
    ]


def test_dropped_lines_are_not_compared() -> None:
    plain, isolated = observed(report=["same", "rate 1"]), observed(report=["same", "rate 2"])
    assert about(plain, isolated, replace(SCENARIO, drop=("^rate",))) == []


def test_a_test_that_ran_bare_is_a_difference() -> None:
    bare = observed(entry(), {**RAN, "nodeid": "u", "isolated": False})
    assert about(observed(), bare) == ["not isolated"]


@pytest.mark.parametrize(
    ("plain", "isolated", "found"),
    [
        (observed(status=4), observed(status=4), "the plain run is broken, with status 4"),
        (observed(), observed(status=None), "the isolated run did not end in time"),
        (
            observed(finish=False, status=1),
            observed(finish=False, status=1),
            "the plain run went only a part of the way, with status 1",
        ),
    ],
)
def test_two_broken_runs_are_not_the_same(
    plain: judge.Observation, isolated: judge.Observation, found: str
) -> None:
    assert about(plain, isolated)[0] == found


def test_a_run_that_is_meant_to_break_off_must() -> None:
    scenario = replace(SCENARIO, breaks_off=True)
    broken = observed(finish=False, status=1)
    assert about(broken, broken, scenario) == []
    assert about(broken, observed(status=1), scenario) == [
        "the isolated run went to its end, with status 1"
    ]


def test_the_steps_of_a_scenario_are_told_apart() -> None:
    scenario = replace(SCENARIO, steps=((), ("--lf",)))
    found = judge.compare(scenario, [observed(), observed()], [observed(), observed(status=1)])
    assert [one.about for one in found] == ["run 2: exit status"]


def test_a_limit_explains_what_it_lists_and_nothing_else() -> None:
    scenario = replace(SCENARIO, limit="because", limited=("report",))
    found = judge.compare(scenario, [observed(report=["a"])], [observed(report=["b"], status=0)])
    verdict = judge.verdict(scenario, found)
    assert not verdict.unexpected
    assert verdict.summary(scenario.limit) == "limit: because"

    other = judge.compare(scenario, [observed(report=["a"])], [observed(report=["b"], status=1)])
    verdict = judge.verdict(scenario, other)
    assert verdict.unexpected
    assert verdict.summary(scenario.limit) == "**differs**: exit status"


def test_a_limit_without_a_difference_is_seen() -> None:
    verdict = judge.verdict(replace(SCENARIO, limit="because", limited=("report",)), [])
    assert verdict.needless
    assert verdict.summary("because") == "same"


def test_terminals_are_read_without_what_tells_the_runs_apart() -> None:
    plain = "plugins: a\n===== 1 passed in 0.51s =====\n"
    isolated = "plugins: a, b\nmountns: every test\n========= 1 passed in 1.22s =========\n"
    assert documents.terminal(plain) == documents.terminal(isolated) == ["= 1 passed in 0s ="]


def test_junit_xml_names_what_differs() -> None:
    case = '<testcase name="t" time="{0}"><failure message="{1}"/></testcase>'
    xml = f'<s time="1" hostname="h">{case}</s>'
    first, second = (documents.junit(xml.format(*each)) for each in (("1", "a"), ("2", "a")))
    assert first == second
    assert documents.junit(xml.format("1", "b")) == ["/s/testcase[t]/failure message=b"]


def test_a_coverage_report_is_read_line_by_line() -> None:
    report = {
        "meta": {"timestamp": "now"},
        "files": {"a.py": {"executed_lines": [1, 2], "contexts": {"1": ["b", "a"]}, "classes": {}}},
    }
    assert documents.coverage(json.dumps(report)) == [
        '.files.a.py.contexts.1 = ["a", "b"]',
        ".files.a.py.executed_lines = [1, 2]",
    ]


def test_trees_are_read_with_their_content(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("1")

    def read(kind: str, pattern: str = "kept/**/*") -> list[str]:
        return documents.read(tmp_path, pattern, kind, run_python=str)

    before, names = read("tree"), read("names")
    (tmp_path / "kept" / "a").write_text("2")
    assert read("tree") != before
    assert read("names") == names == ["kept/a"]
    assert read("names", "gone/*") == ["nothing at gone/*"]
    with pytest.raises(ValueError, match="unknown kind of document 'tre'; there are tree, names"):
        read("tre")


def test_every_suite_can_be_read() -> None:
    listed = scenarios.load()
    assert {suite.name for suite in listed} >= {"coverage", "hypothesis", "xdist"}
    for suite in listed:
        assert suite.scenarios
        for scenario in suite.scenarios:
            assert scenario.exercises
            assert {kind for _, kind in scenario.documents} <= set(documents.KINDS)
            assert bool(scenario.limit) == bool(scenario.limited)


def test_a_misspelt_key_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "some" / "matrix.toml"
    path.parent.mkdir()
    path.write_text('[[scenario]]\nname = "a"\nexercise = "x"\n')
    with pytest.raises(ValueError, match=r"some/matrix\.toml: a: unknown exercise; known are"):
        scenarios.read(path)


def test_suites_and_scenarios_are_chosen_by_name() -> None:
    listed = scenarios.load()
    (one,) = scenarios.select(listed, ["coverage/run"])
    assert [scenario.name for scenario in one.scenarios] == ["run"]
    with pytest.raises(ValueError, match="no suite named nonesuch"):
        scenarios.select(listed, ["nonesuch"])


def result(pytest_version: str, *differences: str) -> Result:
    found = tuple(judge.Difference(one, ()) for one in differences)
    return Result("s", SCENARIO, "plugin 1.0", pytest_version, judge.Verdict(found))


def test_pytests_with_the_same_result_share_a_row() -> None:
    table = page.plugins_table([result("8.4"), result("9.1", "order"), result("9.2")])
    assert table[2:] == [
        "| plugin 1.0 | something | 8.4, 9.2 | same |",
        "| plugin 1.0 | something | 9.1 | **differs**: order |",
    ]


def test_only_what_is_between_the_markers_is_written() -> None:
    text = (
        "before\n<!-- generated: a -->\nold\n<!-- end -->\nafter\n"
        "<!-- generated: b -->\n<!-- end -->\n"
    )
    once = page.replaced(text, "a", ["new"])
    assert once.startswith("before\n<!-- generated: a -->\n\nnew\n\n<!-- end -->\nafter\n")
    assert page.replaced(once, "a", ["new"]) == once
    with pytest.raises(ValueError, match="no <!-- generated: c -->"):
        page.replaced(text, "c", [])


def test_the_page_has_the_markers() -> None:
    text = page.PAGE.read_text()
    for name in ("plugins", "versions"):
        page.replaced(text, name, [])


def test_interpreters_are_those_that_start(tmp_path: Path) -> None:
    version = "{}.{}".format(*sys.version_info)
    shim = tmp_path / f"python{version}"
    shim.write_text("#!/bin/sh\necho 'no such version' >&2\nexit 127\n")
    shim.chmod(0o755)
    environ = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    assert versions.interpreters([], environ) == {}
    shim.unlink()
    shim.symlink_to(os.path.realpath(sys.executable))
    found = versions.interpreters(["3.12=/some/python"], environ)
    expected = {version: str(shim)} if version in (versions.MAIN, *versions.OTHERS) else {}
    assert found == {**expected, "3.12": "/some/python"}
    with pytest.raises(ValueError, match=r"not in the grid: 2\.7"):
        versions.interpreters(["2.7=/usr/bin/python"], environ)


def test_a_missing_interpreter_is_a_row(tmp_path: Path) -> None:
    row = versions.run_row("3.10", "8.0", None, tmp_path)
    assert page.versions_table([row])[2:] == ["| 3.10 | 8.0 | not run: no such Python here | - |"]
