"""Not collected here: pytest 9's subtests, which ``test_outcomes`` runs plainly and isolated."""

import pytest


def test_some_fail(subtests):
    for number in range(4):
        with subtests.test("message", number=number):
            print("in", number)
            if number == 2:
                pytest.skip("this one")
            assert number != 1


def test_all_pass(subtests):
    with subtests.test("fine"):
        pass


def test_fails_after(subtests):
    with subtests.test("fine"):
        pass
    assert 0


@pytest.mark.xfail
def test_xfail_mark(subtests):
    with subtests.test("bad"):
        assert 0
