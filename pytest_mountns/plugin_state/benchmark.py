"""pytest-benchmark: the list of results that it prints as a table and writes to JSON files."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from .base import PluginState


class _Fixture:
    """Stands in for the fixture that a result refers to, which cannot be pickled.

    When tests are over, pytest-benchmark asks for this one attribute only.
    """

    def __init__(self, has_error: bool) -> None:
        self.has_error = has_error


class Benchmark(PluginState):
    """Brings results to the list of the pytest process."""

    name = "pytest-benchmark"

    def __init__(self, session: Any) -> None:
        self._results: list[Any] = session.benchmarks
        self._known = 0

    def begin(self, item: pytest.Item) -> None:
        """Note how many results there are."""
        self._known = len(self._results)

    def collect(self, item: pytest.Item) -> object:
        """Return the results that were added."""
        results = []
        for result in self._results[self._known :]:
            light = copy.copy(result)
            light.fixture = _Fixture(result.fixture.has_error)
            results.append(light)
        return results or None

    def merge(self, item: pytest.Item, state: object) -> None:
        """Add the results to the list."""
        self._results.extend(cast("list[Any]", state))


def find_benchmark(config: pytest.Config) -> PluginState | None:
    """The state if pytest-benchmark is loaded."""
    session = getattr(config, "_benchmarksession", None)
    return None if session is None else Benchmark(session)
