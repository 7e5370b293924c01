"""Finds the states of plugins that only forked tests concern; loaded before the first fork."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

import pytest

from .base import PluginState
from .benchmark import find_benchmark
from .flaky import find_flaky
from .junit import find_junit
from .notes import find_notes
from .rerunfailures import find_rerunfailures
from .stop_requests import find_stop_requests

_Find: TypeAlias = Callable[[pytest.Config], "PluginState | None"]

#: In the order in which the states are collected and merged, after those of all tests.
FINDERS: Final[tuple[_Find, ...]] = (
    find_junit,
    find_flaky,
    find_benchmark,
    find_stop_requests,
    find_rerunfailures,
    find_notes,
)
