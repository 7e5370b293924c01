"""The objects that plugins and conftest files may note something in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast, final

import pytest

from .. import pytest_internals
from .differences import Keyed, applied
from .flat import CONTAINERS

#: Which kind of object, and which one of them.
Place: TypeAlias = tuple[str, object]
#: Places that there is one of, if plugins are watched, and how each is called.
_OF_SESSION: Final = (("config", "config"), ("config stash", "config"), ("fixtures", "fixture"))


@final
class Objects:
    """The objects of one item that notes may be in, and their attributes."""

    def __init__(self, item: pytest.Item, watched: pytest_internals.Watched) -> None:
        self._item = item
        self._watched = watched

    def all(self) -> Iterator[tuple[Place, str, Mapping[Any, object]]]:
        """Each place, how it is called, and what is in it; without empty ones."""
        for index, node in enumerate(self._item.listchain()):
            if found := pytest_internals.foreign_attributes(node):
                yield ("node", index), node.name or "session", found
            if found := self._stashed(node.stash):
                yield ("stash", index), node.name or "session", found
        if not self._watched.plugins:
            return
        for kind, title in _OF_SESSION:
            if found := self.at((kind, None)):
                yield (kind, None), title, found
        for name in self._watched.plugins:
            if found := self.at(("plugin", name)):
                yield ("plugin", name), name, found

    def at(self, place: Place) -> dict[Any, object]:
        """What is in one place."""
        watched = self._watched
        match place[0]:
            case "node":
                return pytest_internals.foreign_attributes(cast(pytest.Item, self._owner(place)))
            case "config":
                return pytest_internals.foreign_config_attributes(self._item.config)
            case "stash" | "config stash":
                return self._stashed(cast(pytest.Stash, self._owner(place)))
            case "fixtures":
                return {
                    name: value
                    for name, definition in watched.fixtures.items()
                    if type(value := pytest_internals.value_of_fixture(definition)) in CONTAINERS
                }
        code = watched.code[str(place[1])]
        attributes = vars(self._owner(place))
        return {key: value for key, value in attributes.items() if key not in code}

    def _stashed(self, stash: pytest.Stash) -> dict[Any, object]:
        keys = self._watched.stash_keys
        return {index: stash[key] for index, key in enumerate(keys) if key in stash} if keys else {}

    def change(self, place: Place, changes: Keyed) -> None:
        """Make these changes to the attributes of one object."""
        if place[0] == "fixtures":
            for name, change in changes.changed.items():
                applied(pytest_internals.value_of_fixture(self._watched.fixtures[name]), change)
            return
        changed = {}
        owner = self._owner(place)
        for name, change in changes.changed.items():
            if isinstance(owner, pytest.Stash):
                before = owner.get(self._watched.stash_keys[name], None)
            else:
                before = getattr(owner, name, None)
            after = applied(before, change)
            if after is not before or isinstance(owner, pytest.Stash):
                changed[name] = after
        self.put(place, changed, changes.removed)

    def put(self, place: Place, values: Mapping[Any, object], removed: Iterable[Any]) -> None:
        """Let these be the values of attributes of one object, and remove others."""
        if place[0] == "fixtures":
            # These are changed in place, or not at all.
            return
        owner = self._owner(place)
        if isinstance(owner, pytest.Stash):
            keys = self._watched.stash_keys
            for index, value in values.items():
                owner[keys[index]] = value
            for index in removed:
                with contextlib.suppress(KeyError):
                    del owner[keys[index]]
            return
        for name, value in values.items():
            setattr(owner, name, value)
        for name in removed:
            with contextlib.suppress(AttributeError):
                delattr(owner, name)

    def _owner(self, place: Place) -> object:
        kind, which = place
        match kind:
            case "node":
                return self._item.listchain()[cast(int, which)]
            case "stash":
                return self._item.listchain()[cast(int, which)].stash
            case "config":
                return self._item.config
            case "config stash":
                return self._item.config.stash
        return self._watched.plugins[str(which)]
