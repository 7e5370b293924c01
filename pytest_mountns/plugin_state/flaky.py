"""flaky: the text of its report, which is added to after each attempt and printed at the end."""

from __future__ import annotations

from typing import Any

import pytest

from .base import PluginState


class Flaky(PluginState):
    """Brings lines of the report to the pytest process."""

    name = "flaky"

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._known = 0

    def begin(self, item: pytest.Item) -> None:
        """Note how long the text is."""
        self._known = len(self._stream.getvalue())

    def collect(self, item: pytest.Item) -> object:
        """Return the text that was added."""
        return self._stream.getvalue()[self._known :] or None

    def merge(self, item: pytest.Item, state: object) -> None:
        """Add the text."""
        self._stream.write(state)


def find_flaky(config: pytest.Config) -> PluginState | None:
    """The state if flaky is loaded."""
    module = config.pluginmanager.get_plugin("flaky")
    stream = getattr(getattr(module, "PLUGIN", None), "stream", None)
    return None if stream is None else Flaky(stream)
