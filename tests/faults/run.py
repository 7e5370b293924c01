"""Records what a test on its way calls, and lets each of these calls fail in each way."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.conformance.fetch import CHECKOUT

from . import shim, suite
from .events import Called, Event, Failed, Over, Report, Target, from_line

#: A session that writes nothing for so many seconds is taken to hang.
PATIENCE: Final = 180.0
#: The outcomes that a fault may have. Any other is a defect.
GOOD: Final = ("works", "named", "died", "aborted", "not reached")
#: From the stack that faulthandler shows. The message before it may be captured.
_NO_RETURN: Final = " in give_up"
#: What tests write in places that are not the runner's own.
_LEFT: Final = ".mountns-faults-left"

Case = tuple[str, str]


@dataclass(frozen=True)
class Way:
    """One way to make a sandbox. ``command`` goes before the interpreter's."""

    name: str
    marks: str = ""
    command: Sequence[str] = ()
    options: Sequence[str] = ()
    #: How many threads are alive besides.
    threads: int = 0
    #: Directories of the host that a test writes to, besides the project and the home.
    places: Sequence[str] = ()
    #: Whether tests run on the host under a guard, where most of what they write is refused.
    guarded: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one fault: a word of :data:`GOOD`, or a defect; and what was said."""

    case: Case
    kind: str
    text: str = ""

    @property
    def good(self) -> bool:
        return self.kind in GOOD


class Runner:
    """Runs sessions of the suite in ``place``, a directory of its own."""

    def __init__(self, way: Way, place: Path) -> None:
        self._way = way
        self._place = place
        self._project = place / "project"
        self._record = place / "record"
        shutil.rmtree(place, ignore_errors=True)
        (self._project / "volume").mkdir(parents=True)
        (self._project / "mounted").mkdir()
        (self._project / "pytest.ini").write_text("[pytest]\n")
        text = suite.GUARDED if way.guarded else suite.TEXT
        for key in ("marks", "threads", "places"):
            text = text.replace(f"{{{key}}}", str(getattr(way, key)))
        (self._project / "test_it.py").write_text(text)
        (place / "tmp").mkdir()
        self._files = sorted(path.name for path in self._project.iterdir())

    def record(self) -> list[str]:
        """The sites that one test calls, in the order of their first call."""
        # Of two tests, that of the second: what is made once in a session is there by then.
        events, status = self._session([("", "")] * 2)
        if status != 0:
            said = [event for event in events if isinstance(event, Report)]
            raise RuntimeError(f"{self._way.name}: the suite fails without any fault: {said}")
        second = max(index for index, event in enumerate(events) if isinstance(event, Target))
        called = [event.site for event in events[second:] if isinstance(event, Called)]
        return list(dict.fromkeys(called))

    def try_all(self, cases: Sequence[Case]) -> Iterator[Outcome]:
        """The outcome of each case. After a session that a fault ends, another tries the rest."""
        rest = list(cases)
        while rest:
            events, status = self._session(rest)
            done = 0
            for index, outcome in enumerate(self._judge(rest, events, status)):
                done = index + 1
                yield outcome
            rest = rest[done:]

    def _session(self, cases: Sequence[Case]) -> tuple[list[Event], int | None]:
        listed = self._place / "cases.json"
        listed.write_text(json.dumps(cases))
        self._record.unlink(missing_ok=True)
        self._record.touch()
        # Each is followed by another test, which meets what the fault has left.
        order = ["test_it.py::test_first"]
        order += [
            f"test_it.py::{name}[{number}]"
            for number in range(len(cases))
            for name in ("test_target", "test_after")
        ]
        # With the last one the module ends, and what is held for its tests is released.
        order.append("test_it.py::test_last")
        arguments = self._place / "arguments"
        arguments.write_text("\n".join(order))
        environ = {
            **os.environ,
            shim.CASES: str(listed),
            shim.RECORD: str(self._record),
            "TMPDIR": str(self._place / "tmp"),
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        output = self._place / "output"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [
                    *(
                        *self._way.command,
                        sys.executable,
                        "-m",
                        "pytest",
                        "-p",
                        "tests.faults.shim",
                    ),
                    *("-q", "-p", "no:cacheprovider", "-p", "no:benchmark", "-p", "no:xdist"),
                    *("--mountns-unavailable=error", *self._way.options, f"@{arguments}"),
                ],
                cwd=self._project,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            status = self._wait(process)
        lines = self._record.read_text().splitlines()
        return [from_line(line) for line in lines], status

    def _wait(self, process: subprocess.Popen[bytes]) -> int | None:
        """The exit status; None for a session that hangs, and is ended here."""
        size, since = 0, time.monotonic()
        while True:
            try:
                return process.wait(0.2)
            except subprocess.TimeoutExpired:
                pass
            now = self._record.stat().st_size
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > PATIENCE:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return None

    def _judge(
        self, cases: Sequence[Case], events: list[Event], status: int | None
    ) -> Iterator[Outcome]:
        """One outcome for each case that was begun."""
        begun = [index for index, event in enumerate(events) if isinstance(event, Target)]
        if not begun:
            raise RuntimeError(f"no test was begun; see {self._place}/output")
        usual: list[Counter[str]] = []
        for count, start in enumerate(begun):
            last = count == len(begun) - 1
            part = events[start : None if last else begun[count + 1]]
            over = [event for event in part if isinstance(event, Over)]
            if len(over) < 2:
                output = self._output()
                ended = "hang" if status is None else "the session ended"
                # A process that cannot return to the host must not go on.
                yield Outcome(cases[count], "aborted" if _NO_RETURN in output else ended, output)
                return
            yield self._verdict(cases[count], part, over, usual)
            usual = _most(usual, over[1])

    def _verdict(
        self, case: Case, part: list[Event], over: list[Over], usual: list[Counter[str]]
    ) -> Outcome:
        reports = {
            name: [
                event for event in part if isinstance(event, Report) and event.test.startswith(name)
            ]
            for name in ("test_target", "test_after")
        }
        text = "\n".join(
            report.text for report in reports["test_target"] if report.outcome != "passed"
        )
        after = [report for report in reports["test_after"] if report.outcome != "passed"]
        left = self._left()
        if left or "NOT ISOLATED" in text or "NOT FRESH" in text:
            return Outcome(case, "NOT ISOLATED", f"{left} {text}")
        if after or not reports["test_after"]:
            return Outcome(case, "the next test fails", str(after))
        if more := _more(usual, over[1]):
            # Descriptors, mounts and files of the pytest process.
            return Outcome(case, "something is left", f"{more} {text}")
        if not any(isinstance(event, Failed) for event in part):
            return Outcome(case, "not reached")
        if not text:
            return Outcome(case, "works")
        if "mountns: " in text and (case[1] in text or _same(case[1], text)):
            return Outcome(case, "named", text)
        if "the test process " in text:
            return Outcome(case, "died", text)
        return Outcome(case, "a bare error", text)

    def _left(self) -> list[str]:
        """The files of tests that can be seen on the host, where none may be. Removes them."""
        found = []
        places = (Path.home(), *map(Path, self._way.places))
        for path in (*(one / _LEFT for one in places), *self._project.iterdir()):
            if path.name not in self._files and path.exists() and path.name != "__pycache__":
                found.append(str(path))
                path.unlink()
        return found

    def _output(self) -> str:
        return (self._place / "output").read_text(errors="replace")[-20_000:]


def _counted(state: Over) -> list[Counter[str]]:
    return [Counter(state.descriptors), Counter({"mounts": state.mounts}), Counter(state.files)]


def _most(usual: list[Counter[str]], now: Over) -> list[Counter[str]]:
    """The most that there was at any time. What is held for later tests may be made anew."""
    counted = _counted(now)
    return [old | new for old, new in zip(usual, counted, strict=True)] if usual else counted


def _more(usual: list[Counter[str]], now: Over) -> list[str]:
    """What is there now and was not there at any time before."""
    pairs = zip(usual, _counted(now), strict=True) if usual else ()
    return [name for old, new in pairs for name in (new - old).elements()]


def _same(name: str, text: str) -> bool:
    # ENOTSUP and EOPNOTSUPP are one number.
    return errno.errorcode[getattr(errno, name)] in text


def all_cases(sites: Sequence[str], names: Sequence[str] = ()) -> list[Case]:
    """Every site with every errno that it is tried with, or those of ``names``.

    Of the calls of one place, if they are not the engine's: the first, the second and the last.
    """
    last: dict[str, int] = {}
    for site in sites:
        place, _, count = site.rpartition(" ")
        last[place] = max(last.get(place, 0), int(count))
    chosen = []
    for site in sites:
        place, _, count = site.rpartition(" ")
        if shim.is_engines(site) or int(count) in (1, 2, last[place]):
            chosen.append(site)
    return [
        (site, name) for site in chosen for name in shim.errnos(site) if not names or name in names
    ]


def sample(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """A number of cases by chance, with each site as likely as any other."""
    shuffled = list(cases)
    random.Random(seed).shuffle(shuffled)
    first: dict[str, Case] = {}
    for case in shuffled:
        first.setdefault(case[0], case)
    return list(first.values())[:count]
