"""What a session loads of the plugin: nothing that it does not use."""

from __future__ import annotations

import json

import pytest

from pytest_mountns.held_modules import HELD

ASLEEP = {
    "pytest_mountns",
    "pytest_mountns.activation",
    "pytest_mountns.config",
    "pytest_mountns.config.marker_keys",
    "pytest_mountns.config.options",
    "pytest_mountns.config.profiles",
    "pytest_mountns.engine",
    "pytest_mountns.engine.linux",
    "pytest_mountns.engine.linux.errors",
    "pytest_mountns.engine.linux.untouched",
    "pytest_mountns.engine.plan",
    "pytest_mountns.engine.plan.spec",
    "pytest_mountns.fixtures",
    "pytest_mountns.hookspecs",
    "pytest_mountns.plugin",
    "pytest_mountns.reports",
    "pytest_mountns.reports.summary",
    "pytest_mountns.runners",
    "pytest_mountns.runners.finisher",
    "pytest_mountns.session",
    "pytest_mountns.session.made_directories",
    "pytest_mountns.session.selection",
}

CONFTEST = """
import json, sys

def pytest_sessionfinish():
    with open("modules.json", "w") as file:
        json.dump(sorted(sys.modules), file)
"""


def _modules(pytester: pytest.Pytester, *options: str) -> set[str]:
    pytester.makeconftest(CONFTEST)
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)
    return set(json.loads((pytester.path / "modules.json").read_text()))


@pytest.fixture(autouse=True)
def _no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def test_a_session_that_isolates_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(): pass")
    plain = _modules(pytester)
    found = _modules(pytester, "-p", "pytest_mountns.plugin") - plain
    assert {name for name in found if name.startswith("pytest_mountns")} == ASLEEP
    # Nothing of the standard library that pytest would not load by itself.
    assert found == ASLEEP


def test_reporters_of_failures_are_asleep_too(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "import pytest\n@pytest.mark.xfail\ndef test_x(): assert {} == {1: 2}\ndef test(): pass"
    )
    pytester.makeconftest(CONFTEST)
    pytester.runpytest_subprocess("-p", "pytest_mountns.plugin", "-rA")
    modules = json.loads((pytester.path / "modules.json").read_text())
    assert {name for name in modules if name.startswith("pytest_mountns")} == ASLEEP


@pytest.mark.sandboxes
def test_a_session_that_isolates(pytester: pytest.Pytester) -> None:
    """The modules for bundles, audits, layers and reports are not loaded for it."""
    pytester.makepyfile("def test(overlay_root): pass")
    found = _modules(pytester, "-p", "pytest_mountns.plugin")
    for name in (
        "cli",
        "engine.layers.cache",
        "engine.layers.layer_writer",
        "reports.audit",
        "repro",
    ):
        assert f"pytest_mountns.{name}" not in found


@pytest.mark.sandboxes
def test_a_session_whose_tests_pass(pytester: pytest.Pytester) -> None:
    """Nor is what reads changes and explains failures, or what only forks need."""
    pytester.makepyfile("def test(): pass")
    found = _modules(pytester, "-p", "pytest_mountns.plugin", "--mountns")
    assert "pytest_mountns.runners.inline" in found
    needless = {f"pytest_mountns.{name}" for name in (*HELD, "plugin_state.notes")}
    # What looks for files in the project needs one of them, and an ordinary user's probe forks.
    assert all(one.startswith("pytest_mountns.engine.linux.") for one in found & needless)


#: What the second test finds in its process, and what the pytest process had before it forked.
IN_TEST_PROCESSES = """
import sys

before = set()

def loaded():
    return {name for name in sys.modules if name.startswith("pytest_mountns")}

def pytest_runtest_logstart():
    before.update(loaded())
"""
TWO_TESTS = """
import os
from conftest import before, loaded

PYTEST = os.getpid()

def test_one(): pass

def test_two(overlay_root, request):
    assert os.getpid() != PYTEST
    request.addfinalizer(check)
    check()

def check():
    assert loaded() == before
"""


@pytest.mark.sandboxes
def test_a_test_process_loads_nothing(pytester: pytest.Pytester) -> None:
    """Each would load it anew."""
    pytester.makepyfile(TWO_TESTS)
    pytester.makeconftest(IN_TEST_PROCESSES)
    options = ("-p", "pytest_mountns.plugin", "--mountns", "--mountns-process=fork")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=2)
