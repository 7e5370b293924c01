"""Runs the suite of one case, and compares two runs that are to be the same."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.conformance.fetch import clean_environ
from tests.conformance.run import ended
from tests.helpers.recording import RECORDER, Recorded, RecordedWarning, Report
from tests.matrix.documents import plain

from .case import Case

#: Seconds after which a run is ended. It counts as one that would wait for ever.
TIMEOUT = 150

PLAIN = ("-p", "no:mountns")
#: The section of a failing test is the only thing that it is meant to have in addition.
ISOLATED = ("-p", "mountns", "--mountns", "--mountns-unavailable=error", "--mountns-changes=none")


@dataclass(frozen=True)
class User:
    """Who runs the suites."""

    name: str
    uid: int
    gid: int
    home: str


@dataclass(frozen=True)
class Run:
    """What a run, or the second of two, has come to."""

    #: None if it has not ended in time.
    status: int | None
    #: None if it has stopped before its first test.
    recorded: Recorded | None
    #: The lines of each file, by path; of a file that is no text, one line that tells its content.
    files: Mapping[str, list[str]]
    digest: object
    out: str

    @property
    def said(self) -> str:
        """The output in one line, as long messages are wrapped."""
        return re.sub(r"\s+", " ", self.out)


def run(
    case: Case,
    python: str | Path,
    place: Path,
    options: Sequence[str],
    user: User | None = None,
) -> Run:
    """The suite of the case, run in a directory of this place that is made anew."""
    tree, home, temporary = place / "tree", place / "home", place / "tmp"
    for directory in (tree, home, temporary):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
    for name, content in {"pytest.ini": "[pytest]\n", **case.files}.items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content))
    recorder = place / "recorder"
    recorder.mkdir(exist_ok=True)
    events = temporary / "events.json"
    (recorder / "recorder_of_events.py").write_text(RECORDER.format(file=str(events)))
    environ = clean_environ(os.environ)
    scripts = Path(python).parent
    environ.update(
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        PYTHONPATH=str(recorder),
        PYTHONHASHSEED="0",
        HOME=str(home),
        TMPDIR=str(temporary),
        COLUMNS="120",
        PATH=f"{scripts}{os.pathsep}{environ.get('PATH', os.defpath)}",
        **case.environment,
    )
    if user is not None:
        environ.update(USER=user.name, LOGNAME=user.name)
        for path in (place, *place.rglob("*")):
            os.chown(path, user.uid, user.gid, follow_symlinks=False)
    plugins = case.plugins or entry_points(case.name, str(python))
    loaded = [f"-p{name}" for name in ("recorder_of_events", *plugins)]
    command = [str(python), "-m", "pytest", *options, *loaded]
    status, out = _ended([*command, *case.options], tree, environ, user)
    if case.again is not None and status is not None:
        # Files that are edited get another time.
        time.sleep(1.1)
        for name, content in case.edited.items():
            (tree / name).write_text(textwrap.dedent(content))
        events.unlink(missing_ok=True)
        status, out = _ended([*command, *case.again], tree, environ, user)
    recorded = Recorded.of(events.read_text(), out="", err="") if events.exists() else None
    events.unlink(missing_ok=True)
    digest = None
    if case.digest and recorded:
        # With -n2, some plugins do not write it.
        with contextlib.suppress(FileNotFoundError):
            digest = case.digest(tree)
    return Run(status, recorded, dict(_files(tree)), digest, out)


@cache
def entry_points(name: str, python: str) -> tuple[str, ...]:
    """The names of the pytest plugins of a distribution; OSError if they cannot be read."""
    asked = (
        "from importlib.metadata import distribution as d;"
        f"print(*[e.name for e in d({name!r}).entry_points if e.group == 'pytest11'])"
    )
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{name} in {python}: {done.stderr.strip()}")
    return tuple(done.stdout.split())


def _ended(
    command: Sequence[str], tree: Path, environ: Mapping[str, str], user: User | None
) -> tuple[int | None, str]:
    output = tree.with_name("output.txt")
    with output.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=tree,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=None if user is None else user.uid,
            group=None if user is None else user.gid,
            extra_groups=None if user is None else [],
        )
        status = ended(process, TIMEOUT)
    return status, output.read_text(errors="replace")


def _files(tree: Path) -> Iterator[tuple[str, list[str]]]:
    """Each file by its name without what is random in it, and its lines."""
    found_by_name: dict[str, list[list[str]]] = {}
    for path in sorted(tree.rglob("*")):
        found = str(path.relative_to(tree))
        # Hypothesis takes constants from all modules that are loaded and not installed; so those of
        # this plugin count where it is installed from a checkout.
        left_out = r"__pycache__|\.pytest_cache|_cache/|\.hypothesis/constants/"
        if not path.is_file() or re.search(left_out, found):
            continue
        name = re.sub(r"[0-9a-f-]{16,}|\d{6,}", "...", found)
        try:
            lines = lines_of(path.read_text())
        except (UnicodeDecodeError, PermissionError):
            lines = []
        found_by_name.setdefault(name, []).append([_normal(line) for line in lines])
    for name, contents in found_by_name.items():
        # Which of those with random names comes first is chance.
        yield name, [line for lines in sorted(contents) for line in lines]


def lines_of(content: str) -> list[str]:
    """The lines of a file. One line of JSON or XML becomes several, one for each value or element.

    Otherwise what comes in any order with several workers would be one line that differs.
    """
    if content.startswith(("{", "[")):
        with contextlib.suppress(ValueError):
            return json.dumps(json.loads(content), indent=1).splitlines()
    if content.startswith("<"):
        # Elements may be numbered.
        content = re.sub(r'\bid="\d+"', 'id="0"', content)
        content = re.sub(r">\s*<", ">\n<", content)
    return content.splitlines()


def differences(case: Case, before: Sequence[Run], after: Run, *, several: bool) -> list[str]:
    """In what an isolated run differs from two plain ones, each in a few words.

    What the two plain runs do not share, as a time or a random name, is not compared.
    ``several``: pytest-xdist's workers have no order among them.
    """
    first, second = before
    if after.status is None:
        return ["does not end"]
    if after.recorded is None:
        return [f"stops with exit status {after.status}"]
    assert first.recorded is not None
    assert second.recorded is not None
    found = []
    runs = (first.recorded, second.recorded, after.recorded)
    any_order = several or not case.ordered

    def differs(what: str, *parts: list[str]) -> None:
        one, other, isolated = map(sorted, parts) if any_order else parts
        if one == other:
            if one != isolated:
                found.append(what)
        elif (Counter(one) & Counter(other)) - Counter(isolated):
            found.append(what)

    differs("outcomes", *([str(each) for each in _outcomes(run)] for run in runs))
    differs("warnings", *([_normal(str(one)) for one in run.warnings] for run in runs))
    differs("reports", *(list(reports(run, case.drop)) for run in runs))
    if first.status == second.status != after.status:
        found.append(f"exit status {first.status} becomes {after.status}")
    shared = first.files.keys() & second.files.keys()
    either = first.files.keys() | second.files.keys()
    found += [f"{name} is not written" for name in sorted(shared - after.files.keys())]
    found += [f"{name} is written" for name in sorted(after.files.keys() - either)]
    for name in sorted(shared & after.files.keys()):
        contents = [_kept(run.files[name], case.drop) for run in (first, second, after)]
        differs(f"content of {name}", *contents)
    if first.digest == second.digest != after.digest:
        found.append("what it has noted")
    if not found:
        terminals = [
            _terminal(run.out, case.drop, several=several) for run in (first, second, after)
        ]
        differs("the terminal", *terminals)
    return found


def false_green(before: Run, after: Run) -> bool:
    """Whether something passes in the isolated run that does not in the plain one."""
    if after.recorded is None or before.recorded is None:
        return after.status == 0
    # A test with subtests has several reports.
    before_passed, passed = (
        {(one.nodeid, one.when) for one in run.recorded.reports if one.outcome == "passed"}
        for run in (before, after)
        if run.recorded
    )
    wrong = (passed - before_passed) & {(one.nodeid, one.when) for one in before.recorded.failed}
    return bool(wrong) or (after.status == 0 != before.status)


def _outcomes(recorded: Recorded) -> list[tuple[str, ...]]:
    warned = RecordedWarning.__name__
    return [each for each in recorded.outline if each[0] != warned]


def reports(recorded: Recorded, drop: str) -> Iterator[str]:
    """What is compared of the reports, line by line."""
    for one in recorded.reports:
        if isinstance(one, Report):
            yield f"{one.nodeid} {one.when} {one.longrepr_type} {one.wasxfail} {one.context}"
            yield from _kept([_normal(line) for line in one.text.splitlines()], drop)
            yield _normal(one.properties)
            for title, content in one.sections:
                yield from _kept([title], drop)
                yield from _kept([_normal(line) for line in content.splitlines()], drop)


def _normal(text: str) -> str:
    text = re.sub(r"\d+:\d\d:\d\d(\.\d+)?", "0:00:00", text)
    text = re.sub(r"\b(duration|time)=(['\"])\d+\2", r"\1=\g<2>0\2", text)
    return plain(re.sub(r"\d+\.\d+(e[-+]?\d+)?", "0.0", text))


def _kept(lines: Sequence[str], drop: str) -> list[str]:
    return [line for line in lines if not (drop and re.search(drop, line))]


def _terminal(out: str, drop: str, *, several: bool) -> list[str]:
    lines = [re.sub(r" ?\[ *\d+%\]", "", _normal(line)) for line in out.splitlines()]
    if several:
        # Several workers' characters come in any order, and other lines between them.
        marks = re.compile(r"^(\S+\.py ?)?[.FEsxXR]*(?=::|$)")
        lines = [marks.sub("", line) for line in lines]
        # So do the numbers that TAP gives to tests.
        lines = [re.sub(r"^((?:not )?ok) \d+", r"\1", line) for line in lines]
    own = re.compile(r"mountns: |plugins: |cachedir: ")
    return _kept([line for line in lines if line and not own.match(line)], drop)


def sound(case: Case, run: Run) -> str:
    """What is wrong with a plain run; empty if it is one that others can be held against."""
    if run.status is None:
        return "the plain run does not end"
    if run.recorded is None or run.status not in (
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
    ):
        return f"the plain run is broken, with exit status {run.status}"
    if not any(one.outcome == "passed" for one in run.recorded.reports):
        return "nothing passes in the plain run"
    missing = [text for text in case.shown if text not in run.out]
    return f"the plain run does not show {missing[0]!r}" if missing else ""
