"""Running suites in a pytest of their own, and comparing two runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.processes import default_signals
from tests.helpers.terminals import without_tally

#: Put into a suite under test: whoever destroys takes the fixture `destroyer`. Without the plugin
#: there is no `overlay_root`, and the test cannot start; in a sandbox that is none, it fails.
GUARD = """
import os
import pytest

HOME = os.readlink("/proc/self/ns/mnt")


@pytest.fixture
def destroyer(overlay_root):
    assert os.readlink("/proc/self/ns/mnt") != HOME, "not isolated"

    def check(path):
        path = os.path.realpath(path)
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split(" ") for line in file]
        over = [m for m in mounts if path == m[4] or path.startswith(m[4].rstrip("/") + "/")]
        top = max(over, key=lambda m: len(m[4]))
        assert "overlay" in top[top.index("-") + 1], f"{path} is on no overlay: {top}"
        return path

    return check
"""

#: A conftest that writes down everything that is reported.
RECORDER = """
import json

FILE = {file!r}
events = []


def pytest_runtest_logstart(nodeid):
    events.append(["start", nodeid])


def pytest_runtest_logfinish(nodeid):
    events.append(["finish", nodeid])


def pytest_runtest_logreport(report):
    context = getattr(report, "context", None)
    events.append(
        [
            "report",
            report.nodeid,
            report.when,
            report.outcome,
            getattr(report, "wasxfail", None),
            type(report.longrepr).__name__,
            report.longreprtext,
            report.sections,
            sorted(report.keywords),
            str(context),
            str(report.user_properties),
        ]
    )


def pytest_warning_recorded(warning_message, when, nodeid):
    events.append(
        ["warning", nodeid, when, warning_message.category.__name__, str(warning_message.message)]
    )


def pytest_sessionfinish(exitstatus):
    with open(FILE, "w") as file:
        json.dump({{"status": int(exitstatus), "events": events}}, file)
"""

Recorded = dict[str, Any]


@pytest.fixture
def process() -> str:
    """How the suite under test is isolated. A module that tries both ways has its own."""
    return "fork"


@pytest.fixture
def record(pytester: pytest.Pytester, process: str) -> Callable[..., Recorded]:
    """Run pytest on the suite in ``pytester``'s directory; give all it has reported."""

    def run(*arguments: str) -> Recorded:
        if process != "fork" and not {"-pno:mountns", "no:mountns"} & set(arguments):
            arguments = (*arguments, f"--mountns-process={process}")
        file = pytester.path / "events.json"
        plugin = pytester.path / "recorder.py"
        plugin.write_text(RECORDER.format(file=str(file)))
        result = pytester.runpytest_subprocess("-p", "recorder", *arguments)
        recorded: Recorded = json.loads(file.read_text())
        recorded["out"] = without_tally(result.stdout.str())
        recorded["err"] = result.stderr.str()
        return recorded

    return run


@pytest.fixture(scope="session", autouse=True)
def _default_signals() -> Iterator[None]:
    # Tests send SIGINT and SIGHUP to what they start, also where the suite runs in the background.
    with default_signals():
        yield


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    # With CI set, a machine that cannot isolate is an error and not a skip; tests say which.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")


@pytest.fixture(autouse=True)
def _own_configuration(request: pytest.FixtureRequest) -> None:
    # Or a suite under test would be run with this project's settings, and its warnings be errors.
    # The file that `makeini` writes.
    if "pytester" in request.fixturenames:
        pytester: pytest.Pytester = request.getfixturevalue("pytester")
        pytester.makeini("[pytest]")


@pytest.fixture
def host_mounts() -> Callable[[], bytes]:
    """The mount table of this process."""
    return Path("/proc/self/mountinfo").read_bytes
