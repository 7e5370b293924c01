import pytest
from hypothesis import given, settings, strategies as st

seen = []


@settings(max_examples=30, database=None)
@given(number=st.integers(0, 10**6))
def collect(number):
    seen.append(number)


@pytest.mark.parametrize("again", [1, 2])
def test_examples(again, record_property):
    del seen[:]
    collect()
    record_property("examples", seen)


@settings(max_examples=50, database=None)
@given(st.integers(0, 10**9))
def test_fails(number):
    assert number < 10**6
