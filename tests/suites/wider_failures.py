"""Not collected here: what fails behind pytest's back in wider fixtures; for ``test_threads``."""

import threading

import pytest


class Deleted:
    def __del__(self):
        raise ValueError("while deleted")


def end_badly():
    raise ValueError("in a thread")


def run_thread():
    thread = threading.Thread(target=end_badly)
    thread.start()
    thread.join()


@pytest.fixture(scope="module")
def thread_at_begin():
    run_thread()


@pytest.fixture(scope="class")
def unraisable_at_begin():
    Deleted()


@pytest.fixture(scope="class")
def both_at_end():
    yield
    run_thread()
    Deleted()


def test_before():
    pass


def test_begins(thread_at_begin):
    pass


class TestClass:
    def test_begins(self, unraisable_at_begin, both_at_end):
        pass

    def test_in_between(self):
        pass

    def test_ends(self):
        pass


def test_after():
    pass
