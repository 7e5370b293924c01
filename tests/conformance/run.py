"""One suite: run plainly, run plainly again, run isolated; hand the recordings to `compare`."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from . import compare, fetch, trace
from .suites import Suite


class Cost(NamedTuple):
    """What a run has taken, in seconds."""

    wall: float
    #: Of the process and of all that it has waited for.
    cpu: float


@dataclass(frozen=True)
class Result:
    suite: Suite
    comparison: compare.Comparison
    trace: trace.Trace
    plain_cost: Cost
    isolated_cost: Cost | None
    pytest: str
    plain_counts: dict[str, int]
    outputs: Path

    @property
    def unexpected(self) -> bool:
        return self.comparison.unexpected or bool(self.trace.certain)


@dataclass(frozen=True)
class Failure:
    """A suite that could not be made ready."""

    suite: Suite
    reason: str


@dataclass(frozen=True)
class Bench:
    """Where one suite runs: a tree and a home directory of its own, the same for every run."""

    suite: Suite
    environment: fetch.Environment
    tree: Path
    home: Path
    records: Path

    def run(self, label: str, options: Sequence[str]) -> tuple[compare.Recording, Cost]:
        record, output = self.records / f"{label}.jsonl", self.records / f"{label}.txt"
        record.unlink(missing_ok=True)
        command = [str(self.environment.bin / "pytest"), "-p", "no:cacheprovider"]
        command += ["-p", fetch.RECORDER_MODULE, *options, *self.suite.paths]
        with output.open("wb") as out:
            began, before = time.perf_counter(), _cpu()
            process = subprocess.Popen(
                command,
                cwd=self.tree,
                env=self.environ(record),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = ended(process, 300 + 30 * self.suite.seconds)
            cost = Cost(time.perf_counter() - began, _cpu() - before)
        lines = record.read_text().splitlines() if record.exists() else []
        recording = compare.parse(lines, status)
        said = output.read_text(errors="replace").splitlines()
        recording.last_words = tuple(line for line in said if line.strip())[-8:]
        return recording, cost

    def environ(self, record: Path) -> dict[str, str]:
        environ = fetch.clean_environ(os.environ)
        environ["HOME"] = str(self.home)
        environ["VIRTUAL_ENV"] = str(self.environment.path)
        environ["PATH"] = f"{self.environment.bin}{os.pathsep}{environ.get('PATH', os.defpath)}"
        environ[fetch.RECORD] = str(record)
        # Otherwise the order of sets would differ from run to run.
        environ["PYTHONHASHSEED"] = "0"
        return environ


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def ended(process: subprocess.Popen[bytes], timeout: float) -> int | None:
    """The exit status; None if it had to be ended, with all that it started."""
    try:
        return process.wait(timeout)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def isolating(suite: Suite, process: str) -> list[str]:
    """The options of the isolated run of a suite."""
    # The only thing that a failing test is meant to have in addition is the plugin's section.
    options = ["--mountns-unavailable=error", "--mountns-changes=none"]
    return ["--mountns", f"--mountns-process={process}", *options, *suite.isolated]


def run_suite(
    suite: Suite,
    workshop: fetch.Workshop,
    *,
    process: str,
    plain_only: bool = False,
    keep: bool = False,
    say: Callable[[str], None] = print,
) -> Result | Failure:
    say(f"{suite}: preparing")
    try:
        environment = workshop.installed(suite, plugin=not plain_only)
        place = workshop.work / "runs" / workshop.key / f"{suite.name}-{suite.version}"
        shutil.rmtree(place, ignore_errors=True)
        home, records = place / "home", place / "records"
        home.mkdir(parents=True)
        records.mkdir()
        tree = fetch.unpack(workshop.sdist(suite), place / "tree")
    except (fetch.PreparationError, OSError) as error:
        return Failure(suite, str(error))
    bench = Bench(suite, environment, tree, home, records)

    bare = ["-p", "no:mountns"]
    # The first fills what later runs find filled (bytecode, caches), so the second is the measure.
    first, _ = bench.run("plain-1", bare)
    plain, plain_cost = bench.run("plain-2", bare)
    say(f"{suite}: plain {plain_cost.wall:.1f} s, {len(plain.tests())} tests")

    if plain_only:
        isolated, isolated_cost, left = plain, None, trace.Trace([], [])
    else:
        options = isolating(suite, process)
        own = (home, tree)
        shared = (Path(pwd.getpwuid(os.getuid()).pw_dir), Path("/tmp"), Path("/dev/shm"))
        before = trace.take(own, shared, skip=(workshop.work,))
        isolated, isolated_cost = bench.run(f"mountns-{process}", options)
        left = trace.compare(before, trace.take(own, shared, skip=(workshop.work,)))
        say(f"{suite}: --mountns {isolated_cost.wall:.1f} s, {len(isolated.tests())} tests")

    result = Result(
        suite,
        compare.compare(
            first,
            plain,
            isolated,
            allowed=suite.allowed_fork if process == "fork" else (),
            exdev=os.geteuid() != 0,
            expect_isolation=not plain_only,
        ),
        left,
        plain_cost,
        isolated_cost,
        plain.pytest,
        plain.counts(),
        records,
    )
    if not keep:
        for directory in (tree.parent, home):
            shutil.rmtree(directory, ignore_errors=True)
    return result
