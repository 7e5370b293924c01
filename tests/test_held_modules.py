"""What is loaded late needs no file of the package: it was read when the plugin was activated."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_mountns
from pytest_mountns.held_modules import HELD, HeldModules
from tests.helpers.connections import CONNECTION
from tests.helpers.recording import Record

PACKAGE = Path(pytest_mountns.__file__).parent

#: Each test runs in a sandbox without the package.
SUITE = (
    CONNECTION
    + """
import os, shutil
from pathlib import Path
import pytest
import pytest_mountns

HOME = os.readlink("/proc/self/ns/mnt")

@pytest.fixture
def gone(overlay_root):
    assert os.readlink("/proc/self/ns/mnt") != HOME
    package = Path(pytest_mountns.__file__).parent
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    above = [one for one in mounts if f"{package}/".startswith(one[4].rstrip("/") + "/")]
    # An ordinary user's root is no overlay, but the directory is in one.
    assert "overlay" in max(above, key=lambda one: len(one[4]))
    shutil.rmtree(package)
    assert not package.exists()

def test_changes(gone, overlay_root):
    Path("new").write_text("new")
    assert overlay_root.changes() == {}

def test_explained(connection, gone):
    connection.execute("insert into t values (1)")

@pytest.mark.mountns(writes=["/nowhere"])
def test_writes(gone):
    Path("other").write_text("other")

def test_layers(gone, overlay_root):
    Path("more").write_text("more")
    overlay_root.reset()
    assert not overlay_root.changes()
"""
)


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.sandboxes
def test_failures_are_explained_where_the_package_is_gone(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(SUITE)
    recorded = record("-pno:rerunfailures", "--mountns")
    failed = {one.name: one for one in recorded.not_passed}
    assert set(failed) == {"test_changes", "test_explained", "test_writes"}
    sections = {name: dict(one.sections) for name, one in failed.items()}
    assert "changes found, 0 expected" in failed["test_changes"].text
    assert "new" in sections["test_changes"]["filesystem changes"]
    assert "opened before the test had its sandbox" in sections["test_explained"]["mountns"]
    assert "changed, outside of writes=['/nowhere']" in failed["test_writes"].text


#: What a test does to what importing takes, and undoes when it is torn down.
REPLACED = """
import builtins, os, sys
import pytest

original = builtins.__import__

def no_import(name, globals=None, locals=None, fromlist=(), level=0):
    # pytest itself imports when a test has failed, and so does pickle.
    if level and (globals or {}).get("__name__", "").startswith("pytest_mountns"):
        raise ImportError(name)
    return original(name, globals, locals, fromlist, level)

class Blocking:
    def find_spec(self, name, path=None, target=None):
        raise ImportError(name)

@pytest.fixture(params=["empty", "blocking", "import", "modules"])
def replaced(request, monkeypatch):
    if request.param == "empty":
        monkeypatch.setattr(sys, "meta_path", [])
    elif request.param == "blocking":
        monkeypatch.setattr(sys, "meta_path", [Blocking(), *sys.meta_path])
    elif request.param == "import":
        monkeypatch.setattr(builtins, "__import__", no_import)
    else:
        for name in [one for one in sys.modules if one.startswith("pytest_mountns")]:
            monkeypatch.delitem(sys.modules, name)

def test_fails(replaced):
    assert not "failed"

def test_skips(replaced):
    pytest.skip("skipped")

def test_after():
    pass

@pytest.mark.mountns
def test_changes(overlay_root):
    open("new", "w").close()
    assert overlay_root.changes() == {os.path.abspath("new"): "added"}
    overlay_root.reset()
"""


@pytest.fixture(params=["fork", "inline", "module"])
def each_process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.sandboxes
def test_failures_are_reported_whatever_a_test_has_replaced(
    pytester: pytest.Pytester, each_process: str
) -> None:
    pytester.makepyfile(REPLACED)
    result = pytester.runpytest_subprocess("--mountns", f"--mountns-process={each_process}")
    result.assert_outcomes(failed=4, skipped=4, passed=2)
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.sandboxes
def test_a_wider_fixture_may_replace_what_importing_takes(
    pytester: pytest.Pytester, each_process: str
) -> None:
    pytester.makepyfile(
        """
        import sys, pytest

        @pytest.fixture(scope="session", autouse=True)
        def nothing_can_be_imported():
            former, sys.meta_path = sys.meta_path, []
            yield
            sys.meta_path = former

        def test_one(): pass
        def test_two(): assert not "failed"
        """
    )
    result = pytester.runpytest_subprocess("--mountns", f"--mountns-process={each_process}")
    result.assert_outcomes(passed=1, failed=1)


#: To be run in an interpreter of its own.
LOADED = """
import sys
from pytest_mountns import fixtures, plugin
from pytest_mountns.held_modules import HELD, HeldModules
from pytest_mountns.reports import changes, failures
from pytest_mountns.runners import protocol
held = HeldModules()
held.remember()
before = {name for name in sys.modules if name.startswith("pytest_mountns")}
held.load()
after = {name for name in sys.modules if name.startswith("pytest_mountns")}
print(sorted(after - before - {f"pytest_mountns.{name}" for name in HELD}))
"""


def test_what_is_held_needs_nothing_else() -> None:
    command = [sys.executable, "-c", LOADED]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of the package that is held, and whose file is gone."""
    (tmp_path / "made_for_a_test.py").write_text("class Some: pass\n")
    monkeypatch.setattr(pytest_mountns, "__path__", [*pytest_mountns.__path__, str(tmp_path)])
    yield tmp_path / "made_for_a_test.py"
    sys.modules.pop("pytest_mountns.made_for_a_test", None)


def test_a_module_is_executed_once(held: Path) -> None:
    """Or there would be two classes of the same name, if a test restores ``sys.modules``."""
    name = "pytest_mountns.made_for_a_test"
    modules = HeldModules(["made_for_a_test"])
    try:
        held.unlink()
        assert name not in sys.modules
        first = importlib.import_module(name)
        del sys.modules[name]
        assert importlib.import_module(name).Some is first.Some
        del sys.modules[name]
    finally:
        modules.close()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_what_is_held_exists() -> None:
    files = [PACKAGE.joinpath(*name.split(".")).with_suffix(".py") for name in HELD]
    assert [file for file in files if not file.exists()] == []
