"""Wider fixtures: set up once, in the parent; torn down there, when they are due."""

from __future__ import annotations

import os
import sys

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes


def test_once_and_in_the_parent(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        HOME = os.getpid()
        counts = []

        @pytest.fixture(scope="session")
        def session():
            assert os.getpid() == HOME
            counts.append(1)
            yield
            assert os.getpid() == HOME

        @pytest.fixture(scope="module", autouse=True)
        def module(session):
            assert os.getpid() == HOME
            counts.append(2)

        @pytest.fixture
        def function():
            assert os.getpid() != HOME
            counts.append(3)

        def test_one(function): assert counts == [1, 2, 3]
        def test_two(function): assert counts == [1, 2, 3]
        """
    )
    assert record("--mountns").status == 0


@pytest.mark.parametrize("process", ["fork", "module"])
def test_one_that_a_narrower_fixture_overrides(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    """A fixture that asks for its own name gets the wider one, which is set up once as well."""
    pytester.makeconftest(
        """
        import os, pytest
        HOME = os.getpid()
        made = []

        @pytest.fixture(scope="session")
        def server():
            assert os.getpid() == HOME
            made.append("server")
            return "server"

        @pytest.fixture(scope="session")
        def app():
            made.append("base")
            yield ["base"]
            assert os.getpid() == HOME
        """
    )
    pytester.makepyfile(
        """
        import os, pytest
        from conftest import HOME, made

        @pytest.fixture(scope="session")
        def app(app):
            assert os.getpid() == HOME
            made.append("module")
            return [*app, "module"]

        @pytest.fixture
        def server(server): return server + " of a test"

        class TestAll:
            @pytest.fixture
            def app(self, app):
                assert os.getpid() != HOME
                return [*app, "test"]

            @pytest.mark.parametrize("number", range(3))
            def test_it(self, server, app, number):
                assert server == "server of a test"
                assert sorted(made) == ["base", "module", "server"]
                assert app == ["base", "module", "test"]

        def test_wider(app): assert app == ["base", "module"]
        """
    )
    recorded = record("--mountns", f"--mountns-process={process}")
    assert recorded.status == 0, recorded.out


def test_state_of_a_test_does_not_reach_the_next(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, sys
        from pathlib import Path
        seen = []

        def check(name):
            assert seen == []
            assert "WORD" not in os.environ
            assert "left_behind" not in sys.modules
            assert not (Path.home() / "left behind").exists()
            seen.append(name)
            os.environ["WORD"] = name
            sys.modules["left_behind"] = sys
            (Path.home() / "left behind").write_text(name)

        def test_one(): check("one")
        def test_two(): check("two")
        """
    )
    assert record("--mountns").status == 0


def test_a_wider_fixture_first_asked_for_in_a_test(
    pytester: pytest.Pytester, record: Record
) -> None:
    """It is set up and torn down in that test's process, for each test that asks for it."""
    pytester.makepyfile(
        """
        import os, pytest
        HOME = os.getpid()

        @pytest.fixture(scope="session")
        def late():
            yield os.getpid()
            print("ENDED HERE")

        def test_one(request): assert request.getfixturevalue("late") == os.getpid() != HOME
        def test_two(request): assert request.getfixturevalue("late") == os.getpid() != HOME
        """
    )
    recorded = record("--mountns")
    assert recorded.status == 0
    teardowns = [report.sections for report in recorded.reports if report.when == "teardown"]
    assert all(("Captured stdout teardown", "ENDED HERE\n") in sections for sections in teardowns)


@pytest.mark.parametrize("process", ["fork", "module"])
def test_one_that_is_set_up_and_asked_for_in_a_test(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    """Before 8.2 pytest adds a finalizer each time, in the test process as well."""
    pytester.makepyfile(
        """
        import os, pytest
        HOME = os.getpid()

        @pytest.fixture(scope="session")
        def wide():
            yield
            assert os.getpid() == HOME

        @pytest.fixture
        def narrow(wide): pass

        def test_one(wide): pass
        def test_two(request): request.getfixturevalue("wide")
        def test_three(request): request.getfixturevalue("narrow")
        """
    )
    recorded = record("--mountns", f"--mountns-process={process}")
    assert recorded.status == 0, recorded.out


def test_a_directory_descriptor_of_a_wider_fixture_leads_inside(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        from pathlib import Path

        @pytest.fixture(scope="session")
        def home():
            fd = os.open(Path.home(), os.O_RDONLY)
            yield fd
            assert not (Path.home() / "by descriptor").exists()
            os.close(fd)

        def test_one(home):
            os.close(os.open("by descriptor", os.O_CREAT | os.O_WRONLY, dir_fd=home))
            assert (Path.home() / "by descriptor").exists()

        def test_two(home):
            assert not (Path.home() / "by descriptor").exists()
        """
    )
    assert record("--mountns").status == 0


@pytest.mark.parametrize("upper", ["memory", "disk"])
def test_a_wider_fixture_finds_no_child_of_ours(
    pytester: pytest.Pytester, record: Record, upper: str
) -> None:
    """A fixture may wait for any child, and sees no process of the plugin.

    Nor does it see the process of the test before, which may still be ending. With the next
    parameter the fixture is set up again in the middle of its scope.
    """
    pytester.makepyfile(
        f"""
        import os, pytest

        pytestmark = pytest.mark.mountns(upper={upper!r})

        def has_children():
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            return True

        @pytest.fixture(scope="module")
        def plain():
            assert not has_children()

        @pytest.fixture(scope="module", params=[1, 2, 3])
        def parametrized(request):
            assert not has_children()
            yield
            assert not has_children()

        def test_first():
            pass

        def test_plain(plain):
            pass

        def test_parametrized(parametrized):
            pass
        """
    )
    assert record().status == 0


def test_a_mount_made_by_a_wider_fixture_is_seen(pytester: pytest.Pytester) -> None:
    """The mount table is read again when it changes.

    The fixture mounts in a mount namespace of its own, in which the whole pytest process was
    started.
    """
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    pytester.makepyfile(
        """
        import ctypes, os, pytest

        @pytest.fixture(scope="module")
        def mounted(tmp_path_factory):
            libc = ctypes.CDLL(None)
            place = tmp_path_factory.mktemp("mounted")
            assert libc.mount(b"x", bytes(place), b"tmpfs", 0, None) == 0
            (place / "of the fixture").write_text("x")
            yield place
            assert os.listdir(place) == ["of the fixture"]
            assert libc.umount(bytes(place)) == 0

        def test_before(): pass

        def test_sees_it(mounted):
            assert os.listdir(mounted) == ["of the fixture"]
            (mounted / "of the test").write_text("y")

        def test_is_apart(mounted):
            assert os.listdir(mounted) == ["of the fixture"]
        """
    )
    result = pytester.run(
        "unshare",
        "-m",
        "--propagation",
        "slave",
        sys.executable,
        "-m",
        "pytest",
        "--mountns",
        "-q",
        "--basetemp=base",
    )
    assert result.ret == 0
