"""The test explorer of an editor hears of tests by a pipe that it has named in the environment.

Its plugin opens the pipe when there is something to say, which for a failure can be in the test
process, in ``pytest_exception_interact``. The editor reads until the last writer has closed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

#: What an editor's plugin does. It says each failure once, by whichever hook comes first.
RUNNER = """
import json, os

PIPE = os.environ["TEST_RUN_PIPE"]
writer = None
said = set()

def send(hook, nodeid, **more):
    global writer
    if nodeid in said:
        return
    said.add(nodeid)
    if writer is None:
        writer = open(PIPE, "w")
    writer.write(json.dumps({"hook": hook, "test": nodeid, **more}) + "\\n")
    writer.flush()

def pytest_runtest_logreport(report):
    if report.when == "call" or report.skipped:
        send("logreport", report.nodeid, outcome=report.outcome, text=report.longreprtext)

def pytest_exception_interact(node, call, report):
    send("interact", node.nodeid, kind=call.excinfo.typename, text=report.longreprtext)
"""

#: One that says each failure twice, and hears of nothing but failures.
FAILURES_ONLY = """
import json, os

writer = None

def pytest_exception_interact(node, call, report):
    global writer
    if writer is None:
        writer = open(os.environ["TEST_RUN_PIPE"], "w")
    writer.write(json.dumps({"test": node.nodeid, "when": report.when}) + "\\n")
    writer.flush()
"""

SUITE = """
import os, pytest

@pytest.fixture
def broken(): raise ValueError("in the setup")
@pytest.fixture
def breaking():
    yield
    raise OSError("in the teardown")
@pytest.fixture(scope="module")
def wide(): raise RuntimeError("in a wider fixture")

def test_setup_fails(broken): pass
@pytest.mark.parametrize("number", range(4))
def test_some(number): assert number % 2
def test_long(): assert 0, "x" * 20_000
def test_teardown_fails(breaking): pass
def test_both_fail(breaking): assert 0
def test_wide(wide): pass
@pytest.mark.skip(reason="why")
def test_skipped(): pass
@pytest.mark.xfail
def test_expected(): assert 0
def test_last(): pass
"""

Run: TypeAlias = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run the suite with a reader at the other end of the pipe; returns the messages."""

    def run(runner: str, *arguments: str) -> list[dict[str, Any]]:
        pipe, said = tmp_path / "run.pipe", tmp_path / "said"
        pipe.unlink(missing_ok=True)
        os.mkfifo(pipe)
        monkeypatch.setenv("TEST_RUN_PIPE", str(pipe))
        # What several processes write to a pipe is mixed if it is long, pipe(7).
        suite = SUITE.replace("20_000", "20") if "-n2" in arguments else SUITE
        pytester.makepyfile(editors_plugin=runner, test_suite=suite)
        with (
            open(said, "wb") as file,
            subprocess.Popen(["cat", str(pipe)], stdout=file) as reader,
        ):
            options = ("-p", "editors_plugin", "-p", "no:cacheprovider", *arguments)
            try:
                pytester.run(sys.executable, "-m", "pytest", *options, timeout=120)
                reader.wait(30)
            finally:
                reader.kill()
        return [json.loads(line) for line in said.read_text().splitlines()]

    return run


@pytest.mark.sandboxes
@pytest.mark.parametrize("runner", [RUNNER, FAILURES_ONLY], ids=["all", "failures"])
@pytest.mark.parametrize("process", ["fork", "inline", "auto"])
def test_the_editor_hears_the_same(run: Run, runner: str, process: str) -> None:
    plain = run(runner, "-p", "no:mountns")
    assert len(plain) >= 6
    assert run(runner, "--mountns", f"--mountns-process={process}") == plain


@pytest.mark.sandboxes
@pytest.mark.parametrize("process", ["fork", "inline"])
def test_the_editor_hears_the_same_of_workers(run: Run, process: str) -> None:
    pytest.importorskip("xdist")
    arguments = ("-n2", "--dist=loadfile")
    plain = run(RUNNER, *arguments, "-p", "no:mountns")
    isolated = run(RUNNER, *arguments, "--mountns", f"--mountns-process={process}")

    def by_test(messages: list[dict[str, Any]]) -> list[str]:
        # The controller and the worker write at the same time. Either worker gets the file.
        return sorted(re.sub(r"\[gw\d\]", "", json.dumps(one)) for one in messages)

    assert by_test(isolated) == by_test(plain)


@pytest.mark.as_root
@pytest.mark.parametrize("runner", [RUNNER, FAILURES_ONLY], ids=["all", "failures"])
def test_a_pipe_that_the_user_of_a_test_may_not_open(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    """A hook that fails is an internal error; this one fails by what the test has asked for."""
    pipe = pytester.path / "run.pipe"
    os.mkfifo(pipe, 0o600)
    monkeypatch.setenv("TEST_RUN_PIPE", str(pipe))
    pytester.makepyfile(
        editors_plugin=runner,
        test_it="""
        import pytest
        pytestmark = pytest.mark.mountns(user="nobody")
        def test_fails(): raise ValueError("its own")
        def test_passes(): pass
        """,
    )
    # Somebody reads, so that the plugin can open the pipe in the pytest process.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = pytester.runpytest_subprocess("-p", "editors_plugin", timeout=120)
        said = os.read(reader, 1_000_000)
    finally:
        os.close(reader)
    result.assert_outcomes(failed=1, passed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["E * ValueError: its own"])
    if runner is FAILURES_ONLY:
        result.stdout.fnmatch_lines([f"{pipe} cannot be opened as nobody, the user of this test,*"])
    else:
        tests = [json.loads(line)["test"] for line in said.splitlines()]
        assert tests == ["test_it.py::test_fails", "test_it.py::test_passes"]
