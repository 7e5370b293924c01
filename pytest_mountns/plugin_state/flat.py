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

_CONSTANTS: Final = frozenset({type(None), bool, int, float, str, bytes})
_TUPLES: Final = frozenset({tuple, frozenset})
_SEQUENCES: Final = frozenset({list, deque})
_MAPPINGS: Final = frozenset({dict, OrderedDict, defaultdict})


def flat_copy(value: object, before: object = None) -> object:
    """A copy of ``value`` if it is such a container, else None.

    ``before`` is a copy that this has returned of the same container earlier, or None. Only what
    was added since is looked into.
    """
    kind = type(value)
    container: Any = value
    known: Any = before
    if known is not None and (type(known) is not kind or not begins_with(container, known)):
        known = None
    start = 0 if known is None else len(known)
    added: Iterable[object]
    if kind in _SEQUENCES:
        added = islice(container, start, None)
    elif kind in _MAPPINGS:
        new = islice(container.items(), start, None)
        added = chain.from_iterable(new)
    elif kind is set:
        added = container if known is None else container - known
    else:
        return None
    if not _are_constant(added):
        return None
    if known is None:
        return container.copy()
    if kind in _SEQUENCES:
        known.extend(islice(container, start, None))
    elif kind is set:
        known |= container
    else:
        known.update(islice(container.items(), start, None))
    return known


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
    """Whether a change to such a container puts only values into it that cannot change."""
    match change:
        case Listed(changed, added):
            values = [*added, *map(_new_value, changed.values())]
        case Keyed(changed_entries, _):
            values = [*changed_entries, *map(_new_value, changed_entries.values())]
        case Included(added_members, _):
            values = [*added_members]
        case _:
            return False
    return _are_constant(values)


def _new_value(change: Difference) -> object:
    # What is counted was a number and is one.
    return None if isinstance(change, Counted) else getattr(change, "value", change)


def _are_constant(values: Iterable[object]) -> bool:
    inner: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _TUPLES:
            inner.append(value)
        elif kind not in _CONSTANTS:
            return False
    return not inner or _are_constant(chain.from_iterable(inner))
