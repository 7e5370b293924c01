"""syrupy: which snapshots tests have used, and those that it writes when the session ends.

A snapshot is "unused" if the pytest process knows of no test that has used it, and then
``--snapshot-update`` deletes it. So if the state of a test is lost, nothing may be deleted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import pytest

from .base import PluginState


class Syrupy(PluginState):
    """Brings assertions and snapshots that are to be written to the pytest process."""

    name = "syrupy"

    def __init__(self, session: Any, config: pytest.Config) -> None:
        self._session = session
        self._config = config
        self._known = 0
        self._extensions: set[str] = set()
        self._queued: dict[Any, dict[Any, Any]] = {}

    def begin(self, item: pytest.Item) -> None:
        """Note which assertions and snapshots there are, and write none from now on."""
        self._known = len(self._session._assertions)
        self._extensions = set(self._session._extensions)
        self._queued = _copy(self._session._queued_snapshot_writes)
        self._write_nothing_now()

    def before_enter(self, item: pytest.Item) -> None:
        """Write no snapshots while this process is in a sandbox."""
        self._write_nothing_now()

    def after_leave(self, item: pytest.Item) -> None:
        """Let syrupy write snapshots again."""
        del self._session._flush_snapshot_write_queue_key

    def collect(self, item: pytest.Item) -> object:
        """Return the assertions of the test, and the snapshots that are to be written."""
        assertions = [_picklable(one) for one in self._session._assertions[self._known :]]
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
        """Add syrupy's session, to which the assertions refer."""
        return {**super().shared(item), "snapshots": self._session}

    def merge(self, item: pytest.Item, state: object) -> None:
        """Add the assertions and the snapshots."""
        assertions, extensions, writes = cast(
            "tuple[list[Any], dict[str, Any], dict[Any, dict[Any, Any]]]", state
        )
        self._session._assertions.extend(assertions)
        for location, extension in extensions.items():
            self._session._extensions.setdefault(location, extension)
        for key, snapshots in writes.items():
            self._session._queued_snapshot_writes[key].update(snapshots)

    def _write_nothing_now(self) -> None:
        # Some kinds of snapshots are written as soon as a test uses them. Those would be written
        # into the sandbox; so they stay in the queue, and are written when the session ends.
        self._session._flush_snapshot_write_queue_key = lambda key: None

    def lost(self) -> None:
        """Keep syrupy from deleting snapshots that seem unused."""
        # With these options syrupy deletes no unused snapshots. The method that deletes them is
        # replaced as well, in case a version of syrupy does not look at the options here.
        self._config.option.no_cleanup = True
        self._config.option.warn_unused_snapshots = True
        self._session.remove_unused_snapshots = lambda *arguments, **keywords: None


def _copy(queued: Mapping[Any, Mapping[Any, Any]]) -> dict[Any, dict[Any, Any]]:
    return {key: dict(snapshots) for key, snapshots in queued.items()}


def _picklable(assertion: Any) -> Any:
    """A copy without the functions that a test has passed, which are only used for comparing."""
    light = copy.copy(assertion)
    for name in ("include", "exclude", "matcher", "_include", "_exclude", "_matcher"):
        setattr(light, name, None)
    light._post_assert_actions = []
    return light


def find_syrupy(config: pytest.Config) -> PluginState | None:
    """The state if syrupy is loaded."""
    session = getattr(config, "_syrupy", None)
    return None if session is None else Syrupy(session, config)
