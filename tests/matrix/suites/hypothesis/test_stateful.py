from hypothesis import event, given, note, settings, strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule


class Shelf(RuleBasedStateMachine):
    books = Bundle("books")

    def __init__(self):
        super().__init__()
        self.count = 0

    @rule(target=books, title=st.sampled_from("abc"))
    def put(self, title):
        self.count += 1
        return title

    @rule(book=books)
    def take(self, book):
        self.count -= 1

    @invariant()
    def never_negative(self):
        assert self.count >= 0


TestShelf = Shelf.TestCase
TestShelf.settings = settings(derandomize=True, max_examples=200, database=None)


@settings(derandomize=True, database=None)
@given(st.integers())
def test_notes(number):
    note(f"number is {number}")
    event("even" if number % 2 == 0 else "odd")
    assert number < 50
