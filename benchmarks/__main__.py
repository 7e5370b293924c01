"""What a sandbox costs, and what others cost, in one run.

Parts:

    empty     tests that do nothing: every way of this plugin, pytest-forked, pyfakefs, bwrap;
              and the floor: the same system calls without the plugin, from C and from Python
    io        reading and writing in a sandbox, against plain tmp_path on disk and pyfakefs
    growth    more mounts, more memory in the pytest process (lists, modules, numpy and django),
              more layers
    suite     real suites whole (click, poetry-core)

With --ablation, instead: empty tests with and without each part that exists for speed alone.

The ways take turns, so that a machine that slows down slows all of them; the first round is not
counted. "Added" is what a way takes beyond the plain one of its environment in the same round,
divided by the number of tests. Figures of one machine: only the ratios travel. A way that does not
work here is not measured, and the table says why.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from . import ablation, parts, pictures, report, results
from .cases import CALLS, Case, NotMeasured, Run, Sample, Setting
from .machine import (
    CHECKOUT,
    MachineError,
    adopt_orphans,
    disk,
    environment,
    filesystem,
    ordinary_user,
    python_for,
    sources,
)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(parts.PARTS)} (default: all)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="CASE", default=[], help="these and their base"
    )
    parser.add_argument("--tests", type=int, metavar="N", help="empty tests (default: 500)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds that count (default: 5)")
    parser.add_argument(
        "--quick", action="store_true", help="50 tests, 1 round, a tenth of the reading and writing"
    )
    parser.add_argument(
        "--user", metavar="NAME", help="as root: this user's ways, too; made if there is none"
    )
    parser.add_argument(
        "--venvs", type=Path, metavar="DIR", default=CHECKOUT / "benchmarks" / "results" / "venvs"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="a place on a disk for the suites")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("--plot", type=Path, metavar="DIR", help="write pictures there")
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="write figures and --plot into that page"
    )
    parser.add_argument(
        "--ablation",
        action="store_true",
        help="measure what each part gains that exists for speed alone",
    )
    parser.add_argument(
        "--from",
        dest="before",
        type=Path,
        metavar="FILE",
        help="measure nothing: the results are those of this --json",
    )
    return parser


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    asked = parser()
    options = asked.parse_args(given)
    for part in options.parts:
        if part not in parts.PARTS:
            asked.error(f"there is no part {part!r}; choose from: {', '.join(parts.PARTS)}")
    if options.ablation and (options.parts or options.plot):
        asked.error("--ablation has cases of its own and no pictures: no PART and no --plot")
    options.parts = options.parts or list(parts.PARTS)
    options.tests = options.tests or (50 if options.quick else 500)
    options.rounds = options.rounds or (1 if options.quick else 5)
    if options.tests < 10 or options.rounds < 1:
        asked.error("--tests must be at least 10, --rounds at least 1")
    if options.user and os.geteuid() != 0:
        asked.error("--user is for root; without it everything is measured as you")
    options.sizes = parts.QUICK if options.quick else parts.FULL
    if options.ablation:
        known = {way.run.name for way in ablation.WAYS}
    else:
        known = {case.name for case in parts.chosen(options.parts, options.sizes)}
    if unknown := set(options.only) - known:
        asked.error(f"no case {', '.join(unknown)} in these parts; there are: {', '.join(known)}")
    return options


def measure(cases: Sequence[Case], setting: Setting, rounds: int) -> dict[str, results.Row]:
    samples: dict[str, list[Sample]] = {case.name: [] for case in cases}
    failures: dict[str, str] = {}
    # Round 0 writes bytecode, fills caches and shows what does not work. It is not counted.
    for number in range(rounds + 1):
        for case in cases:
            if case.name in failures:
                continue
            if sys.stderr.isatty():
                text = f"round {number} of {rounds}: {case.name}"
                print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            try:
                sample = case.measure(setting)
            except NotMeasured as error:
                failures[case.name] = str(error)
                continue
            if number > 0:
                samples[case.name].append(sample)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    rows: dict[str, results.Row] = {}
    for case in cases:
        if case.name in failures:
            rows[case.name] = {"failure": failures[case.name]}
            continue
        usable = case.base in samples and case.base not in failures
        rows[case.name] = results.row(
            samples[case.name], samples[case.base] if case.base and usable else None
        )
    return rows


def prepare(cases: Sequence[Case], options: argparse.Namespace, stack: ExitStack) -> Setting:
    """Everything the cases need. What cannot be made is said, and is not measured."""
    candidates = [options.work] if options.work else [Path("/var/tmp"), CHECKOUT]
    top = Path(tempfile.mkdtemp(prefix="mountns-benchmark-", dir=disk(candidates)))
    stack.callback(shutil.rmtree, top, ignore_errors=True)
    top.chmod(0o755)
    user = stack.enter_context(ordinary_user(options.user)) if options.user else None
    venvs = options.venvs.resolve()
    venvs.mkdir(parents=True, exist_ok=True)
    pythons: dict[str, Path] = {}
    failures = {"user": "needs --user"}
    runs = [case for case in cases if isinstance(case, Run)]
    for name in dict.fromkeys(["current", *(run.venv for run in runs)]):
        try:
            if name != "user":
                pythons[name] = environment(venvs, name)
            elif user is not None:
                # Where he can read it.
                pythons[name] = environment(top, name, python_for(user))
        except MachineError as error:
            failures[name] = str(error)
            print(error, file=sys.stderr)
    trees: dict[str, Path] = {}
    for suite in dict.fromkeys(run.suite for run in runs if run.is_real):
        if "current" in pythons:
            try:
                trees[suite] = sources(suite, top, venvs, pythons["current"])
            except MachineError as error:
                print(error, file=sys.stderr)
    scale = 0.1 if options.quick else 1.0
    return Setting(top, pythons, failures, user, options.tests, scale, trees)


def run(options: argparse.Namespace) -> dict[str, Any]:
    if options.ablation:
        cases = ablation.cases(options.only)
    else:
        cases = parts.chosen(options.parts, options.sizes, options.only)
    adopt_orphans()
    with ExitStack() as stack:
        setting = prepare(cases, options, stack)
        rows = measure(cases, setting, options.rounds)
        calls = setting.top / CALLS
        counted = json.loads(calls.read_text()) if calls.exists() else {}
        kind = filesystem(setting.top)
    return {
        "machine": {
            "tests": options.tests,
            "rounds": options.rounds,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "root": os.geteuid() == 0,
            "filesystem": kind,
            "quick": options.quick,
        },
        "claims": [] if options.ablation else [claim.judge(rows) for claim in results.CLAIMS],
        "calls": counted,
        "cases": rows,
    }


def main(given: Sequence[str] | None = None) -> int:
    options = arguments(given)
    try:
        found = json.loads(options.before.read_text()) if options.before else run(options)
    except MachineError as error:
        print(f"cannot begin: {error}", file=sys.stderr)
        return 2
    if options.json and not options.before:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    print(report.machine(found["machine"]), end="\n\n")
    if options.ablation:
        rows = ablation.table(found["cases"])
        print(report.columns(ablation.HEAD, rows))
        if options.page:
            lines = [report.machine(found["machine"]) + ".", ""]
            lines += report.markdown(ablation.HEAD, rows)
            text = report.between(options.page.read_text(), report.BEGIN_ABLATION, lines)
            options.page.write_text(text)
        return 0
    print(report.columns(report.CASE_HEAD, report.case_rows(found["cases"])), end="\n\n")
    print(report.columns(report.CLAIM_HEAD, report.claim_rows(found["claims"])))
    shown: dict[str, str] = {}
    if options.plot:
        options.plot.mkdir(parents=True, exist_ok=True)
        for name, svg in pictures.pictures(found["cases"]).items():
            (options.plot / name).write_text(svg)
            if options.page:
                place = os.path.relpath(options.plot / name, options.page.parent)
                shown[place] = pictures.TITLES[name]
    if options.page:
        options.page.write_text(report.page(options.page.read_text(), found, shown))
    return int(any(claim["ok"] is False for claim in found["claims"]))


if __name__ == "__main__":
    sys.exit(main())
