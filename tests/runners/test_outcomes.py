"""A run with ``--mountns`` reports what a plain run reports, for every kind of outcome."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.helpers.recording import TEXTS, Record, Recorded
from tests.helpers.terminals import without_summary

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


SUITE = (Path(__file__).parents[1] / "suites" / "outcomes.py").read_text()
UNITTEST = (Path(__file__).parents[1] / "suites" / "unittests.py").read_text()
SUBTESTS = (Path(__file__).parents[1] / "suites" / "subtests_fixture.py").read_text()


def same(plain: Recorded, isolated: Recorded) -> None:
    """Compare two runs event by event, without addresses and process-wide counters."""
    assert isolated.status == plain.status
    assert [_normal(e) for e in isolated.events] == [_normal(e) for e in plain.events]


def _normal(event: object) -> str:
    text = re.sub(r"0x[0-9a-f]+", "0x", str(event))
    text = re.sub(r"Thread-\d+", "Thread-N", text)
    return re.sub(r"/[\w./-]{0,200}/test_tmp_path_dir\d", "tmp", text)


def test_every_outcome(pytester: pytest.Pytester, record: Record) -> None:
    """Compares events one by one, and JUnit XML and the summary to the letter."""
    pytester.makepyfile(SUITE)
    runs, documents, summaries = [], [], []
    for option in ("-pno:mountns", "--mountns"):
        run = record(option, "-rA", "--junitxml=out.xml")
        runs.append(run)
        xml = (pytester.path / "out.xml").read_text()
        documents.append(_normal(re.sub(r'(time|timestamp|hostname)="[^"]*"', "", xml)))
        summary = run.out[run.out.index("short test summary info") :]
        summaries.append(_normal(re.sub(r"in [\d.]+s", "", summary)))
    same(*runs)
    assert documents[1] == documents[0]
    assert summaries[1] == summaries[0]


@pytest.mark.skipif(
    not hasattr(sys.flags, "context_aware_warnings"), reason="came with Python 3.14"
)
def test_every_outcome_with_warnings_of_a_context(
    pytester: pytest.Pytester, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The defaults of free-threaded builds: filters and lists of warnings belong to a context."""
    monkeypatch.setenv("PYTHON_CONTEXT_AWARE_WARNINGS", "1")
    monkeypatch.setenv("PYTHON_THREAD_INHERIT_CONTEXT", "1")
    pytester.makepyfile(SUITE)
    same(record("-p", "no:mountns"), record("--mountns"))


def test_unittest(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(UNITTEST)
    same(record("-p", "no:mountns"), record("--mountns"))


@pytest.mark.parametrize("option", ["-v", "--capture=sys", "-s"])
def test_subtests_of_unittest(pytester: pytest.Pytester, record: Record, option: str) -> None:
    """What pytest 9 shows of them in the middle of a test, it captures in its place."""
    pytester.makepyfile(
        """
        import unittest

        class TestSub(unittest.TestCase):
            def test_sub(self):
                for number in range(3):
                    print("before", number)
                    with self.subTest(number=number):
                        self.assertNotEqual(number, 1)
                print("after")
            def test_fails(self):
                with self.subTest(number=1): pass
                self.fail()
        """
    )
    plain, isolated = record("-pno:mountns", option), record("--mountns", option)
    same(plain, isolated)
    assert [_normal(_without_times(line)) for line in _body(isolated)] == [
        _normal(_without_times(line)) for line in _body(plain)
    ]


def _body(run: Recorded) -> list[str]:
    return [line for line in run.out.splitlines() if not line.startswith(("plugins:", "mountns"))]


def _without_times(line: str) -> str:
    return re.sub(r"in [\d.]+s", "", line).strip("= ")


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests came with pytest 9")
def test_subtests(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(SUBTESTS)
    same(record("-p", "no:mountns"), record("--mountns"))


def test_doctests(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        'def f():\n    """\n    >>> f()\n    1\n    >>> 2\n    3\n    """\n    return 1'
    )
    pytester.maketxtfile(">>> 1 + 1\n2\n")
    options = ("--doctest-modules", "--doctest-glob=*.txt")
    same(record("-p", "no:mountns", *options), record("--mountns", *options))


def test_items_that_are_not_python(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makeconftest(
        """
        import os, pytest

        class Item(pytest.Item):
            def setup(self):
                self.ready = True

            def runtest(self):
                assert self.ready
                if self.name == "bad":
                    raise ValueError("bad")
                open("/tmp/written-by-an-item", "w").close()
                os.remove("/tmp/written-by-an-item")

            def repr_failure(self, excinfo):
                return f"own words: {excinfo.value}"

            def reportinfo(self):
                return self.path, 0, self.name

        class File(pytest.File):
            def collect(self):
                for name in self.path.read_text().split():
                    yield Item.from_parent(self, name=name)

        def pytest_collect_file(parent, file_path):
            if file_path.suffix == ".list":
                return File.from_parent(parent, path=file_path)
        """
    )
    pytester.makefile(".list", tests="good bad")
    same(record("-p", "no:mountns"), record("--mountns"))


def test_an_item_that_shows_its_whole_traceback(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makeconftest(
        """
        import pytest

        class Item(pytest.Item):
            def setup(self):
                raise ValueError("broken")

            def runtest(self):
                pass

        class File(pytest.File):
            def collect(self):
                yield Item.from_parent(self, name="one")

        def pytest_collect_file(parent, file_path):
            if file_path.suffix == ".list":
                return File.from_parent(parent, path=file_path)
        """
    )
    pytester.makefile(".list", tests="")
    texts = [
        [report.text.count("\n") for report in record(option).reports]
        for option in ("-pno:mountns", "--mountns")
    ]
    assert texts[0] == texts[1]


def test_tracebacks_of_teardowns(pytester: pytest.Pytester, record: Record) -> None:
    """They begin with the fixture: the first frame is shown in full, and those after it are not."""
    pytester.makeconftest(
        """
        import pytest

        def fail():
            raise ValueError

        def end():
            fail()

        def broken(scope):
            @pytest.fixture(scope=scope)
            def fixture():
                yield
                end()
            return fixture

        of_function, of_class, of_session = map(broken, ("function", "class", "session"))
        """
    )
    pytester.makepyfile(
        """
        import unittest
        from conftest import end

        def test_session(of_session): pass
        def test_function(of_function): pass
        class TestClass:
            def test_class(self, of_class): pass
        class TestUnit(unittest.TestCase):
            def tearDown(self): end()
            def test_unit(self): pass
        """
    )
    plain = record("-pno:mountns")
    assert len(plain.failed) == 4
    same(plain, record("--mountns"))


def test_what_a_test_has_replaced_is_not_used(pytester: pytest.Pytester, record: Record) -> None:
    """Reports leave the test process before its fixtures have put things back."""
    pytester.makepyfile(
        """
        import pytest
        from unittest import mock

        NAMES = ["os.getpid", "os.write", "os.close", "os._exit", "os.kill", "time.monotonic",
                 "pickle.dumps", "pickle.loads", "pickle.Pickler", "struct.pack", "socket.socket",
                 "signal.signal", "sys.exit"]

        @pytest.fixture
        def replaced(request):
            with mock.patch(request.param):
                yield

        @pytest.mark.parametrize("replaced", NAMES, indirect=True)
        def test_replaces(replaced, capfd):
            assert False
        """
    )
    options = ("-pno:cacheprovider", "--tb=line")
    same(record("-pno:mountns", *options), record("--mountns", *options))


@pytest.mark.parametrize("options", [("-x",), ("--capture=sys",), ("-s",)])
def test_with_options(pytester: pytest.Pytester, record: Record, options: tuple[str, ...]) -> None:
    pytester.makepyfile(SUITE)
    same(record("-p", "no:mountns", *options), record("--mountns", *options))


def test_warnings_turned_to_errors(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import warnings

        def test_one(): warnings.warn("x")
        def test_two(tmp_path): pass
        """
    )
    same(record("-p", "no:mountns", "-Werror"), record("--mountns", "-Werror"))


def test_threads_of_the_parent_raise_no_warning(pytester: pytest.Pytester, record: Record) -> None:
    """Python 3.12 and later warn of forks while threads are alive. The plugin's fork is safe."""
    pytester.makepyfile(
        """
        import threading, pytest

        @pytest.fixture(scope="session")
        def server():
            stop = threading.Event()
            thread = threading.Thread(target=stop.wait)
            thread.start()
            yield
            stop.set()
            thread.join()

        def test_one(server): pass
        def test_two(server): pass
        """
    )
    same(record("-p", "no:mountns", "-Werror"), record("--mountns", "-Werror"))


def test_durations_include_what_the_child_did(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile("import time\ndef test_slow(): time.sleep(0.3)")
    out = record("--mountns", "--durations=0").out
    assert float(re.search(r"([\d.]+)s call", out)[1]) >= 0.3  # type: ignore[index]


def test_random_numbers_are_as_seeded(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makeconftest(
        """
        import random, pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtest_setup():
            random.seed(5)
        """
    )
    pytester.makepyfile(
        "import random\ndef test_it(): assert random.random() == random.Random(5).random()"
    )
    assert record("--mountns").status == 0


def test_the_environment_of_the_next_test(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os
        def test_one(): assert os.environ["PYTEST_CURRENT_TEST"].endswith("test_one (call)")
        def test_two(): assert os.environ["PYTEST_CURRENT_TEST"].endswith("test_two (call)")
        """
    )
    assert record("--mountns").status == 0


def test_errors_of_pytest_itself(pytester: pytest.Pytester, record: Record) -> None:
    """Errors without frames of the suite show pytest's own, as in a plain run."""
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def no_yield():
            if False: yield

        @pytest.fixture
        def two_yields():
            yield 1
            yield 2

        @pytest.fixture
        def narrow(): pass

        @pytest.fixture(scope="module")
        def mismatch(narrow): pass

        def test_no_yield(no_yield): pass
        def test_two_yields(two_yields): pass
        def test_mismatch(mismatch): pass
        def test_missing(no_such_fixture): pass
        def test_by_name(request): request.getfixturevalue("no_such_fixture")
        def test_dynamic_mismatch(request): request.getfixturevalue("mismatch")
        """
    )
    for options in ((), ("--full-trace",)):
        plain, isolated = record(*options), record("--mountns", *options)
        if not options:
            same(plain, isolated)
        else:
            # Some frames in the tracebacks differ; the errors do not.
            assert plain.without(*TEXTS) == isolated.without(*TEXTS)


WITHOUT_LINE = """
import signal, sys
import pytest

def lost(*signal):
    raise KeyboardInterrupt if signal else ValueError("lost")

def no_line(size):
    # Objects/locations.md of CPython: each entry stands for up to eight units of two bytes.
    if sys.version_info < (3, 11):
        return bytes([size, 0x80])
    units = [8] * (size // 16) + [size % 16 // 2] * (size % 16 > 0)
    return bytes(0xf8 | number - 1 for number in units)

# An instruction may have no line, as the jump at the end of some loops.
code = lost.__code__
lost.__code__ = code.replace(co_linetable=no_line(len(code.co_code)))

def test_cause():
    try:
        lost()
    except ValueError as error:
        raise KeyError from error

def test_error():
    lost()

def test_interrupt():
    signal.signal(signal.SIGINT, lost)
    signal.raise_signal(signal.SIGINT)
"""


def test_errors_without_a_line(pytester: pytest.Pytester, process: str) -> None:
    """Where a handler of a signal has raised, pytest itself would end with an internal error."""
    pytester.makepyfile(WITHOUT_LINE)
    result = pytester.runpytest_subprocess("--mountns", f"--mountns-process={process}")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(failed=2)
    assert "INTERNALERROR" not in f"{result.stdout}{result.stderr}"
    result.stdout.fnmatch_lines(["*ValueError: lost", "*KeyboardInterrupt"])


def _printed(result: pytest.RunResult) -> list[str]:
    printed = without_summary(f"{result.stdout}\n").splitlines()
    lines = [re.sub(r"in [\d.]+s =*|=", "", line) for line in printed]
    return lines[next(n for n, line in enumerate(lines) if line.startswith("collected")) :]


@pytest.mark.parametrize("frames", ["", "5"], ids=["untraced", "traced"])
def test_warning_with_a_source(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, frames: str
) -> None:
    """Pytest says where the unclosed file was opened, or how to learn that."""
    monkeypatch.delenv("PYTHONTRACEMALLOC", raising=False)
    # Tracing is slow, and most of it would be that of other plugins' imports.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    if frames:
        monkeypatch.setenv("PYTHONTRACEMALLOC", frames)
    pytester.makepyfile(
        """
        def leave_open():
            file = open("/dev/null")

        def test():
            leave_open()
        """
    )
    plain, isolated = (
        _printed(pytester.run(sys.executable, "-Xdev", "-m", "pytest", "-Wdefault", *options))
        for options in ((), ("-ppytest_mountns.plugin", "--mountns"))
    )
    sign = "Object allocated at" if frames else "Enable tracemalloc"
    assert any(sign in line for line in plain)
    assert isolated == plain


def test_low_descriptors_are_left_to_the_test(pytester: pytest.Pytester) -> None:
    # From version 3.5 on libffi keeps a descriptor of itself, in every process that uses ctypes.
    pytester.makeconftest("import ctypes")
    pytester.makepyfile(
        """
        import os

        def test():
            print("open:", sum(int(name) < 100 for name in os.listdir("/proc/self/fd")))
        """
    )
    plain, isolated = (
        _printed(pytester.runpytest_subprocess(option, "-s"))
        for option in ("-pno:mountns", "--mountns")
    )
    assert isolated == plain
