"""How plain data in one process differs from what it was, and the same change made in another.

Lists, dictionaries, sets and simple objects are changed in place, part by part: the other process
may have changed other parts, and others may refer to the same object. Pure functions over data.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, MutableMapping
from io import BytesIO, StringIO
from operator import is_
from typing import Any, Final, NamedTuple, TypeAlias


class Replaced(NamedTuple):
    """There is another value."""

    value: object


class Counted(NamedTuple):
    """A number has got larger by this, or smaller."""

    by: float


class Listed(NamedTuple):
    """Elements of a list have changed, and others were added at its end."""

    changed: dict[int, Difference]
    added: list[object]


class Keyed(NamedTuple):
    """Entries of a dictionary, or attributes of an object, were changed, added and removed."""

    changed: dict[Any, Difference]
    removed: list[object]


class Written(NamedTuple):
    """Text or bytes were written at the end of a stream in memory."""

    text: str | bytes


class Included(NamedTuple):
    """Members of a set were added and removed."""

    added: set[Any]
    removed: set[Any]


Difference: TypeAlias = Replaced | Counted | Listed | Keyed | Written | Included

_LISTS: Final = (list, deque)
_MISSING: Final = object()
#: What a copy is more than its attributes of.
_BUILTIN: Final = (
    *(dict, list, set, frozenset, tuple, deque, str, bytes, bytearray, int, float, complex),
    BaseException,
)
_SIMPLE: Final = (type(None), bool, int, float, complex, str, bytes)


def difference(before: object, after: object, seen: set[int]) -> Difference | None:
    """How ``after`` differs from ``before``, None if it does not.

    ``before`` is a copy. ``seen`` has the ids of the objects that were compared already: an object
    that two places refer to is changed once. It is added to.
    """
    if before is after:
        return None
    kind = type(after)
    if type(before) is not kind:
        return Replaced(after)
    if kind in _SIMPLE:
        if before == after or (before != before and after != after):
            return None
        if kind in (int, float):
            return Counted(after - before)  # type: ignore[operator]
        return Replaced(after)
    if id(after) in seen:
        return None
    old: Any = before
    new: Any = after
    if kind in _LISTS:
        seen.add(id(after))
        return _of_lists(old, new, seen)
    if isinstance(after, dict) and getattr(after, "__dict__", None) == getattr(
        before, "__dict__", None
    ):
        seen.add(id(after))
        return _of_mappings(old, new, seen)
    if kind is set:
        found = Included(new - old, old - new)
        return found if any(found) else None
    if isinstance(after, StringIO | BytesIO):
        old, new = old.getvalue(), after.getvalue()
        if not new.startswith(old):
            return Replaced(after)
        return Written(new[len(old) :]) if old != new else None
    if is_plain_object(after):
        seen.add(id(after))
        return _of_mappings(vars(before), vars(after), seen)
    return None if _is_equal(old, new) else Replaced(after)


def _of_lists(before: Any, after: Any, seen: set[int]) -> Difference | None:
    if len(after) < len(before) or getattr(after, "maxlen", None) is not None:
        return None if _is_equal(before, after) else Replaced(after)
    changed: dict[int, Difference] = {}
    # Nearly always, and looked at much faster.
    if not all(map(is_, before, after)):
        pairs = enumerate(zip(before, after, strict=False))
        changed = {index: found for index, (a, b) in pairs if (found := difference(a, b, seen))}
    added = list(after)[len(before) :]
    return Listed(changed, added) if changed or added else None


def _of_mappings(
    before: Mapping[Any, object], after: Mapping[Any, object], seen: set[int]
) -> Difference | None:
    changed = {
        key: found
        for key, value in after.items()
        if before.get(key, _MISSING) is not value
        and (found := difference(before[key], value, seen) if key in before else Replaced(value))
    }
    removed = [] if before.keys() <= after.keys() else [key for key in before if key not in after]
    return Keyed(changed, removed) if changed or removed else None


def applied(value: object, change: Difference) -> object:
    """Make this change to ``value``, in place if it can be changed; returns what it is then.

    What is not there any more, or of another kind, is left as it is.
    """
    target: Any = value
    match change:
        case Replaced(new):
            return _replaced(value, new)
        case Counted(by):
            return target + by if isinstance(value, int | float) else value
        case Listed(changed, added) if isinstance(value, _LISTS):
            for index, inner in changed.items():
                if index < len(target):
                    target[index] = applied(target[index], inner)
            target.extend(added)
        case Written(text) if isinstance(value, StringIO | BytesIO):
            place = value.tell()
            end = value.seek(0, 2)
            target.write(text)
            if place < end:
                value.seek(place)
        case Included(added_members, removed_members) if isinstance(value, set):
            target |= added_members
            target -= removed_members
        case Keyed(changed_keys, removed_keys):
            is_mapping = isinstance(value, MutableMapping)
            entries = target if is_mapping else getattr(value, "__dict__", None)
            if entries is not None:
                for key, inner in changed_keys.items():
                    entries[key] = applied(entries.get(key), inner)
                for key in removed_keys:
                    entries.pop(key, None)
        case _:
            pass
    return value


def _replaced(value: object, new: object) -> object:
    """``new``, or ``value`` with the content of ``new`` where others may refer to ``value``."""
    target: Any = value
    if value is new or type(value) is not type(new):
        return new
    if isinstance(value, list) and isinstance(new, list):
        value[:] = new
        return value
    if isinstance(value, dict | set | deque):
        target.clear()
        (target.extend if isinstance(value, deque) else target.update)(new)
        return value
    if is_plain_object(value):
        vars(value).clear()
        vars(value).update(vars(new))
        return value
    return new


def returned(value: object, old: object, seen: dict[int, object] | None = None) -> object:
    """Give ``value`` the content of ``old``, a copy of it from before; returns what it is then.

    It is changed in place, and so are its parts: others may refer to them. ``seen`` has what has
    become of each part of the copy, by its id.
    """
    seen = {} if seen is None else seen
    target: Any = value
    copy: Any = old
    if value is old or type(value) is not type(old) or type(value) in _SIMPLE:
        return old
    if id(old) in seen:
        return seen[id(old)]
    seen[id(old)] = value
    if isinstance(value, _LISTS):
        parts = list(value)
        common = [returned(*pair, seen) for pair in zip(parts, copy, strict=False)]
        target.clear()
        target.extend([*common, *list(copy)[len(common) :]])
    elif isinstance(value, dict):
        _return_entries(target, copy, seen)
    elif isinstance(value, set):
        target.clear()
        target.update(copy)
    elif isinstance(value, StringIO | BytesIO):
        target.seek(0)
        target.truncate()
        target.write(copy.getvalue())
        target.seek(copy.tell())
    elif is_plain_object(value):
        _return_entries(vars(value), vars(old), seen)
    elif not _is_equal(value, old):
        seen[id(old)] = old
    return seen[id(old)]


def _return_entries(
    entries: dict[Any, object], old: Mapping[Any, object], seen: dict[int, object]
) -> None:
    before = {
        key: returned(entries[key], value, seen) if key in entries else value
        for key, value in old.items()
    }
    for key in [key for key in entries if key not in before]:
        del entries[key]
    if list(entries) != list(before)[: len(entries)]:
        # For their order. Otherwise they are never gone: another thread may read them.
        entries.clear()
    for key, value in before.items():
        entries[key] = value  # noqa: PERF403 - a Counter adds in its update()


def is_plain_object(value: object) -> bool:
    """Whether a pickle has the attributes of ``value``, and no more than these.

    Of others it has a name, or what their class makes of them: members of enumerations, loggers,
    classes, exceptions.
    """
    kind = type(value)
    if isinstance(value, (type, *_BUILTIN)) or not hasattr(value, "__dict__"):
        return False
    is_default = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    has_own = any(hasattr(kind, name) for name in ("__setstate__", "__slots__", "__getnewargs__"))
    own_state = getattr(kind, "__getstate__", None) is not getattr(object, "__getstate__", None)
    return is_default and not has_own and not own_state


def _is_equal(before: object, after: object) -> bool:
    try:
        return bool(before == after)
    except Exception:  # noqa: BLE001 - any class may raise anything when compared
        return False
