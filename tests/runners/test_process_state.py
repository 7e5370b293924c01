"""What one inline test leaves in the memory of multiprocessing does not break the next."""

from __future__ import annotations

import textwrap

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

COMMON = """
import gc, multiprocessing, os, tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from multiprocessing.connection import Client, Listener
import pytest

PID = os.getpid()
twice = pytest.mark.parametrize("number", range(3))
KEPT = []


@pytest.fixture(autouse=True)
def inline():
    assert os.getpid() == PID
    yield
    gc.collect()


def work(file):
    with open(file, "w") as opened:
        opened.write("done")
"""

TESTS = {
    "forkserver": """
        @twice
        def test_it(tmp_path, number):
            process = multiprocessing.get_context("forkserver").Process(
                target=work, args=(tmp_path / "file",))
            process.start()
            process.join()
            assert process.exitcode == 0 and (tmp_path / "file").read_text() == "done"
    """,
    "forkserver of a wider fixture": """
        @pytest.fixture(scope="session")
        def context(tmp_path_factory):
            context = multiprocessing.get_context("forkserver")
            def run(file):
                process = context.Process(target=work, args=(file,))
                process.start()
                process.join()
                return process.exitcode
            assert run(tmp_path_factory.mktemp("of-fixture") / "file") == 0
            yield run
            assert run(tmp_path_factory.mktemp("of-fixture") / "file") == 0

        @twice
        def test_it(context, tmp_path, number):
            assert context(tmp_path / "file") == 0
            assert (tmp_path / "file").read_text() == "done"
    """,
    "forkserver of a wider fixture that a test asks for": """
        def run(context, file):
            process = context.Process(target=work, args=(file,))
            process.start()
            process.join()
            return process.exitcode

        @pytest.fixture(scope="session")
        def context(pytestconfig):
            factory = pytestconfig._tmp_path_factory
            context = multiprocessing.get_context("forkserver")
            def of_fixture():
                file = factory.mktemp("of-fixture") / "file"
                assert run(context, file) == 0 and file.exists()
            of_fixture()
            server = multiprocessing.forkserver._forkserver._forkserver_pid
            yield context
            of_fixture()
            assert multiprocessing.forkserver._forkserver._forkserver_pid == server

        @pytest.mark.parametrize("number", range(4))
        def test_it(tmp_path, request, number):
            context = multiprocessing.get_context("forkserver")
            if number:
                assert run(context, tmp_path / "one") == 0
            if number > 1:
                request.getfixturevalue("context")
            assert run(context, tmp_path / "two") == 0
            assert (tmp_path / "two").read_text() == "done"
    """,
    "what a wider fixture that a test asks for has": """
        @pytest.fixture(scope="session")
        def of_fixture():
            known = set(multiprocessing.util._finalizer_registry)
            # In a directory of multiprocessing, which is removed at the end.
            with Listener(family="AF_UNIX") as listener:
                semaphore = multiprocessing.get_context("spawn").Semaphore()
                own = set(multiprocessing.util._finalizer_registry) - known
                yield listener, semaphore
                assert os.path.exists(listener.address)
                assert own <= set(multiprocessing.util._finalizer_registry)

        @pytest.mark.parametrize("number", range(4))
        def test_it(request, number):
            with Listener(family="AF_UNIX") if number % 2 else nullcontext():
                listener, _ = request.getfixturevalue("of_fixture")
                with Listener(family="AF_UNIX") as another:
                    assert os.path.exists(listener.address)
                    assert os.path.exists(another.address)

        def acquire(semaphore): semaphore.acquire()

        def test_spawned(of_fixture):
            # The semaphore is looked up by its name.
            process = multiprocessing.get_context("spawn").Process(
                target=acquire, args=of_fixture[1:])
            process.start()
            process.join()
            assert process.exitcode == 0
    """,
    "pool": """
        @twice
        def test_it(tmp_path, number):
            context = multiprocessing.get_context("forkserver")
            with ProcessPoolExecutor(2, mp_context=context) as pool:
                list(pool.map(work, [tmp_path / "one", tmp_path / "two"]))
            assert len(os.listdir(tmp_path)) == 2
    """,
    "manager": """
        @twice
        def test_it(number):
            manager = multiprocessing.get_context("spawn").Manager()
            KEPT.append(manager)
            shared = manager.dict()
            shared["key"] = number
            assert dict(shared) == {"key": number}
    """,
    "listener": """
        @twice
        def test_it(number):
            listener = Listener(family="AF_UNIX")
            if KEPT:
                KEPT.pop().close()
            KEPT.append(listener)
            client = Client(listener.address)
            client.close()
    """,
    "semaphores": """
        @twice
        def test_it(number):
            # The one of the test before is collected now.
            KEPT[:] = [multiprocessing.get_context("spawn").Semaphore()]
            assert KEPT[0].acquire()
    """,
    "temporary directory": """
        @twice
        def test_it(tmp_path, monkeypatch, number):
            own = tmp_path / "own"
            own.mkdir()
            monkeypatch.setenv("TMPDIR", str(own))
            tempfile.tempdir = None
            assert tempfile.gettempdir() == str(own)

        def test_last():
            with tempfile.TemporaryDirectory() as directory:
                assert os.path.isdir(directory)
    """,
}


@pytest.fixture
def process() -> str:
    return "inline"


@pytest.mark.parametrize("name", TESTS)
def test_the_next_test_starts_anew(pytester: pytest.Pytester, record: Record, name: str) -> None:
    pytester.makepyfile(COMMON + textwrap.dedent(TESTS[name]))
    recorded = record("--mountns", "-Werror")
    assert not recorded.not_passed, recorded.out
    assert recorded.status == 0
    assert "Traceback" not in recorded.err, recorded.err
