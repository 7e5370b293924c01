"""flaky: the text of its report grows with each attempt and is printed at the end."""

from __future__ import annotations

from typing import Any

import pytest

from .base import PluginState


class Flaky(PluginState):
    name = "flaky"

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._known = 0

    def begin(self, item: pytest.Item) -> None:
        self._known = len(self._stream.getvalue())

    def collect(self, item: pytest.Item) -> object:
        return self._stream.getvalue()[self._known :] or None

    def merge(self, item: pytest.Item, state: object) -> None:
        self._stream.write(state)


def find_flaky(config: pytest.Config) -> PluginState | None:
    module = config.pluginmanager.get_plugin("flaky")
    stream = getattr(getattr(module, "PLUGIN", None), "stream", None)
    return None if stream is None else Flaky(stream)
