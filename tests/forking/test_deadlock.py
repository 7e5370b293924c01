"""A forked test that waits for a thread that fork(2) has left behind is ended, with its stack."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

#: A thread takes a lock before the fork and holds it.
SUITE = """
import threading
import pytest

lock, held, end = threading.Lock(), threading.Event(), threading.Event()


def hold():
    with lock:
        held.set()
        end.wait()


@pytest.fixture(scope="module")
def holder():
    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    yield
    end.set()
    thread.join()


@pytest.fixture
def waiting(holder, overlay_root):
    the_line_that_waits = lock.acquire()
"""


@pytest.fixture(autouse=True)
def _soon(pytester: pytest.Pytester) -> None:
    pytester.makeconftest("import pytest_mountns.forking.deadlock as it\nit.LIMIT = 1")


@pytest.mark.parametrize("place", ["setup", "call"])
def test_it_is_ended(pytester: pytest.Pytester, record: Record, place: str) -> None:
    tests = {
        "setup": "def test_waits(waiting): pass",
        "call": "def test_waits(holder, overlay_root): the_line_that_waits = lock.acquire()",
    }
    pytester.makepyfile(SUITE + tests[place] + "\ndef test_next(overlay_root): pass")
    recorded = record()
    assert [one.when for one in recorded.not_passed] == [place]
    (failed,) = recorded.not_passed
    assert "waited for ever and was ended" in failed.text
    assert 'process="inline"' in failed.text
    # faulthandler has written where.
    assert ("in waiting" if place == "setup" else "in test_waits") in recorded.err
    assert recorded.status == 1


def test_what_only_takes_long_goes_on(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        SUITE
        + """
import multiprocessing, os, select, time

def test_a_time_limit(holder, overlay_root): assert not lock.acquire(timeout=2)
def test_sleep(holder, overlay_root): time.sleep(2)

def test_another_process_answers(holder, overlay_root):
    event = multiprocessing.get_context("fork").Event()
    if os.fork() == 0:
        time.sleep(2)
        event.set()
        os._exit(0)
    event.wait()

def test_a_thread_of_its_own_answers(holder, overlay_root):
    event = threading.Event()
    timer = threading.Timer(2, event.set)
    timer.start()
    event.wait()
"""
    )
    recorded = record("-Wignore")
    assert not recorded.not_passed, recorded.out


def test_it_is_ended_beside_the_watchdog(pytester: pytest.Pytester, record: Record) -> None:
    """The thread of faulthandler_timeout has a time limit, and wakes nobody."""
    pytester.makeini("[pytest]\nfaulthandler_timeout = 100")
    pytester.makepyfile(
        SUITE + "def test_waits(holder, overlay_root): the_line_that_waits = lock.acquire()"
    )
    (failed,) = record().not_passed
    assert "waited for ever and was ended" in failed.text


def test_who_only_waits_is_named(pytester: pytest.Pytester) -> None:
    """With a time limit, again and again: nobody knows whether it waits for ever, so it goes on."""
    pytester.makepyfile(
        SUITE
        + """
import time

def test_waits(holder, overlay_root):
    until = time.monotonic() + 4
    while time.monotonic() < until:
        lock.acquire(timeout=0.1)
"""
    )
    result = pytester.runpytest_subprocess("-pno:rerunfailures")
    result.assert_outcomes(passed=1)
    named = [one for one in result.outlines if "test_waits has only waited for 1 s" in one]
    assert len(named) == 1
