"""``--mountns-audit``: lists which tests write where outside of their ``tmp_path``.

The record of a test is made in the pytest process when the test has ended. With pytest-xdist that
is a worker; its records travel with the reports of teardowns to the controller, which shows them.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, final

import pytest

from ..engine.changes.changes import Change, Changes
from ..engine.changes.diffs import printable
from ..engine.changes.render import Limits, describe, diffs
from ..session.observers import Observer, WrittenByTest
from ..session.temporary import temporary_directories
from .filter import FilteredChanges, filter_changes

#: The version of the JSON file's format. It is raised when older readers cannot read the new one.
FORMAT: Final = 1
#: How much is recorded of one test: paths, files with a diff, lines of a diff, bytes of a file.
MOST_PATHS: Final = 300
_DIFFS: Final = Limits(files=1, lines=60, size=32 << 10)
_MOST_DIFFS: Final = 20
_ROWS: Final = 25
_ATTRIBUTE: Final = "mountns_audit"
_PAGE: Final = Path(__file__).with_name("audit_page.html")
_DATA: Final = "/*DATA*/"


@dataclass
class Record:
    """What one test has changed outside of its ``tmp_path``, as plain types for JSON."""

    nodeid: str
    #: How many changes there are in each directory, see :func:`places`.
    places: dict[str, int] = field(default_factory=dict)
    #: How many changes there are of each kind.
    kinds: dict[str, int] = field(default_factory=dict)
    #: The first changes, as :meth:`.Change.as_dict` has them, with "what" (the change in words)
    #: and "diff" (for small text files).
    changes: list[dict[str, Any]] = field(default_factory=list)
    #: How many more changes there are.
    omitted: int = 0
    #: How many changes are pytest's own, and how many are Python's bytecode.
    temporary: int = 0
    bytecode: int = 0
    outcome: str = "passed"

    @property
    def paths(self) -> int:
        """How many paths it has changed."""
        return sum(self.kinds.values())


def places(changes: Changes) -> Counter[str]:
    """Counts the changes by directory.

    What lies in a directory that the test has made counts for that directory's parent. So
    temporary directories, whatever their names and number, are counted in one place. A renamed
    directory counts where it was as well.
    """
    counted: Counter[str] = Counter()
    made = home = ""
    for change in sorted(changes, key=lambda change: change.path.split("/")):
        if not made or not change.path.startswith(f"{made}/"):
            made, home = "", _parent(change.path)
            if change.type == "directory" and change.kind in ("added", "replaced", "renamed"):
                made = change.path
        counted[home] += 1
        if change.source is not None and (old := _parent(change.source)) != home:
            counted[old] += 1
    return counted


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def record(nodeid: str, found: FilteredChanges) -> Record:
    """The record of a test. Reads contents for the diffs."""
    kept = []
    with_diff = 0
    for change in found.changes[:MOST_PATHS]:
        entry = {**change.as_dict(), "what": describe(change)}
        if with_diff < _MOST_DIFFS and (text := _diff(change)):
            entry["diff"] = text
            with_diff += 1
        kept.append(entry)
    return Record(
        nodeid,
        dict(places(found.changes)),
        dict(Counter(change.kind for change in found.changes)),
        kept,
        max(0, len(found.changes) - MOST_PATHS),
        found.temporary,
        found.bytecode,
    )


def _diff(change: Change) -> str:
    return "\n".join(diffs([change], _DIFFS)).strip("\n")


@final
class Audit(Observer):
    """The audit of one session.

    Observes in the process that runs tests, and shows the result, by pytest's hooks, in the one
    that writes the summary. Without pytest-xdist they are one process.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._is_worker = hasattr(config, "workerinput")
        self._noted: dict[str, Record] = {}
        self._outcomes: dict[str, str] = {}
        self.records: dict[str, Record] = {}
        self._json = _absolute(config, "mountns_audit_json")
        self._html = _absolute(config, "mountns_audit_html")
        self._problems: list[str] = []

    def wants_end(self, *, died: bool) -> bool:
        """An audit reads what every test has changed."""
        return True

    def ended(self, item: pytest.Item, written: WrittenByTest, *, died: bool) -> None:
        """Make the record of the test, which its last report takes along."""
        with written.changes() as changes:
            found = filter_changes(changes, temporary_directories(self._config))
            self._noted[item.nodeid] = record(item.nodeid, found)

    # First, since a worker's own hook sends the report.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send the record along with the report, or take it from there."""
        if report.when == "teardown":
            noted = self._noted.pop(report.nodeid, None)
            if noted is not None:
                setattr(report, _ATTRIBUTE, asdict(noted))
            data: dict[str, Any] | None = getattr(report, _ATTRIBUTE, None)
            if data is not None and not self._is_worker:
                self.records[report.nodeid] = Record(**data)
                delattr(report, _ATTRIBUTE)
        known = self._outcomes.get(report.nodeid, "passed")
        if report.failed or known == "failed":
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped or known == "skipped":
            self._outcomes[report.nodeid] = "skipped"
        else:
            self._outcomes[report.nodeid] = "passed"

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Write the files."""
        if self._is_worker:
            return
        for nodeid, found in self.records.items():
            found.outcome = self._outcomes.get(nodeid, "passed")
        for path, write in ((self._json, self._as_json), (self._html, self._as_html)):
            if path is None:
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(write(), encoding="utf-8")
            except OSError as error:
                self._problems.append(f"cannot write {path}: {error.strerror or error}")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Write the tables."""
        terminalreporter.section("mountns audit")
        verbose = self._config.get_verbosity() > 0
        for line in self.lines(None if verbose else _ROWS):
            terminalreporter.write_line(line)
        for problem in self._problems:
            terminalreporter.write_line(problem, red=True)

    def not_audited(self) -> list[str]:
        """Tests that ran without a sandbox."""
        return [
            nodeid
            for nodeid, outcome in self._outcomes.items()
            if nodeid not in self.records and outcome != "skipped"
        ]

    def lines(self, rows: int | None) -> list[str]:
        """The lines for the terminal, with at most ``rows`` rows of each table."""
        records = sorted(self.records.values(), key=lambda one: (-one.paths, one.nodeid))
        writers = [one for one in records if one.paths]
        directories = by_directory(writers)
        tests, paths = len(self.records), sum(one.paths for one in writers)
        verb = "writes" if len(writers) == 1 else "write"
        said = [f"{len(writers)} of {_count(tests, 'test')} {verb} outside of tmp_path"]
        if writers:
            where = _count(len(directories), "directory", "directories")
            said[0] += f": {_count(paths, 'path')} in {where}"
        if directories:
            said += ["", f"{'tests':>7}{'paths':>8}  directory"]
            said += [f"{d.tests:7}{d.paths:8}  {printable(d.path)}" for d in directories[:rows]]
            said += _rest(len(directories), rows)
            said += ["", f"{'paths':>7}  test"]
            for one in writers[:rows]:
                first = sorted(one.places, key=lambda place: -one.places[place])
                shown = ", ".join(map(printable, first[:3])) + (", ..." if len(first) > 3 else "")
                said.append(f"{one.paths:7}  {one.nodeid}: {shown}")
                if rows is None:
                    said += _paths(one)
            said += _rest(len(writers), rows)
        if bare := self.not_audited():
            more = ", ..." if len(bare) > 3 else ""
            said += [
                "",
                f"not audited, since they ran without a sandbox: {', '.join(bare[:3])}{more}",
            ]
        for path in (self._json, self._html):
            if path is not None:
                said.append(f"written: {path}")
        return said

    def data(self) -> dict[str, Any]:
        """The content of the JSON file and of the page."""
        records = sorted(self.records.values(), key=lambda one: one.nodeid)
        return {
            "format": FORMAT,
            "directories": [asdict(d) for d in by_directory(records)],
            "tests": [asdict(one) for one in records],
            "not_audited": self.not_audited(),
        }

    def _as_json(self) -> str:
        return json.dumps(self.data(), indent=1) + "\n"

    def _as_html(self) -> str:
        return page(self.data())


@dataclass(frozen=True)
class Directory:
    """A directory, and how many tests have changed how many paths there."""

    path: str
    tests: int
    paths: int


def by_directory(records: Sequence[Record]) -> list[Directory]:
    """The directories that tests write to; those of most tests first."""
    found: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one in records:
        for place, paths in one.places.items():
            found[place][0] += 1
            found[place][1] += paths
    directories = [Directory(path, *numbers) for path, numbers in found.items()]
    return sorted(directories, key=lambda d: (-d.tests, -d.paths, d.path))


def page(data: Mapping[str, Any]) -> str:
    """The page that shows ``data``, see :meth:`Audit.data`: one file that loads nothing else."""
    # "</script>" in a path or a diff would end the script element that holds the data.
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    return _PAGE.read_text(encoding="utf-8").replace(_DATA, text)


def _absolute(config: pytest.Config, option: str) -> Path | None:
    value = config.getoption(option)
    return None if not value else Path(os.path.abspath(value))


def _paths(one: Record) -> list[str]:
    """A line for each path that the test has changed."""
    lines = [
        f"{'':9}{change['kind']:9} {printable(change['path'])}"
        + (f"  ({change['what']})" if change["source"] else "")
        for change in one.changes
    ]
    return [*lines, f"{'':9}... and {one.omitted} more"] if one.omitted else lines


def _rest(number: int, rows: int | None) -> list[str]:
    return [] if rows is None or number <= rows else [f"    ... and {number - rows} more (-v)"]


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
