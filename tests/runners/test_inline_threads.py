"""Inline tests and threads: those of fixtures, of other tests, of libraries, of pytest itself."""

from __future__ import annotations

import os
import sys
import textwrap
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.compiled import LIBRARY
from tests.helpers.recording import Record

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.skipif(not LIBRARY.exists(), reason="installed without a C compiler"),
]

COMMON = """
import asyncio, os, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pytest

PID = os.getpid()
HOME = Path.home()


def where():
    return os.readlink("/proc/thread-self/ns/mnt")


@pytest.fixture(scope="session", autouse=True)
def on_host():
    return where()


@pytest.fixture(autouse=True)
def inline(on_host):
    assert os.getpid() == PID
    assert where() != on_host


@pytest.fixture(scope="session")
def pool(on_host):
    size = 4
    with ThreadPoolExecutor(size) as pool:
        together = threading.Barrier(size)
        list(pool.map(lambda _: together.wait(20), range(size)))
        yield pool
"""


@pytest.fixture
def process() -> str:
    return "inline"


def passes(pytester: pytest.Pytester, record: Record, body: str, *arguments: str) -> None:
    """The tests of ``body`` pass, inline, and nothing is left in the home directory."""
    pytester.makepyfile(COMMON + textwrap.dedent(body))
    # It keeps a thread, and an ordinary user's process enters a user namespace before it has one.
    recorded = record("-pno:rerunfailures", "--mountns", *arguments)
    assert not recorded.not_passed, recorded.out
    assert recorded.status == 0
    assert os.listdir(os.environ["HOME"]) == []


def test_a_pool_of_a_wider_fixture(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    passes(
        pytester,
        record,
        """
        @pytest.mark.parametrize("number", range(5))
        def test_pool(pool, number):
            file = HOME / "from-pool"
            assert not file.exists()
            pool.submit(file.write_text, str(number)).result()
            assert file.read_text() == str(number)
            assert set(pool.map(lambda _: where(), range(40))) == {where()}

        def test_reset(pool, overlay_root):
            file = HOME / "from-pool"
            pool.submit(file.write_text, "first").result()
            overlay_root.reset()
            assert not pool.submit(file.exists).result()
        """,
    )


@pytest.mark.layered
def test_a_pool_and_checkpoints(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    passes(
        pytester,
        record,
        """
        def test_checkpoint(pool, overlay_root):
            file = HOME / "from-pool"
            pool.submit(file.write_text, "first").result()
            with overlay_root.checkpoint():
                pool.submit(file.write_text, "second").result()
            assert file.read_text() == "first"
            assert pool.submit(file.read_text).result() == "first"
        """,
    )


@pytest.mark.layered
def test_a_thread_that_is_started_on_the_host_in_a_checkpoint(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """It comes into the checkpoint, and the others stay there."""
    passes(
        pytester,
        record,
        """
        @pytest.fixture(scope="session")
        def another():
            with ThreadPoolExecutor(1) as another:
                another.submit(int).result()
                yield another

        def test_checkpoint(pool, overlay_root, request):
            file = HOME / "from-pool"
            with overlay_root.checkpoint(), overlay_root.checkpoint():
                another = request.getfixturevalue("another")
                assert set(pool.map(lambda _: where(), range(40))) == {where()}
                assert another.submit(where).result() == where()
                pool.submit(file.write_text, "text").result()
                assert another.submit(file.read_text).result() == "text"
            assert not file.exists()
            assert set(pool.map(lambda _: where(), range(40))) == {where()}
            assert another.submit(where).result() == where()
        """,
    )


def test_threads_share_the_working_directory(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """As threads do: os.chdir() of one is seen by all, in tests and in wider fixtures."""
    passes(
        pytester,
        record,
        """
        def places(pool):
            return set(pool.map(lambda _: os.getcwd(), range(40)))

        @pytest.mark.parametrize("number", range(2))
        def test_chdir(pool, tmp_path, monkeypatch, number):
            assert places(pool) == {os.getcwd()}
            monkeypatch.chdir(tmp_path)
            assert places(pool) == {str(tmp_path)}
            pool.submit(Path("relative").write_text, "text").result()
            assert (tmp_path / "relative").read_text() == "text"
            directory = os.open("/", os.O_RDONLY)
            os.fchdir(directory)
            os.close(directory)
            assert places(pool) == {"/"}

        @pytest.fixture(scope="module")
        def moved(pool, tmp_path_factory):
            before = os.getcwd()
            os.chdir(tmp_path_factory.mktemp("moved"))
            yield places(pool)
            os.chdir(before)

        def test_of_a_wider_fixture(moved, pool):
            assert moved == {os.getcwd()} == places(pool)

        @pytest.fixture(scope="module")
        def visited(tmp_path_factory):
            before = os.getcwd()
            os.chdir(tmp_path_factory.mktemp("visited"))
            os.chdir(before)

        def test_asks_for_a_wider_fixture(request, pool):
            request.getfixturevalue("visited")
            assert places(pool) == {os.getcwd()}
            pool.submit(Path("of-the-test").write_text, "text").result()

        def test_the_pool_had_come_back():
            assert not os.path.exists("of-the-test")

        def test_it_is_os_chdir():
            assert os.chdir.__name__ == "chdir"
            with pytest.raises(FileNotFoundError):
                os.chdir("missing")
        """,
    )


def test_a_wider_fixture_is_torn_down_on_the_host(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    passes(
        pytester,
        record,
        """
        @pytest.fixture(scope="module", autouse=True)
        def checks(pool, on_host):
            yield
            assert set(pool.map(lambda _: where(), range(40))) == {on_host}

        def test_one(): pass
        def test_two(): pass
        """,
    )


def test_to_thread_in_a_loop_of_the_session(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    passes(
        pytester,
        record,
        """
        @pytest.fixture(scope="session")
        def loop():
            loop = asyncio.new_event_loop()
            loop.run_until_complete(asyncio.to_thread(where))
            yield loop
            loop.run_until_complete(loop.shutdown_default_executor())
            loop.close()

        @pytest.mark.parametrize("number", range(3))
        def test_it(loop, number):
            file = HOME / "from-thread"
            assert not file.exists()
            loop.run_until_complete(asyncio.to_thread(file.write_text, "text"))
            assert file.read_text() == "text"
        """,
    )


def test_a_thread_that_a_test_has_left(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """It goes on as without the plugin: the next test is served by it, in its own sandbox."""
    passes(
        pytester,
        record,
        """
        executor = ThreadPoolExecutor(1)

        @pytest.mark.parametrize("number", range(3))
        def test_it(number):
            assert executor.submit(where).result() == where()
            file = HOME / "file"
            assert not file.exists()
            executor.submit(file.write_text, "text").result()
            assert file.exists()
        """,
    )


def test_a_server_of_a_wider_fixture_serves_the_files_of_the_test(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    passes(
        pytester,
        record,
        """
        import functools, http.server, urllib.request

        @pytest.fixture(scope="module")
        def url():
            class Handler(http.server.SimpleHTTPRequestHandler):
                def log_message(self, *arguments): pass
            handler = functools.partial(Handler, directory=str(HOME))
            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()
            server.server_close()

        @pytest.mark.parametrize("number", range(3))
        def test_it(url, number):
            (HOME / "page").write_text(str(number))
            with urllib.request.urlopen(url + "/page") as answer:
                assert answer.read() == str(number).encode()
        """,
    )


def test_a_thread_of_a_wider_fixture_that_the_test_asks_for(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """It is started on the host while the test runs, and is then where the test is."""
    passes(
        pytester,
        record,
        """
        def test_it(request):
            pool = request.getfixturevalue("pool")
            assert set(pool.map(lambda _: where(), range(40))) == {where()}
        """,
    )


def test_threads_of_the_test_stay_in_its_sandbox(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """While the pytest process is on the host, for a report or for a wider fixture."""
    pytester.makeconftest(
        """
        def pytest_runtest_logreport(report):
            import time
            time.sleep(0.05)
        """
    )
    passes(
        pytester,
        record,
        """
        @pytest.fixture
        def writer():
            places, end = [], threading.Event()

            def write():
                while not end.wait(0.001):
                    places.append(where())
                    (HOME / "written").write_text("text")

            thread = threading.Thread(target=write)
            thread.start()
            yield
            end.set()
            thread.join()
            assert set(places) == {where()}

        @pytest.fixture(scope="session")
        def wider(): time.sleep(0.05)

        def test_it(writer, request): request.getfixturevalue("wider")
        """,
    )


def test_the_watchdog_of_faulthandler(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """It blocks all signals, and need not move. It still watches."""
    pytester.makeini("[pytest]\nfaulthandler_timeout = 0.2")
    pytester.makepyfile(
        COMMON
        + textwrap.dedent(
            """
            def test_one(): pass
            def test_slow(): time.sleep(1)
            def test_three(): pass
            """
        )
    )
    recorded = record("-pno:rerunfailures", "--mountns")
    assert not recorded.not_passed, recorded.out
    # Of the others as well, where the machine is busy.
    assert "Timeout (0:00:00" in recorded.err
    assert "in test_slow" in recorded.err


@pytest.mark.parametrize("place", ["conftest", "module", "test"])
def test_a_watchdog_that_the_suite_has_started(
    pytester: pytest.Pytester, record: Record, home: Path, place: str
) -> None:
    """Joblib's tests do so. The thread blocks all signals, and has nothing to do with files."""
    start = "import faulthandler; faulthandler.dump_traceback_later(600)"
    if place == "conftest":
        pytester.makeconftest(f"def pytest_configure():\n    {start}")
    body = "def test_one(): pass\ndef test_two(): pass\ndef test_three(): pass\n"
    if place == "module":
        body += f"def setup_module(): {start}\n"
    if place == "test":
        body = body.replace("pass", start, 1)
    body += "def teardown_module():\n    import faulthandler\n"
    body += "    faulthandler.cancel_dump_traceback_later()\n"
    body += "    assert faulthandler.dump_traceback_later.__name__ == 'dump_traceback_later'\n"
    passes(pytester, record, body)


def test_a_thread_that_cannot_move(pytester: pytest.Pytester, record: Record, home: Path) -> None:
    """The test has a process of its own, where the thread does not exist."""
    pytester.makepyfile(
        """
        import os, signal, threading
        import pytest

        PID = os.getpid()

        @pytest.fixture(scope="module")
        def blocking():
            ready, end = threading.Event(), threading.Event()

            def block():
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                ready.set()
                end.wait()

            thread = threading.Thread(target=block)
            thread.start()
            ready.wait()
            yield
            end.set()
            thread.join()

        def test_before(): assert os.getpid() == PID
        def test_first(blocking): pass
        def test_with_it(blocking): assert os.getpid() != PID
        """
    )
    recorded = record("-pno:rerunfailures", "--mountns")
    # The fixture starts the thread when it is decided how the test is run.
    assert [one.nodeid.rpartition("::")[2] for one in recorded.not_passed] == ["test_first"]
    assert "it blocks the signal that would move it" in recorded.out
    assert 'process="fork"' in recorded.out


def test_pytest_in_a_thread(pytester: pytest.Pytester, home: Path) -> None:
    """The main thread moves as well: /proc/self is its."""
    pytester.makepyfile(
        test_it="""
        import os
        def where(path): return os.stat(path).st_dev, os.readlink(f"/proc/{path}")
        def test_it():
            for place in ("root", "cwd"):
                own, main = f"/proc/thread-self/{place}", f"/proc/self/{place}"
                assert os.stat(own).st_dev == os.stat(main).st_dev
                assert os.readlink(own) == os.readlink(main)
            own = os.readlink("/proc/thread-self/ns/mnt")
            assert own == os.readlink("/proc/self/ns/mnt") != os.environ["HOST"]
        """
    )
    program = pytester.makepyfile(
        program="""
        import os, threading
        import pytest
        os.environ["HOST"] = os.readlink("/proc/self/ns/mnt")
        found = []
        # An ordinary user's process enters its namespace while it has one thread.
        arguments = ["-q", "--mountns", "-pno:cacheprovider", "test_it.py"]
        found.append(pytest.main(arguments))
        os.environ["HOST"] = os.readlink("/proc/self/ns/mnt")
        thread = threading.Thread(target=lambda: found.append(pytest.main(arguments)))
        thread.start()
        thread.join()
        assert found == [0, 0], found
        assert os.readlink("/proc/self/ns/mnt") == os.environ["HOST"]
        """
    )
    assert pytester.run(sys.executable, str(program)).ret == 0


def test_a_thread_that_takes_all_signals(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """sigwait(3): by its status it does not block the signal. It is tried once."""
    pytester.makepyfile(
        """
        import os, signal, threading, time
        import pytest

        PID = os.getpid()

        @pytest.fixture(scope="session", autouse=True)
        def signals():
            ready = threading.Event()
            def run():
                signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
                ready.set()
                while True:
                    signal.sigwait(signal.valid_signals())
            threading.Thread(target=run, daemon=True).start()
            ready.wait()
            time.sleep(0.1)

        @pytest.mark.parametrize("number", range(3))
        def test_it(number): assert os.getpid() != PID
        """
    )
    recorded = record("-pno:rerunfailures", "--mountns")
    failed = [one.nodeid.rpartition("::")[2] for one in recorded.not_passed]
    assert failed == ["test_it[0]"], recorded.out
    assert "Thread-" in recorded.out


def test_all_signals_handled_by_a_test(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    """There is none left to move threads by. The session goes on, with a fork."""
    pytester.makepyfile(
        """
        import signal, threading
        import pytest

        @pytest.fixture(scope="session", autouse=True)
        def thread():
            end = threading.Event()
            thread = threading.Thread(target=end.wait)
            thread.start()
            yield
            end.set()
            thread.join()

        def test_takes_them():
            for number in range(signal.SIGRTMIN, signal.SIGRTMAX + 1):
                signal.signal(number, lambda *arguments: None)

        def test_after(): pass
        """
    )
    recorded = record("-pno:rerunfailures", "--mountns")
    assert not recorded.not_passed, recorded.out
    assert recorded.status == 0
