"""``process="inline"``: the pytest process goes into a sandbox for one test, and returns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes

#: Somewhere that root and an ordinary user can write, and the isolation that each test checks.
COMMON = """
import os
import pytest

HOST = []
PID = os.getpid()
PLACE = os.path.expanduser("~")


# On the host. For an ordinary user this is another namespace than while tests are collected.
@pytest.fixture(scope="session", autouse=True)
def host():
    HOST.append(os.readlink("/proc/thread-self/ns/mnt"))


def inside():
    return os.readlink("/proc/thread-self/ns/mnt") != HOST[0]


@pytest.fixture(autouse=True)
def in_this_process():
    assert os.getpid() == PID
    assert inside()
"""


@pytest.fixture
def record(record: Record, process: str) -> Record:
    # pytest 8.0 does not see that the overridden `record` needs `process`, unless it is named here.
    # pytest-rerunfailures keeps a thread, and an ordinary user's process can enter and leave
    # sandboxes only while it has one thread.
    return lambda *arguments: record("-pno:rerunfailures", *arguments)


@pytest.fixture
def process() -> str:
    return "inline"


def write(pytester: pytest.Pytester, body: str) -> None:
    pytester.makepyfile(COMMON + textwrap.dedent(body))


def passes(recorded: Recorded) -> None:
    failed = recorded.not_passed
    assert not failed, recorded.out
    assert recorded.status == 0


def test_each_test_has_a_root_of_its_own_in_one_process(
    pytester: pytest.Pytester, record: Record, home: Path, host_mounts: Callable[[], bytes]
) -> None:
    (home / "kept").write_text("kept")
    mounts = host_mounts()
    write(
        pytester,
        """
        import shutil
        kept = os.path.join(PLACE, "kept")

        @pytest.mark.parametrize("number", range(5))
        def test_one(number, overlay_root, tmp_path):
            assert os.listdir(PLACE) == ["kept"] and open(kept).read() == "kept"
            open(kept, "w").write("changed")
            os.mkdir(os.path.join(PLACE, "own"))
            assert overlay_root.changes(PLACE) == {
                kept: "modified", os.path.join(PLACE, "own"): "added"}
            overlay_root.reset()
            assert overlay_root.changes() == {} and open(kept).read() == "kept"
            os.remove(kept)
        """,
    )
    passes(record("--mountns"))
    assert [p.name for p in home.iterdir()] == ["kept"]
    assert host_mounts() == mounts


def test_the_process_is_as_before(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """Directory, umask, environment and descriptors; processes that the test has started end."""
    pytester.makeconftest(
        """
        import os, pytest

        def state():
            fds = {}
            for name in os.listdir("/proc/self/fd"):
                try: fds[name] = os.readlink("/proc/self/fd/" + name)
                except OSError: pass
            os.umask(umask := os.umask(0))
            environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
            return os.getcwd(), umask, environment, fds, os.readlink("/proc/self/ns/mnt")

        before = None

        # The first test opens what all tests share, and that stays open.
        def pytest_runtest_logfinish(nodeid):
            global before
            if before is None:
                before = state()
            elif "test_changes" in nodeid:
                assert state() == before
        """
    )
    write(
        pytester,
        """
        import subprocess, sys
        opened = os.open(os.path.dirname(__file__), os.O_RDONLY)
        children = []

        def test_first(): pass

        def test_changes():
            os.chdir("/"); os.umask(0o777)
            os.environ["NEW"] = "1"; del os.environ["HOME"]
            children.append(subprocess.Popen(["sleep", "600"]).pid)
            os.close(os.open("/", os.O_RDONLY))
            # A descriptor of a directory that was open before leads to the sandbox's directory.
            fd = os.open("made", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=opened)
            os.close(fd)
            assert os.path.exists(os.path.join(os.path.dirname(__file__), "made"))

        def test_child_is_gone():
            with pytest.raises(ProcessLookupError): os.kill(children[0], 0)

        class TestOutside:
            @pytest.fixture(autouse=True)
            def in_this_process(self, host):
                assert os.getpid() == PID and not inside()

            @pytest.mark.no_mountns
            def test_outside(self):
                self.look()

            def look(self):
                assert "made" not in os.listdir(opened)
        """,
    )
    passes(record("--mountns"))


def test_wider_fixtures_and_reports_are_at_home(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    pytester.makeconftest(
        """
        import os, pytest
        HOST = []

        def pytest_runtest_logstart(): HOST.append(os.readlink("/proc/thread-self/ns/mnt"))

        def here(): return os.readlink("/proc/thread-self/ns/mnt") == HOST[0]

        def pytest_runtest_logreport(report):
            assert here(), report.when
            with open("heard", "a") as file: print(report.when, file=file)

        @pytest.fixture(scope="module")
        def wide():
            assert here()
            yield "wide"
            assert here()

        @pytest.fixture
        def narrow():
            assert not here()
            yield
            assert not here()
        """
    )
    write(
        pytester,
        """
        def test_one(wide, narrow): pass
        def test_dynamic(request):
            # Though it is asked for in the sandbox, it is set up on the host, and stays.
            assert request.getfixturevalue("wide") == "wide"
            assert inside()
        """,
    )
    passes(record("--mountns"))
    assert (pytester.path / "heard").read_text().split() == ["setup", "call", "teardown"] * 2


def test_errors_everywhere_and_the_next_test_is_well(
    pytester: pytest.Pytester, record: Record
) -> None:
    write(
        pytester,
        """
        @pytest.fixture
        def bad_setup(): 1 / 0
        @pytest.fixture
        def bad_teardown():
            yield
            1 / 0
        def test_setup(bad_setup): pass
        def test_call(): assert 0
        def test_teardown(bad_teardown): pass
        def test_skip(): pytest.skip()
        def test_well(): pass
        """,
    )
    outcomes = record("--mountns").outcomes
    bad = {place for place, outcome in outcomes.items() if outcome != "passed"}
    assert bad == {
        ("test_setup", "setup"),
        ("test_call", "call"),
        ("test_teardown", "teardown"),
        ("test_skip", "call"),
    }
    assert outcomes[("test_well", "call")] == "passed"


def test_a_test_with_a_pid_namespace_is_forked(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os
        PID = os.getpid()
        def test_it(isolated_proc): assert isolated_proc.pids()[0] == 1 and os.getpid() != PID
        """
    )
    recorded = record("--mountns")
    if "is not possible here" in recorded.out:
        pytest.skip("no PID namespaces here")
    passes(recorded)


def test_ctrl_c_ends_what_the_test_began_in_its_sandbox(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    write(
        pytester,
        """
        @pytest.fixture
        def writes():
            yield
            assert inside()
            open(os.path.join(PLACE, "torn-down"), "w").close()
            print("torn down", file=open(os.devnull, "w"))

        def test_it(writes): raise KeyboardInterrupt
        def test_never(): assert 0
        """,
    )
    recorded = record("--mountns")
    assert recorded.status == pytest.ExitCode.INTERRUPTED
    assert not list(home.iterdir())


INTERRUPTING = """
import sys
from pytest_mountns.engine.sandbox.manager import SandboxManager


class Alarm(Exception):
    '''What a handler raises of a signal that another thread has taken.'''


class Interrupting:
    def __init__(self, lines):
        self.lines = lines
        self.depth = 0

    def __call__(self, frame, event, argument):
        if frame.f_code in (SandboxManager.enter.__code__, SandboxManager.leave.__code__):
            self.depth += {"call": 1, "return": -1}.get(event, 0)
        if self.depth and event == "line":
            self.lines -= 1
            if self.lines == 0:
                sys.settrace(None)
                raise Alarm
        return self


def state():
    namespace = os.readlink("/proc/thread-self/ns/mnt")
    return namespace, os.getcwd(), os.stat("/").st_dev, os.path.exists(f"{PLACE}/mark")


FOUND = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    FOUND.append(state())
    # The first test has set up what stays on the host.
    if FOUND[1:] and FOUND[-1] != FOUND[1]:
        pytest.exit(f"{FOUND[1]} at first, {FOUND[-1]} before {item.name}", 9)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_PHASE(item):
    sys.settrace(Interrupting(item.callspec.params["lines"]))
    try:
        return (yield)
    finally:
        sys.settrace(None)
"""


@pytest.mark.parametrize("phase", ["setup", "teardown"])
def test_a_handler_that_raises_on_the_way(
    pytester: pytest.Pytester, phase: str, home: Path
) -> None:
    """Whichever line it interrupts: the process is back on the host, and the next test isolated."""
    pytester.makeconftest(COMMON + INTERRUPTING.replace("PHASE", phase))
    pytester.makepyfile(
        """
        import os, pytest
        from conftest import PLACE, inside

        @pytest.mark.parametrize("lines", [0, 0, *range(1, 500)])
        def test_it(lines):
            assert inside()
            open(f"{PLACE}/mark", "x").close()
        """
    )
    result = pytester.runpytest_subprocess(
        "--mountns", "--mountns-process=inline", "-q", "-rN", "--tb=line", "-pno:rerunfailures"
    )
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    outcomes = result.parseoutcomes()
    # All lines of the phase were interrupted; more lines were asked for than it has.
    assert outcomes["errors"] > 30
    assert outcomes["passed"] > (500 - outcomes["errors"] if phase == "setup" else 500)
    assert "failed" not in outcomes
    assert result.stdout.str().count("Alarm") == outcomes["errors"]


def test_processes_of_a_wider_fixture_that_the_test_asks_for(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    write(
        pytester,
        """
        import subprocess

        @pytest.fixture(scope="session")
        def server():
            process = subprocess.Popen(["sleep", "300"])
            yield process
            process.kill()
            process.wait()

        @pytest.mark.parametrize("number", range(3))
        def test_it(request, number):
            assert request.getfixturevalue("server").poll() is None
        """,
    )
    passes(record("--mountns"))


def test_directories_of_a_wider_fixture_after_another_root(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """A test that goes on in another root has the directories opened again there."""
    write(
        pytester,
        """
        @pytest.fixture(scope="session")
        def directory(tmp_path_factory):
            path = tmp_path_factory.mktemp("open")
            fd = os.open(path, os.O_RDONLY)
            yield path, fd
            os.close(fd)

        @pytest.fixture(scope="class", autouse=True)
        def is_the_same_on_the_host(directory):
            path, fd = directory
            assert not inside()
            assert os.path.samestat(os.fstat(fd), os.stat(path))

        class TestReset:
            def test(self, overlay_root): overlay_root.reset()

        class TestCheckpoints:
            def test(self, overlay_root):
                with overlay_root.checkpoint(), overlay_root.checkpoint():
                    overlay_root.reset()

        class TestLeftOpen:
            def test(self, overlay_root): overlay_root.checkpoint().__enter__()

        class TestLast:
            def test(self): pass
        """,
    )
    passes(record("--mountns"))


def test_processes_of_a_wider_fixture_that_fails_when_the_test_asks_for_it(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    write(
        pytester,
        """
        import subprocess

        STARTED = []

        @pytest.fixture(scope="session")
        def server(request):
            STARTED.append(process := subprocess.Popen(["sleep", "300"]))
            request.addfinalizer(process.wait)
            request.addfinalizer(process.kill)
            raise RuntimeError("not ready")

        def test_one(request):
            with pytest.raises(RuntimeError):
                request.getfixturevalue("server")

        def test_two(): assert STARTED[0].poll() is None
        """,
    )
    passes(record("--mountns"))


def test_files_of_a_wider_fixture_that_the_test_asks_for(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """With ``--basetemp``, to choose that directory once more would remove it (`pytester` does)."""
    write(
        pytester,
        """
        @pytest.fixture(scope="session")
        def data(tmp_path_factory):
            file = tmp_path_factory.mktemp("data") / "file"
            file.write_text("kept")
            return file

        def test_asks(request):
            own = request.getfixturevalue("tmp_path")
            assert request.getfixturevalue("data").read_text() == "kept"
            assert own.is_dir()

        def test_temporary(tmp_path): pass

        def test_reads(data, tmp_path):
            assert data.read_text() == "kept"
            assert data.parent.parent == tmp_path.parent
        """,
    )
    passes(record("--mountns"))


def test_a_wider_fixture_without_pytests_own_chooses_the_directory(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """As those of plugins do, which have the factory from the configuration."""
    write(
        pytester,
        """
        @pytest.fixture(scope="session")
        def data(pytestconfig):
            file = pytestconfig._tmp_path_factory.mktemp("data") / "file"
            file.write_text("kept")
            return file

        def test_asks(request): request.getfixturevalue("data")
        def test_temporary(tmp_path): pass
        def test_reads(data): assert data.read_text() == "kept"
        """,
    )
    passes(record("--mountns"))


def test_state_of_a_wider_fixture_that_the_test_asks_for(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """What the fixture sets is there until it ends, and what the test sets is undone."""
    write(
        pytester,
        """
        def umask():
            os.umask(now := os.umask(0))
            return now

        @pytest.fixture(scope="session")
        def outer(request):
            before = os.getcwd(), umask()
            os.environ["OUTER"] = "1"
            os.umask(0o27)
            request.getfixturevalue("inner")
            os.environ["INNER"] += "3"
            yield
            assert os.environ.pop("OUTER") == "1"
            assert (os.getcwd(), umask()) == (os.path.join(PLACE, "there"), 0o27)
            os.chdir(before[0])
            os.umask(before[1])

        @pytest.fixture(scope="session")
        def inner():
            os.mkdir(os.path.join(PLACE, "there"))
            os.environ["INNER"] = "2"
            del os.environ["GONE"]
            os.chdir(os.path.join(PLACE, "there"))
            yield
            del os.environ["INNER"]

        @pytest.fixture(scope="session")
        def failing():
            os.environ["FAILED"] = "1"
            raise OSError

        def as_set():
            names = {"OUTER", "INNER", "FAILED", "GONE", "OWN", "LATE"} & {*os.environ}
            return {name: os.environ[name] for name in names}, os.getcwd(), umask()

        SET = {"OUTER": "1", "INNER": "23", "FAILED": "1"}, os.path.join(PLACE, "there"), 0o27

        def test_asks(request):
            os.environ["OWN"] = "own"
            request.getfixturevalue("outer")
            with pytest.raises(OSError): request.getfixturevalue("failing")
            own = {**SET[0], "OWN": "own"}
            assert as_set() == (own, *SET[1:])
            assert inside()
            os.environ["LATE"] = "late"
            os.environ["OUTER"] = "changed"
            os.umask(0)
            os.chdir("/")

        def test_next(outer): assert as_set() == SET

        def test_unconcerned(): assert as_set() == SET
        """,
    )
    pytester.makeconftest("import os; os.environ['GONE'] = 'there'")
    passes(record("--mountns"))


@pytest.mark.as_root
def test_another_user_for_a_moment(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """seteuid(2) takes the capabilities out of effect that are needed to return."""
    write(
        pytester,
        """
        @pytest.fixture
        def as_nobody():
            os.seteuid(65534)
            yield
            os.seteuid(0)

        def test_it(as_nobody):
            with pytest.raises(PermissionError):
                open("/etc/shadow")

        def test_left(): os.seteuid(65534)
        def test_after(): assert os.geteuid() == 0
        """,
    )
    recorded = record("--mountns", "-p", "no:cacheprovider")
    passes(recorded)


@pytest.mark.as_root
def test_a_chroot_of_a_test(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """Its root has no /proc."""
    write(
        pytester,
        """
        def test_chroot(tmp_path):
            os.chroot(tmp_path)
            os.chdir("/")
            assert os.listdir("/") == []

        @pytest.mark.parametrize("number", range(2))
        def test_after(number): assert os.path.exists("/proc/self")
        """,
    )
    passes(record("--mountns"))


@pytest.mark.as_root
@pytest.mark.layered
def test_a_chroot_in_a_checkpoint(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """Without /proc, the way back from the host leads to the checkpoint, too."""
    write(
        pytester,
        """
        def where(): return os.readlink("/proc/thread-self/ns/mnt")

        @pytest.fixture(scope="session")
        def on_host(): return where()

        def test_chroot(overlay_root, request, tmp_path):
            root = os.open("/", os.O_RDONLY)
            with overlay_root.checkpoint():
                before = where()
                os.chroot(tmp_path)
                assert request.getfixturevalue("on_host") == HOST[0]
                assert os.listdir("/") == []
                os.fchdir(root)
                os.chroot(".")
                assert where() == before
        """,
    )
    passes(record("--mountns"))


def test_a_test_that_opens_as_many_files_as_it_may(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    write(
        pytester,
        """
        import resource

        @pytest.fixture
        def none_left():
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (1000, before[1]))
            held = []
            try:
                while True: held.append(os.open("/dev/null", 0))
            except OSError: pass
            yield
            for fd in held: os.close(fd)
            resource.setrlimit(resource.RLIMIT_NOFILE, before)

        def test_it(none_left):
            with pytest.raises(OSError): open("/dev/null")

        def test_after(): pass
        """,
    )
    passes(record("--mountns", "-p", "no:cacheprovider"))


def test_many_different_sandboxes(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """What is kept for tests with the same keys does not use up the descriptors."""
    write(
        pytester,
        """
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (250, 250))

        def each(number):
            return pytest.param(number, marks=pytest.mark.mountns(tmpfs=[f"/tmp/{number}"]))

        @pytest.mark.parametrize("number", map(each, range(150)))
        def test_it(number): pass
        """,
    )
    passes(record("--mountns", "-p", "no:cacheprovider"))
