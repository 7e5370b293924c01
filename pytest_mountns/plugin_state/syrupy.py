"""syrupy: which snapshots were used, and those to be written when the session ends.

A snapshot that the parent knows no user of is "unused", and ``--snapshot-update`` deletes those.
So where knowledge is missing, nothing may be deleted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import pytest

from .base import PluginState


class Syrupy(PluginState):
    name = "syrupy"

    def __init__(self, session: Any, config: pytest.Config) -> None:
        self._session = session
        self._config = config
        self._known = 0
        self._extensions: set[str] = set()
        self._queued: dict[Any, dict[Any, Any]] = {}

    def begin(self, item: pytest.Item) -> None:
        self._known = len(self._session._assertions)
        self._extensions = set(self._session._extensions)
        self._queued = _copy(self._session._queued_snapshot_writes)
        # Kinds of snapshots that are written at once would be written into the sandbox.
        self._session._flush_snapshot_write_queue_key = lambda key: None

    def before_enter(self, item: pytest.Item) -> None:
        self._session._flush_snapshot_write_queue_key = lambda key: None

    def after_leave(self, item: pytest.Item) -> None:
        del self._session._flush_snapshot_write_queue_key

    def collect(self, item: pytest.Item) -> object:
        assertions = [_light(one) for one in self._session._assertions[self._known :]]
        extensions = {
            location: extension
            for location, extension in self._session._extensions.items()
            if location not in self._extensions
        }
        writes = {
            key: {
                place: data
                for place, data in snapshots.items()
                if self._queued.get(key, {}).get(place) is not data
            }
            for key, snapshots in _copy(self._session._queued_snapshot_writes).items()
        }
        return (assertions, extensions, writes) if assertions else None

    def shared(self, item: pytest.Item) -> Mapping[str, object]:
        return {**super().shared(item), "snapshots": self._session}

    def merge(self, item: pytest.Item, state: object) -> None:
        assertions, extensions, writes = cast(
            "tuple[list[Any], dict[str, Any], dict[Any, dict[Any, Any]]]", state
        )
        self._session._assertions.extend(assertions)
        for location, extension in extensions.items():
            self._session._extensions.setdefault(location, extension)
        for key, snapshots in writes.items():
            self._session._queued_snapshot_writes[key].update(snapshots)

    def lost(self) -> None:
        # Options of syrupy's that say so; and whatever a version makes of them, nothing goes.
        self._config.option.no_cleanup = True
        self._config.option.warn_unused_snapshots = True
        self._session.remove_unused_snapshots = lambda *arguments, **keywords: None


def _copy(queued: Mapping[Any, Mapping[Any, Any]]) -> dict[Any, dict[Any, Any]]:
    return {key: dict(snapshots) for key, snapshots in queued.items()}


def _light(assertion: Any) -> Any:
    """A copy without the functions a test has given to it: they are for comparing alone."""
    light = copy.copy(assertion)
    for name in ("include", "exclude", "matcher", "_include", "_exclude", "_matcher"):
        setattr(light, name, None)
    light._post_assert_actions = []
    return light


def find_syrupy(config: pytest.Config) -> PluginState | None:
    session = getattr(config, "_syrupy", None)
    return None if session is None else Syrupy(session, config)
