"""A test process that the kernel does not let end keeps nobody waiting for ever."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

#: The wait is shorter than it is for users.
_CONFTEST = """
from pytest_mountns.engine.linux import processes

processes._ENDS_WITHIN = 0.5
"""
#: A process that has ended, but is traced by another one, cannot be reaped. The tracer is nobody's
#: child, and ends with the pytest process.
_SUITE = """
import ctypes, os, sys, time
import pytest

{mark}

PTRACE_SEIZE = 0x4206

@pytest.fixture(scope="module")
def session_process():
    return {session_process}

def test_is_traced(overlay_root, session_process):
    test = os.getpid()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(reader)
        failed = ctypes.CDLL(None).ptrace(PTRACE_SEIZE, test, None, None)
        os.write(writer, b"-" if failed else b"+")
        for fd in range(1024):
            try:
                os.close(fd)
            except OSError:
                pass
        while os.path.exists(f"/proc/{{session_process}}"):
            time.sleep(0.01)
        os._exit(0)
    os.wait()
    os.close(writer)
    if os.read(reader, 1) != b"+":
        pytest.skip("this process may not be traced")

def test_next(overlay_root):
    {last}

@pytest.mark.no_mountns
def test_on_the_host():
    pass
"""


@pytest.mark.parametrize("process", ["fork", "module"], indirect=True)
@pytest.mark.parametrize("how", ["leaves", "dies"])
def test_it_is_named_at_the_end(
    pytester: pytest.Pytester, record: Record, process: str, how: str
) -> None:
    pytester.makeconftest(_CONFTEST)
    mark = f"pytestmark = pytest.mark.mountns(process={process!r})"
    last = "os.kill(os.getpid(), 9)" if how == "dies" else "pass"
    of_test = process == "fork"
    suite = _SUITE.format(
        mark=mark,
        session_process="os.getpid()" if of_test else "os.getppid()",
        last=last,
    )
    if of_test and how == "dies":
        suite = suite.replace(
            '        pytest.skip("this process may not be traced")',
            '        pytest.skip("this process may not be traced")\n    os.kill(test, 9)',
        )
    pytester.makepyfile(suite)
    recorded = record()
    if any("traced" in report.text for report in recorded.not_passed):
        pytest.skip("this process may not be traced")
    names = {report.name for report in recorded.reports if report.outcome == "passed"}
    assert {"test_next", "test_on_the_host"} <= names
    assert "mountns: process" in recorded.out
    assert "has not ended" in recorded.out
