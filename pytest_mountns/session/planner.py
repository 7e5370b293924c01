"""The planner of a session, with the directories that every test run has."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from ..engine.planning.planner import Planner

if TYPE_CHECKING:
    from ..engine.layers.session import Sources


def make_planner(
    config: pytest.Config,
    mounts_changed: Callable[[], None] = lambda: None,
    sources: Callable[[], Sources] | None = None,
) -> Planner:
    """The planner of a session; see :class:`.Planner` for the arguments."""
    return Planner([str(config.rootpath), sys.prefix], mounts_changed, sources)
