"""Not collected here: the suites that ``test_interaction`` runs on a terminal, one per class."""

import sys
import time

import pytest


@pytest.fixture(scope="module")
def wide():
    print("WIDE BEGINS")
    yield 3
    print("WIDE ENDS")


@pytest.fixture
def narrow():
    print("NARROW BEGINS")
    yield 4
    print("NARROW ENDS")


@pytest.fixture
def fails(narrow):
    inside = 5
    assert inside == 6


@pytest.fixture
def fails_at_end(narrow):
    yield
    ended = 7
    assert ended == 8


class TestPostMortem:
    def test_first(self, wide, narrow):
        print("captured")
        one = 1
        assert one == 2

    def test_second(self, wide):
        two = 2
        assert two == 3

    def test_setup(self, wide, fails):
        pass

    def test_teardown(self, wide, fails_at_end):
        pass

    def test_quits(self, narrow):
        assert narrow == 0

    def test_never(self):
        pass


class TestBreakpoint:
    @pytest.fixture(scope="class")
    def stops(self, wide):
        answer = 42
        breakpoint()
        return answer

    def test_stops(self, narrow):
        print("before")
        local = 1
        breakpoint()
        local += 1
        print("after")
        breakpoint()
        print("at last")

    def test_wider(self, stops):
        assert stops == 42

    def test_uncaptured(self, capsys):
        print("captured")
        with capsys.disabled():
            print("uncaptured")
        assert capsys.readouterr().out == "captured\n"

    def test_quits(self, wide, narrow):
        breakpoint()
        assert narrow

    def test_never(self):
        pass


class TestTrace:
    def test_one(self, narrow):
        first = narrow
        assert first

    def test_two(self, wide):
        pass


class TestInput:
    """Run with ``-s``."""

    def test_input(self, wide, narrow):
        assert input("a question? ") == "an answer"
        print("understood")

    def test_line(self):
        assert sys.stdin.isatty()
        assert sys.stdin.readline() == "a line\n"

    def test_end_of_file(self):
        assert sys.stdin.read() == "all\n"

    def test_breakpoint(self):
        breakpoint()
        print("went on")


def wait():
    print("WAITING", flush=True)
    for _ in range(1000):
        time.sleep(0.1)


class TestInterrupted:
    """Run with ``-s``, one test at a time."""

    @pytest.fixture
    def slow_setup(self, wide, narrow):
        wait()

    @pytest.fixture(scope="class")
    def slow_wide_setup(self, wide):
        wait()

    @pytest.fixture
    def slow_teardown(self, wide, narrow):
        yield
        wait()

    @pytest.fixture(scope="class")
    def slow_wide_teardown(self, wide):
        yield
        wait()

    def test_call(self, wide, narrow):
        wait()

    def test_setup(self, slow_setup):
        pass

    def test_wide_setup(self, slow_wide_setup, narrow):
        pass

    def test_teardown(self, slow_teardown):
        pass

    def test_wide_teardown(self, slow_wide_teardown, narrow):
        pass

    def test_stubborn(self, wide, narrow):
        try:
            wait()
        except KeyboardInterrupt:
            wait()

    def test_asks(self, narrow):
        input("a question? ")
        wait()

    def test_long(self, wide, narrow):
        print("ONE", flush=True)
        sys.stdin.readline()
        print("TWO", flush=True)
