"""The conformance command: its recorder, and its judgement of two recordings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import fetch, recorder, report, suites, trace
from tests.conformance.compare import Comparison, Recording, compare, normal, parse
from tests.conformance.run import Cost, Result, isolating


def entry(nodeid: str, outcome: str = "passed", **more: object) -> dict[str, Any]:
    return {
        "kind": "report",
        "nodeid": nodeid,
        "when": "call",
        "outcome": outcome,
        "wasxfail": None,
        "context": None,
        "sections": [],
        "shape": None,
        "message": "",
        "text": more.get("message", ""),
        **more,
    }


def ran(nodeid: str, isolated: bool = True) -> dict[str, Any]:
    return {"kind": "ran", "nodeid": nodeid, "isolated": isolated}


def warning(nodeid: str, message: str = "old") -> dict[str, Any]:
    return {
        "kind": "warning",
        "category": "UserWarning",
        "message": message,
        "when": "runtest",
        "nodeid": nodeid,
    }


FINISH = {"kind": "finish", "collected": 1, "pytest": "9"}


def recording(*entries: dict[str, Any], finish: bool = True, status: int | None = 0) -> Recording:
    lines = map(json.dumps, (*entries, FINISH) if finish else entries)
    return parse(lines, status)


def judged(
    plain: Iterable[dict[str, Any]],
    isolated: Iterable[dict[str, Any]],
    again: Iterable[dict[str, Any]] | None = None,
    **options: Any,
) -> Comparison:
    first = list(plain)
    second = first if again is None else again
    return compare(recording(*first), recording(*second), recording(*isolated), **options)


def test_same_runs_do_not_differ() -> None:
    entries = [ran("t"), entry("t"), entry("u", "skipped", message="no such thing")]
    found = judged(entries, entries)
    assert (found.cases, found.differences, found.notes) == (2, [], [])
    assert not found.unexpected


def test_another_outcome_is_unexpected() -> None:
    found = judged([entry("t")], [entry("t", "failed", message="E")])
    assert found.tests("unexpected") == ["t"]
    assert found.unexpected


@pytest.mark.parametrize(
    ("plain", "isolated"),
    [
        pytest.param([entry("t")], [], id="lost"),
        pytest.param([], [entry("t")], id="invented"),
        pytest.param([entry("t"), entry("t")], [entry("t")], id="rerun lost"),
        pytest.param(
            [entry("t", context=["a", {}]), entry("t", context=["b", {}])],
            [entry("t", context=["a", {}])],
            id="subtest lost",
        ),
        pytest.param(
            [entry("t", "skipped", wasxfail="why")], [entry("t", "skipped")], id="xfail became skip"
        ),
        pytest.param([entry("t", wasxfail="why")], [entry("t")], id="xpass became pass"),
        pytest.param([entry("t", "failed", when="setup")], [entry("t", "failed")], id="error"),
    ],
)
def test_what_is_lost_or_renamed_differs(plain: list[Any], isolated: list[Any]) -> None:
    anchor = [entry("other")]
    assert judged(anchor + plain, anchor + isolated).tests("unexpected") == ["t"]


def test_a_test_on_which_plain_runs_disagree_is_left_out() -> None:
    failing = [entry("t", "failed", message="E")]
    found = judged([entry("t")], failing, again=failing)
    assert (found.unstable, found.differences) == (["t"], [])
    assert not found.unexpected


def test_allowed_tests_may_differ_and_are_counted_apart() -> None:
    found = judged(
        [entry("a.py::T::x_2"), entry("a.py::T::y")],
        [entry("a.py::T::x_2", "failed"), entry("a.py::T::y")],
        allowed=["a.py::T::x_[2-8]*"],
    )
    assert found.tests("allowed") == ["a.py::T::x_2"]
    assert not found.unexpected


def test_exdev_is_a_class_of_its_own_for_an_ordinary_user() -> None:
    plain = [entry("t"), entry("t", when="teardown")]
    isolated = [entry("t", "failed", message="OSError: [Errno 18] Invalid cross-device link")]
    assert judged(plain, isolated, exdev=True).tests("exdev") == ["t"]
    assert judged(plain, isolated, exdev=False).tests("unexpected") == ["t"]


def test_exdev_that_a_plain_run_has_as_well_excuses_nothing() -> None:
    exdev = entry("t", "failed", message="Invalid cross-device link")
    found = judged([exdev], [exdev, entry("t", "failed", when="teardown")], exdev=True)
    assert found.tests("unexpected") == ["t"]


def test_a_test_that_ran_on_the_host_is_reported() -> None:
    entries = [entry("t"), entry("u")]
    found = judged(entries, [ran("t"), ran("u", isolated=False), *entries])
    assert found.bare == ["u"]
    assert found.unexpected


def test_a_call_that_the_parent_goes_through_as_well_counts_as_isolated() -> None:
    entries = [ran("t"), ran("t", isolated=False), entry("t")]
    assert judged(entries, entries).bare == []


def test_other_words_are_noted_unless_plain_runs_vary_in_them() -> None:
    def run(first: str, second: str) -> list[dict[str, Any]]:
        return [entry("t", "skipped", message=first), entry("u", "skipped", message=second)]

    found = judged(run("a", "one"), run("b", "three"), again=run("a", "two"))
    assert found.notes == ["t (call): message 'a' became 'b'"]
    assert not found.unexpected


def test_a_list_for_a_tuple_is_noted() -> None:
    found = judged([entry("t", "skipped", shape="tuple")], [entry("t", "skipped", shape="list")])
    assert found.notes == ["t (call): longrepr was tuple, is list"]


def test_captured_output_is_compared() -> None:
    found = judged(
        [entry("t", "failed", sections=[["Captured stdout call", "hello"]])],
        [entry("t", "failed")],
    )
    assert found.notes == ["t (call): section 'Captured stdout call': 'hello' became ''"]


def test_warnings_are_counted() -> None:
    found = judged([warning("t"), entry("t")], [entry("t"), warning("t", "new")])
    assert found.notes == [
        "t (runtest): UserWarning 0 times plain, 1 isolated: new",
        "t (runtest): UserWarning 1 times plain, 0 isolated: old",
    ]


@pytest.mark.parametrize(
    ("run", "problem"),
    [
        (recording(entry("t"), status=None), "the isolated run did not end in time"),
        (recording(entry("t"), finish=False, status=-9), "ended early, with status -9"),
        (recording(entry("t"), status=1), "exit status 0 became 1"),
    ],
)
def test_a_run_that_goes_wrong_as_a_whole_is_unexpected(run: Recording, problem: str) -> None:
    plain = recording(entry("t"))
    found = compare(plain, plain, run)
    assert [line for line in found.problems if problem in line]
    assert found.unexpected


def test_no_tests_at_all_is_a_problem() -> None:
    assert judged([], []).unexpected


def test_a_run_that_did_not_begin_is_one_problem() -> None:
    plain, refused = recording(entry("t"), entry("u")), parse([], 4)
    refused.last_words = ("no such option",)
    found = compare(plain, plain, refused)
    assert found.differences == []
    assert found.problems == ["the isolated run ended early, with status 4", "    no such option"]


def test_a_recording_cut_short_keeps_what_it_has() -> None:
    found = parse([json.dumps(entry("t")), '{"kind": "repo'], -9)
    assert found.tests() == {"t"}
    assert not found.finished


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("<object at 0x7f1234>", "<object at 0xabc>"),
        ("/tmp/pytest-of-me/pytest-3/t0", "/tmp/pytest-of-me/pytest-14/t0"),
        ("'/tmp/pytest-of-me/pytest-3/test_name0'", "'/tmp/pytest-of-me/pytest-3/test_name12'"),
        ("took 0.31s", "took 12.5 s"),
        ("pid 31337", "pid 420000"),
    ],
)
def test_what_no_two_runs_share_is_not_compared(one: str, other: str) -> None:
    assert normal(one) == normal(other)


def result(comparison: Comparison, **traces: list[str]) -> Result:
    left = trace.Trace(traces.get("certain", []), traces.get("possible", []))
    suite = suites.Suite("some", "1.0")
    return Result(
        suite, comparison, left, Cost(1.0, 0.5), Cost(2.0, 1.5), "9", {"passed": 1}, Path("records")
    )


def test_the_report_names_test_outcomes_and_messages() -> None:
    comparison = judged([entry("t")], [entry("t", "failed", message="E: gone\nmore")])
    text = "\n".join(report.lines([result(comparison)]))
    assert "t (call): passed -> failed" in text
    assert "mountns: E: gone more" in text
    assert "1 outcome differs, 1 unexpected" in text


def test_a_trace_on_the_host_fails_a_suite_whose_outcomes_are_the_same() -> None:
    comparison = judged([entry("t")], [entry("t")])
    assert not report.failed(result(comparison, possible=["new: /tmp/x"]))
    assert report.failed(result(comparison, certain=["left behind: /home/x"]))


def test_the_results_are_json() -> None:
    comparison = judged([entry("t")], [entry("t", "failed")])
    (one,) = json.loads(json.dumps(report.as_json([result(comparison)])))
    assert one["differences"][0]["plain"]["outcome"] == "passed"


def test_traces_are_what_is_new_gone_or_changed(tmp_path: Path) -> None:
    for name in ("same", "gone", "edited", "replaced"):
        (tmp_path / name).write_text("old")
    before = trace.take([tmp_path], [])
    (tmp_path / "gone").unlink()
    (tmp_path / "edited").write_text("longer")
    (tmp_path / "replaced").unlink()
    (tmp_path / "replaced").mkdir()
    (tmp_path / "new" / "below").mkdir(parents=True)
    found = trace.compare(before, trace.take([tmp_path], []))
    assert found.certain == [
        f"left behind: {tmp_path}/new",
        f"deleted: {tmp_path}/gone",
        f"changed: {tmp_path}/edited",
        f"changed: {tmp_path}/replaced",
    ]


def test_a_mount_that_stays_is_a_trace() -> None:
    before = trace.Snapshot(frozenset({"1 /"}))
    after = trace.Snapshot(frozenset({"1 /", "2 /mnt"}))
    assert trace.compare(before, after).certain == ["mount new: 2 /mnt"]


def test_what_is_meant_to_stay_is_no_trace(tmp_path: Path) -> None:
    before = trace.take([tmp_path], [tmp_path])
    (tmp_path / "pytest-of-me" / "pytest-0").mkdir(parents=True)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / ".hypothesis" / "unicode_data").mkdir(parents=True)
    found = trace.compare(before, trace.take([tmp_path], [tmp_path]))
    assert found == trace.Trace([], [])


def test_the_list_of_suites_can_be_read() -> None:
    listed = suites.load()
    assert {suite.name for suite in listed} >= {"python-dotenv", "pathspec"}
    assert all(suite.cases and suite.paths for suite in listed)
    assert suites.select(listed, None) == listed
    with pytest.raises(ValueError, match=r"no suite named nonesuch; there are python-dotenv"):
        suites.select(listed, ["nonesuch"])


def test_a_misspelt_key_in_the_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "suites.toml"
    path.write_text('[[suite]]\nname = "a"\nversion = "1"\npath = ["t"]\n')
    with pytest.raises(ValueError, match="a: unknown path; known are allowed_fork, cases"):
        suites.load(path)


def test_a_suite_may_have_options_of_its_own() -> None:
    suite = suites.Suite("a", "1", isolated=("--mountns-volume=/tmp",))
    options = isolating(suite, "fork")
    assert options[-1] == "--mountns-volume=/tmp"
    # By itself --mountns runs tests inline.
    assert "--mountns-process=fork" in options


def test_nothing_of_the_callers_ci_reaches_a_run() -> None:
    environ = {"CI": "1", "PYTEST_ADDOPTS": "-x", "PYTHONDONTWRITEBYTECODE": "1", "LANG": "C"}
    assert fetch.clean_environ(environ) == {"LANG": "C"}


def test_the_recorder_writes_what_the_comparison_reads(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").touch()
    (tmp_path / "test_all.py").write_text(
        "import os, unittest, warnings, pytest\n"
        "def test_pass(): warnings.warn('look')\n"
        "def test_fail(): print('said'); assert 1 == 2\n"
        "def test_skip(): pytest.skip('not today')\n"
        "@pytest.mark.xfail(reason='known')\n"
        "def test_xfail(): assert False\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError('broken')\n"
        "def test_error(broken): pass\n"
        f"def test_environ(): assert {recorder.RECORD!r} not in os.environ\n"
    )
    record = tmp_path / "record.jsonl"
    environ = fetch.clean_environ(os.environ)
    environ["PYTHONPATH"] = str(fetch.CHECKOUT)
    environ[recorder.RECORD] = str(record)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "tests.conformance.recorder",
        "-p",
        "no:mountns",
    ]
    done = subprocess.run([*command, "-q"], cwd=tmp_path, env=environ, check=False)

    found = parse(record.read_text().splitlines(), done.returncode)
    names = {
        key.nodeid.partition("::")[2]: outcome
        for key, outcome in found.outcomes.items()
        if outcome.name != "passed" or key.when == "call"
    }
    assert {name: outcome.name for name, outcome in names.items()} == {
        "test_pass": "passed",
        "test_fail": "failed",
        "test_skip": "skipped",
        "test_xfail": "xfailed",
        "test_error": "error",
        "test_environ": "passed",
    }
    assert names["test_fail"].message == "assert 1 == 2"
    assert names["test_fail"].sections == (("Captured stdout call", "said\n"),)
    assert names["test_skip"].message == "Skipped: not today"
    assert names["test_xfail"].wasxfail == "known"
    assert found.finished
    assert found.exit_status == 1
    assert len(found.ran) == 5
    assert not found.isolated
    assert [warned[:2] for warned in found.warnings] == [("UserWarning", "look")]


def test_both_ends_agree_on_the_variable() -> None:
    # The command cannot import the recorder where there is no pytest.
    assert fetch.RECORD == recorder.RECORD
    assert fetch.RECORDER.read_text().startswith('"""A pytest plugin')
