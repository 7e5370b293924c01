"""A user at a terminal: debuggers, questions, Ctrl-C, as in a plain run."""

from __future__ import annotations

import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.terminals import Terminal, normal, terminal

pytestmark = pytest.mark.sandboxes

SUITE = (Path(__file__).parents[1] / "suites" / "interaction.py").read_text()

#: With a file of this name there, every test is in a PID namespace and process group of its own.
CONFTEST = """
import os, pytest

def pytest_collection_modifyitems(items):
    for item in items:
        if os.path.exists("pid") and item.config.pluginmanager.has_plugin("mountns-hooks"):
            item.add_marker(pytest.mark.mountns(pid=True))
"""

PLAIN = ("-p", "no:mountns")
ISOLATED = ("-p", "pytest_mountns.plugin", "--mountns")

#: What to wait for, and what to type then.
Dialogue = list[tuple[str, str]]

PDB = "(Pdb) "
DIALOGUES: dict[str, tuple[tuple[str, ...], Dialogue]] = {
    "TestPostMortem": (
        ("--pdb",),
        [
            *((PDB, "p one\n"), (PDB, "c\n")),
            *((PDB, "p two\n"), (PDB, "u\n"), (PDB, "c\n")),
            *((PDB, "p inside\n"), (PDB, "c\n")),
            *((PDB, "p ended\n"), (PDB, "c\n")),
            *((PDB, "p narrow\n"), (PDB, "q\n")),
        ],
    ),
    "TestBreakpoint": (
        (),
        [
            *((PDB, "p local\n"), (PDB, "n\n"), (PDB, "p local\n"), (PDB, "c\n")),
            *((PDB, "p local\n"), (PDB, "c\n")),
            *((PDB, "p answer\n"), (PDB, "c\n")),
            *((PDB, "p narrow\n"), (PDB, "q\n")),
        ],
    ),
    "TestTrace": (
        ("--trace",),
        [(PDB, "n\n"), (PDB, "p first\n"), (PDB, "c\n"), (PDB, "c\n")],
    ),
    "TestInput": (
        ("-s", "-v"),
        [
            ("a question? ", "an answer\n"),
            ("test_line", "a line\n"),
            ("test_end_of_file", "all\n\x04"),
            (PDB, "c\n"),
        ],
    ),
}


def _run(directory: Path, options: tuple[str, ...], dialogue: Dialogue) -> dict[str, Any]:
    with terminal(directory, *options) as running:
        settings = running.settings()
        for mark, answer in dialogue:
            running.wait_for(mark)
            running.type(answer)
        status = running.end()
        return {
            "status": status,
            "settings are kept": running.settings() == settings,
            "left": running.processes(),
            "text": normal(running.text).splitlines(),
        }


@pytest.mark.parametrize("suite", DIALOGUES)
def test_dialogue(pytester: pytest.Pytester, suite: str) -> None:
    """Compares the whole screen with the typed text, to the letter."""
    pytester.makepyfile(test_it=SUITE)
    pytester.makeconftest(CONFTEST)
    options, dialogue = DIALOGUES[suite]
    options = (*options, "-k", suite)
    plain = _run(pytester.path, (*PLAIN, *options), dialogue)
    assert plain["settings are kept"]
    assert not plain["left"]
    assert _run(pytester.path, (*ISOLATED, *options), dialogue) == plain
    (pytester.path / "pid").touch()
    assert _run(pytester.path, (*ISOLATED, *options), dialogue) == plain


def _interrupt(running: Terminal, keys: str = "\x03") -> dict[str, Any]:
    """Type keys when the test waits. Returns the exit status, and how often fixtures ended."""
    running.wait_for("WAITING")
    running.type(keys)
    status = running.end()
    # Before it, pytest shows the place of the interruption, which differs between the two runs.
    end = re.split(r"^!!!.*\n", normal(running.text), flags=re.M)
    return {
        "status": status,
        "narrow": running.text.count("NARROW ENDS"),
        "wide": running.text.count("WIDE ENDS"),
        "interrupt": running.text.count("! KeyboardInterrupt !"),
        "count": end[-1].splitlines()[-1],
        "left": running.processes(),
    }


@pytest.mark.parametrize("place", ["call", "setup", "wide_setup", "teardown", "wide_teardown"])
def test_ctrl_c(pytester: pytest.Pytester, place: str) -> None:
    pytester.makepyfile(test_it=SUITE)
    pytester.makeconftest(CONFTEST)
    ways = (PLAIN, ISOLATED, ISOLATED)
    results = []
    for number, way in enumerate(ways):
        if number == 2:
            (pytester.path / "pid").touch()
        node = f"test_it.py::TestInterrupted::test_{place}"
        with terminal(pytester.path, *way, "-s", node) as running:
            results.append(_interrupt(running))
    assert results[0]["status"] == pytest.ExitCode.INTERRUPTED
    assert results[0]["interrupt"] == 1
    assert not results[0]["left"]
    assert results[1] == results[0]
    assert results[2] == results[0]


@pytest.mark.parametrize("pid", [False, True])
def test_ctrl_c_again(pytester: pytest.Pytester, pid: bool) -> None:
    """A test that survives the first Ctrl-C is ended by the second."""
    pytester.makepyfile(test_it=SUITE)
    pytester.makeconftest(CONFTEST)
    if pid:
        (pytester.path / "pid").touch()
    node = "test_it.py::TestInterrupted::test_stubborn"
    with terminal(pytester.path, *ISOLATED, "-s", node) as running:
        running.wait_for("WAITING")
        running.type("\x03")
        result = _interrupt(running)
    assert result["status"] == pytest.ExitCode.INTERRUPTED
    assert (result["narrow"], result["wide"], result["left"]) == (1, 1, [])


def test_ctrl_c_when_the_terminal_is_lent(pytester: pytest.Pytester) -> None:
    """After a question, the test's process group has the terminal, and pytest's does not."""
    pytester.makepyfile(test_it=SUITE)
    pytester.makeconftest(CONFTEST)
    (pytester.path / "pid").touch()
    node = "test_it.py::TestInterrupted::test_asks"
    with terminal(pytester.path, *ISOLATED, "-s", node) as running:
        running.wait_for("a question? ")
        running.type("an answer\n")
        result = _interrupt(running)
    assert result["status"] == pytest.ExitCode.INTERRUPTED
    assert (result["narrow"], result["left"]) == (1, [])


@pytest.mark.parametrize("pid", [False, True])
def test_ctrl_c_on_the_way_in(pytester: pytest.Pytester, pid: bool) -> None:
    """Ctrl-C at any moment around the fork: nothing hangs, is left or ends twice."""
    pytester.makepyfile(test_it=SUITE)
    pytester.makeconftest(CONFTEST)
    if pid:
        (pytester.path / "pid").touch()
    node = "test_it.py::TestInterrupted::test_call"
    for _ in range(4):
        with terminal(pytester.path, *ISOLATED, "-s", node) as running:
            running.wait_for("WIDE BEGINS")
            time.sleep(random.uniform(0, 0.03))
            running.type("\x03")
            assert running.end() == pytest.ExitCode.INTERRUPTED, running.text
            # A fixture that is interrupted before it yields is not torn down.
            assert running.text.count("WIDE ENDS") <= 1
            assert "WIDE ENDS" in running.text or "NARROW BEGINS" not in running.text
            begun, ended = (running.text.count(f"NARROW {w}") for w in ("BEGINS", "ENDS"))
            assert ended <= begun
            assert ended == 1 or "WAITING" not in running.text
            assert running.processes() == []
