import pytest

built = []


@pytest.fixture(scope="module")
def once():
    built.append(1)
    return len(built)


@pytest.mark.parametrize("number", range(5))
def test_once(once, number):
    assert once == 1
