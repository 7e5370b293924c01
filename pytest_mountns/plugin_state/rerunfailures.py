"""pytest-rerunfailures: subtests of an attempt that is repeated, and how many were repeated.

Failed subtests of such an attempt do not count. ``--max-suite-reruns`` counts the attempts of the
whole suite in memory.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from .base import PluginState


class RerunFailures(PluginState):
    """Takes failed subtests out of what the terminal has counted, and brings over the counter.

    ``withdraw`` is None in releases that do not withdraw subtests. ``counter`` is what counts the
    attempts of the suite in this process, None if nothing does.
    """

    name = "pytest-rerunfailures"

    def __init__(self, withdraw: Callable[..., Any] | None, counter: Any) -> None:
        self._withdraw = withdraw
        self._counter = counter

    @property
    def early(self) -> bool:
        """Whether there is a counter: a test process may die after an attempt."""
        return self._counter is not None

    def collect(self, item: pytest.Item) -> object:
        """Return how many attempts were counted, in the whole session."""
        return (self._counter.get_suite_reruns() or None) if self._counter is not None else None

    def merge(self, item: pytest.Item, state: Any) -> None:
        """Count up to that number: only one of the processes runs a test at a time."""
        for _ in range(state - self._counter.get_suite_reruns()):
            self._counter.increment_suite_reruns()

    def repeated(self, item: pytest.Item) -> None:
        """Withdraw the failed subtests of the test."""
        if self._withdraw is not None:
            self._withdraw(item.config, item.session, item.nodeid)


def find_rerunfailures(config: pytest.Config) -> PluginState | None:
    """The state if pytest-rerunfailures is loaded, and is a release that has one."""
    module = sys.modules.get("pytest_rerunfailures")
    # The plugin does so itself, but in the test process, where the terminal counts nothing.
    withdraw = getattr(module, "_remove_failed_subtest_reports_from_stats", None)
    counter = getattr(config, "failures_db", None)
    # The workers of pytest-xdist, and their test processes, ask the process that has started them.
    if config.getoption("max_suite_reruns", None) is None or hasattr(config, "workerinput"):
        counter = None
    if withdraw is None and counter is None:
        return None
    return RerunFailures(withdraw, counter)
