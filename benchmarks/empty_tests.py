"""How many milliseconds does the plugin add to a test that does nothing?

Runs N empty tests (in five files, in a temporary directory) in several ways, taking turns, so that
a machine that slows down slows all of them:

    plain          pytest as it is now, this plugin not loaded
    loaded         the plugin loaded, but no test asks for it
    mountns        every test in a sandbox (--mountns)
    mountns-pid    the same, each with a PID namespace of its own
    forked-plain   the last pytest that pytest-forked works with
    forked         pytest-forked on that: a process for each test, no mounts

The time is that of the whole process as seen from outside; "added" is what it takes beyond the
plain way of the same round, divided by the number of tests. Figures of one machine: only the
ratios travel.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[1]
FILES = 5

# What would make one machine's run unlike another's.
DROPPED = ("CI", "BUILD_NUMBER", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV")

PID_CONFTEST = """\
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.mountns(pid=True))
"""


@dataclass(frozen=True)
class Way:
    """One way to run the tests."""

    name: str
    venv: str
    options: tuple[str, ...] = ()
    base: str | None = None
    """The way that it is measured against."""
    conftest: str = ""


WAYS = (
    Way("plain", "current", ("-p", "no:mountns")),
    Way("loaded", "current", base="plain"),
    Way("mountns", "current", ("--mountns", "--mountns-unavailable=error"), base="plain"),
    Way(
        "mountns-pid",
        "current",
        ("--mountns", "--mountns-unavailable=error"),
        base="plain",
        conftest=PID_CONFTEST,
    ),
    Way("forked-plain", "forked", ("-p", "no:pytest_forked")),
    Way("forked", "forked", ("--forked",), base="forked-plain"),
)

# None stands for the checkout.
PACKAGES: dict[str, tuple[str | None, ...]] = {
    "current": ("pytest", None),
    "forked": ("pytest==8.4.2", "pytest-forked==1.7.5"),
}


@dataclass
class Measured:
    way: Way
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    failure: str = ""
    """Why there are no figures."""


def environ() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name not in DROPPED and not name.startswith("PYTEST_")
    }


def venv(directory: Path, name: str) -> Path:
    """The Python of this environment, made or brought up to date with the checkout."""
    packages = [str(CHECKOUT) if package is None else package for package in PACKAGES[name]]
    state = hashlib.sha256(repr((packages, platform.python_version())).encode())
    if None in PACKAGES[name]:
        sources = CHECKOUT / "pytest_mountns"
        for path in (CHECKOUT / "pyproject.toml", *sorted(sources.rglob("*.py"))):
            state.update(path.read_bytes())
    home = directory / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    stamp, python = home / ".installed", home / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != state.hexdigest():
        print(f"installing {' '.join(packages)} into {home}", flush=True)
        call(sys.executable, "-m", "venv", home)
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        call(*pip, "install", *packages)
        if None in PACKAGES[name]:  # the same version again, but other files
            call(*pip, "install", "--force-reinstall", "--no-deps", CHECKOUT)
        stamp.write_text(state.hexdigest())
    return python


def call(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        env=environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout[-1500:]}")


def write_tests(directory: Path, tests: int, conftest: str) -> None:
    directory.mkdir()
    # Its presence makes this the root directory, whatever lies above.
    (directory / "pytest.ini").write_text("[pytest]\n")
    if conftest:
        (directory / "conftest.py").write_text(conftest)
    for number in range(FILES):
        count = tests // FILES + (number < tests % FILES)
        functions = "".join(f"def test_{index}():\n    pass\n\n\n" for index in range(count))
        (directory / f"test_{number}.py").write_text(functions)


def run(way: Way, python: Path, directory: Path, tests: int) -> tuple[float, float]:
    """Wall and CPU seconds of one pytest; RuntimeError unless every test passed."""
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", *way.options]
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environ(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    if process.returncode != 0 or f"{tests} passed" not in text:
        raise RuntimeError(f"exit status {process.returncode}: {' '.join(text.split())[-300:]}")
    return wall, usage.ru_utime + usage.ru_stime


def measure(ways: Sequence[Way], venvs: Path, tests: int, rounds: int) -> list[Measured]:
    measured = [Measured(way) for way in ways]
    pythons: dict[str, Path] = {}
    for name in dict.fromkeys(way.venv for way in ways):
        try:
            pythons[name] = venv(venvs, name)
        except RuntimeError as error:
            print(error, file=sys.stderr)
    for one in measured:
        if one.way.venv not in pythons:
            one.failure = "its environment could not be made"
    with tempfile.TemporaryDirectory(prefix="mountns-benchmark-") as top:
        for one in measured:
            write_tests(Path(top, one.way.name), tests, one.way.conftest)
        # Round 0 writes bytecode and fills caches. It is not counted.
        for number in range(rounds + 1):
            if sys.stderr.isatty():
                print(f"round {number} of {rounds}", end="\r", file=sys.stderr, flush=True)
            for one in measured:
                if one.failure:
                    continue
                way = one.way
                try:
                    wall, cpu = run(way, pythons[way.venv], Path(top, way.name), tests)
                except RuntimeError as error:
                    one.failure = str(error)
                    continue
                if number > 0:
                    one.wall.append(wall)
                    one.cpu.append(cpu)
    return measured


def added(one: Measured, base: Measured, tests: int) -> list[float]:
    """Milliseconds a test beyond the base, round by round."""
    pairs = zip(one.wall, base.wall, strict=True)
    return [(mine - theirs) / tests * 1000 for mine, theirs in pairs]


def summary(measured: Sequence[Measured], tests: int) -> list[dict[str, Any]]:
    by_name = {one.way.name: one for one in measured}
    rows: list[dict[str, Any]] = []
    for one in measured:
        row: dict[str, Any] = {"way": one.way.name}
        rows.append(row)
        if one.failure:
            row["failure"] = one.failure
            continue
        row |= {"wall_seconds": spread(one.wall), "cpu_seconds": spread(one.cpu)}
        row |= {"wall": one.wall, "cpu": one.cpu}
        base = by_name.get(one.way.base or "")
        if base and not base.failure:
            row["added_ms_per_test"] = spread(added(one, base, tests))
            row["against"] = base.way.name
    forked = next((row for row in rows if row["way"] == "forked"), {})
    reference = forked.get("added_ms_per_test", {}).get("median")
    for row in rows:
        if reference and "added_ms_per_test" in row:
            row["ratio_to_forked"] = row["added_ms_per_test"]["median"] / reference
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"{'':13} {'wall s':>8} {'cpu s':>8}   {'added ms/test (min .. max)':28} {'of forked':>9}"
    ]
    for row in rows:
        if "failure" in row:
            lines.append(f"{row['way']:13} not measured: {row['failure']}")
            continue
        line = f"{row['way']:13} {row['wall_seconds']['median']:8.2f}"
        line += f" {row['cpu_seconds']['median']:8.2f}"
        if more := row.get("added_ms_per_test"):
            figures = f"{more['median']:.2f} ({more['min']:.2f} .. {more['max']:.2f})"
            line += f"   {figures:28}"
        if "ratio_to_forked" in row:
            line += f" {row['ratio_to_forked']:9.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tests", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument(
        "--venvs", type=Path, metavar="DIR", default=CHECKOUT / "benchmarks" / "results" / "venvs"
    )
    parser.add_argument(
        "--only", nargs="+", choices=[way.name for way in WAYS], help="these ways (default: all)"
    )
    options = parser.parse_args()
    if options.tests < 1 or options.rounds < 1:
        parser.error("--tests and --rounds must be at least 1")
    ways = [way for way in WAYS if options.only is None or way.name in options.only]
    venvs = options.venvs.resolve()
    measured = measure(ways, venvs, options.tests, options.rounds)
    rows = summary(measured, options.tests)
    print(
        f"{options.tests} empty tests, {options.rounds} rounds in turns, medians; "
        f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores, "
        f"{'root' if os.geteuid() == 0 else 'ordinary user'}"
    )
    print(table(rows))
    if options.json:
        facts = {
            "tests": options.tests,
            "rounds": options.rounds,
            "python": platform.python_version(),
            "kernel": platform.release(),
            "cores": os.cpu_count(),
            "root": os.geteuid() == 0,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({**facts, "ways": rows}, indent=1) + "\n")
    return int(any(one.failure for one in measured))


if __name__ == "__main__":
    sys.exit(main())
