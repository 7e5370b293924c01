import pytest
from makers import MAKERS, check

@pytest.fixture(scope="module", autouse=True)
def started():
    for maker in MAKERS:
        maker.start()


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("maker", MAKERS)
def test_it(started, maker, number):
    check(maker, number)
