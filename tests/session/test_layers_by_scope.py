"""``scope=``: what wider fixtures write is a layer below their tests, until their node ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recording import Record, Recorded

pytestmark = [pytest.mark.sandboxes, pytest.mark.layered]

COMMON = """
import os
import pytest

HOST = os.readlink("/proc/self/ns/mnt")
PLACE = os.path.expanduser("~")


def inside():
    return os.readlink("/proc/thread-self/ns/mnt") != HOST


def write(name, text="x"):
    assert inside()
    with open(os.path.join(PLACE, name), "w") as file:
        file.write(text)


def read(name):
    with open(os.path.join(PLACE, name)) as file:
        return file.read()


def names():
    return sorted(os.listdir(PLACE))
"""


@pytest.fixture
def record(record: Record, process: str) -> Record:
    # pytest 8.0 does not see that the overridden `record` needs `process`, unless it is named here.
    # pytest-rerunfailures keeps a thread, and an ordinary user's process can enter and leave
    # sandboxes only while it has one thread.
    return lambda *arguments: record("-pno:rerunfailures", *arguments)


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir()
    (place / "host").write_text("host")
    monkeypatch.setenv("HOME", str(place))
    return place


def passes(recorded: Recorded) -> None:
    failed = recorded.not_passed
    assert not failed, recorded.out
    assert recorded.status == 0


def untouched(home: Path) -> None:
    assert [p.name for p in home.iterdir()] == ["host"]
    assert (home / "host").read_text() == "host"


def test_paid_once_seen_by_all_and_gone(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    body = f"""{COMMON}
pytestmark = pytest.mark.mountns(scope="module")
made = []

@pytest.fixture(scope="module")
def installed():
    made.append(1)
    write("installed", "module")
    os.remove(os.path.join(PLACE, "host"))
    yield "installed"
    # The fixture sees its own writes, and not those of the tests.
    assert names() == ["installed"] and read("installed") == "module"

@pytest.mark.parametrize("number", range(3))
def test_it(installed, number, overlay_root):
    assert made == [1]
    assert names() == ["installed"] and read(installed) == "module"
    assert overlay_root.changes() == {{}}
    write("installed", "test")
    write("own")
    assert overlay_root.changes(PLACE) == {{
        os.path.join(PLACE, "installed"): "modified", os.path.join(PLACE, "own"): "added"}}
    overlay_root.reset()
    assert names() == ["installed"]
"""
    pytester.makepyfile(test_a=body, test_b=body)
    pytester.makepyfile(
        test_c=f"{COMMON}\ndef test_after(overlay_root): assert names() == ['host']\n"
    )
    passes(record())
    untouched(home)


def test_nested_scopes(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    pytester.makeconftest(
        f"""{COMMON}
@pytest.fixture(scope="session")
def session_wide():
    write("session")
    yield
    assert names() == ["host", "late", "session"]

@pytest.fixture(scope="session")
def late_session_wide():
    write("late")

@pytest.fixture(scope="module")
def module_wide(session_wide):
    write("module")
    yield
    assert "class" not in names() and "module" in names()

@pytest.fixture(scope="class")
def class_wide(module_wide):
    write("class")
"""
    )
    pytester.makepyfile(
        f"""{COMMON}
pytestmark = pytest.mark.mountns(scope="session")

class TestOne:
    def test_one(self, class_wide):
        assert names() == ["class", "host", "module", "session"]
    def test_late(self, class_wide, late_session_wide):
        assert names() == ["class", "host", "late", "module", "session"]

class TestTwo:
    def test_without_class(self, module_wide):
        assert names() == ["host", "late", "module", "session"]

@pytest.mark.mountns(scope="function")
def test_uncaptured(overlay_root):
    assert names() == ["host"]
"""
    )
    passes(record())
    untouched(home)


def test_parametrized_wide_fixtures(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """A fixture ends in the sandbox that it began in, before it begins for the next parameter."""
    pytester.makepyfile(
        f"""{COMMON}
pytestmark = pytest.mark.mountns(scope="module")

@pytest.fixture(scope="module", params=["a", "b"])
def wide(request):
    write(request.param)
    yield request.param
    assert inside()
    os.remove(os.path.join(PLACE, request.param))

@pytest.mark.parametrize("number", range(2))
def test_it(wide, number):
    assert names() == sorted(["host", wide])
"""
    )
    passes(record())
    untouched(home)


def test_setup_and_teardown_of_xunit_style_and_a_directory(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    pytester.makepyfile(
        f"""{COMMON}
import unittest
pytestmark = pytest.mark.mountns(scope="module")

def setup_module():
    os.mkdir(os.path.join(PLACE, "work"))
    os.chdir(os.path.join(PLACE, "work"))

def teardown_module():
    assert os.getcwd() == os.path.join(PLACE, "work")
    assert os.listdir() == []
    os.chdir(PLACE)
    os.rmdir("work")

class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls): write("class")
    def test_it(self):
        assert os.getcwd() == os.path.join(PLACE, "work")
        open("own", "w").close()
        assert names() == ["class", "host", "work"]

def test_it():
    assert os.getcwd() == os.path.join(PLACE, "work")
    assert names() == ["host", "work"]
"""
    )
    passes(record())
    untouched(home)


def test_state_of_a_fixture_that_a_test_asks_for(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    pytester.makepyfile(
        f"""{COMMON}
pytestmark = pytest.mark.mountns(scope="module")

@pytest.fixture(scope="module")
def wide(request):
    write("wide")
    os.mkdir(os.path.join(PLACE, "work"))
    os.chdir(os.path.join(PLACE, "work"))
    os.environ["WIDE"] = "1"
    yield request.getfixturevalue("tmp_path_factory").mktemp("wide")
    assert os.getcwd() == os.path.join(PLACE, "work")
    os.chdir(PLACE)
    del os.environ["WIDE"]

def test_asks(request): request.getfixturevalue("wide")

def test_next(wide, tmp_path):
    assert names() == ["host", "wide", "work"]
    assert os.getcwd() == os.path.join(PLACE, "work")
    assert os.environ["WIDE"] == "1"
    assert wide.parent == tmp_path.parent
    assert wide.is_dir()
"""
    )
    passes(record())
    untouched(home)


def test_errors_in_wide_setup_and_teardown(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    pytester.makepyfile(
        f"""{COMMON}
pytestmark = pytest.mark.mountns(scope="module")

@pytest.fixture(scope="module")
def bad_setup():
    write("half")
    raise ValueError("bad setup")

@pytest.fixture(scope="module")
def bad_teardown():
    write("made")
    yield
    assert inside()
    raise ValueError("bad teardown")

def test_setup(bad_setup): pass
def test_setup_again(bad_setup): pass
def test_between(): assert inside()
def test_teardown(bad_teardown): assert "made" in names()
"""
    )
    recorded = record()
    outcomes = recorded.outcomes
    assert outcomes[("test_setup", "setup")] == outcomes[("test_setup_again", "setup")] == "failed"
    assert outcomes[("test_between", "call")] == "passed"
    assert outcomes[("test_teardown", "call")] == "passed"
    assert outcomes[("test_teardown", "teardown")] == "failed"
    untouched(home)


@pytest.mark.as_root
def test_with_xdist(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        f"""{COMMON}
pytestmark = pytest.mark.mountns(scope="module")

@pytest.fixture(scope="module")
def wide(): write("wide")

@pytest.mark.parametrize("number", range(8))
def test_it(wide, number):
    assert names() == ["host", "wide"]
    write("own")
"""
    )
    passes(record("-n2"))
    untouched(home)


@pytest.mark.as_root
def test_a_package_installed_into_the_system(pytester: pytest.Pytester, record: Record) -> None:
    target = Path("/usr/local/lib/mountns-of-a-module")
    assert not target.exists()
    pytester.makepyfile(
        f"""
        import os, pytest, shutil
        pytestmark = pytest.mark.mountns(scope="module")
        TARGET = {str(target)!r}

        @pytest.fixture(scope="module")
        def installed():
            os.makedirs(TARGET + "/bin")
            open(TARGET + "/bin/program", "w").write("1")

        def test_removes_it(installed):
            shutil.rmtree(TARGET)
        def test_has_it(installed):
            assert open(TARGET + "/bin/program").read() == "1"
        """
    )
    passes(record())
    assert not target.exists()


INTERRUPTED = """
import signal
from pytest_mountns.engine.sandbox.sandbox import Sandbox


class Alarm(Exception):
    pass


def ring(number, frame):
    raise Alarm


signal.signal(signal.SIGALRM, ring)


def enter(self, *arguments, **options):
    original(self, *arguments, **options)
    if os.getpid() == SESSION and RINGS.pop():
        # It is blocked at this moment, and handled when the process is in the sandbox.
        signal.raise_signal(signal.SIGALRM)


SESSION = os.getpid()
RINGS = [False] * 100 + AT
original, Sandbox.enter = Sandbox.enter, enter


def where():
    return os.readlink("/proc/thread-self/ns/mnt"), os.stat("/").st_dev


@pytest.fixture(scope="session", autouse=True)
def of_the_session():
    HERE.append(where())


HERE = []


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item, nextitem):
    if HERE and where() != HERE[0]:
        pytest.exit(f"before {item.name} not on the host", 9)


def pytest_sessionfinish():
    if where() != HERE[0]:
        pytest.exit("at the end not on the host", 9)
"""


@pytest.mark.parametrize("at", ["setup", "finalizer"])
def test_a_handler_raises_when_the_sandbox_of_a_fixture_has_just_been_entered(
    pytester: pytest.Pytester, record: Record, process: str, home: Path, at: str
) -> None:
    """The process is back on the host, whether it went in to set the fixture up or to end it."""
    # The pytest process enters for the fixture, inline for the test, and for the finalizer.
    before = 0 if at == "setup" else 2 if process == "inline" else 1
    rings = [True] + [False] * before
    pytester.makeconftest(COMMON + INTERRUPTED.replace("AT", str(rings)))
    body = """
        import pytest
        from conftest import inside, write
        pytestmark = pytest.mark.mountns(scope="module")

        @pytest.fixture(scope="module")
        def wide():
            write("wide")
            yield
            assert inside()

        def test_NAME(wide): assert inside()
        """
    pytester.makepyfile(test_1=body.replace("NAME", "first"), test_2=body.replace("NAME", "second"))
    recorded = record("--mountns")
    failed = {place for place, outcome in recorded.outcomes.items() if outcome != "passed"}
    assert recorded.status == pytest.ExitCode.TESTS_FAILED, recorded.out
    assert "Alarm" in recorded.out
    assert failed == {("test_first", "setup" if at == "setup" else "teardown")}
    untouched(home)
