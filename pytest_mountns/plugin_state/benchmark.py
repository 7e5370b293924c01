"""pytest-benchmark: its list of results becomes the table and the JSON file."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from .base import PluginState


class _Fixture:
    """In place of the fixture that a result points to: all that is asked of it afterwards."""

    def __init__(self, has_error: bool) -> None:
        self.has_error = has_error


class Benchmark(PluginState):
    name = "pytest-benchmark"

    def __init__(self, session: Any) -> None:
        self._results: list[Any] = session.benchmarks
        self._known = 0

    def begin(self, item: pytest.Item) -> None:
        self._known = len(self._results)

    def collect(self, item: pytest.Item) -> object:
        results = []
        for result in self._results[self._known :]:
            light = copy.copy(result)
            light.fixture = _Fixture(result.fixture.has_error)
            results.append(light)
        return results or None

    def merge(self, item: pytest.Item, state: object) -> None:
        self._results.extend(cast("list[Any]", state))


def find_benchmark(config: pytest.Config) -> PluginState | None:
    session = getattr(config, "_benchmarksession", None)
    return None if session is None else Benchmark(session)
