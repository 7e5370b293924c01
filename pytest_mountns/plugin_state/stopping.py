"""``session.shouldstop`` and ``shouldfail``: set in a test or a hook, they end the session."""

from __future__ import annotations

from typing import Any

import pytest

from .. import pytest_internals
from .base import PluginState


class Stopping(PluginState):
    name = "the session"

    def __init__(self) -> None:
        self._known: tuple[object, ...] = ()

    def begin(self, item: pytest.Item) -> None:
        self._known = pytest_internals.stopping(item.session)

    def collect(self, item: pytest.Item) -> object:
        now = pytest_internals.stopping(item.session)
        if now == self._known:
            return None
        return tuple(value if isinstance(value, bool) else str(value) for value in now)

    def merge(self, item: pytest.Item, state: Any) -> None:
        pytest_internals.set_stopping(item.session, *state)


def find_session(config: pytest.Config) -> PluginState | None:
    return Stopping()
