"""A test process that dies is a failed test, and the session goes on."""

from __future__ import annotations

import os
import signal

import pytest

from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes


def reports(recorded: Recorded) -> list[tuple[str, str, str]]:
    return [(report.name, report.when, report.outcome) for report in recorded.reports]


def text_of(recorded: Recorded, test: str) -> str:
    (report,) = [one for one in recorded.not_passed if one.name == test]
    return report.text


@pytest.mark.parametrize("pid", [False, True])
def test_by_signal_and_by_exit(pytester: pytest.Pytester, record: Record, pid: bool) -> None:
    pytester.makepyfile(
        f"""
        import os, signal, sys, pytest

        pytestmark = pytest.mark.mountns(pid={pid})

        def test_killed(overlay_root):
            print("so far")
            os.write(2, b"and to stderr")
            os.kill(os.getpid(), signal.SIGKILL)

        def test_aborts(overlay_root): os.abort()
        def test_exits(overlay_root): os._exit(0)
        def test_exits_7(overlay_root): os._exit(7)
        def test_runs(overlay_root): pass
        """
    )
    recorded = record("-p", "no:faulthandler")
    assert recorded.status == 1
    assert "SIGKILL" in text_of(recorded, "test_killed")
    assert "during call" in text_of(recorded, "test_killed")
    assert "SIGABRT" in text_of(recorded, "test_aborts")
    assert "status 0" in text_of(recorded, "test_exits")
    assert "status 7" in text_of(recorded, "test_exits_7")
    assert [r for r in reports(recorded) if r[0] == "test_runs"] == [
        ("test_runs", "setup", "passed"),
        ("test_runs", "call", "passed"),
        ("test_runs", "teardown", "passed"),
    ]
    killed = recorded.failed[0]
    assert ("Captured stdout call", "so far\n") in killed.sections
    assert ("Captured stderr call", "and to stderr") in killed.sections


def test_in_setup_and_in_teardown(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.fixture
        def dies(overlay_root): os.kill(os.getpid(), 9)

        @pytest.fixture
        def dies_later(overlay_root):
            yield
            os.kill(os.getpid(), 9)

        def test_one(dies): pass
        def test_two(dies_later): pass
        def test_three(overlay_root): pass
        """
    )
    recorded = record()
    assert reports(recorded) == [
        ("test_one", "setup", "failed"),
        ("test_one", "teardown", "passed"),
        ("test_two", "setup", "passed"),
        ("test_two", "call", "passed"),
        ("test_two", "teardown", "failed"),
        ("test_three", "setup", "passed"),
        ("test_three", "call", "passed"),
        ("test_three", "teardown", "passed"),
    ]


def test_wider_fixtures_end_all_the_same(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.fixture(scope="module")
        def wide():
            yield
            print("the module has ended")

        def test_one(wide, overlay_root): os.kill(os.getpid(), 9)
        """
    )
    recorded = record()
    teardown = next(report for report in recorded.reports if report.when == "teardown")
    assert ("Captured stdout teardown", "the module has ended\n") in teardown.sections


def test_xfail_covers_a_crash(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.xfail(reason="known to crash")
        def test_one(overlay_root): os.kill(os.getpid(), 9)

        @pytest.mark.xfail(raises=ValueError)
        def test_two(overlay_root): os.kill(os.getpid(), 9)
        """
    )
    assert ("test_one", "call", "skipped") in reports(recorded := record())
    assert ("test_two", "call", "failed") in reports(recorded)


def test_a_copy_that_returns_is_not_a_second_session(
    pytester: pytest.Pytester, record: Record
) -> None:
    """A test forks, and its copy returns into pytest as the test does."""
    pytester.makepyfile(
        """
        import os

        def test_one(overlay_root):
            child = os.fork()
            if child:
                os.waitpid(child, 0)

        def test_two(overlay_root): pass
        """
    )
    recorded = record()
    assert recorded.status == 0
    assert len(reports(recorded)) == 6


def test_a_daemon_that_holds_everything_open_stalls_nothing(
    pytester: pytest.Pytester, record: Record
) -> None:
    """The daemon has the channel's socket open; the message "leave" ends the waiting."""
    pytester.makepyfile(
        """
        import os, time, pytest
        from pathlib import Path

        @pytest.mark.mountns(volumes=[os.getcwd()])
        def test_one(overlay_root):
            if os.fork() == 0:
                if os.fork() == 0:
                    Path("pid").write_text(str(os.getpid()))
                    time.sleep(600)
                os._exit(0)
            os.wait()
            while not Path("pid").exists():
                time.sleep(0.01)
        """
    )
    recorded = record()
    assert recorded.status == 0
    # Still there.
    os.kill(int((pytester.path / "pid").read_text()), signal.SIGKILL)


def test_closing_every_descriptor_is_a_failure_not_a_hang(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import os

        def test_one(overlay_root): os.closerange(3, 4096)
        def test_two(overlay_root): pass
        """
    )
    recorded = record("--capture=no")
    assert ("test_one", "call", "failed") in reports(recorded)
    assert ("test_two", "call", "passed") in reports(recorded)


def test_processes_left_behind_are_ended(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, subprocess, pytest

        HERE = os.path.dirname(__file__)
        PIDS = os.path.join(HERE, "pids")
        pytestmark = pytest.mark.mountns(volumes=[HERE])

        def test_leaves_two(overlay_root):
            shell = subprocess.Popen(
                ["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True
            )
            sleeper = int(shell.stdout.readline())
            with open(PIDS, "w") as file:
                file.write(f"{shell.pid} {sleeper}")
            shell.stdout.close()
            shell.returncode = 0

        def test_both_are_gone(overlay_root):
            for pid in map(int, open(PIDS).read().split()):
                try:
                    state = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0]
                except OSError:
                    continue
                assert state in "ZX"
        """
    )
    assert record("-Wignore").status == 0
