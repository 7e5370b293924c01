"""The examples that are tried go to the output of a failing test, in order."""
import random

from hypothesis import Phase, given, settings, strategies as st

tried = []


@settings(max_examples=1000, derandomize=False)
@given(st.lists(st.integers()))
def test_fails(numbers):
    assert sum(numbers) < 1000


# No generation: what is tried comes from the database.
@settings(phases=[Phase.reuse])
@given(st.integers())
def test_only_reuses(number):
    tried.append(number)
    assert number < 100


@settings(derandomize=True, database=None)
@given(st.integers())
def test_derandomized(number):
    assert number < 7


def test_replays_at_once():
    """Whether there was something to begin with: the first example of a run that has one fails."""
    from hypothesis.database import DirectoryBasedExampleDatabase

    def numbers_below(number):
        calls.append(number)
        assert number < 77

    calls = []
    test = settings(max_examples=500, database=DirectoryBasedExampleDatabase(".hypothesis/examples"))(
        given(st.integers(min_value=0, max_value=1000))(numbers_below)
    )
    try:
        test()
    except AssertionError:
        pass
    print("first example fails" if calls[0] >= 77 else "first example passes")
    print("minimal", calls[-1])
    # The line above is shown because of this.
    assert 0
