import random

import pytest

STATE_OF_IMPORT = random.random()


@pytest.fixture(scope="module")
def wide():
    return random.random()


@pytest.fixture
def narrow():
    return random.random()


@pytest.mark.parametrize("number", range(8))
def test_numbers(number, wide, narrow, record_property):
    record_property("numbers", [wide, narrow, random.random()])


def test_numpy(record_property):
    numpy = pytest.importorskip("numpy")
    record_property("numpy", numpy.random.rand(3).tolist())


def test_faker(record_property, faker):
    record_property("faker", [faker.name(), faker.pyint()])


class TestInClass:
    def test_one(self, record_property):
        record_property("number", random.randint(0, 10**9))

    def test_two(self, record_property):
        record_property("number", random.randint(0, 10**9))
