"""Run real plugins' scenarios plainly and with --mountns, and compare all that can be seen.

Each directory of tests/matrix/suites has the tests for one plugin and a list of ways to run them.
Each of these is run twice in the same directory, plainly and with --mountns; reports, warnings,
order, what was printed and what was written are compared. Exit status 1 if anything differs that
the list does not allow.

With --versions, runs this project's own tests over a grid of Pythons and pytests instead.

A run of everything writes its table into docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import os
import platform
import pwd
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.conformance.__main__ import default_work
from tests.conformance.fetch import PreparationError, Workshop

from . import page, scenarios, versions
from .run import run_suite


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="python -m tests.matrix",
        description=summary,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--suite", nargs="+", action="extend", metavar="NAME[/SCENARIO]")
    made.add_argument(
        "--pytest",
        nargs="+",
        action="extend",
        metavar="VERSION",
        help="pytests to run with, as 8.4; default: the newest; with --versions: of the grid",
    )
    made.add_argument("--versions", action="store_true", help="the grid of Pythons and pytests")
    made.add_argument(
        "--python",
        action="append",
        default=[],
        metavar="VERSION=PATH",
        help="with --versions: where a Python is, if neither on PATH nor among pyenv's",
    )
    made.add_argument("--work", type=Path, metavar="DIR", help="default: in the cache directory")
    made.add_argument("--page", type=Path, metavar="FILE", help="write the table there")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    work = (options.work or default_work().with_name("matrix")).resolve()
    try:
        work.mkdir(parents=True, exist_ok=True)
        workshop = Workshop(work, sys.executable)
        print(
            f"{pwd.getpwuid(os.geteuid()).pw_name}, {workshop.key}, Linux {platform.release()}, "
            f"work directory {work}"
        )
        workshop.wheel()
        return run_versions(options, work) if options.versions else run_plugins(options, workshop)
    except ValueError as error:
        parser().error(str(error))
    except (PreparationError, OSError) as error:
        print(f"cannot begin: {error}", file=sys.stderr)
        return 2


def run_plugins(options: argparse.Namespace, workshop: Workshop) -> int:
    suites = scenarios.select(scenarios.load(), options.suite)
    say = partial(print, flush=True)
    results = [
        result
        for suite in suites
        for pytest in options.pytest or [""]
        for result in run_suite(suite, pytest, workshop, say=say)
    ]
    print()
    print("\n".join(page.report(results)))
    if options.page or not options.suite:
        page.write("plugins", page.plugins_table(results), options.page or page.PAGE)
    broken = sum(result.verdict.unexpected for result in results)
    missing = sum(bool(result.verdict.not_run) for result in results)
    print(f"{len(results)} scenarios, {broken} unexpected, {missing} not run")
    return int(broken > 0)


def run_versions(options: argparse.Namespace, work: Path) -> int:
    places = versions.interpreters(options.python, os.environ)
    rows = [
        versions.run_row(python, pytest, places.get(python), work, say=partial(print, flush=True))
        for python, pytest in versions.GRID
        if not options.pytest or pytest in options.pytest
    ]
    print()
    print("\n".join(page.versions_table(rows)))
    if options.page or not options.pytest:
        page.write("versions", page.versions_table(rows), options.page or page.PAGE)
    return int(not all(row.good for row in rows))


if __name__ == "__main__":
    sys.exit(main())
