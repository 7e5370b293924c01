"""A test process that the kernel does not let end keeps nobody waiting for ever."""

from __future__ import annotations

import os

import pytest

from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes

_CANNOT = "the kernel does not allow that here"
#: The wait is shorter than it is for users.
_CONFTEST = """
from pytest_mountns.engine.linux import processes

processes.ENDS_WITHIN = 0.5
"""
#: A process that has ended, but is traced by another one, cannot be reaped. The tracer is nobody's
#: child, and ends with the pytest process.
_TRACED = """
import ctypes, os, time
import pytest

pytestmark = pytest.mark.mountns(process={process!r})
PTRACE_SEIZE, PTRACE_CONT = 0x4206, 7
ptrace = ctypes.CDLL(None).ptrace

@pytest.fixture(scope="module")
def pytest_process():
    return {pytest_process}

def test_is_traced(overlay_root, pytest_process):
    test = os.getpid()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.close(reader)
        failed = ptrace(PTRACE_SEIZE, test, None, None)
        os.write(writer, b"-" if failed else b"+")
        os.closerange(0, 1024)
        while os.path.exists(f"/proc/{{pytest_process}}"):
            # One that is traced stops when a signal comes, also SIGCHLD.
            try:
                stopped = os.waitid(os.P_PID, test, os.WSTOPPED | os.WNOHANG)
            except ChildProcessError:
                # It has ended.
                stopped = None
            if stopped is not None:
                ptrace(PTRACE_CONT, test, None, ctypes.c_void_p(stopped.si_status))
            time.sleep(0.01)
        os._exit(0)
    os.wait()
    os.close(writer)
    if os.read(reader, 1) != b"+":
        pytest.skip("{cannot}")
    if {dies}:
        os._exit(3)

def test_next(overlay_root):
    pass
"""
#: A process enters the PID namespace of the test, and leaves a child there that has ended and that
#: it does not reap: so the first process of the namespace does not end. It ends with pytest.
_HELD = """
import os, socket, subprocess, sys
import pytest

HOLDER = '''
import ctypes, os, socket, struct, sys, time

server = socket.socket(fileno=0)
connection = server.accept()[0]
peer = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
namespace = os.open(f"/proc/{{peer}}/ns/pid", os.O_RDONLY)
if ctypes.CDLL(None).setns(namespace, 0x20000000):
    connection.send(b"-")
    sys.exit()
if os.fork() == 0:
    os._exit(0)
connection.send(b"+")
connection.close()
while os.getppid() == int(sys.argv[1]):
    time.sleep(0.01)
'''

@pytest.fixture(scope="module")
def holder():
    path = os.path.realpath("holder")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        arguments = [sys.executable, "-c", HOLDER, str(os.getpid())]
        subprocess.Popen(arguments, stdin=server)
    return path

@pytest.mark.mountns(pid=True, volumes=[os.getcwd()])
def test_is_held(overlay_root, holder):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(holder)
        if client.recv(1) != b"+":
            pytest.skip("{cannot}")
    if {dies}:
        os._exit(3)

@pytest.mark.mountns
def test_next(overlay_root):
    pass
"""


def check(recorded: Recorded, test: str, *, dies: bool) -> None:
    """That this test has died or passed, the next one has passed, and its process is named."""
    skipped = [report for report in recorded.reports if report.outcome == "skipped"]
    if any(_CANNOT in report.text for report in skipped):
        pytest.skip(_CANNOT)
    calls = {report.name: report.outcome for report in recorded.reports if report.when == "call"}
    assert calls.get("test_next") == "passed"
    if dies:
        assert {report.name for report in recorded.not_passed} == {test}
    else:
        assert calls.get(test) == "passed"
        assert not recorded.not_passed
    assert "mountns: process" in recorded.out
    assert "has not ended" in recorded.out


@pytest.mark.parametrize("process", ["fork", "module"], indirect=True)
@pytest.mark.parametrize("dies", [False, True], ids=["leaves", "dies"])
def test_one_that_cannot_be_reaped_is_named_at_the_end(
    pytester: pytest.Pytester, record: Record, process: str, dies: bool
) -> None:
    pytester.makeconftest(_CONFTEST)
    pytest_process = "os.getpid()" if process == "fork" else "os.getppid()"
    pytester.makepyfile(
        _TRACED.format(process=process, pytest_process=pytest_process, dies=dies, cannot=_CANNOT)
    )
    check(record(), "test_is_traced", dies=dies)


@pytest.mark.skipif(os.geteuid() != 0, reason="enters the PID namespace of a test")
@pytest.mark.parametrize("dies", [False, True], ids=["leaves", "dies"])
def test_a_pid_namespace_that_does_not_end_is_named_at_the_end(
    pytester: pytest.Pytester, record: Record, dies: bool
) -> None:
    pytester.makeconftest(_CONFTEST)
    pytester.makepyfile(_HELD.format(dies=dies, cannot=_CANNOT))
    check(record(), "test_is_held", dies=dies)
