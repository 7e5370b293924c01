"""``process="module"``: the tests of a module share a process, and no files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.recording import Record, Recorded, Report

pytestmark = pytest.mark.sandboxes

#: Tells who has run what, in a file of the host.
SAYS = """
import os, pytest
from pathlib import Path

#: Tests write into their sandboxes, fixtures of wider scope on the host.
LOG = Path(__file__).with_name("log")

def say(word):
    with open(LOG, "a") as file:
        file.write(f"{word} {os.getpid()}\\n")

@pytest.fixture(scope="session")
def of_session():
    say("session")
    yield os.getpid()
    say("session-end")

@pytest.fixture(scope="module")
def of_module():
    say("module")
    yield os.getpid()
    say("module-end")
"""


@pytest.fixture
def process() -> str:
    return "module"


def said(pytester: pytest.Pytester) -> list[tuple[str, int]]:
    """What fixtures have said, and in which process."""
    lines = (pytester.path / "log").read_text().splitlines()
    return [(word, int(pid)) for word, pid in (line.split() for line in lines)]


def words(pytester: pytest.Pytester) -> list[str]:
    return [word for word, _ in said(pytester)]


def outcomes(recorded: Recorded) -> dict[str, str]:
    """For each test, its worst outcome."""
    found: dict[str, str] = {}
    for report in recorded.reports:
        if report.outcome != "passed" or report.when == "call":
            found.setdefault(report.name, report.outcome)
            if report.outcome == "failed":
                found[report.name] = "failed"
    return found


def failure(recorded: Recorded, name: str) -> Report:
    (report,) = [one for one in recorded.failed if one.name == name]
    return report


def test_tests_share_a_process_and_no_files(pytester: pytest.Pytester, record: Record) -> None:
    suite = """
        import os
        from pathlib import Path

        SEEN = []
        PLACE = Path(__file__).with_name("written")

        def test_one():
            SEEN.append(os.getpid())
            PLACE.write_text("by test_one")

        def test_two():
            assert SEEN == [os.getpid()]
            assert not PLACE.exists()
            assert "ELSEWHERE" not in os.environ

        def test_three():
            os.environ["ELSEWHERE"] = "x"
            import sys
            sys.modules["left_by_a_module"] = sys

        def test_four():
            import sys
            assert "left_by_a_module" in sys.modules
        """
    pytester.makepyfile(
        test_a=suite,
        test_b="import sys\ndef test_five(): assert 'left_by_a_module' not in sys.modules",
    )
    recorded = record("--mountns")
    assert outcomes(recorded) == dict.fromkeys(
        ["test_one", "test_two", "test_three", "test_four", "test_five"], "passed"
    )
    assert "one process for each module" in recorded.out
    assert not (pytester.path / "written").exists()


def test_in_which_process_fixtures_are_set_up(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makeconftest(SAYS)
    suite = """
        import os, pytest

        @pytest.fixture(scope="class")
        def of_class(): return os.getpid()

        def test_one(of_session, of_module):
            assert of_module == os.getpid() and of_session == os.getppid()

        class TestIt:
            def test_two(self, of_class, of_module): assert of_class == of_module == os.getpid()
            def test_three(self, of_class, of_session): assert of_class != of_session
        """
    pytester.makepyfile(test_a=suite, test_b=suite)
    recorded = record("--mountns")
    assert recorded.failed == []
    assert words(pytester) == [
        "session",
        *("module", "module-end"),
        *("module", "module-end"),
        "session-end",
    ]
    session, first, first_end, second, second_end, session_end = (pid for _, pid in said(pytester))
    assert session == session_end
    assert first == first_end != session
    assert second == second_end != first


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL (signal 9) during call"),
        ("os._exit(7)", "exited with status 7, before the test was done, during call"),
    ],
)
def test_a_crash_fails_its_test_and_the_rest_goes_on(
    pytester: pytest.Pytester, record: Record, how: str, text: str
) -> None:
    pytester.makeconftest(SAYS)
    pytester.makepyfile(
        f"""
        import os, signal

        SEEN = []

        def test_one(of_session, of_module): SEEN.append(1)
        def test_two(of_module):
            print("so far")
            os.write(2, b"and to stderr")
            {how}
        def test_three(of_module): assert SEEN == []
        def test_four(of_module, of_session): SEEN.append(4)
        """
    )
    recorded = record("--mountns", "-p", "no:faulthandler")
    assert outcomes(recorded) == {
        "test_one": "passed",
        "test_two": "failed",
        "test_three": "passed",
        "test_four": "passed",
    }
    report = failure(recorded, "test_two")
    assert text in report.text
    assert ("Captured stdout call", "so far\n") in report.sections
    assert ("Captured stderr call", "and to stderr") in report.sections
    # What the process that has died had set up was not torn down.
    assert words(pytester) == ["session", "module", "module", "module-end", "session-end"]


def test_a_crash_in_a_fixture_of_the_module(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        test_a="""
        import os, pytest

        @pytest.fixture(scope="module")
        def dies():
            yield
            os.kill(os.getpid(), 9)

        def test_one(dies): pass
        def test_two(dies): pass
        """,
        test_b="def test_three(): pass",
    )
    recorded = record("--mountns")
    assert [report.name for report in recorded.failed] == ["test_two"]
    assert "SIGKILL (signal 9) during teardown" in failure(recorded, "test_two").text
    assert outcomes(recorded)["test_three"] == "passed"


def test_a_process_that_dies_between_tests_is_not_passed_over(
    pytester: pytest.Pytester, record: Record
) -> None:
    # The second test is sent when the process is dead.
    pytester.makeconftest(
        """
        import os
        pids = {}
        def pytest_runtest_logreport(report): pids.update(report.user_properties)
        def pytest_runtest_logfinish():
            if pids: os.waitid(os.P_PID, pids.popitem()[1], os.WEXITED | os.WNOWAIT)
        """
    )
    pytester.makepyfile(
        """
        import os, sys, threading, time

        def die_while_it_waits(main):
            while sys._current_frames()[main].f_code.co_name != "_receive": time.sleep(0.001)
            os._exit(5)

        def test_one(record_property):
            record_property("pid", os.getpid())
            main = threading.get_ident()
            threading.Thread(target=die_while_it_waits, args=[main], daemon=True).start()

        def test_two(): pass
        def test_three(): pass
        """
    )
    recorded = record("--mountns")
    assert outcomes(recorded)["test_one"] == "passed"
    assert outcomes(recorded)["test_two"] == "failed"
    assert outcomes(recorded)["test_three"] == "passed"
    text = failure(recorded, "test_two").text
    assert "status 5" in text
    assert "after test_a_process_that_dies_between_tests_is_not_passed_over.py::test_one" in text


def test_a_session_fixture_that_a_later_test_is_the_first_to_use(
    pytester: pytest.Pytester, record: Record
) -> None:
    """It is set up once, in the pytest process, for which the module's process is ended."""
    pytester.makeconftest(SAYS)
    pytester.makepyfile(
        """
        import os
        def test_one(of_module): pass
        def test_two(of_module, tmp_path): pass
        def test_three(of_module, of_session): assert of_session == os.getppid()
        def test_four(of_module, of_session): assert of_session == os.getppid()
        """
    )
    recorded = record("--mountns")
    assert recorded.failed == []
    assert words(pytester) == [
        *("module", "module-end"),
        *("session", "module", "module-end", "session-end"),
    ]
    assert "for the fixture of_session" in recorded.out


def test_a_session_fixture_with_parameters(pytester: pytest.Pytester, record: Record) -> None:
    suite = """
        import os, pytest

        @pytest.fixture(scope="session", params=["a", "b"])
        def switched(request):
            with open("log", "a") as file: file.write(f"{request.param} {os.getpid()}\\n")
            yield request.param
            with open("log", "a") as file: file.write(f"{request.param}-end {os.getpid()}\\n")

        def test_one(switched): assert switched in "ab"
        def test_two(switched): assert switched in "ab"
        """
    pytester.makepyfile(suite)
    recorded = record("--mountns")
    assert [report.name for report in recorded.reports if report.when == "call"] == [
        *("test_one[a]", "test_two[a]", "test_one[b]", "test_two[b]")
    ]
    assert recorded.failed == []
    assert words(pytester) == ["a", "a-end", "b", "b-end"]
    assert len({pid for _, pid in said(pytester)}) == 1


def test_what_fixtures_leave_that_tests_ask_for(pytester: pytest.Pytester, record: Record) -> None:
    """With ``--basetemp``, to choose that directory once more would remove it (`pytester` does)."""
    pytester.makepyfile(
        """
        import os, pytest

        def made(request):
            file = request.getfixturevalue("tmp_path_factory").mktemp("data") / "file"
            file.write_text("kept")
            return file

        @pytest.fixture(scope="module")
        def one(request):
            os.environ["ONE"] = "1"
            yield made(request)
            del os.environ["ONE"]

        @pytest.fixture(scope="module")
        def two(request): return made(request)

        def test_one(request): request.getfixturevalue("one")
        def test_two(request): request.getfixturevalue("two")
        def test_reads(one, two):
            assert one.read_text() == two.read_text() == "kept"
            assert os.environ["ONE"] == "1"
        """
    )
    assert set(outcomes(record("--mountns")).values()) == {"passed"}


def test_fixtures_of_the_module_end_with_the_session(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makeconftest(SAYS)
    pytester.makepyfile(
        """
        def test_one(of_module, of_session): pass
        def test_two(of_module): assert 0
        def test_three(of_module): pass
        """
    )
    recorded = record("--mountns", "-x")
    assert recorded.status == 1
    assert "test_three" not in outcomes(recorded)
    assert words(pytester) == ["session", "module", "module-end", "session-end"]


def test_tests_that_are_run_in_other_ways_in_between(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makeconftest(SAYS)
    pytester.makepyfile(
        """
        import os, pytest
        from pathlib import Path

        PYTEST = os.getpid()

        def test_one(of_module): assert os.getpid() == of_module != PYTEST

        @pytest.mark.no_mountns
        def test_two(of_module): assert os.getpid() == of_module == PYTEST

        def test_three(of_module): assert of_module == PYTEST != os.getpid()

        @pytest.mark.mountns(process="fork")
        def test_four(of_module): assert of_module == PYTEST != os.getpid()

        @pytest.mark.mountns(process="inline")
        def test_five(of_module): assert os.getpid() == PYTEST == of_module

        @pytest.mark.mountns(hostname="box")
        def test_six(): assert os.uname().nodename == "box"
        """
    )
    recorded = record("--mountns")
    assert recorded.failed == []
    # That of the pytest process, which the bare test needs, lives until the module ends.
    assert words(pytester) == ["module", "module-end", "module", "module-end"]
    assert "3 in processes of their modules" in recorded.out or "in processes of" in recorded.out


def test_a_fixture_of_the_module_that_fails(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="module")
        def bad():
            print("once")
            raise RuntimeError("bad")

        @pytest.fixture(scope="module")
        def skips(): pytest.skip("not here")

        def test_one(bad): pass
        def test_two(bad): pass
        def test_three(skips): pass
        def test_four(): pass
        """
    )
    runs = [record(option) for option in ("-pno:mountns", "--mountns")]
    assert runs[1].outline == runs[0].outline
    assert [report.sections for report in runs[1].failed] == [
        report.sections for report in runs[0].failed
    ]


def test_unittest_and_doctest(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        '''
        """
        >>> 1 + 1
        2
        """
        import os, unittest

        def setUpModule(): globals()["MODULE"] = os.getpid()
        def tearDownModule(): assert MODULE == os.getpid()

        class TestIt(unittest.TestCase):
            @classmethod
            def setUpClass(cls): cls.pid = os.getpid()
            @classmethod
            def tearDownClass(cls): assert cls.pid == os.getpid()
            def test_one(self): assert self.pid == MODULE == os.getpid()
            def test_two(self): assert self.pid == os.getpid()

        class TestOther(unittest.TestCase):
            def test_three(self): assert MODULE == os.getpid()
        '''
    )
    runs = [record(option, "--doctest-modules") for option in ("-pno:mountns", "--mountns")]
    assert runs[1].failed == []
    assert runs[1].outline[-16:] == runs[0].outline[-16:]
    assert len(runs[1].outline) == len(runs[0].outline)


def test_what_needs_a_process_for_itself_is_forked_and_the_run_says_so(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import os, pytest
        SEEN = []
        def test_one(): SEEN.append(1)

        @pytest.mark.mountns(pid=True)
        def test_two(): assert SEEN == []

        @pytest.mark.mountns(scope="module")
        def test_three(): assert SEEN == []
        """
    )
    recorded = record("--mountns", "--mountns-unavailable=error")
    assert recorded.failed == []
    assert "1 in processes of their modules, 2 forked" in recorded.out
    assert "forked one by one" in recorded.out
    assert 'scope="module"' in recorded.out


def test_changes_and_writes_of_each_test(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pathlib import Path

        HERE = Path(__file__).parent

        def test_one(): (HERE / "one").write_text("1")

        def test_two():
            (HERE / "two").write_text("2")
            assert 0

        @pytest.mark.mountns(writes=["/nowhere/**"])
        def test_three(): (HERE / "three").write_text("3")

        def test_four(overlay_root):
            (HERE / "four").write_text("4")
            assert [Path(c.path).name for c in overlay_root.changes(f"{HERE}/*")] == ["four"]
            overlay_root.reset()
            (HERE / "five").write_text("5")
            assert 0
        """
    )
    recorded = record("--mountns")
    assert outcomes(recorded) == {
        "test_one": "passed",
        "test_two": "failed",
        "test_three": "failed",
        "test_four": "failed",
    }
    (changes,) = [
        text for title, text in failure(recorded, "test_two").sections if "changes" in title
    ]
    assert "two" in changes
    assert "one  " not in changes
    assert "three changed, outside of writes" in failure(recorded, "test_three").text
    (changes,) = [
        text for title, text in failure(recorded, "test_four").sections if "changes" in title
    ]
    assert "five" in changes
    assert "four" not in changes


def test_crashes_of_functions_are_refused(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        "def test_one(overlay_root):\n    for _ in overlay_root.crashes(print): pass"
    )
    (failed,) = record("--mountns").failed
    assert 'process="fork"' in failed.text


def test_each_attempt_has_a_root_of_its_own(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        from pathlib import Path
        ATTEMPTS = []
        PLACE = Path(__file__).with_name("written")
        def test_one(): pass
        def test_two():
            assert not PLACE.exists()
            PLACE.write_text("x")
            ATTEMPTS.append(1)
            assert len(ATTEMPTS) == 3
        def test_three(): assert len(ATTEMPTS) == 3
        """
    )
    recorded = record("--mountns", "--reruns=2", "-p", "rerunfailures")
    assert recorded.status == 0
    assert [report.outcome for report in recorded.reports if report.name == "test_two"].count(
        "rerun"
    ) == 2


def test_a_timeout_fails_the_test_that_runs(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("pytest_timeout")
    pytester.makepyfile(
        """
        import time, pytest
        def test_one(): pass
        @pytest.mark.timeout(1)
        def test_two(): time.sleep(600)
        @pytest.mark.timeout(1, method="thread")
        def test_three(): time.sleep(600)
        def test_four(): pass
        """
    )
    recorded = record("--mountns")
    assert outcomes(recorded) == {
        "test_one": "passed",
        "test_two": "failed",
        "test_three": "failed",
        "test_four": "passed",
    }
    assert "Timeout" in failure(recorded, "test_two").text


@pytest.mark.parametrize("dist", ["load", "loadfile"])
def test_with_xdist(pytester: pytest.Pytester, record: Record, dist: str) -> None:
    suite = """
        import os, pytest
        PYTEST = os.getpid()
        SEEN = set()
        @pytest.mark.parametrize("number", range(6))
        def test_it(number):
            assert os.getpid() != PYTEST
            SEEN.add(os.getpid())
            assert len(SEEN) == 1
        def test_dies(): os._exit(3)
        """
    pytester.makepyfile(test_a=suite, test_b=suite, test_c=suite)
    result = pytester.runpytest_subprocess(
        "--mountns", "--mountns-process=module", "-n2", f"--dist={dist}"
    )
    result.assert_outcomes(passed=18, failed=3)


def test_ctrl_c_ends_the_session_and_the_process(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    pytester.makepyfile(
        f"""
        import os, signal, time, pytest
        from pathlib import Path

        @pytest.fixture(scope="module")
        def of_module():
            Path({str(pid)!r}).write_text(str(os.getpid()))
            yield
            Path({str(pid)!r}).with_name("ended").touch()

        def test_one(of_module): pass
        def test_two(of_module):
            os.kill(os.getppid(), signal.SIGINT)
            time.sleep(600)
        def test_three(): pass
        """
    )
    result = pytester.runpytest_subprocess("--mountns", "--mountns-process=module")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*KeyboardInterrupt*"])
    assert pid.with_name("ended").exists()
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_the_process_dies_with_pytest(pytester: pytest.Pytester, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    pytester.makepyfile(
        f"""
        import os, signal, time, pytest
        from pathlib import Path

        @pytest.fixture(scope="module", autouse=True)
        def of_module(): Path({str(pid)!r}).write_text(str(os.getpid()))

        def test_one(): os.seteuid(os.getuid())
        def test_two():
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)
        """
    )
    command = [sys.executable, "-m", "pytest", "--mountns", "--mountns-process=module"]
    done = subprocess.run(command, cwd=pytester.path, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid.read_text()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_does_not_end_is_ended(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makeconftest(
        """
        import pytest, pytest_mountns.runners.module as it
        it.END_LIMIT = 1

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_logreport(report):
            if report.nodeid.endswith("test_two") and report.when == "teardown":
                pytest.exit("enough")
        """
    )
    pytester.makepyfile(
        """
        import os, time, pytest

        @pytest.fixture(scope="module")
        def hangs():
            yield os.getpid()
            time.sleep(600)

        def test_one(hangs): pass
        def test_two(hangs): pass
        def test_three(hangs): pass
        """
    )
    recorded = record("--mountns")
    (warning,) = [one for one in recorded.warnings if "mountns" in one.message]
    assert "had not ended 1 s after its last test" in warning.message
    assert "SIGKILL" in warning.message


def test_processes_that_a_test_has_left(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, subprocess, pytest

        @pytest.fixture(scope="module")
        def server():
            with subprocess.Popen(["sleep", "600"]) as process:
                yield process
                assert process.poll() is None
                process.kill()

        LEFT = []

        def test_one(server): LEFT.append(subprocess.Popen(["sleep", "600"]))
        def test_two(server):
            assert LEFT[0].poll() is not None
            assert server.poll() is None

        @pytest.mark.mountns(leaks="error")
        def test_three(server): LEFT.append(subprocess.Popen(["sleep", "600"]))
        """
    )
    recorded = record("--mountns")
    assert [report.name for report in recorded.failed] == ["test_three"]
    assert "1 test left processes running" in recorded.out


def test_a_copy_that_returns_from_its_test(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os
        def test_one(): os.fork()
        def test_two(): os.fork()
        def test_three(): pass
        """
    )
    runs = record("--mountns")
    assert outcomes(runs) == dict.fromkeys(["test_one", "test_two", "test_three"], "passed")
    assert len(runs.reports) == 9
    assert os.getpid() > 0


def test_what_plugins_note_between_tests(pytester: pytest.Pytester, record: Record) -> None:
    """Also what a hook notes that only the pytest process calls."""
    pytester.makeconftest(
        """
        import pytest
        reported, ran = [], []

        def pytest_runtest_logreport(report):
            if report.when == "teardown":
                reported.append(report.nodeid)

        def pytest_runtest_setup(item):
            ran.append(item.name)
            item.session.known = (list(reported), list(ran))

        def pytest_sessionfinish():
            assert len(reported) == len(ran) == 3
        """
    )
    pytester.makepyfile(
        """
        def test_one(request): assert request.session.known == ([], ["test_one"])
        def test_two(request): assert [len(one) for one in request.session.known] == [1, 2]
        def test_three(request): assert [len(one) for one in request.session.known] == [2, 3]
        """
    )
    recorded = record("--mountns")
    assert recorded.status == 0
    assert recorded.failed == []
