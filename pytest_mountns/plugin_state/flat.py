"""Copies of containers whose elements cannot change: lists of names and times, for example.

Plugins keep in such containers what they note of every test, and so they grow. They are compared
with a copy, element by element, by identity: to pickle all that is in them several times for each
test would take longer with each test. Pure functions over data.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable
from itertools import chain, islice
from operator import is_
from typing import Any, Final

from .differences import Counted, Difference, Included, Keyed, Listed

#: What is compared element by element.
CONTAINERS: Final = frozenset({list, dict, OrderedDict, defaultdict, set, deque})
_CONSTANTS: Final = frozenset({type(None), bool, int, float, str, bytes})
_TUPLES: Final = frozenset({tuple, frozenset})
#: How deep tuples are looked into. What is deeper is pickled.
_DEPTH: Final = 8
#: How many elements. What has more is larger than what is pickled, too.
_MOST: Final = 1 << 14


def flat_copy(value: object, before: object = None) -> object:
    """A copy of ``value`` if it is such a container, else None.

    ``before`` is a copy that this has returned of the same container earlier, or None. Only what
    was added since is looked into.
    """
    kind = type(value)
    if kind not in CONTAINERS or (kind is OrderedDict and vars(value)):
        return None
    # At once, since another thread may change it.
    container: Any = value
    if len(container) > _MOST:
        return None
    copy = container.copy()
    known: Any = before
    if type(known) is not kind or not begins_with(copy, known):
        known = ()
    added: Iterable[object]
    if kind is set:
        added = copy.difference(known)
    elif isinstance(copy, dict):
        added = chain.from_iterable(islice(copy.items(), len(known), None))
    else:
        added = islice(copy, len(known), None)
    return copy if _are_constant(added) else None


def begins_with(container: Any, copy: Any) -> bool:
    """Whether the first elements of a container are the very objects that ``copy`` consists of.

    Of a set, whether it has all members of ``copy``.
    """
    if len(copy) > len(container):
        return False
    if isinstance(copy, set):
        return bool(copy <= container)
    if getattr(copy, "maxlen", None) is not None:
        # What was added has pushed out others.
        return len(copy) == len(container) and all(map(is_, copy, container))
    if not all(map(is_, copy, container)):
        return False
    return not isinstance(copy, dict) or all(map(is_, copy.values(), container.values()))


def stays_flat(change: Difference) -> bool:
    """Whether a change to a container puts in, and takes out, only values that cannot change."""
    match change:
        case Listed(changed, added):
            values = [*added, *map(_new_value, changed.values())]
        case Keyed(entries, removed):
            values = [*entries, *removed, *map(_new_value, entries.values())]
        case Included(added_members, removed_members):
            values = [*added_members, *removed_members]
        case _:
            return False
    return _are_constant(values)


def _new_value(change: Difference) -> object:
    # What is counted was a number and is one.
    return None if isinstance(change, Counted) else getattr(change, "value", change)


def _are_constant(values: Iterable[object]) -> bool:
    seen: set[int] = set()
    for _ in range(_DEPTH):
        inner: list[Any] = []
        for value in values:
            kind = type(value)
            if kind in _TUPLES:
                if id(value) not in seen:
                    seen.add(id(value))
                    inner.append(value)
            elif kind not in _CONSTANTS:
                return False
        if not inner:
            return True
        values = chain.from_iterable(inner)
    return False
