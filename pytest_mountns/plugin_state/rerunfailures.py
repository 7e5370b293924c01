"""pytest-rerunfailures: failed subtests of an attempt that is repeated do not count."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from .base import PluginState


class RerunFailures(PluginState):
    """Takes failed subtests out of what the terminal has counted in the pytest process."""

    name = "pytest-rerunfailures"

    def __init__(self, withdraw: Callable[..., Any]) -> None:
        self._withdraw = withdraw

    def repeated(self, item: pytest.Item) -> None:
        """Withdraw the failed subtests of the test."""
        self._withdraw(item.config, item.session, item.nodeid)


def find_rerunfailures(config: pytest.Config) -> PluginState | None:
    """The state if pytest-rerunfailures is loaded, and is a release that withdraws subtests."""
    # The plugin does so itself, but in the test process, where the terminal counts nothing.
    module = sys.modules.get("pytest_rerunfailures")
    withdraw = getattr(module, "_remove_failed_subtest_reports_from_stats", None)
    return None if withdraw is None else RerunFailures(withdraw)
