"""This project's own tests over a grid of Pythons and pytests."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conformance import fetch
from tests.conformance.run import ended

from .run import Say
from .run import versions as installed_versions

MAIN = "3.11"
OTHERS = ("3.10", "3.12", "3.13", "3.14", "3.15")
PYTESTS = ("8.0", "8.1", "8.2", "8.3", "8.4", "9.0", "9.1", "9.2")

# (Python, pytest): every pytest on one Python, the oldest and the newest on the others.
GRID = (
    *((MAIN, pytest) for pytest in PYTESTS),
    *((python, pytest) for python in OTHERS for pytest in (PYTESTS[0], PYTESTS[-1])),
)

# The tests that touch pytest most. Those of the engine know nothing of pytest.
TESTS = (
    "tests/runners/test_outcomes.py",
    "tests/session/test_scopes.py",
    "tests/runners/test_crash.py",
    "tests/forking/test_channel.py",
    "tests/forking/test_threads.py",
)
NEEDED = (
    "pyproject.toml",
    "conftest.py",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/helpers",
    "tests/suites",
)
# What these tests look at, and skip where it is missing. Not flaky: it and pytest-rerunfailures
# have a mark of the same name.
PLUGINS = (
    "coverage",
    "hypothesis",
    "pytest-benchmark",
    "pytest-cov",
    "pytest-rerunfailures",
    "pytest-timeout",
    "pytest-xdist",
    "syrupy",
)
TIMEOUT = 1200


@dataclass(frozen=True)
class Row:
    python: str
    pytest: str
    result: str
    good: bool
    plugins: tuple[str, ...] = ()


def interpreters(given: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """Where each Python of the grid is: as told, on PATH, or among pyenv's."""
    told = {}
    for one in given:
        version, equals, path = one.partition("=")
        if not equals:
            raise ValueError(f"{one}: expected VERSION=PATH, as in 3.10=/usr/bin/python3.10")
        told[version] = path
    unknown = sorted(told.keys() - {MAIN, *OTHERS})
    if unknown:
        raise ValueError(
            f"not in the grid: {', '.join(unknown)}; it has {MAIN}, {', '.join(OTHERS)}"
        )
    found = {}
    for version in (MAIN, *OTHERS):
        if version in told:
            found[version] = told[version]
            continue
        works = next(filter(is_python(version), candidates(version, environ)), None)
        if works:
            found[version] = works
    return found


def candidates(version: str, environ: Mapping[str, str]) -> Iterator[str]:
    on_path = shutil.which(f"python{version}", path=environ.get("PATH"))
    if on_path:
        yield on_path
    pyenv = environ.get("PYENV_ROOT") or os.path.join(environ.get("HOME", ""), ".pyenv")
    yield from sorted(glob.glob(f"{pyenv}/versions/{version}*/bin/python"), reverse=True)


def is_python(version: str) -> Callable[[str], bool]:
    """Whether a path is this Python. A shim of pyenv may exist and yet refuse to start."""

    def check(path: str) -> bool:
        code = "import sys; print('%d.%d' % sys.version_info[:2])"
        done = subprocess.run(
            [path, "-c", code], capture_output=True, text=True, check=False, timeout=60
        )
        return done.stdout.strip() == version

    return check


def run_row(
    python: str,
    pytest: str,
    interpreter: str | None,
    work: Path,
    *,
    tests: Sequence[str] = TESTS,
    say: Say = print,
) -> Row:
    """One row of the grid: the tests in an environment of its own."""
    if interpreter is None:
        return Row(python, pytest, "not run: no such Python here", good=True)
    try:
        workshop = fetch.Workshop(work, interpreter)
        wanted = [f"pytest=={pytest}.*", *PLUGINS]
        name = fetch.digest(*(part.encode() for part in wanted))
        environment = workshop.equipped(f"versions-{pytest}-{name}", wanted)
        installed = installed_versions(environment)
    except (fetch.PreparationError, OSError) as error:
        say(f"Python {python}, pytest {pytest}: {error}")
        return Row(python, pytest, "not run: pip finds no versions that go together", good=True)
    place = work / "versions" / workshop.key / installed["pytest"]
    copy_tests(place / "tree", tests)
    status, words = run_tests(environment, place, tests)
    result = words[-1].strip("= ") if words else "nothing printed"
    say(f"Python {python}, pytest {installed['pytest']}: {result}")
    if status != 0:
        say("\n".join(f"    {line}" for line in words if line.startswith(("FAILED", "ERROR"))))
    used = tuple(f"{name} {installed[name]}" for name in PLUGINS if name in installed)
    counted = result.partition(" in ")[0]
    return Row(
        workshop.key.removeprefix("cpython").partition("-")[0],
        installed["pytest"],
        counted if status == 0 else f"**{counted}** (exit status {status})",
        status == 0,
        used,
    )


def copy_tests(tree: Path, tests: Sequence[str]) -> None:
    """Copy the tests without the package, so that the installed package is tested."""
    shutil.rmtree(tree.parent, ignore_errors=True)
    packages = {str(Path(name).with_name("__init__.py")) for name in tests}
    for name in sorted({*NEEDED, *packages, *tests}):
        source, target = fetch.CHECKOUT / name, tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, target)


def run_tests(
    environment: fetch.Environment, place: Path, tests: Sequence[str]
) -> tuple[int | None, list[str]]:
    output, temporary = place / "output.txt", place / "tmp"
    temporary.mkdir()
    environ = fetch.clean_environ(os.environ)
    environ["PATH"] = f"{environment.bin}{os.pathsep}{environ.get('PATH', os.defpath)}"
    environ["TMPDIR"] = str(temporary)
    with output.open("wb") as out:
        process = subprocess.Popen(
            [str(environment.bin / "pytest"), "-p", "no:cacheprovider", "-q", *tests],
            cwd=place / "tree",
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        status = ended(process, TIMEOUT)
    said = output.read_text(errors="replace").splitlines()
    return status, [line for line in said if line.strip()]
