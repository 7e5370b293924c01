"""Containers of values that cannot change are compared by identity with a copy."""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_mountns.plugin_state.differences import applied, difference
from pytest_mountns.plugin_state.flat import begins_with, flat_copy, stays_flat

# Tuples that are equal count as the same, and so do zeros: (False,) and (0,), -0.0 and 0.0.
CONSTANTS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from([0.5, 1.0, -2.0, math.nan, math.inf])
    | st.recursive(
        st.text(max_size=2),
        lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=2),
        max_leaves=4,
    )
)
KEYS = st.integers(0, 5) | st.text(max_size=1)
#: What is done to a container one after the other.
STEPS = st.lists(st.tuples(st.sampled_from(["add", "remove", "replace", "clear"]), KEYS, CONSTANTS))
MAKERS: tuple[Callable[[], Any], ...] = (
    list,
    deque,
    lambda: deque(maxlen=3),
    dict,
    OrderedDict,
    lambda: defaultdict(int),
    set,
)


def step(container: Any, what: str, key: object, value: object) -> None:
    """Change a container as plugins do."""
    if what == "clear":
        container.clear()
    elif isinstance(container, set):
        container.discard(value) if what == "remove" else container.add(value)
    elif isinstance(container, dict):
        container.pop(key, None) if what == "remove" else container.update({key: value})
    elif what == "add":
        container.append(value)
    elif container:
        index = hash(key) % len(container)
        if what == "remove":
            del container[index]
        else:
            container[index] = value


def exactly(value: Any) -> str:
    """What can be compared, with 1 and True as two values, and NaN as one."""
    if isinstance(value, set | frozenset):
        return f"{type(value).__name__}{sorted(map(exactly, value))}"
    if isinstance(value, tuple | list | deque):
        return f"{type(value).__name__}{list(map(exactly, value))}"
    return repr(value)


@pytest.mark.parametrize("make", MAKERS)
@settings(deadline=None)
@given(first=STEPS, second=STEPS)
def test_a_copy_is_kept_up_to_date(make: Any, first: Any, second: Any) -> None:
    container = make()
    for one in first:
        step(container, *one)
    copy = flat_copy(container)
    assert exactly(copy) == exactly(container)
    assert copy is not container
    for one in second:
        step(container, *one)
    later = flat_copy(container, copy)
    assert exactly(later) == exactly(container)
    assert begins_with(container, later)


@pytest.mark.parametrize("make", [list, deque, dict])
@settings(deadline=None)
@given(first=STEPS, second=STEPS)
def test_a_difference_is_found_and_made(make: Any, first: Any, second: Any) -> None:
    """Also where a value is replaced by an equal one of another type."""
    here, there = make(), make()
    for one in first:
        step(here, *one)
        step(there, *one)
    copy = flat_copy(here)
    for one in second:
        step(here, *one)
    change = difference(copy, here, set())
    if change is not None:
        applied(there, change)
    # A dictionary that has only got another order is the same.
    as_seen = dict.fromkeys(map(repr, there.items())) if make is dict else exactly(there)
    assert as_seen == (dict.fromkeys(map(repr, here.items())) if make is dict else exactly(here))


@pytest.mark.parametrize(
    "container",
    [[[]], [1, {}], [(1, [2])], {"a": []}, {1: {2}}, deque([object()]), {(1, object())}, [type]],
)
def test_what_can_change_is_not_compared_so(container: object) -> None:
    assert flat_copy(container) is None


def test_other_types_are_not_compared_so() -> None:
    class Names(list[str]):
        pass

    assert flat_copy(Names()) is None
    assert flat_copy("text") is None
    assert flat_copy(7) is None


def test_what_was_added_is_looked_into() -> None:
    names: list[object] = ["a"]
    copy = flat_copy(names)
    names.append(["b"])
    assert flat_copy(names, copy) is None


def test_deep_and_doubled_tuples() -> None:
    """Each is looked at once, and what is too deep is left to pickle."""
    doubled: tuple[object, ...] = ()
    for _ in range(6):
        doubled = (doubled, doubled)
    assert flat_copy([doubled]) == [doubled]
    for _ in range(100):
        doubled = (doubled, doubled)
    assert flat_copy([doubled]) is None
    chain: tuple[object, ...] = ()
    for number in range(5000):
        chain = (number, chain)
    assert flat_copy([chain]) is None


def test_what_is_very_large_is_left_to_others() -> None:
    assert flat_copy([0] * 10_000) is not None
    assert flat_copy([0] * 100_000) is None


def test_an_ordered_dict_with_attributes() -> None:
    """A copy has none of them."""
    ordered = OrderedDict(a=1)
    assert flat_copy(ordered) == ordered
    vars(ordered)["more"] = 1
    assert flat_copy(ordered) is None


@pytest.mark.parametrize(
    ("before", "after", "stays"),
    [
        ([1], [1, 2], True),
        ([1], [2], True),
        ([1], [1, [2]], False),
        (["a"], [["a"]], False),
        ({"a": 1}, {"a": 2}, True),
        ({"a": 1}, {"a": 1, "b": "c"}, True),
        ({"a": 1}, {"a": [1]}, False),
        ({1}, {1, 2}, True),
        ({1}, {1, int}, False),
        ({1, int}, {1}, False),
        ({1: 2, int: 3}, {1: 2}, False),
        ({1, 2}, {1}, True),
        ([1], (1,), False),
    ],
)
def test_changes_that_keep_it_so(before: object, after: object, stays: bool) -> None:
    change = difference(before, after, set())
    assert change is not None
    assert stays_flat(change) == stays
