"""A change of plain data in one process is made in another, which has other changes."""

from __future__ import annotations

import copy
import enum
import io
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest

from pytest_mountns.plugin_state.differences import applied, difference, returned


class Thing:
    def __init__(self, **attributes: object) -> None:
        vars(self).update(attributes)


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


def changed(before: Any, change: Callable[[Any], object], there: Any = None) -> Any:
    """What ``there`` (default: a copy) becomes if ``change`` is called here."""
    here = copy.deepcopy(before)
    there = copy.deepcopy(before) if there is None else there
    change(here)
    found = difference(before, here, set())
    return there if found is None else applied(there, found)


CHANGES = [
    pytest.param([1], lambda it: it.append(2), [1, 2], id="appended"),
    pytest.param([1, 2], lambda it: it.clear(), [], id="cleared"),
    pytest.param([3, 1, 2], lambda it: it.sort(), [1, 2, 3], id="sorted"),
    pytest.param([[1], [2]], lambda it: it[1].append(3), [[1], [2, 3]], id="list in list"),
    pytest.param({}, lambda it: it.update(a={"b": 1}), {"a": {"b": 1}}, id="added"),
    pytest.param({"a": {"b": 1}}, lambda it: it["a"].update(c=2), {"a": {"b": 1, "c": 2}}),
    pytest.param({"a": 1, "b": 2}, lambda it: it.pop("a"), {"b": 2}, id="removed"),
    pytest.param({1, 2}, lambda it: it.discard(1), {2}, id="set"),
    pytest.param(Counter("a"), lambda it: it.update("ab"), Counter("aab"), id="counter"),
    pytest.param(deque([1]), lambda it: it.append(2), deque([1, 2]), id="deque"),
    pytest.param(deque([1, 2], 2), lambda it: it.append(3), deque([2, 3], 2), id="bounded"),
    pytest.param({"a": Colour.RED}, lambda it: it.update(a=Colour.BLUE), {"a": Colour.BLUE}),
    pytest.param({"a": 1}, lambda it: it.update(a="x"), {"a": "x"}, id="another type"),
    pytest.param({"a": True}, lambda it: it.update(a=False), {"a": False}, id="no number"),
    pytest.param({"a": (1, [2])}, lambda it: it["a"][1].append(3), {"a": (1, [2, 3])}),
]


@pytest.mark.parametrize(("before", "change", "expected"), CHANGES)
def test_a_change_is_made(
    before: object, change: Callable[[Any], object], expected: object
) -> None:
    assert changed(before, change) == expected


@pytest.mark.parametrize(("before", "change", "expected"), CHANGES)
def test_a_change_is_taken_back(
    before: Any, change: Callable[[Any], object], expected: object
) -> None:
    data = {"a": before, "t": Thing(n=0.1)}
    now = copy.deepcopy(data)
    here, thing = now["a"], now["t"]
    change(here)
    vars(thing)["n"] += 0.2
    now["new"] = 1
    assert here == expected
    assert returned(now, copy.deepcopy(data)) is now
    assert now.keys() == data.keys()
    assert now["a"] is here
    assert here == before
    assert now["t"] is thing
    assert vars(thing) == {"n": 0.1}


def test_the_order_of_entries_is_taken_back() -> None:
    here = {"a": 1, "b": 2}
    before = copy.deepcopy(here)
    here["a"] = here.pop("a")
    assert returned(here, before) is here
    assert list(here) == ["a", "b"]


def test_circles_are_taken_back() -> None:
    here: dict[str, Any] = {"n": 1}
    here["self"] = [here]
    before = copy.deepcopy(here)
    here.update(n=2, more=here["self"])
    assert returned(here, before) is here
    assert here.keys() == {"n", "self"}
    assert here["n"] == 1
    assert here["self"][0] is here


def test_changes_of_both_sides_stay() -> None:
    before = {"list": [1], "count": 5, "map": {"a": 1}, "set": {1}, "thing": Thing(n=1)}
    there = copy.deepcopy(before)
    inner: Any = there
    inner["list"].append("there")
    inner["count"] += 10
    inner["map"]["b"] = 2
    inner["set"].add(3)
    inner["thing"].other = 1

    def change(it: Any) -> None:
        it["list"].append("here")
        it["count"] += 1
        it["map"]["c"] = 3
        it["set"].add(2)
        it["thing"].n = 2

    found = changed(before, change, there)
    assert found["list"] == [1, "there", "here"]
    assert found["count"] == 16
    assert found["map"] == {"a": 1, "b": 2, "c": 3}
    assert found["set"] == {1, 2, 3}
    assert vars(found["thing"]) == {"n": 2, "other": 1}


def test_objects_stay_the_same_objects() -> None:
    there = {"inner": [1], "thing": Thing(n=1)}
    inner, thing = there["inner"], there["thing"]

    def change(it: Any) -> None:
        it["inner"][:] = []
        it["thing"].n = 2

    found = changed({"inner": [1], "thing": Thing(n=1)}, change, there)
    assert found is there
    assert found["inner"] is inner == []
    assert found["thing"] is thing


def test_an_object_in_two_places_is_changed_once() -> None:
    known, now = [1], [1, 2]
    seen: set[int] = set()
    assert difference({"a": list(known)}, {"a": now}, seen)
    assert difference({"b": list(known)}, {"b": now}, seen) is None


def test_a_circle_has_an_end() -> None:
    before: dict[str, Any] = {"n": 1}
    before["self"] = before
    after: dict[str, Any] = {"n": 2}
    after["self"] = after
    there: dict[str, Any] = {"n": 1}
    there["self"] = there
    found = difference(before, after, set())
    assert found is not None
    assert applied(there, found) is there
    assert there["n"] == 2
    assert there["self"] is there


def test_a_default_dictionary_keeps_its_default() -> None:
    found = changed(defaultdict(list), lambda it: it["a"].append(1))
    assert found == {"a": [1]}
    assert found["b"] == []


class Bag(dict[str, object]):
    """As pytest-harvest has it."""


def test_entries_of_a_subclass() -> None:
    assert changed({"a": Bag()}, lambda it: it["a"].update(n=1)) == {"a": Bag(n=1)}


@pytest.mark.parametrize("stream", [io.StringIO("x"), io.BytesIO(b"x")])
def test_what_is_written_to_a_stream(stream: Any) -> None:
    stream.seek(0, 2)
    here = copy.copy(stream)
    there = copy.copy(stream)
    more = "yz" if isinstance(stream, io.StringIO) else b"yz"
    here.write(more)
    there.write(more[:1])
    found = difference(stream, here, set())
    assert found is not None
    result: Any = applied(there, found)
    assert result is there
    assert there.getvalue() == stream.getvalue() + more[:1] + more


def test_equal_data_does_not_differ() -> None:
    data = {"a": [1, "x", None, {2}], "t": Thing(n=[1])}
    assert difference(copy.deepcopy(data), data, set()) is None
