"""Processes that tests leave running are named at the end, or fail the tests."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from pytest_mountns.engine.linux.left_processes import name_of, names_of_running
from tests.helpers.recording import Record

pytestmark = pytest.mark.no_mountns

SUITE = """
import multiprocessing, os, subprocess, sys, time
from multiprocessing import shared_memory
import pytest

def test_ended(): subprocess.run(["true"], check=True)

def test_told_to_end():
    process = subprocess.Popen(["sleep", "1001"])
    process.kill()

def test_tracker():
    memory = shared_memory.SharedMemory(create=True, size=10)
    memory.close()
    memory.unlink()

@pytest.mark.parametrize("n", [1, 2])
def test_left(n):
    process = subprocess.Popen(["sleep", "1002"])
    process.returncode = 0

def test_worker():
    context = multiprocessing.get_context("fork")
    context.Process(target=time.sleep, args=(1003,)).start()

@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(["sleep", "1004"])
    yield process
    process.kill()
    process.wait()

def test_server(server): assert server.poll() is None
"""


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    """Is read by the fixture record."""
    return str(request.param)


def _said(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("mountns: ")][1:]


@pytest.mark.sandboxes
def test_they_are_named_at_the_end(pytester: pytest.Pytester, record: Record, process: str) -> None:
    pytester.makepyfile(test_it=SUITE)
    for more in ([], ["-pxdist", "-n2"]):
        recorded = record("-pno:rerunfailures", "--mountns", *more)
        assert recorded.status == 0
        assert _said(recorded.out) == [
            "mountns: 3 tests left processes running, which were ended:"
            " a fork of the test's process (test_it.py::test_worker),"
            " sleep 1002 (test_it.py::test_left[1] and 1 more)"
        ]


@pytest.mark.sandboxes
@pytest.mark.parametrize(("quiet", "lines"), [("-q", 1), ("-qq", 0)])
def test_they_are_named_with_q(
    pytester: pytest.Pytester, record: Record, process: str, quiet: str, lines: int
) -> None:
    pytester.makepyfile(test_it=SUITE)
    said = [line for line in record("--mountns", quiet).out.splitlines() if "mountns: " in line]
    assert len(said) == lines
    assert all(line.startswith("mountns: 3 tests left processes running") for line in said)


@pytest.mark.sandboxes
def test_error(pytester: pytest.Pytester, record: Record, process: str) -> None:
    pytester.makepyprojecttoml(
        """
        [tool.mountns.profiles.strict]
        leaks = "error"
        """
    )
    pytester.makepyfile(test_it=SUITE)
    recorded = record("-pno:rerunfailures", "--mountns", "--mountns-profile=strict")
    failed = {one.name: one for one in recorded.not_passed}
    assert set(failed) == {"test_left[1]", "test_left[2]", "test_worker"}
    assert {one.when for one in failed.values()} == {"teardown"}
    assert failed["test_left[1]"].text == 'left running, with leaks="error": sleep 1002'
    assert _said(recorded.out) == []


@pytest.mark.sandboxes
def test_error_of_each_attempt(pytester: pytest.Pytester, record: Record, process: str) -> None:
    """What one attempt has left is no matter of the next one."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import subprocess, pytest
        pytestmark = pytest.mark.mountns(leaks="error")
        ATTEMPTS = []
        LEFT = []
        def leave(): LEFT.append(subprocess.Popen(["sleep", "1006"]))
        def test_each_time(): leave()
        def test_once():
            ATTEMPTS.append(1)
            if len(ATTEMPTS) == 1:
                leave()
        """
    )
    recorded = record("--mountns", "--reruns=1", "-prerunfailures")
    reruns = [report.name for report in recorded.reports if report.outcome == "rerun"]
    assert reruns == ["test_each_time", "test_once"]
    (failed,) = recorded.failed
    assert (failed.name, failed.when) == ("test_each_time", "teardown")
    assert failed.text == 'left running, with leaks="error": sleep 1006'


@pytest.mark.sandboxes
def test_ignore(pytester: pytest.Pytester, record: Record, process: str) -> None:
    head = 'import pytest\npytestmark = pytest.mark.mountns(leaks="ignore")\n'
    pytester.makepyfile(test_it=head + SUITE)
    recorded = record("-pno:rerunfailures", "--mountns")
    assert recorded.status == 0
    assert _said(recorded.out) == []


DAEMON = """
import os, subprocess, pytest

@pytest.mark.mountns(leaks={leaks!r})
def test_daemon():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            null = os.open("/dev/null", os.O_RDWR)
            for fd in range(3): os.dup2(null, fd)
            # It is closed when the daemon is what it is to be.
            os.dup2(writer, 199, inheritable=False)
            os.closerange(3, 199)
            {goes_on}
        os._exit(0)
    os.wait()
    os.close(writer)
    assert os.read(reader, 1) == b""
"""


@pytest.mark.sandboxes
@pytest.mark.parametrize(
    "goes_on", ["os.execvp('sleep', ['sleep', '300'])", "os.close(199); time.sleep(300)"]
)
@pytest.mark.parametrize("leaks", ["warn", "error"])
def test_what_has_left_its_tree(
    pytester: pytest.Pytester, record: Record, process: str, leaks: str, goes_on: str
) -> None:
    suite = DAEMON.format(leaks=leaks, goes_on=goes_on).replace("import os", "import os, time", 1)
    # Another run of these tests, beside this one, has tests of other names.
    module = f"test_{os.getpid()}"
    pytester.makepyfile(**{module: suite})
    recorded = record("-pno:rerunfailures", "--mountns")
    pid = 0
    try:
        said = _said(recorded.out)
        assert len(said) == 1
        test = f"{module}.py::test_daemon" if "exec" in goes_on else "unknown test"
        name = "sleep 300" if "exec" in goes_on else "a fork of the test's process"
        found = re.fullmatch(
            rf"mountns: still running: {name}, process (\d+) \({test}\);"
            " pid=True ends them with the test",
            said[0],
        )
        assert found is not None, said[0]
        pid = int(found[1])
        assert recorded.status == (leaks == "error")
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)


def test_names(tmp_path: os.PathLike[str]) -> None:
    script = os.path.join(tmp_path, "a script.py")
    with open(script, "w") as file:
        file.write("import time\nprint(flush=True)\ntime.sleep(300)\n")
    command = [sys.executable, script, "x" * 100]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        name = name_of(process.pid)
        assert name.startswith(f"{os.path.basename(sys.executable)} ")
        assert len(name) == 60
        assert names_of_running([process.pid]) == [name]
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            while "Z" not in _state(process.pid):
                time.sleep(0.01)
        assert names_of_running([process.pid]) == []


def _state(pid: int) -> str:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
