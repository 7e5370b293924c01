"""pytest-rerunfailures: subtests of an attempt that is repeated, and how many were repeated.

Failed subtests of such an attempt do not count. ``--max-suite-reruns`` counts the attempts of the
whole suite in memory. Between two attempts the finalizers of wider nodes are kept there, and are
put back when the last one is torn down: that may be in a test process.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from .. import pytest_internals
from .base import PluginState


class RerunFailures(PluginState):
    """Takes failed subtests out of what the terminal has counted, and brings over the counter.

    ``counter`` is what counts the attempts of the suite in this process, None if nothing does.
    """

    name = "pytest-rerunfailures"

    def __init__(self, module: ModuleType, counter: Any) -> None:
        # The plugin does so itself, but in the test process, where the terminal counts nothing.
        # Older releases do not withdraw subtests.
        self._withdraw: Callable[..., Any] | None = getattr(
            module, "_remove_failed_subtest_reports_from_stats", None
        )
        self._suspended: dict[Any, Any] = getattr(module, "suspended_finalizers", {})
        self._counter = counter

    def goes_with(self, report: pytest.TestReport | None) -> bool:
        """Whether there is a counter: a test process may die after an attempt."""
        return self._counter is not None

    def collect(self, item: pytest.Item) -> object:
        """Return how many attempts were counted, in the whole session."""
        return (self._counter.get_suite_reruns() or None) if self._counter is not None else None

    def merge(self, item: pytest.Item, state: Any) -> None:
        """Count up to that number: only one of the processes runs a test at a time."""
        for _ in range(state - self._counter.get_suite_reruns()):
            self._counter.increment_suite_reruns()

    def before_another_attempt(self, item: pytest.Item) -> None:
        """Put the finalizers back already, so that what is set up now is added to them."""
        pytest_internals.put_back_finalizers(item, self._suspended)

    def repeated(self, item: pytest.Item) -> None:
        """Withdraw the failed subtests of the test."""
        if self._withdraw is not None:
            self._withdraw(item.config, item.session, item.nodeid)


def find_rerunfailures(config: pytest.Config) -> PluginState | None:
    """The state if pytest-rerunfailures is loaded."""
    module = sys.modules.get("pytest_rerunfailures")
    counter = getattr(config, "failures_db", None)
    # The workers of pytest-xdist, and their test processes, ask the process that has started them.
    if config.getoption("max_suite_reruns", None) is None or hasattr(config, "workerinput"):
        counter = None
    return None if module is None else RerunFailures(module, counter)
