import pytest


@pytest.mark.parametrize("number", range(6))
def test_numbers(number):
    assert number not in (2, 4)


def test_other():
    pass
