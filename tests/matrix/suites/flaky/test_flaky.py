import unittest

import pytest
from flaky import flaky

attempts = []


@flaky(max_runs=3)
def test_third_time():
    attempts.append(1)
    assert len(attempts) >= 3


@flaky(max_runs=2)
def test_never():
    print("an attempt")
    assert 0


@flaky(max_runs=4, min_passes=2)
def test_twice():
    pass


def test_other():
    pass


def no_rerun(error, *args):
    return False


@flaky(max_runs=3, rerun_filter=no_rerun)
def test_filtered():
    assert 0


@flaky
class TestInClass:
    seen = []

    def test_method(self):
        self.seen.append(1)
        assert len(self.seen) == 2


class TestUnit(unittest.TestCase):
    tries = 0

    @flaky(max_runs=3)
    def test_unit(self):
        type(self).tries += 1
        self.assertEqual(type(self).tries, 2)


setups = []


@pytest.fixture
def counted():
    setups.append(1)
    yield len(setups)


@flaky
def test_with_fixture(counted):
    assert counted % 2 == 0
