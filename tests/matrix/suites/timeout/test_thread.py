import time

import pytest


def test_before():
    pass


def deep():
    time.sleep(30)


@pytest.mark.timeout(1)
def test_slow():
    print("began")
    deep()


def test_never_reached():
    pass
