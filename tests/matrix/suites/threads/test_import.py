import pytest
from makers import MAKERS, check

for maker in MAKERS:
    maker.start()


@pytest.fixture
def started():
    pass


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("maker", MAKERS)
def test_it(started, maker, number):
    check(maker, number)
