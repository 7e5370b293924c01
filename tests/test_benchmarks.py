"""The benchmarks' own arithmetic, pictures and arguments. Nothing is timed here."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks import ablation, floor, parts, pictures, report, results
from benchmarks.__main__ import arguments
from benchmarks.cases import Run, Sample
from benchmarks.machine import CHECKOUT
from pytest_mountns.engine.linux import ablation as switch

SVG = "{http://www.w3.org/2000/svg}"


def every_row() -> dict[str, results.Row]:
    """Figures for all cases, as a run would give them."""
    chance = random.Random(1)
    rows: dict[str, results.Row] = {}
    for case in parts.chosen(list(parts.PARTS), parts.FULL):
        figures = list(results.FIGURES)
        if case.name.startswith("io/"):
            figures = ["wall", "cpu", *report.KINDS, *(f"{kind}_cpu" for kind in report.KINDS)]
        rows[case.name] = {name: [chance.uniform(1, 3) for _ in range(3)] for name in figures}
    rows["again"] |= {"reset": [0.5] * 3, "checkpoint": [0.4, 0.5, 0.6]}
    return rows


def sample(wall: float, **times: float) -> Sample:
    return Sample(wall, tests=100, times=times)


def test_cost_is_what_a_test_takes_beyond_the_base_of_the_same_round() -> None:
    base = [sample(1.0, a=0.001, b=0.001), sample(2.0, a=0.001, b=0.001)]
    mine = [sample(1.5, a=0.003, b=0.003), sample(3.0, a=0.002, b=0.002)]
    row = results.row(mine, base)
    assert row["added"] == pytest.approx([5.0, 10.0])
    assert row["steady"] == pytest.approx([2.0, 1.0])


def test_cpu_time_and_the_tenth_percentile_are_beside_the_wall_time() -> None:
    times = {f"test{n}": 0.001 * n for n in range(1, 21)}
    base = [Sample(1.0, 0.5, 100, dict.fromkeys(times, 0.001))]
    row = results.row([Sample(3.0, 0.9, 100, times)], base)
    assert row["added"] == pytest.approx([20.0])
    assert row["added_cpu"] == pytest.approx([4.0])
    assert row["steady"] == pytest.approx([9.5])
    assert row["steady_p10"] == pytest.approx([2.0])
    assert results.p10([5.0, 4.0, 3.0]) == 3.0


def test_a_claim_shows_the_ratios_of_cpu_time_and_of_the_tenth_percentile() -> None:
    steady = ("steady", "steady")
    claim = results.Claim("a of b", ("a", "added"), ("b", "added"), 1.0, steady=steady)
    figures = {"added": 2.0, "added_cpu": 3.0, "steady": 4.0, "steady_p10": 5.0}
    judged = claim.judge(
        {
            "a": {name: [value] * 2 for name, value in figures.items()},
            "b": {name: [1.0, 2.0] for name in figures},
        }
    )
    assert judged["ratios"] == [2.0, 1.0]
    assert judged["cpu"] == [3.0, 1.5]
    assert judged["steady"] == [4.0, 2.0]
    assert judged["p10"] == [5.0, 2.5]
    kind = results.Claim("files", ("io/a", "files"), ("io/b", "files"), 1.0)
    rounds = {"io/a": {"files": [9.0, 2.0]}, "io/b": {"files": [4.0, 8.0], "files_cpu": [1.0, 1.0]}}
    judged = kind.judge(rounds)
    assert judged["p10"] == [0.5]
    assert judged["cpu"] is None
    (line,) = report.claim_rows([judged])
    assert len(line) == len(report.CLAIM_HEAD)
    assert len(report.ratio_rows([judged])[0]) == len(report.RATIO_HEAD)


def test_modules_fill_the_memory_with_what_the_collector_looks_at() -> None:
    script = """
import gc, runpy, sys
before = len(gc.get_objects())
names = runpy.run_path(sys.argv[1])
began = names["resident"]()
names["fill_modules"](8 << 20)
assert names["resident"]() - began >= 8 << 20
assert len(gc.get_objects()) - before > 10_000
assert len(sys.modules["benchmark_module_0"].CLASSES) == 20
"""
    conftest = CHECKOUT / "benchmarks" / "suites" / "conftest.py"
    subprocess.run([sys.executable, "-c", script, str(conftest)], check=True)


def test_cost_of_another_number_of_tests_than_the_base() -> None:
    row = results.row([Sample(2.0, tests=10)], [Sample(5.0, tests=100)])
    assert row["added"] == pytest.approx([150.0])
    assert "steady" not in row


def test_a_checkpoint_costs_a_hundredth_of_what_a_hundred_add_to_a_test() -> None:
    times = {"test_once": 1.0, "test_nothing": 0.25, "test_reset": 0.35, "test_checkpoint": 0.3}
    row = results.row([Sample(1.0, times=times)], None)
    assert row["checkpoint"] == pytest.approx([0.5])
    assert row["reset"] == pytest.approx([1.0])


@pytest.mark.parametrize(
    ("mine", "at_most", "ok"),
    [([1.0, 9.0, 2.0], True, True), ([5.0, 1.0, 6.0], True, False), ([5.0, 1.0, 6.0], False, True)],
)
def test_claims_are_judged_by_the_median_of_the_rounds(
    mine: list[float], at_most: bool, ok: bool
) -> None:
    claim = results.Claim("a of b", ("a", "added"), ("b", "added"), 1.0, at_most)
    judged = claim.judge({"a": {"wall": [], "added": mine}, "b": {"added": [2.0, 2.0, 2.0]}})
    assert judged["ok"] is ok


def test_what_was_not_measured_is_neither_kept_nor_broken() -> None:
    (claim, *_) = results.CLAIMS
    judged = claim.judge({"inline": {"failure": "not here"}, "pyfakefs": {"added": [1.0]}})
    assert judged["ok"] is None
    assert judged["why"] == "inline was not measured"
    assert report.verdict(judged) == "not measured"


def test_every_claim_is_about_cases_that_there_are() -> None:
    for sizes in (parts.FULL, parts.QUICK):
        cases = {case.name: case for case in parts.chosen(list(parts.PARTS), sizes)}
        assert {case.base for case in cases.values()} <= {None, *cases}
        for claim in results.CLAIMS:
            assert {claim.mine[0], claim.theirs[0]} <= set(cases)


def test_pictures_are_svg_that_says_what_it_shows() -> None:
    made = pictures.pictures(every_row())
    assert set(made) == {"empty.svg", "io.svg", "growth.svg", "suite.svg"}
    for name, svg in made.items():
        root = ElementTree.fromstring(svg)
        assert root.tag == f"{SVG}svg"
        texts = {element.text for element in root.iter(f"{SVG}text")}
        assert root.findtext(f"{SVG}title") in texts, name
    rooms = {element.text for element in ElementTree.fromstring(made["empty.svg"]).iter()}
    assert "pytest-forked (no sandbox)" in rooms


def test_pictures_leave_out_what_was_not_measured() -> None:
    rows = every_row()
    rows["inline"] = {"failure": "not here"}
    assert ">inline<" not in pictures.pictures(rows)["empty.svg"]
    assert pictures.pictures({"plain": {"wall": [1.0]}}) == {}


def test_page_takes_new_figures_in_place_of_the_old() -> None:
    rows = every_row()
    found: dict[str, Any] = {
        "machine": dict.fromkeys(
            ("tests", "rounds", "python", "kernel", "cores", "root", "filesystem"), "x"
        ),
        "cases": rows,
        "claims": [claim.judge(rows) for claim in results.CLAIMS],
        "calls": {"unshare": 2.0},
    }
    text = f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n"
    page = report.page(text, found, {"pictures/empty.svg": "Cost"})
    assert page.startswith("above\n")
    assert page.endswith("\nbelow\n")
    assert "old" not in page
    assert "a checkpoint" in page
    assert "![Cost](pictures/empty.svg)" in page
    assert report.page(page, found, {"pictures/empty.svg": "Cost"}) == page
    with pytest.raises(ValueError, match="generated: figures"):
        report.page("no marks", found, {})


def test_arguments() -> None:
    options = arguments(["empty", "--only", "inline", "fork"])
    assert (options.tests, options.rounds) == (500, 5)
    chosen = parts.chosen(options.parts, options.sizes, options.only)
    assert [case.name for case in chosen] == ["plain", "inline", "fork"]


@pytest.mark.parametrize(
    "given",
    [
        ["nothing"],
        ["--tests", "5"],
        ["--only", "nothing"],
        ["io", "--only", "fork"],
        ["empty", "--ablation"],
        ["--ablation", "--only", "inline-without-templates"],
        ["--ablation", "--plot", "pictures"],
    ],
)
def test_arguments_that_make_no_sense(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arguments(given)
    assert "error:" in capsys.readouterr().err


def test_ablation_leaves_out_every_part_that_the_switch_knows() -> None:
    assert {part for way in ablation.WAYS for part in way.parts} == set(switch.PARTS)
    cases = ablation.cases()
    assert len({case.name for case in cases}) == len(cases)
    for way in ablation.WAYS:
        assert way.plain is None or way.plain in cases
        assert way.run in cases
        for part in way.parts:
            assert way.without(part) in cases
            assert way.without(part).left_out == part


def test_ablation_takes_turns_with_and_without() -> None:
    names = [case.name for case in ablation.cases()]
    assert names[:4] == [
        "plain",
        "inline",
        "inline-without-background_close",
        "inline-without-templates",
    ]


def _measured() -> dict[str, results.Row]:
    """Costs in milliseconds a test: with all parts 2, 4, 3; without a part 8, 12, 3."""
    rows: dict[str, results.Row] = {}
    for case in ablation.cases():
        assert isinstance(case, Run)
        seconds = [0.1, 0.2, 0.1]
        if case.isolated:
            seconds = [0.9, 1.4, 0.4] if case.left_out else [0.3, 0.6, 0.4]
        rows[case.name] = {"tests": 100, "wall": seconds, "cpu": [2 * one for one in seconds]}
    return rows


def test_ablation_compares_round_by_round() -> None:
    rows = _measured()
    assert ablation.costs(rows["inline"], rows["plain"], "wall") == pytest.approx([2.0, 4.0, 3.0])
    assert ablation.costs(rows["inline"], None, "wall") == pytest.approx([3.0, 6.0, 4.0])
    assert ablation.table(rows)[1] == [
        *("inline", "templates"),
        *("4 / 6", "6 / 16", "3 (1 .. 4)"),
        *("2 / 3", "3 / 8", "3 (1 .. 4)"),
    ]


def test_ablation_of_some_ways() -> None:
    options = arguments(["--ablation", "--only", "fork"])
    names = [case.name for case in ablation.cases(options.only)]
    assert names == [
        "plain",
        "fork",
        "fork-without-fork_pages",
        "fork-without-templates",
        "fork-without-root_calls",
        "fork-without-made_ahead",
    ]
    rows = {name: row for name, row in _measured().items() if name in names}
    assert [line[:2] for line in ablation.table(rows)] == [
        ["fork", "fork_pages"],
        ["fork", "templates"],
        ["fork", "root_calls"],
        ["fork", "made_ahead"],
    ]


def test_ablation_says_what_was_not_measured() -> None:
    rows = _measured()
    rows["fork-without-templates"] = {"failure": "no forks here"}
    rows["inline"]["wall"] = [0.05, 0.6, 0.4]
    lines = {(line[0], line[1]): line[2:] for line in ablation.table(rows)}
    assert lines["fork", "templates"] == ["not measured: no forks here", *[""] * 5]
    assert lines["inline", "templates"][5] == "lost in noise"
    del rows["plain"]
    assert ablation.table(rows)[0][2] == "not measured: not in these results"


def test_a_page_has_a_place_for_ablation_beside_the_figures() -> None:
    text = (
        f"{report.BEGIN}\nmine\n{report.END}\n{report.BEGIN_ABLATION}\nold\n{report.END}\nbelow\n"
    )
    lines = report.markdown(ablation.HEAD, ablation.table(_measured()))
    page = report.between(text, report.BEGIN_ABLATION, lines)
    assert page.startswith(f"{report.BEGIN}\nmine\n{report.END}\n")
    assert "old" not in page
    assert lines[-1] in page
    assert page.endswith("\nbelow\n")


def test_orphans_are_waited_for_and_their_cpu_time_is_counted() -> None:
    script = """
import subprocess, sys, time
from benchmarks.machine import adopt_orphans, wait_for_orphans
adopt_orphans()
busy = "import time\\nwhile time.process_time() < 0.3: pass"
leave = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
subprocess.run([sys.executable, "-c", leave, busy], check=True)
print(wait_for_orphans(60))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert float(done.stdout) >= 0.3


def record(tests: int) -> str:
    """A trace as of strace: the host's namespace is opened, and a sandbox is made for each test."""

    def text(plain: str) -> str:
        return '"' + "".join(f"\\x{byte:02x}" for byte in plain.encode()) + '"'

    lines = [f"[ 257] openat(-100, {text('/proc/self/ns/mnt')}, 0x80000) = 3"]
    for _ in range(tests):
        lines += [
            f"[  21] access({text(floor.MARK)}, 0) = -1 ENOENT (No such file or directory)",
            f"[ 257] openat(-100, {text('/etc/passwd')}, 0x80000) = 4",
            "[   3] close(4) = 0",
            f"[  83] mkdir({text('/of/the/machine')}, 0777) = 0",
            "[ 272] unshare(0x20000) = 0",
            f"[ 428] open_tree(-100, {text('/')}, 0x88801) = 4",
            '[ 442] mount_setattr(4, "", 0x9000, {attr_set=0x1, attr_clr=0, propagation=0,'
            " userns_fd=0}, 32) = 0",
            "[   3] close(4) = 0",
            # Received from another process.
            "[  81] fchdir(5) = 0",
            "[   3] close(5) = 0",
            "[ 308] setns(3, 0x20000) = 0",
        ]
    return "\n".join(lines)


def test_floor_keeps_what_makes_a_sandbox_and_nothing_else() -> None:
    program = floor.translate(record(floor.TESTS))
    assert program.calls() == dict.fromkeys(
        ["unshare", "open_tree", "mount_setattr", "close", "setns"], 1.0
    )
    first, *_ = program.once
    assert str(first) == f"257 r3 i-100 s{b'/proc/self/ns/mnt'.hex()} i524288"
    assert str(program.loop[-1]) == "308 - r3 i131072"
    assert str(program).count("loop\n") == 1


def test_floor_needs_enough_tests() -> None:
    with pytest.raises(floor.FloorError, match="shows 3 tests"):
        floor.translate(record(3))
