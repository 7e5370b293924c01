"""pytest-rerunfailures: subtests of an attempt that is repeated do not count."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

from .base import PluginState


class RerunFailures(PluginState):
    name = "pytest-rerunfailures"

    def __init__(self, withdraw: Callable[..., Any]) -> None:
        self._withdraw = withdraw

    def repeated(self, item: pytest.Item) -> None:
        self._withdraw(item.config, item.session, item.nodeid)


def find_rerunfailures(config: pytest.Config) -> PluginState | None:
    # Newer releases take them out of what the terminal has counted; in this process, that is.
    module = sys.modules.get("pytest_rerunfailures")
    withdraw = getattr(module, "_remove_failed_subtest_reports_from_stats", None)
    return None if withdraw is None else RerunFailures(withdraw)
