"""pytest's ``session.shouldstop`` and ``session.shouldfail``.

A test or a hook sets them to end the session. pytest looks at them in the pytest process.
"""

from __future__ import annotations

from typing import Any

import pytest

from .. import pytest_internals
from .base import PluginState


class StopRequests(PluginState):
    """Brings requests to end the session to the pytest process."""

    name = "the session"

    def __init__(self) -> None:
        self._known: tuple[object, ...] = ()

    def begin(self, item: pytest.Item) -> None:
        """Note what is requested already."""
        self._known = pytest_internals.stopping(item.session)

    def goes_with(self, report: pytest.TestReport | None) -> bool:
        """With that of a teardown: if the session ends, wider fixtures are torn down before it."""
        return report is not None and report.when == "teardown"

    def collect(self, item: pytest.Item) -> object:
        """Return what is requested, if that has changed."""
        now = pytest_internals.stopping(item.session)
        if now == self._known:
            return None
        self._known = now
        return tuple(value if isinstance(value, bool) else str(value) for value in now)

    def merge(self, item: pytest.Item, state: Any) -> None:
        """Request it here."""
        pytest_internals.set_stopping(item.session, *state)


def find_stop_requests(config: pytest.Config) -> PluginState | None:
    """The state of every session."""
    return StopRequests()
