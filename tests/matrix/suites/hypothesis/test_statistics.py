from hypothesis import event, given, settings, strategies as st


@settings(max_examples=20, database=None)
@given(st.integers())
def test_passes(number):
    event("seen")
    assert isinstance(number, int)


@settings(max_examples=20, database=None)
@given(st.integers())
def test_fails(number):
    assert number != number


class TestInClass:
    @settings(max_examples=5, database=None)
    @given(st.text())
    def test_text(self, text):
        assert isinstance(text, str)
