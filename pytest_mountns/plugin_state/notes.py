"""What plugins and conftest files note in objects that the pytest process keeps.

A test that fails is noted on its class, for example, so that the next ones are skipped: so does
pytest-dependency, and so does the recipe "incremental testing" of pytest's documentation. Others
keep it in an attribute of their plugin object, in a global variable of their module, in a stash.
Noted in a forked test process it would be lost, and the next tests would run, or be skipped,
without a word.

So both processes compare these objects with what they were before the fork, and tell each other
what has changed: the test process before each report that a plugin hears and at the end, the pytest
process when it has dealt with the report of a failure, since a plugin that has heard it there may
be asked once more in the test process (``pytest_exception_interact``).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeAlias, cast, final
from weakref import WeakKeyDictionary

import pytest

from .. import pytest_internals
from .base import PluginState, StateError
from .differences import (
    Counted,
    Difference,
    Included,
    Keyed,
    Listed,
    Replaced,
    applied,
    difference,
    is_plain_object,
    returned,
)
from .flat import CONTAINERS, flat_copy, stays_flat
from .pickling import Names, dump, dump_small, load
from .places import Objects, Place

#: Bytes. In what is larger, only new elements of the outermost container are seen.
_MOST: Final = 1 << 16
_SIMPLE: Final = frozenset({type(None), bool, int, float, str, bytes})
#: How deep objects are looked into that cannot be pickled as a whole.
_DEPTH: Final = 3

#: What is known of each value, by where it is.
_Snapshot: TypeAlias = "dict[Place, dict[Any, _Known]]"


@final
class _Known(NamedTuple):
    """What a value was before the fork."""

    value: object
    #: Its pickle; None if it is simple, cannot be pickled, or is too large for that.
    pickled: bytes | None = None
    #: A copy of the container that it is, if there is no pickle.
    copy: object = None
    #: Whether nothing that is in the copy can change: see :mod:`.flat`.
    flat: bool = False
    #: What is known of its attributes, if it is neither pickled nor a container.
    inner: dict[str, _Known] | None = None


class _Noted(NamedTuple):
    """What one process tells the other."""

    #: A pickled ``dict[Place, Keyed]``.
    changes: bytes
    #: What has changed and cannot be pickled, as ``node.name``.
    lost: list[str]


@final
class Notes(PluginState):
    """Brings to each process what was noted in the other.

    Of nodes and the config, attributes are looked at that neither pytest nor their class sets. Of
    plugins, those whose hooks run in test processes: the attributes of their objects, the global
    variables of their modules, and the stash keys among these. What was there before is compared by
    its pickle, or by a copy if it is a container of values that cannot change. What cannot be
    pickled, or is too large, is the same as long as it is the same object, but for new elements of
    a container.

    To look takes 5 us in each process if there are no such plugins, and 20 to 40 us with a few.
    """

    name = "a plugin or conftest file"

    def __init__(self) -> None:
        self._known: _Snapshot = {}
        #: What there was before the fork and after the test, as long as wrappers are to end.
        self._before_fork: _Snapshot | None = None
        self._after_test: _Snapshot | None = None
        self._names = Names({})
        #: Of how many items and plugins the session consisted when the names were given.
        self._numbers = (-1, -1)
        self._watched: pytest_internals.Watched | None = None
        #: Whether this is a forked process.
        self._forked = False
        #: What was said to be lost, in the pytest process.
        self._said: set[str] = set()

    def goes_with(self, report: pytest.TestReport | None) -> bool:
        """Whether a plugin hears reports, and so has to know before what was noted for them."""
        return self._watched is not None and self._watched.hears_reports

    def before_fork(self, item: pytest.Item) -> None:
        """Note what there is. In the test process each look would copy pages."""
        numbers = len(item.session.items), pytest_internals.number_of_plugins(item.config)
        if self._watched is None or (numbers != self._numbers and not self._forked):
            self._numbers = numbers
            self._watched = pytest_internals.watched_plugins(item.config, item.session.items)
            self._names = Names(_shared(item.session))
        self._look_at_all(item)
        wrapped = not self._forked and pytest_internals.others_wrap_setup(item)
        self._before_fork = self._snapshot(item) if wrapped else None

    def begin(self, item: pytest.Item) -> None:
        """From now on watch what the pytest process watches: reporters hear nothing here."""
        self._forked = True

    def _look_at_all(self, item: pytest.Item) -> None:
        before = self._known
        self._known = {}
        for place, _, found in self._objects(item).all():
            known = before.get(place, {})
            self._known[place] = {
                name: self._look(value, known.get(name)) for name, value in found.items()
            }

    def _snapshot(self, item: pytest.Item) -> _Snapshot:
        return {
            place: {name: self._look(value) for name, value in found.items()}
            for place, _, found in self._objects(item).all()
        }

    @property
    def wrapped(self) -> bool:
        """See :attr:`.PluginState.wrapped`."""
        return self._before_fork is not None

    def before_wrappers_end(self, item: pytest.Item) -> None:
        """Put in place what the wrappers had noted before the fork: they may remove it."""
        if self._before_fork is not None:
            self._after_test = self._snapshot(item)
            self._return_to(item, self._before_fork)

    def after_wrappers_end(self, item: pytest.Item) -> None:
        """Put in place what there was when the test had ended."""
        if self._after_test is not None:
            self._return_to(item, self._after_test)
        self._before_fork = self._after_test = None

    def _return_to(self, item: pytest.Item, snapshot: _Snapshot) -> None:
        objects = self._objects(item)
        places = {place: found for place, _, found in objects.all()}
        for place in places | snapshot:
            found, known = places.get(place, {}), snapshot.get(place, {})
            values = {name: self._returned(one) for name, one in known.items()}
            changed = {
                name: value
                for name, value in values.items()
                if name not in found or found[name] is not value
            }
            objects.put(place, changed, [name for name in found if name not in known])

    def _returned(self, known: _Known) -> object:
        """The value, with its content of when it was looked at."""
        value: Any = known.value
        if known.pickled is not None:
            if self._pickled(value) == known.pickled:
                return value
            return returned(value, load(known.pickled, self._names))
        if known.copy is not None and _ids(value) != _ids(known.copy):
            # Elements that cannot be pickled are the same objects as before.
            value.clear()
            (value.update if hasattr(value, "update") else value.extend)(cast(Any, known.copy))
        elif known.inner is not None:
            parts = {name: self._returned(one) for name, one in known.inner.items()}
            for name in [name for name in vars(value) if name not in parts]:
                del vars(value)[name]
            vars(value).update(parts)
        return value

    def _objects(self, item: pytest.Item) -> Objects:
        assert self._watched is not None
        return Objects(item, self._watched)

    def _look(self, value: object, before: _Known | None = None, depth: int = 0) -> _Known:
        """``before``: what was known of this attribute, if it was looked at before."""
        if type(value) in _SIMPLE:
            return _Known(value)
        is_known = before is not None and before.value is value
        if type(value) in CONTAINERS:
            earlier = before.copy if before is not None and is_known and before.flat else None
            with contextlib.suppress(Exception):
                # What another thread changes meanwhile, and keys with methods of their own.
                if (copy := flat_copy(value, earlier)) is not None:
                    return _Known(value, None, copy, flat=True)
        same = is_known and before is not None and before.pickled is None and not before.flat
        if not same and (pickled := self._pickled(value)) is not None:
            return _Known(value, pickled)
        if type(value) in CONTAINERS:
            return _Known(value, None, cast(Any, value).copy())
        if isinstance(value, WeakKeyDictionary):
            return _Known(value, None, dict(value.items()))
        if depth < _DEPTH and self._is_of_plugin(value) and id(value) not in self._names.of:
            inner = before.inner if before is not None and before.value is value else None
            return _Known(
                value,
                inner={
                    name: self._look(part, (inner or {}).get(name), depth + 1)
                    for name, part in vars(value).items()
                },
            )
        return _Known(value)

    def _is_of_plugin(self, value: object) -> bool:
        """Whether it is looked into. Parts of a library's objects fit together, as of a pool's."""
        assert self._watched is not None
        package = type(value).__module__.partition(".")[0]
        return package in self._watched.packages and is_plain_object(value)

    def _pickled(self, value: object) -> bytes | None:
        with contextlib.suppress(Exception):
            return dump_small(value, self._names, _MOST)
        return None

    def collect(self, item: pytest.Item) -> object:
        """Return what was added, changed or removed since the last time, or the fork."""
        changes: dict[Place, Keyed] = {}
        lost: list[str] = []
        seen: set[int] = set()
        places = {}
        for place, title, found in self._objects(item).all():
            places[place] = found
            known = self._known.setdefault(place, {})
            changed: dict[Any, Difference] = {}
            for name, value in found.items():
                before = known.get(name)
                if before is not None and type(value) in _SIMPLE and before.value == value:
                    continue
                # The item itself is not used any more.
                differs, is_lost, change = self._change(value, before, seen)
                if change is not None:
                    changed[name] = change
                elif is_lost and place != ("node", len(item.listchain()) - 1):
                    lost.append(f"{title}.{name}")
                if differs:
                    known[name] = self._look(value, before if before and before.flat else None)
            removed = [name for name in known if name not in found]
            for name in removed:
                del known[name]
            if changed or removed:
                changes[place] = Keyed(changed, removed)
        for place, known in self._known.items():
            if known and place not in places:
                changes[place] = Keyed({}, list(known))
                known.clear()
        if not changes and not lost:
            return None
        with self._names.naming("report", self.report):
            return _Noted(dump(changes, self._names), lost)

    def _change(
        self, value: object, before: _Known | None, seen: set[int]
    ) -> tuple[bool, bool, Difference | None]:
        """Whether the value differs, in a way that cannot be sent, or by which change.

        There is no change if another attribute is the same object, which is changed already.
        """
        if before is None:
            change: Difference | None = Replaced(value)
        elif before.flat and type(value) is type(before.copy):
            change = _difference_of_flat(before.copy, value, seen)
        elif before.pickled is not None:
            pickled = self._pickled(value)
            if pickled == before.pickled:
                return False, False, None
            change = difference(load(before.pickled, self._names), value, seen)
        elif isinstance(value, WeakKeyDictionary):
            if before.value is not value or not isinstance(before.copy, dict):
                return False, False, None
            change = difference(before.copy, dict(value.items()), seen)
            # The entries of what was collected have gone from it.
            change = Keyed(change.changed, []) if isinstance(change, Keyed) else None
            return self._sendable(change, or_lost=False)
        elif before.copy is not None and before.value is value:
            change = difference(before.copy, value, seen)
        elif before.inner is not None and before.value is value:
            return self._change_inside(value, before.inner, seen)
        elif type(before.value) in _SIMPLE:
            change = difference(before.value, value, seen)
        else:
            change = None if before.value is value else Replaced(value)
        if change is None:
            # It may differ all the same, if another attribute is the same object.
            differs = before is None or before.value is not value or bool(before.pickled)
            return differs or (before is not None and before.flat), False, None
        return self._sendable(change)

    def _sendable(
        self, change: Difference | None, *, or_lost: bool = True
    ) -> tuple[bool, bool, Difference | None]:
        """What :meth:`_change` returns for a difference; without ``or_lost`` it may be left out."""
        if change is None:
            return False, False, None
        if isinstance(change, Counted) or stays_flat(change):
            return True, False, change
        if isinstance(change, Replaced) and type(change.value) in _SIMPLE:
            return True, False, change
        try:
            with self._names.naming("report", self.report):
                load(dump(change, self._names), self._names)
        except Exception:  # noqa: BLE001 - objects of other plugins may raise anything
            return True, or_lost, None
        return True, False, change

    def _change_inside(
        self, value: object, known: dict[str, _Known], seen: set[int]
    ) -> tuple[bool, bool, Difference | None]:
        """What :meth:`_change` returns, for an object that cannot be pickled as a whole."""
        if id(value) in seen:
            return False, False, None
        seen.add(id(value))
        attributes = vars(value)
        changed: dict[Any, Difference] = {}
        any_differs = any_lost = False
        for name, part in attributes.items():
            differs, is_lost, change = self._change(part, known.get(name), seen)
            any_differs |= differs
            any_lost |= is_lost
            if change is not None:
                changed[name] = change
        removed: list[object] = [name for name in known if name not in attributes]
        if not changed and not removed:
            return any_differs, any_lost, None
        return True, False, Keyed(changed, removed)

    def merge(self, item: pytest.Item, state: object) -> None:
        """Make the changes here, and say which could not be sent."""
        assert isinstance(state, _Noted)
        objects = self._objects(item)
        with self._names.naming("report", self.report):
            changes = cast("dict[Place, Keyed]", load(state.changes, self._names))
        around = self._look_around(objects, changes)
        for place, keyed in changes.items():
            objects.change(place, keyed)
        self._know_too(objects, changes)
        self._know_around(objects, around)
        new = [title for title in state.lost if title not in self._said]
        if new:
            self._said.update(new)
            raise StateError(f"{', '.join(new)} cannot be pickled")

    def _know_too(self, objects: Objects, changes: Mapping[Place, Keyed]) -> None:
        """Note that the other process knows these changes, which were made here.

        What this process has changed meanwhile, the other one does not know.
        """
        for place, keyed in changes.items():
            known, found = self._known.setdefault(place, {}), objects.at(place)
            for name in keyed.removed:
                known.pop(name, None)
            for name, change in keyed.changed.items():
                if name not in found:
                    continue
                value = found[name]
                if type(value) in _SIMPLE or name not in known:
                    known[name] = self._advanced(known.get(name), value, change)
                    continue
                # Another attribute may be the same object.
                for each in self._known.values():
                    for other, one in each.items():
                        if one.value is value or (each is known and other == name):
                            each[other] = self._advanced(one, value, change)

    def _look_around(
        self, objects: Objects, changes: Mapping[Place, Keyed]
    ) -> list[tuple[Place, Any, _Known]]:
        """Look at the attributes that ``changes`` does not name, before these are made.

        Somewhere inside, they may hold the same objects. Each is returned with its place and name.
        """
        parts = [one for keyed in changes.values() for one in keyed.changed.values()]
        if all(isinstance(one, Replaced | Counted) for one in parts):
            return []
        places = {place: found for place, _, found in objects.all()}
        changed = {
            id(places[place][name])
            for place, keyed in changes.items()
            for name in keyed.changed
            if place in places and name in places[place]
        }
        looks = (
            (place, name, self._look(value, self._known.get(place, {}).get(name)))
            for place, found in places.items()
            for name, value in found.items()
            if type(value) not in _SIMPLE and id(value) not in changed
        )
        return [one for one in looks if one[2].pickled is not None or one[2].flat]

    def _know_around(self, objects: Objects, before: list[tuple[Place, Any, _Known]]) -> None:
        """Note that the other process knows how these attributes have changed with the others.

        ``before`` is what :meth:`_look_around` has returned.
        """
        places = {place: found for place, _, found in objects.all()} if before else {}
        for place, name, look in before:
            value, known = places.get(place, {}).get(name), self._known.get(place, {}).get(name)
            if known is None or value is not look.value:
                continue
            change: Difference | None = None
            if look.pickled is None:
                change = _difference_of_flat(look.copy, value, set())
            elif self._pickled(value) != look.pickled:
                change = difference(load(look.pickled, self._names), value, set())
            if change is not None:
                self._known[place][name] = self._advanced(known, value, change)

    def _advanced(self, known: _Known | None, value: object, change: Difference) -> _Known:
        """What is known of ``value`` when ``change`` was made to it."""
        if known is None or isinstance(change, Replaced):
            return self._look(value)
        if known.pickled is not None:
            before = applied(load(known.pickled, self._names), change)
            return _Known(value, self._pickled(before))
        if known.inner is not None and isinstance(change, Keyed):
            for name, part in change.changed.items():
                if hasattr(value, name):
                    inner = self._advanced(known.inner.get(name), getattr(value, name), part)
                    known.inner[name] = inner
            return known
        if known.flat:
            before = applied(known.copy, change)
            if stays_flat(change):
                return known._replace(copy=before)
            return self._look(before)._replace(value=value)
        if known.copy is not None:
            # Its elements are those of the value itself, which are changed already.
            _take_over(cast(Any, known.copy), cast(Any, value), change)
            return known
        return _Known(applied(known.value, change)) if type(value) in _SIMPLE else _Known(value)


def _difference_of_flat(before: object, value: Any, seen: set[int]) -> Difference | None:
    """:func:`.difference` for a container that another thread may change meanwhile."""
    if id(value) in seen:
        return None
    seen.add(id(value))
    now = value.copy()
    try:
        return difference(before, now, seen)
    finally:
        # The next object may get the same id.
        seen.discard(id(now))


def _take_over(copy: Any, value: Any, change: Difference) -> None:
    """Put into a copy of a container what ``change`` has put into the container."""
    if isinstance(change, Keyed):
        for key in change.changed:
            if key in value:
                copy[key] = value[key]
        for key in change.removed:
            copy.pop(key, None)
    elif isinstance(change, Listed):
        copy.extend(change.added)
    elif isinstance(change, Included):
        copy |= change.added
        copy -= change.removed


def _ids(container: Any) -> list[int]:
    """Which objects it has, a mapping's values included, in their order."""
    values = list(container.values()) if hasattr(container, "values") else []
    return [id(one) for one in [*container, *values]]


def _shared(session: pytest.Session) -> dict[str, object]:
    """Objects that both processes have, by names for pickles."""
    config = session.config
    shared: dict[str, object] = {"config": config, "session": session}
    # What is kept for each thread has it as a key.
    shared["thread"] = threading.current_thread()
    for index, item in enumerate(session.items):
        shared[f"item {index}"] = item
    nodes = {id(node): node for item in session.items for node in item.listchain()[:-1]}
    shared.update((f"node {index}", node) for index, node in enumerate(nodes.values()))
    shared.update((f"plugin {n}", p) for n, p in pytest_internals.named_plugins(config))
    return shared


def find_notes(config: pytest.Config) -> PluginState | None:
    """The state; every session has nodes."""
    return Notes()
