"""One suite with one pytest: its scenarios plainly, its scenarios isolated, and what differs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import compare, fetch
from tests.conformance.run import ended

from . import documents, judge
from .scenarios import Scenario, Suite

PLAIN = ("-p", "no:mountns")
# The only thing that a failing test is meant to have in addition is the plugin's section.
ISOLATED = ("--mountns", "--mountns-unavailable=error", "--mountns-changes=none")
TIMEOUT = 180

Say = Callable[[str], None]


@dataclass(frozen=True)
class Result:
    """One cell of the table."""

    suite: str
    scenario: Scenario
    plugin: str
    pytest: str
    """The version that ran, or the one asked for if none did."""
    verdict: judge.Verdict
    seconds: tuple[float, float] = (0, 0)
    records: Path | None = None


@dataclass(frozen=True)
class Bench:
    """A directory that both runs use, filled anew for each."""

    suite: Suite
    environment: fetch.Environment
    place: Path

    @property
    def tree(self) -> Path:
        return self.place / "tree"

    def scenario(
        self, scenario: Scenario, way: str, options: Sequence[str]
    ) -> list[judge.Observation]:
        for directory in (self.tree, self.place / "home", self.place / "tmp"):
            shutil.rmtree(directory, ignore_errors=True)
        ignored = shutil.ignore_patterns("matrix.toml", "__pycache__")
        shutil.copytree(self.suite.directory, self.tree, ignore=ignored)
        # Otherwise an ini-file above this directory would be used.
        if not (self.tree / "pytest.ini").exists():
            (self.tree / "pytest.ini").write_text("[pytest]\n")
        (self.place / "home").mkdir()
        (self.place / "tmp").mkdir()
        return [
            self.step(scenario, f"{scenario.name}-{number}-{way}", (*options, *more))
            for number, more in enumerate(scenario.steps, 1)
        ]

    def step(self, scenario: Scenario, label: str, options: Sequence[str]) -> judge.Observation:
        record, output = self.place / f"{label}.jsonl", self.place / f"{label}.txt"
        record.unlink(missing_ok=True)
        first, *rest = scenario.command
        command = [str(self.environment.bin / first), *rest, "-p", fetch.RECORDER_MODULE]
        with output.open("wb") as out:
            process = subprocess.Popen(
                [*command, *scenario.options, *options],
                cwd=self.tree,
                env=self.environ(record),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = ended(process, TIMEOUT)
        recorded = record.read_text().splitlines() if record.exists() else []
        recording = compare.parse(recorded, status)
        said = output.read_text(errors="replace")
        recording.last_words = tuple(line for line in said.splitlines() if line.strip())[-8:]
        read = {
            pattern: documents.read(self.tree, pattern, kind, self.python)
            for pattern, kind in scenario.documents
        }
        if scenario.terminal:
            read["terminal"] = documents.terminal(said)
        return judge.Observation(recording, read)

    def environ(self, record: Path) -> dict[str, str]:
        environ = fetch.clean_environ(os.environ)
        environ["HOME"] = str(self.place / "home")
        environ["TMPDIR"] = str(self.place / "tmp")
        environ["COLUMNS"] = "120"
        environ["VIRTUAL_ENV"] = str(self.environment.path)
        environ["PATH"] = f"{self.environment.bin}{os.pathsep}{environ.get('PATH', os.defpath)}"
        environ[fetch.RECORD] = str(record)
        return environ

    def python(self, *arguments: str) -> str:
        return fetch.checked([self.environment.python, *arguments], cwd=self.tree)


def versions(environment: fetch.Environment) -> dict[str, str]:
    """What is installed: name and version."""
    listed = fetch.checked([environment.python, "-m", "pip", "list", "--format=json"])
    # pip may add a line about its own age.
    found = json.loads(listed[listed.index("[") : listed.rindex("]") + 1])
    return {one["name"].lower().replace("_", "-"): one["version"] for one in found}


def run_suite(
    suite: Suite, pytest: str, workshop: fetch.Workshop, *, say: Say = print
) -> list[Result]:
    """Every scenario of the suite with this pytest ("8.4", or "" for the newest)."""
    wanted = [f"pytest=={pytest}.*" if pytest else "pytest", *suite.requires]
    name = fetch.digest(*(part.encode() for part in wanted))
    try:
        environment = workshop.equipped(f"matrix-{suite.name}-{name}", wanted)
        installed = versions(environment)
    except (fetch.PreparationError, OSError) as error:
        say(f"{suite.name}: {error}")
        reason = "pip finds no versions that go together"
        verdict = judge.Verdict((), not_run=reason)
        return [
            Result(suite.name, scenario, suite.plugin, pytest or "newest", verdict)
            for scenario in suite.scenarios
        ]
    place = workshop.work / "matrix" / workshop.key / f"{suite.name}-{installed['pytest']}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    bench = Bench(suite, environment, place)
    first = re.split(r"[\[<>=~!]", suite.requires[0])[0] if suite.requires else ""
    plugin = f"{suite.plugin} {installed.get(first.lower(), '')}" if first else suite.plugin
    results = []
    for scenario in suite.scenarios:
        began = time.perf_counter()
        plainly = bench.scenario(scenario, "plain", PLAIN)
        between = time.perf_counter()
        isolated = bench.scenario(scenario, "mountns", (*ISOLATED, *scenario.isolated))
        seconds = (between - began, time.perf_counter() - between)
        verdict = judge.verdict(scenario, judge.compare(scenario, plainly, isolated))
        summary = verdict.summary(scenario.limit)
        say(
            f"{suite.name}/{scenario.name}, pytest {installed['pytest']}: {summary}"
            f" ({seconds[0]:.1f} s, {seconds[1]:.1f} s)"
        )
        results.append(
            Result(suite.name, scenario, plugin, installed["pytest"], verdict, seconds, place)
        )
    return results
