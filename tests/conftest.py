"""Running suites in a pytest of their own, and comparing two runs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import default_signals
from tests.helpers.recording import RECORDER, Record, Recorded
from tests.helpers.terminals import without_summary


@pytest.fixture
def process() -> str:
    """How the suite under test is isolated. A module that tries both ways has its own."""
    return "fork"


@pytest.fixture
def record(pytester: pytest.Pytester, process: str) -> Record:
    """Run pytest on the suite in ``pytester``'s directory; return all that it has reported."""

    def run(*arguments: str) -> Recorded:
        # With --mountns alone a suite is run inline where that is possible.
        isolated = process != "fork" or "--mountns" in arguments
        if isolated and not {"-pno:mountns", "no:mountns"} & set(arguments):
            arguments = (*arguments, f"--mountns-process={process}")
        file = pytester.path / "events.json"
        plugin = pytester.path / "recorder.py"
        plugin.write_text(RECORDER.format(file=str(file)))
        result = pytester.runpytest_subprocess("-p", "recorder", *arguments)
        out = without_summary(result.stdout.str())
        return Recorded.of(file.read_text(), out=out, err=result.stderr.str())

    return run


@pytest.fixture(scope="session", autouse=True)
def _default_signals() -> Iterator[None]:
    # Tests send SIGINT and SIGHUP to what they start, also where the suite runs in the background.
    with default_signals():
        yield


#: Plugins of this project's environment, and words without which a test does not need them. To load
#: all of them takes half of the time of a suite under test.
_PLUGINS = {
    "benchmark": ("benchmark",),
    "html": ("html",),
    "hypothesispytest": ("hypothesis",),
    "metadata": ("html", "metadata"),
    "pytest_cov": ("cov",),
    "syrupy": ("syrupy", "snapshot"),
}


@functools.cache
def _unused_plugins(module: Path) -> str:
    """Options that leave out what a module of tests does not name."""
    text = module.read_text()
    unused = (name for name, words in _PLUGINS.items() if not any(word in text for word in words))
    return " ".join(f"-p no:{name}" for name in unused)


@pytest.fixture(autouse=True)
def _plain_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # With CI set, tests fail on a machine that cannot isolate, and are not skipped. Tests that are
    # about that set it themselves.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setenv("PYTEST_ADDOPTS", _unused_plugins(request.path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    # In a worker of pytest-xdist, a pytest that a test starts would take itself for one: snapshots
    # are then left to the other process, and nothing is measured.
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _own_configuration(request: pytest.FixtureRequest) -> None:
    # Otherwise a suite under test would be run with this project's settings, which make errors of
    # warnings. It is the file that `makeini` writes.
    if "pytester" in request.fixturenames:
        pytester: pytest.Pytester = request.getfixturevalue("pytester")
        pytester.makeini("[pytest]")


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for the copies of the host's directories: to make them takes seconds."""
    return tmp_path_factory.mktemp("copies")


@pytest.fixture
def shared_copies(copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the suites under test share them. Their cache is not in their home directory then."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(copies))


@pytest.fixture
def host_mounts() -> Callable[[], bytes]:
    """The mount table of this process."""
    return Path("/proc/self/mountinfo").read_bytes
