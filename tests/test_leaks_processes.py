"""Tests that do their worst to processes, memory and to pytest itself; and the ends of pytest.

Each suite checks in its tests that they are isolated before they do anything.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.leftovers import Machine, state

from .test_leaks import HEAD, WAYS, run

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.no_mountns(reason="looks for what tests leave on the machine"),
    pytest.mark.usefixtures("shared_copies"),
]

_PATIENCE = 30.0
#: All of them take minutes: see docs/contributing.md.
_ALL = "MOUNTNS_LEAKS" in os.environ
COUNT = 1000 if _ALL else 200


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    assert made.left() == ""


def test_a_thousand_sandboxes(pytester: pytest.Pytester, way: str) -> None:
    """Descriptors, mounts, children and memory are no more than after the first hundred tests."""
    pytester.makeconftest(
        f"""
        import gc, os

        def pytest_runtest_logfinish(nodeid):
            number = int(nodeid.partition("[")[2][:-1])
            if number in (100, {COUNT - 2}) and os.getpid() == HOME:
                gc.collect()
                status = open("/proc/self/status").read()
                memory = next(l for l in status.splitlines() if l.startswith("RssAnon"))
                with open("/proc/self/mountinfo") as table:
                    mounts = len(table.readlines())
                children = open("/proc/self/task/%d/children" % HOME).read().split()
                figures = len(os.listdir("/proc/self/fd")), mounts, len(children)
                print("FIGURES", *figures, memory.split()[1])

        HOME = os.getpid()
        """
    )
    result = run(
        pytester,
        WAYS[way],
        f"""
@pytest.mark.parametrize("number", range({COUNT}))
def test_it(number):
    (HERE / "file").write_text("x" * 10_000)
""",
        "-q",
        "-s",
        "-p",
        "no:benchmark",
    )
    result.assert_outcomes(passed=COUNT)
    after, before = [
        [int(word) for word in line.split("FIGURES ")[1].split()]
        for line in result.outlines
        if "FIGURES" in line
    ][::-1]
    assert after[:2] == before[:2]
    # Some helper processes may still be ending.
    assert after[2] < 20
    # Kibibytes. The terminal keeps reports; a sandbox would be far more.
    assert after[3] - before[3] < 20 * COUNT


def test_two_hundred_processes_left_behind(
    pytester: pytest.Pytester, machine: Machine, way: str
) -> None:
    pytester.makepyfile(
        HEAD.format(keys=WAYS[way])
        + """
def test_it():
    for number in range(200):
        subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)


def test_next():
    assert not [pid for pid in os.listdir("/proc") if pid.isdigit() and is_ours(pid)]


def is_ours(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[1] == "(sleep)" and os.environ[
            "MOUNTNS_LEFTOVERS"
        ] in open(f"/proc/{pid}/environ").read()
    except OSError:
        return False
"""
    )
    with machine.running(["-Wignore"], pytester.path) as process:
        out, _ = process.communicate(timeout=120)
    assert "2 passed" in out


@pytest.mark.parametrize("way", [*WAYS, "module"])
def test_what_a_process_left_behind_holds_is_free_for_the_next_test(
    pytester: pytest.Pytester, way: str
) -> None:
    """It takes the kernel a while to end one with much memory, and its ports are free only then.

    So it does with one whose first thread has ended, or that is a child of another one.
    """
    result = run(
        pytester,
        WAYS.get(way, f"process={way!r}"),
        """
PROGRAM = '''
import socket, time

memory = b"x" * 150_000_000
listener = socket.create_server(("127.0.0.1", PORT))
print("ready", flush=True)
time.sleep(1000)
'''
PARENT = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
THREADED = '''
import ctypes, threading

threading.Thread(target=exec, args=(PROGRAM, {})).start()
ctypes.CDLL(None).pthread_exit(None)
'''


def a_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


PORT = a_port()


@pytest.mark.parametrize("number", range(6))
def test_it(number):
    with socket.create_server(("127.0.0.1", PORT)):
        pass
    program = PROGRAM.replace("PORT", str(PORT))
    arguments = [
        [program],
        [PARENT, program],
        [THREADED.replace("PROGRAM", repr(program))],
    ][number % 3]
    left = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE)
    assert left.stdout.readline() == b"ready\\n"
    left.stdout.close()
""",
        "-Wignore",
    )
    result.assert_outcomes(passed=6)


def test_a_fork_bomb_that_leaves_the_tree(pytester: pytest.Pytester, machine: Machine) -> None:
    """They are daemons that ignore signals. With a PID namespace they end as well."""
    pytester.makepyfile(
        HEAD.format(keys="pid=True")
        + """
def test_it():
    assert in_own_pid_namespace()
    for number in range(20):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                    signal.signal(number, signal.SIG_IGN)
                while True:
                    signal.pause()
            os._exit(0)
"""
    )
    with machine.running([], pytester.path) as process:
        out, _ = process.communicate(timeout=60)
    assert "1 passed" in out


def test_whoever_signals_all_it_sees_hits_only_its_own(
    pytester: pytest.Pytester, machine: Machine
) -> None:
    pytester.makepyfile(
        HEAD.format(keys="pid=True")
        + """
def test_it():
    # Otherwise it would kill all processes of the machine.
    assert in_own_pid_namespace()
    assert max(int(name) for name in os.listdir("/proc") if name.isdigit()) < 100
    sleeper = subprocess.Popen(["sleep", "1000"])
    os.kill(-1, signal.SIGKILL)
    assert sleeper.wait() == -signal.SIGKILL
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        os.kill(1, number)


def test_itself():
    assert in_own_pid_namespace()
    for name in os.listdir("/proc"):
        if name.isdigit():
            os.kill(int(name), signal.SIGKILL)


def test_next():
    pass
"""
    )
    with machine.running([], pytester.path) as process:
        out, _ = process.communicate(timeout=60)
    assert "1 failed, 2 passed" in out
    assert "ended by SIGKILL" in out


def test_a_memory_hog_within_its_limit(pytester: pytest.Pytester) -> None:
    """size= limits what is written, and the test's own rlimit what is allocated."""
    result = run(
        pytester,
        "size='8m'",
        """
import errno, resource


def test_writes():
    with pytest.raises(OSError) as info:
        with open(Path.home() / "big", "wb") as file:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
    assert info.value.errno == errno.ENOSPC
    assert (Path.home() / "big").stat().st_size <= 8 << 20


def test_allocates():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    kept = []
    with pytest.raises(MemoryError):
        while True:
            kept.append(bytearray(64 << 20))


def test_next():
    assert resource.getrlimit(resource.RLIMIT_AS)[0] != 1 << 30
    (Path.home() / "small").write_text("x")
    assert not (Path.home() / "big").exists()
""",
    )
    result.assert_outcomes(passed=3)


def test_two_hundred_namespaces(pytester: pytest.Pytester, machine: Machine, way: str) -> None:
    pytester.makepyfile(
        HEAD.format(keys=WAYS[way])
        + """
CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000


def test_it():
    pipes = []
    for number in range(200):
        reader, writer = os.pipe()
        if os.fork() == 0:
            flags = CLONE_NEWNS | (CLONE_NEWUSER if os.geteuid() else 0)
            os.write(writer, b"." if libc.unshare(flags) == 0 else b"x")
            os.close(writer)
            signal.pause()
        os.close(writer)
        pipes.append(reader)
    assert [os.read(reader, 1) for reader in pipes] == [b"."] * 200
    for reader in pipes:
        os.close(reader)


def test_next():
    pass
"""
    )
    with machine.running([], pytester.path) as process:
        out, _ = process.communicate(timeout=120)
    assert "2 passed" in out


def test_descriptors_all_closed(pytester: pytest.Pytester, machine: Machine, way: str) -> None:
    """Forked, the test fails. Inline, the session aborts: a descriptor to return by is closed."""
    pytester.makepyfile(
        HEAD.format(keys=WAYS[way])
        + """
def test_it():
    (Path.home() / "left").write_text("x")
    os.closerange(3, 65536)


def test_next():
    (Path.home() / "left").write_text("x")
"""
    )
    with machine.running(["-s"], pytester.path) as process:
        out, _ = process.communicate(timeout=60)
    if way == "inline":
        assert process.returncode == -signal.SIGABRT
        assert "cannot return from a sandbox" in out
    else:
        assert "1 failed, 1 passed" in out
    assert not (machine.home / "left").exists()


def test_the_last_words_are_not_captured(pytester: pytest.Pytester, machine: Machine) -> None:
    pytester.makepyfile(
        HEAD.format(keys=WAYS["inline"])
        + """
def test_it():
    # The descriptors of the plugin.
    os.closerange(500, 65536)
"""
    )
    with machine.running([], pytester.path) as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGABRT
    assert "cannot return from a sandbox" in out


def test_standard_output_replaced(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "",
        """
def test_object():
    sys.stdout = sys.stderr = open("/dev/null", "w")


def test_descriptors():
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)


def test_closed():
    for fd in (0, 1, 2):
        os.close(fd)


def test_dunder():
    sys.__stdout__ = sys.stdout = None


def test_next():
    print("STILL HERE")
    assert 0
""",
        "-p",
        "no:faulthandler",
    )
    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(["*STILL HERE*"])


@pytest.mark.parametrize("pid", [False, True])
def test_the_process_is_gone(pytester: pytest.Pytester, pid: bool) -> None:
    result = run(
        pytester,
        f"pid={pid}",
        """
def test_exits():
    os._exit(0)


def test_becomes_another_program():
    os.execv("/bin/sh", ["sh", "-c", "exit 0"])


def test_becomes_a_daemon():
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    # Comes back up pytest's stack.


def test_next():
    pass
""",
    )
    result.assert_outcomes(passed=1, failed=3)
    text = result.stdout.str()
    assert text.count("exited with status 0, before the test was done") >= 3


@pytest.mark.parametrize("pid", [False, True])
def test_the_relay_is_garbled(pytester: pytest.Pytester, pid: bool) -> None:
    """The test writes garbage to every socket: the plugin neither waits nor believes it."""
    result = run(
        pytester,
        f"pid={pid}",
        """
import pickle, stat, struct


def sockets():
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                yield int(name)
        except OSError:
            continue


@pytest.mark.parametrize(
    "garbage",
    [
        b"garbage",
        b"x",
        b"\\0" * 100_000,
        b"\\xff" * 8,
        struct.pack("!I", 1 << 31),
        b"\\xf7mns" + struct.pack("!I", 5) + b"12345",
    ],
)
def test_garbage(garbage):
    for fd in sockets():
        try:
            os.write(fd, garbage)
        except OSError:
            pass
    print("so far")
    assert 0, "a report, and a question to pytest"


def test_shut():
    for fd in sockets():
        socket.socket(fileno=fd).shutdown(socket.SHUT_RDWR)


def test_next():
    pass
""",
        # The server of pytest-rerunfailures has a socket as well.
        "-p",
        "no:rerunfailures",
    )
    result.assert_outcomes(passed=1, failed=7)
    result.stdout.fnmatch_lines(["*written to the socket of the plugin*"])
    assert "INTERNALERROR" not in result.stdout.str()


def test_children_are_not_to_be_waited_for(pytester: pytest.Pytester, way: str) -> None:
    """A wider fixture ignores SIGCHLD: wait calls fail with ECHILD, or return nothing."""
    pytester.makeconftest(
        """
        import signal, pytest

        @pytest.fixture(scope="module", autouse=True)
        def ignored():
            before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            yield
            signal.signal(signal.SIGCHLD, before)
        """
    )
    result = run(
        pytester,
        WAYS[way],
        """
@pytest.fixture(scope="module")
def mounted_meanwhile(ignored):
    yield


def test_passes(mounted_meanwhile):
    assert signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN


def test_fails():
    (HERE / "new").write_text("x")
    assert 0


def test_crashes():
    if os.getpid() != HOME_PROCESS:
        os.kill(os.getpid(), signal.SIGKILL)
    assert 0


def test_next():
    pass


HOME_PROCESS = os.getpid()
""",
        "--timeout=60",
    )
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*filesystem changes*", "added*new*"])


STEPS = """
import pytest, os, time
from pathlib import Path

HERE = Path(__file__).parent
STEP = os.environ["MOUNTNS_STEP"]
HOME_NAMESPACE = os.readlink("/proc/self/ns/mnt")


def at(step, isolated):
    if step == STEP:
        if isolated:
            assert os.readlink("/proc/self/ns/mnt") != HOME_NAMESPACE
            (Path.home() / "left").write_text("x")
        os.write({signal}, b"here\\n")
        time.sleep(1000)


@pytest.fixture(scope="module")
def wide():
    at("module setup", False)
    yield
    at("module teardown", False)


@pytest.fixture
def narrow(overlay_root):
    at("setup", True)
    yield
    at("teardown", True)


def test_before(overlay_root):
    pass


@pytest.mark.mountns({keys})
def test_it(wide, narrow):
    at("call", True)
"""
PLACES = ["module setup", "setup", "call", "teardown", "module teardown"]
ENDS = {
    "SIGTERM": [signal.SIGTERM],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
    "SIGKILL": [signal.SIGKILL],
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("step", PLACES if _ALL else ["call"])
def test_pytest_is_ended(
    pytester: pytest.Pytester,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    step: str,
    end: str,
) -> None:
    monkeypatch.setenv("MOUNTNS_STEP", step)
    pytester.makepyfile(STEPS.replace("{signal}", "1").replace("{keys}", WAYS[way]))
    with machine.running(["-s"], pytester.path) as process:
        assert process.stdout is not None
        said: list[str] = []
        while not said or "here" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], said
        for number in ENDS[end]:
            process.send_signal(number)
            if number == signal.SIGINT:
                time.sleep(0.3)
        assert process.wait(_PATIENCE) != 0
    assert not (machine.home / "left").exists()


@pytest.mark.parametrize("keys", ["", "pid=True"])
@pytest.mark.parametrize("end", ENDS)
def test_a_test_that_stops_itself(
    pytester: pytest.Pytester, machine: Machine, keys: str, end: str
) -> None:
    """Pytest waits for it as without the plugin, and Ctrl-C ends the stopped process."""
    pytester.makepyfile(
        f"""
        import os, signal, pytest

        @pytest.mark.mountns({keys})
        def test_it(overlay_root, bind_volume):
            print("pid", os.readlink("/proc/self"), flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        """
    )
    with machine.running(["-s"], pytester.path) as process:
        deadline = time.monotonic() + _PATIENCE
        while "T" not in [state(pid) for pid in _below(process.pid)]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(ENDS[end][0])
        assert process.wait(_PATIENCE) != 0


def _below(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        # The process has ended since it was found.
        return []
    found = [int(p) for p in text.split()]
    return found + [deeper for child in found for deeper in _below(child)]
