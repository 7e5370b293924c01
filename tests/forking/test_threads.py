"""Threads and processes of wider fixtures: alive in pytest's process while it forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

FAILURES = (Path(__file__).parents[1] / "suites" / "wider_failures.py").read_text()
PLAIN, ISOLATED = "-pno:mountns", "--mountns"


def test_a_live_server(pytester: pytest.Pytester, record: Record) -> None:
    """It serves every test, and Python's warning of a fork with threads ends no run."""
    pytester.makepyfile(
        """
        import threading, urllib.request, pytest
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(self.path.encode())

        @pytest.fixture(scope="session")
        def live_server():
            server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()
            server.server_close()

        @pytest.mark.parametrize("number", range(5))
        def test_it(live_server, number, monkeypatch):
            monkeypatch.setenv("no_proxy", "*")
            with urllib.request.urlopen(f"{live_server}/{number}", timeout=30) as answer:
                assert answer.read() == b"/%d" % number
        """
    )
    # What the server logs belongs to the test in a plain run, and to the parent in an isolated one.
    options = ("-Werror", "--show-capture=no", "-pno:cacheprovider")
    plain, isolated = (record(option, *options) for option in (PLAIN, ISOLATED))
    assert isolated.status == plain.status == 0, isolated.out
    assert isolated.outline == plain.outline


def test_threads_that_log(pytester: pytest.Pytester) -> None:
    """A record that is being written while a test process is forked blocks nothing there."""
    pytester.makepyfile(
        """
        import logging, sys, threading, time, pytest

        log = logging.getLogger("suite")

        @pytest.fixture(scope="module", autouse=True)
        def noise():
            stop = threading.Event()

            def work():
                while not stop.is_set():
                    for _ in range(5):
                        log.warning("of the thread")
                        sys.stderr.write("of the thread")
                    time.sleep(0.0001)

            threads = [threading.Thread(target=work) for _ in range(2)]
            for thread in threads:
                thread.start()
            yield
            stop.set()
            for thread in threads:
                thread.join()

        @pytest.mark.parametrize("number", range(15))
        def test_it(number, caplog):
            print("of the test")
            log.error("of the test")
            assert "of the test" in caplog.messages
        """
    )
    command = [sys.executable, "-m", "pytest", ISOLATED, "-q", "--log-file=x.log"]
    # If it blocks, it does so for ever.
    done = subprocess.run(
        command, cwd=pytester.path, capture_output=True, text=True, timeout=120, check=False
    )
    assert "15 passed" in done.stdout


@pytest.mark.parametrize("filter_", ["default", "error"])
def test_what_fails_in_wider_fixtures_is_reported_once(
    pytester: pytest.Pytester, record: Record, filter_: str
) -> None:
    """Exceptions of threads, and of ``__del__``: of the test they come up in."""
    pytester.makepyfile(FAILURES)
    options = (f"-W{filter_}", "-pno:cacheprovider")
    plain, isolated = (record(option, *options) for option in (PLAIN, ISOLATED))
    # Without their text: as errors they show pytest's own stack, where some frames differ.
    assert isolated.outline == plain.outline


def test_processes_of_wider_fixtures_can_be_asked_after(
    pytester: pytest.Pytester, record: Record
) -> None:
    """They are siblings of a test process, not children."""
    pytester.makepyfile(
        """
        import multiprocessing, signal, subprocess, sys, time, pytest

        @pytest.fixture(scope="module")
        def server():
            with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as server:
                yield server
                server.kill()

        @pytest.fixture(scope="module")
        def worker():
            worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
            worker.start()
            yield worker
            assert worker.is_alive()
            worker.kill()
            worker.join()

        def test_lives(server, worker):
            assert server.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                server.wait(0.1)
            assert worker.is_alive()
            worker.join(0.1)
            assert worker.is_alive()

        def test_own():
            with subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"]) as own:
                assert own.wait() == own.poll() == 3

        def test_is_ended(server):
            server.terminate()
            server.wait()
            assert server.poll() is not None
        """
    )
    for option in (PLAIN, ISOLATED):
        # Python 3.12 warns of forks where threads are: multiprocessing's, not ours.
        assert record(option, "-Wignore", "-pno:cacheprovider").status == 0


@pytest.mark.parametrize("marked", [False, True], ids=["whole suite", "marked"])
def test_threads_that_a_library_starts_in_each_fork(
    pytester: pytest.Pytester, marked: bool
) -> None:
    """As gRPC does. Then an ordinary user's fork can make no user namespace: no reason to skip."""
    pytester.makeconftest(
        """
        import os, threading, time

        def start():
            threading.Thread(target=time.sleep, args=(60,), name="library", daemon=True).start()

        os.register_at_fork(after_in_child=start)
        """
    )
    mark = "@pytest.mark.mountns" if marked else ""
    pytester.makepyfile(f"import pytest\n{mark}\ndef test_it(): pass")
    result = pytester.runpytest_subprocess(
        *[] if marked else ["--mountns", "--mountns-process=fork"],
        "--mountns-unavailable=skip",
        "-pno:rerunfailures",
    )
    if os.geteuid() == 0:
        result.assert_outcomes(passed=1)
        return
    assert result.ret == 1
    result.assert_outcomes(**{"failed" if result.parseoutcomes().get("failed") else "errors": 1})
    result.stdout.fnmatch_lines(["*only a process with one thread can enter a new user namespace*"])
    if not marked:
        inline = pytester.runpytest_subprocess("--mountns", "-pno:rerunfailures")
        inline.assert_outcomes(passed=1)
