"""What other plugins note on collected nodes: items, classes, modules, packages, the session.

A test that fails is noted on its class, for example, so that the next ones are skipped: so does
pytest-dependency, and so does the recipe "incremental testing" of pytest's documentation. Noted in
a forked test process it would be lost, and the next tests would run, or be skipped, without a word.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import pytest

from .. import pytest_internals
from .base import PluginState, StateError
from .pickling import dump, unpack

#: An object and its pickle; None if it has none.
_Known: TypeAlias = tuple[object, "bytes | None"]

#: Bytes. What is larger is taken to be the same as long as it is the same object.
_MOST: Final = 1 << 16


class _Noted(NamedTuple):
    """What a test process sends."""

    #: The number of the node in the chain from the session to the item, the name, the pickle.
    attributes: list[tuple[int, str, bytes]]
    #: Attributes that cannot be pickled, as ``node.name``.
    lost: list[str]


class NodeAttributes(PluginState):
    """Brings the attributes to the pytest process that were added or changed.

    Only attributes that neither pytest nor the class of the node sets are looked at. What was there
    before is compared by its pickle; what cannot be pickled, or is too large, is the same as long
    as it is the same object. What a plugin notes in a module or an object of its own is not seen.
    """

    name = "a plugin or conftest file"

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], _Known] = {}
        #: The items of the session, by names for pickles, and their number.
        self._items: dict[str, object] = {}
        self._number = -1

    def before_fork(self, item: pytest.Item) -> None:
        """Note what there is. In the test process each look at a node would copy pages."""
        self._known = {}
        if attributes := _attributes(item):
            shared = self._nodes(item)
            self._known = {
                (index, name): (value, _pickled(value, shared)) for index, name, value in attributes
            }

    def collect(self, item: pytest.Item) -> object:
        """Return what was added or changed."""
        attributes = _attributes(item)
        if not attributes:
            return None
        found = _Noted([], [])
        chain, shared = item.listchain(), self._nodes(item)
        for index, name, value in attributes:
            before, pickled_before = self._known.get((index, name), (None, b""))
            pickled = _pickled(value, shared)
            if pickled is not None:
                if pickled != pickled_before:
                    found.attributes.append((index, name, pickled))
            elif value is not before and chain[index] is not item:
                # The item itself is not used any more.
                found.lost.append(f"{chain[index].name or 'session'}.{name}")
        return found if found.attributes or found.lost else None

    def _nodes(self, item: pytest.Item) -> Mapping[str, object]:
        items = item.session.items
        if self._number != len(items):
            # Usually in the pytest process, for all its test processes.
            self._number = len(items)
            self._items = {f"item {index}": one for index, one in enumerate(items)}
        shared = {**self._items, **self.shared(item)}
        for index, node in enumerate(item.listchain()):
            shared[f"node {index}"] = node
        return shared

    def merge(self, item: pytest.Item, state: object) -> None:
        """Set the attributes, and say which could not be sent."""
        assert isinstance(state, _Noted)
        chain, shared = item.listchain(), self._nodes(item)
        for index, name, data in state.attributes:
            _set(chain[index], name, unpack(data, shared))
        if state.lost:
            raise StateError(f"{', '.join(state.lost)} cannot be pickled")


def _attributes(item: pytest.Item) -> list[tuple[int, str, object]]:
    """What was added to each node in the chain from the session to ``item``; usually nothing."""
    return [
        (index, name, value)
        for index, node in enumerate(item.listchain())
        for name, value in pytest_internals.foreign_attributes(node).items()
    ]


def _pickled(value: object, shared: Mapping[str, object]) -> bytes | None:
    with contextlib.suppress(Exception):
        return dump(value, shared, _MOST)
    return None


def _set(node: object, name: str, value: object) -> None:
    """Set an attribute. An object that is there stays, since others may refer to it as well."""
    before = getattr(node, name, None)
    if before is value:
        return
    if type(before) is type(value):
        if isinstance(before, dict) and isinstance(value, dict):
            before.clear()
            before.update(value)
            return
        if isinstance(before, list) and isinstance(value, list):
            before[:] = value
            return
        if isinstance(before, set) and isinstance(value, set):
            before.clear()
            before.update(value)
            return
        if _is_plain(before):
            vars(before).clear()
            vars(before).update(vars(value))
            return
    setattr(node, name, value)


def _is_plain(value: object) -> bool:
    """Whether a pickle has the attributes of ``value``, and not a name for it.

    Names stand for members of enumerations, loggers, classes, and for nodes of pytest.
    """
    kind = type(value)
    if isinstance(value, type | pytest.Item | pytest.Collector | pytest.Config):
        return False
    is_default = kind.__reduce_ex__ is object.__reduce_ex__ and kind.__reduce__ is object.__reduce__
    return is_default and hasattr(value, "__dict__") and "copyreg" not in kind.__module__


def find_nodes(config: pytest.Config) -> PluginState | None:
    """The state; every session has nodes."""
    return NodeAttributes()
