import time

import pytest


@pytest.fixture
def slow():
    time.sleep(30)


@pytest.fixture
def slow_to_end():
    yield
    time.sleep(30)


@pytest.mark.timeout(0.5)
def test_in_setup(slow):
    pass


@pytest.mark.timeout(0.5)
def test_in_teardown(slow_to_end):
    pass


@pytest.fixture
def rather_slow():
    time.sleep(0.6)


@pytest.mark.timeout(0.5, func_only=True)
def test_function_only(rather_slow):
    pass


@pytest.fixture(scope="module")
def wide_and_slow():
    time.sleep(30)


@pytest.mark.timeout(0.5)
def test_in_wider_setup(wide_and_slow):
    pass


@pytest.fixture(scope="module")
def wide():
    time.sleep(0.3)


@pytest.mark.timeout(1.0)
def test_time_of_wider_setup_counts(wide):
    time.sleep(0.8)


def test_next():
    pass
