"""The line at the end of a run: how many tests were isolated, or could not be."""

from __future__ import annotations

import pytest

from tests.session.test_unavailable import run

SUITE = """
import pytest
@pytest.mark.parametrize("n", [1, 2])
def test_marked(n, overlay_root): assert n == 1
def test_unmarked(): pass
"""


def _said(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if line.startswith("mountns: ")]


@pytest.mark.sandboxes
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], ["mountns: 2 tests isolated"]),
        (["--mountns-process=inline", "-k", "1"], ["mountns: 1 test isolated"]),
        (["-p", "xdist.plugin", "-n2"], ["mountns: 2 tests isolated"]),
        (["-q"], []),
        (["-k", "unmarked"], []),
        (
            ["--no-mountns", "-k", "marked"],
            ["mountns: off, tests that ask for a sandbox are skipped"],
        ),
    ],
    ids=" ".join,
)
def test_the_line(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], said: list[str]
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-p", "pytest_mountns.plugin", *options)
    assert _said(result) == said


@pytest.mark.sandboxes
def test_it_is_the_last_but_the_outcomes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = pytester.runpytest_subprocess("-rA", "--color=yes")
    assert result.outlines[-2] == "mountns: 2 tests isolated"


@pytest.mark.sandboxes
@pytest.mark.no_mountns(reason="writes to /proc/sys")
@pytest.mark.parametrize(("columns", "advice"), [("80", " (pytest --mountns-doctor)"), ("60", "")])
def test_a_machine_that_cannot_isolate(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, columns: str, advice: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    pytester.makepyfile(SUITE)
    result = run(pytester)
    result.assert_outcomes(passed=1, skipped=2)
    assert _said(result) == [f"mountns: 2 skipped as this machine cannot isolate{advice}"]


def test_threads_that_test_processes_lack(pytester: pytest.Pytester) -> None:
    """Those that Python has not started: a library may wait for them."""
    pytester.makepyfile(
        """
        import ctypes, threading, time

        libc = ctypes.CDLL(None)
        # A thread of a native library that waits: pause(2) as its function.
        handle = ctypes.c_ulong()
        start = ctypes.cast(libc.pause, ctypes.c_void_p)
        assert libc.pthread_create(ctypes.byref(handle), None, start, None) == 0

        def test_one(overlay_root): pass
        def test_two(overlay_root): pass
        """
    )
    result = pytester.runpytest_subprocess("-pno:rerunfailures")
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if "forked beside" in line]
    assert len(lines) == 1
    assert "threads of native libraries" in lines[0]


def test_threads_that_work_on_the_host(pytester: pytest.Pytester) -> None:
    """A server of a wider fixture does not see the files of a forked test."""
    pytester.makepyfile(
        """
        import threading
        import pytest

        @pytest.fixture(scope="session")
        def server():
            end = threading.Event()
            thread = threading.Thread(target=end.wait, name="the server")
            thread.start()
            yield
            end.set()
            thread.join()

        def test_one(server, overlay_root): pass
        def test_two(server, overlay_root): pass
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if "forked beside" in line]
    assert len(lines) == 1
    assert "threads of wider fixtures (the server)" in lines[0]
    result = pytester.runpytest_subprocess("--mountns-process=inline", "-pno:rerunfailures")
    assert "forked beside" not in result.stdout.str()


@pytest.mark.parametrize("process", ["inline", "fork"])
def test_worker_processes_that_work_on_the_host(pytester: pytest.Pytester, process: str) -> None:
    """A pool of a wider fixture does not see the files of a test. One of the test's own does."""
    pytester.makepyfile(
        """
        import multiprocessing, os
        import pytest

        def look(path):
            return os.path.exists(path)

        def pool():
            with multiprocessing.get_context("spawn").Pool(1) as made:
                yield made

        ours = pytest.fixture(pool)
        theirs = pytest.fixture(scope="module")(pool)

        def test_own(ours, overlay_root, tmp_path):
            (tmp_path / "file").touch()
            assert ours.apply(look, [tmp_path / "file"])

        def test_one(theirs, overlay_root): pass
        def test_two(theirs, overlay_root): pass
        """
    )
    options = [f"--mountns-process={process}", "-pno:rerunfailures"]
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=3)
    lines = [line for line in result.outlines if "worker processes" in line]
    assert len(lines) == 1
    assert "of wider fixtures (SpawnPoolWorker-" in lines[0]
    result = pytester.runpytest_subprocess(*options, "-k", "own")
    result.assert_outcomes(passed=1, deselected=2)
    assert "worker processes" not in result.stdout.str()


@pytest.mark.parametrize("workers", [[], ["-n2"]])
def test_why_tests_were_not_inline(pytester: pytest.Pytester, workers: list[str]) -> None:
    pytester.makeconftest(
        """
        import signal, threading
        ready, end = threading.Event(), threading.Event()

        def block():
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            ready.set()
            end.wait()

        def pytest_collection_finish():
            threading.Thread(target=block, name="stubborn").start()
            ready.wait()

        def pytest_sessionfinish(): end.set()
        """
    )
    pytester.makepyfile("def test_one(): pass\ndef test_two(): pass")
    result = pytester.runpytest_subprocess("--mountns", "-Wignore", *workers)
    result.assert_outcomes(passed=2)
    lines = [line for line in result.outlines if "not inline" in line]
    assert lines
    assert all(
        "stubborn (a Python thread" in line and "blocks the signal" in line for line in lines
    )


def test_how_many_run_which_way(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        def test_one(): pass
        def test_two(): pass
        @pytest.mark.mountns
        def test_three(): pass
        def test_four(overlay_root): pass
        @pytest.mark.mountns(process="auto", hostname="box")
        def test_five(): pass
        @pytest.mark.no_mountns
        def test_six(): pass
        """
    )
    result = pytester.runpytest_subprocess("--mountns", "-pno:rerunfailures")
    reasons = "(2 by mark, fixture or option, 1 for PID namespace, network, host name or user)"
    assert f"mountns: 2 inline, 3 forked {reasons}" in result.outlines
    assert "mountns: 5 tests isolated, 2 of them inline" in result.outlines
    result = pytester.runpytest_subprocess("--mountns", "-pno:rerunfailures", "-k", "one or two")
    assert not [line for line in result.outlines if " forked " in line]
