"""Not collected here: the suite whose every letter ``test_terminal_output`` compares."""

import ctypes
import logging
import sys
import warnings

import pytest

log = logging.getLogger("suite")
libc = ctypes.CDLL(None)


@pytest.fixture(scope="session")
def widest():
    log.info("widest begins")
    print("widest begins")
    yield
    log.info("widest ends")
    print("widest ends")


@pytest.fixture(scope="module")
def wide(widest):
    log.info("wide begins")
    print("wide begins")
    yield
    log.info("wide ends")
    print("wide ends")
    print("wide ends", file=sys.stderr)


@pytest.fixture
def narrow():
    log.info("narrow begins")
    print("narrow begins")
    sys.stdout.write("unfinished ")
    yield
    log.info("narrow ends")
    print("narrow ends")
    sys.stdout.write("unfinished ")


@pytest.fixture
def fails_at_end():
    yield
    log.info("about to fail")
    assert 0, "at the end"


def test_quiet():
    pass


def test_narrow(narrow):
    log.warning("in call")
    print("in call")


def test_fails(narrow):
    log.warning("in call")
    print("in call")
    assert 0


def test_wide(wide, narrow):
    log.warning("in call")
    print("in call")


def test_wide_only(wide):
    pass


def test_fails_at_end(wide, narrow, fails_at_end):
    sys.stderr.write("no newline")


def test_logs_at_setup_only(wide, request):
    request.addfinalizer(lambda: log.error("finalizer"))


def test_disabled(capsys):
    print("captured")
    with capsys.disabled():
        print("uncaptured")
    sys.stdout.write("captured again")
    with capsys.disabled():
        sys.stdout.write("uncaptured, unfinished")
    assert capsys.readouterr().out == "captured\ncaptured again"


def test_writer(request):
    tw = request.config.get_terminal_writer()
    tw.line("by the writer")
    tw.write("unfinished")


def test_reporter(request):
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    if reporter:
        if request.config.getoption("capture", "no") != "fd":
            request.addfinalizer(lambda: reporter.write_line("at the end of it"))
        reporter.write_line("by the reporter")


def test_original_stdout():
    sys.__stdout__.write("to the original\n")


def test_c():
    libc.puts(b"by C")


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="subtests")
def test_sub(request):
    subtests = request.getfixturevalue("subtests")
    for i in range(3):
        with subtests.test(number=i):
            print("in sub", i)
            log.info("in sub")
            assert i != 1


@pytest.mark.parametrize("n", range(40))
def test_many(n):
    print(n)


def test_skipped(narrow):
    print("x")
    pytest.skip("a reason that is long enough to be cut off at the end of the line, surely")


@pytest.mark.xfail(reason="known")
def test_xfail():
    print("x")
    assert 0


def test_warns():
    warnings.warn("warned")


class TestClass:
    @pytest.fixture(scope="class", autouse=True)
    def of_class(self):
        print("class begins")
        log.info("class begins")
        yield
        print("class ends")
        log.info("class ends")
        assert 0, "class"

    def test_a(self):
        pass

    def test_b(self, narrow):
        assert 0

    def test_c(self):
        libc.printf(b"by C, unfinished ")
