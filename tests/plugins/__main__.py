"""Run a suite for each of about a hundred plugins plainly and isolated, and compare the two.

Each case of tests/plugins/cases is a small suite that uses one plugin. It has an environment of its
own, with the newest release of the plugin. Its suite is run twice plainly, then with --mountns,
--mountns-process=fork and --mountns-process=inline, and plainly and with --mountns under -n2.
Outcomes, reports, warnings, exit status, output and files are compared as far as the two plain runs
agree. Exit status 1 if anything differs that is not told at run time, 2 if it cannot begin.

A run of everything, with --user, writes its table into docs/compatibility.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.conformance.fetch import Environment, PreparationError, Workshop, checked, digest
from tests.matrix import page

from .case import Case
from .cases import CASES
from .run import ISOLATED, PLAIN, Run, User, differences, false_green, reports, run, sound

#: The options of each way to run tests isolated.
WAYS: Mapping[str, tuple[str, ...]] = {
    "auto": (),
    "fork": ("--mountns-process=fork",),
    "inline": ("--mountns-process=inline",),
    "-n2": (),
}


@dataclass(frozen=True)
class Result:
    """What one isolated run of a case has come to."""

    way: str
    #: Who has run it: "root", or "user".
    who: str
    #: In what it differs from the plain runs.
    differs: list[str]
    #: The words with which the run told it; empty if it did not.
    told: str
    #: Whether the run stopped before its first test.
    refused: bool
    #: Whether something passed that does not pass in a plain run.
    false_green: bool

    @property
    def unexpected(self) -> bool:
        """Whether it is what no run may be: silently wrong.

        Where tests are forked by wish, what a test leaves in memory for another is lost: that may
        differ, but nothing may pass that should not, or wait for ever.
        """
        if "does not end" in self.differs:
            return True
        return bool(self.differs and not self.told) and (self.way != "fork" or self.false_green)

    @property
    def cell(self) -> str:
        """The cell of the table."""
        if not self.differs:
            return "same"
        if self.told:
            return f'{"refused" if self.refused else "told"}: "{self.told}"'
        kind = "**false green**: " if self.false_green else "differs: "
        return kind + ", ".join(self.differs)


@dataclass(frozen=True)
class Row:
    """All results of one case."""

    name: str
    version: str
    results: list[Result]
    #: Why it was not run.
    not_run: str = ""

    @classmethod
    def of(cls, found: dict[str, Any]) -> Row:
        """The row that was written into the file of results."""
        results = [Result(**one) for one in found["results"]]
        return cls(found["name"], found["version"], results, found["not_run"])

    def beside(self, earlier: Row | None) -> Row:
        """This row, with the results of an earlier one for what was not run now."""
        if earlier is None or self.not_run:
            return self
        now = {(one.who, one.way) for one in self.results}
        stay = [one for one in earlier.results if (one.who, one.way) not in now]
        return Row(self.name, self.version, [*stay, *self.results])


def parser() -> argparse.ArgumentParser:
    summary, _, more = (__doc__ or "").partition("\n\n")
    made = argparse.ArgumentParser(
        prog="python -m tests.plugins",
        description=summary,
        epilog=more,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--case", nargs="+", action="extend", metavar="NAME", help="only these")
    made.add_argument("--way", nargs="+", action="extend", choices=WAYS, help="only these")
    made.add_argument("--user", metavar="NAME", help="as root: run everything as this user, too")
    made.add_argument("--jobs", type=int, default=1, metavar="N", help="cases at a time")
    made.add_argument("--python", default="/usr/bin/python3", help="default: /usr/bin/python3")
    made.add_argument(
        "--work", type=Path, default=Path("/var/tmp/pytest-mountns-plugins"), metavar="DIR"
    )
    made.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="the results; those of cases that are not run stay; default: in DIR",
    )
    made.add_argument("--page", type=Path, metavar="FILE", help="write the table there")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    unknown = sorted(set(options.case or ()) - {case.name for case in CASES})
    if unknown:
        parser().error(f"no case named {', '.join(unknown)}")
    if options.user and os.geteuid() != 0:
        parser().error("--user needs root")
    users: list[User | None] = [None]
    if options.user:
        found = pwd.getpwnam(options.user)
        users.append(User(found.pw_name, found.pw_uid, found.pw_gid, found.pw_dir))
    # The user reads the environments that are made here.
    os.umask(0o022)
    options.work.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(options.work.resolve(), options.python)
    print(f"{workshop.key}, Linux {platform.release()}, work directory {options.work}", flush=True)
    try:
        workshop.wheel()
        workshop.environment("tools")
    except (PreparationError, OSError) as error:
        print(f"cannot begin: {error}", file=sys.stderr)
        return 2
    file = options.json or options.work / "results.json"
    known = read(file)
    chosen = [case for case in CASES if not options.case or case.name in options.case]
    ways = options.way or list(WAYS)
    with ThreadPoolExecutor(options.jobs) as pool:
        for made in pool.map(lambda case: row(case, workshop, users, ways), chosen):
            known[made.name] = made.beside(known.get(made.name))
            file.write_text(json.dumps([asdict(one) for one in known.values()], indent=1))
    rows = [known[case.name] for case in CASES if case.name in known]
    if options.page or (options.user and len(rows) == len(CASES) and not options.way):
        page.write("cases", list(table(rows)), options.page or page.PAGE)
    results = [result for one in rows for result in one.results]
    wrong = sum(one.unexpected for one in results)
    missing = sum(bool(one.not_run) for one in rows)
    greens = sum(one.false_green and not one.told for one in results)
    print(
        f"{len(rows)} plugins, {len(results)} runs: {sum(not r.differs for r in results)} the"
        f" same, {sum(bool(r.differs and r.told) for r in results)} told,"
        f" {sum(bool(r.differs and not r.told) for r in results)} differ, {greens} false green;"
        f" {wrong} unexpected; {missing} plugins not run"
    )
    return int(wrong > 0)


def read(file: Path) -> dict[str, Row]:
    """The results of earlier runs, by the names of cases."""
    if not file.exists():
        return {}
    return {one["name"]: Row.of(one) for one in json.loads(file.read_text())}


def row(case: Case, workshop: Workshop, users: Sequence[User | None], ways: Sequence[str]) -> Row:
    """Run one case in every way."""
    if case.program and not shutil.which(case.program):
        made = Row(case.name, "", [], f"no {case.program} here")
    else:
        try:
            environment, version = equipped(case, workshop)
            results = [
                result
                for user in users
                for result in compared(case, environment, workshop.work, user, ways)
            ]
            made = Row(case.name, version, results)
        except (PreparationError, OSError) as error:
            made = Row(case.name, "", [], str(error).strip().splitlines()[-1])
    told = {f"{one.who} {one.way}": one.cell for one in made.results}
    differing = "; ".join(f"{way}: {cell}" for way, cell in told.items() if cell != "same")
    print(f"{case.name} {made.version}: {made.not_run or differing or 'same'}", flush=True)
    return made


def equipped(case: Case, workshop: Workshop) -> tuple[Environment, str]:
    """The environment of the case, and the version of the plugin in it."""
    wanted = ["pytest", "pytest-xdist", case.name, *case.requires]
    environment = Environment(workshop.work / "envs" / workshop.key / case.name)
    stamp = environment.path / ".installed.json"
    state = [*wanted, str(workshop.wheel())]
    if not stamp.exists() or json.loads(stamp.read_text()) != state:
        tools = workshop.environment("tools")
        pip = [tools.python, "-m", "pip", "--python", environment.python]
        if stamp.exists() and json.loads(stamp.read_text())[:-1] == wanted:
            # A new build of the same version.
            again = ("--force-reinstall", "--no-deps", str(workshop.wheel()))
            checked([*map(str, pip), "install", "--quiet", *again])
        else:
            shutil.rmtree(environment.path, ignore_errors=True)
            checked([workshop.python, "-m", "venv", "--without-pip", environment.path])
            checked([*map(str, pip), "install", "--quiet", *wanted, str(workshop.wheel())])
        stamp.write_text(json.dumps(state))
    asked = f"from importlib.metadata import version; print(version({case.name!r}))"
    return environment, checked([environment.python, "-c", asked]).strip()


def compared(
    case: Case, environment: Environment, work: Path, user: User | None, ways: Sequence[str]
) -> Iterator[Result]:
    """Run the suite plainly and in these ways, and compare."""
    who = "root" if user is None and os.geteuid() == 0 else "user"
    name = f"{case.name}-{who}-{digest(str(environment.path).encode())[:4]}"
    place = work / "runs" / name
    records = work / "records" / name
    shutil.rmtree(records, ignore_errors=True)
    for directory in (place, records):
        directory.mkdir(parents=True, exist_ok=True)

    for several in (False, True):
        chosen = [way for way in ways if (way == "-n2") is several]
        if not chosen or (several and (not case.xdist or user is not None)):
            continue
        loaded = () if "xdist.plugin" in case.plugins else ("-p", "xdist.plugin")
        workers: tuple[str, ...] = (*loaded, "-n2") if several else ()
        plain = [run(case, environment.python, place, (*PLAIN, *workers), user) for _ in "ab"]
        for number, made in enumerate(plain):
            keep(case, made, records / f"plain{number}{'-n2' if several else ''}.txt")
        if wrong := sound(case, plain[0]) or sound(case, plain[1]):
            if several:
                # The plugin itself does not work with pytest-xdist.
                continue
            raise PreparationError(f"{wrong}; outputs in {records}")
        for way in chosen:
            isolated = run(case, environment.python, place, (*ISOLATED, *WAYS[way], *workers), user)
            keep(case, isolated, records / f"{way}.txt")
            found = differences(case, plain, isolated, several=several)
            words = case.words(forked=way == "fork")
            yield Result(
                way,
                who,
                found,
                told=words if words and words in isolated.said else "",
                refused=_ran_nothing(isolated),
                false_green=false_green(plain[0], isolated),
            )


def keep(case: Case, run: Run, file: Path) -> None:
    """Write down the output of a run, and beside it what is compared of its reports."""
    file.write_text(run.out)
    if run.recorded is not None:
        lines = reports(run.recorded, case.drop)
        file.with_suffix(".reports.txt").write_text("\n".join(lines) + "\n")


def _ran_nothing(run: Run) -> bool:
    reports = run.recorded.reports if run.recorded else []
    return not any(one.when == "call" for one in reports)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of the table."""
    uses = {case.name: case.uses for case in CASES}
    body = []
    for one in rows:
        if one.not_run:
            cells = [f"not run: {one.not_run}", "", "", ""]
        else:
            cells = [cell(one.results, way) for way in WAYS]
        body.append((f"{one.name} {one.version}".strip(), uses[one.name], *cells))
    yield from page.table(("plugin", "what the suite uses", *(f"`{way}`" for way in WAYS)), body)


def cell(results: Sequence[Result], way: str) -> str:
    """What root's run and the ordinary user's have come to."""
    cells = {one.who: one.cell for one in results if one.way == way}
    if len(set(cells.values())) > 1:
        return "; ".join(f"{who}: {text}" for who, text in cells.items())
    return next(iter(cells.values()), "-")


if __name__ == "__main__":
    sys.exit(main())
