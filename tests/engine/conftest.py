"""The users and the mount APIs that sandboxes are made with."""

from __future__ import annotations

from typing import cast

import pytest

from tests.helpers import worlds


@pytest.fixture(params=["root", "user"])
def mode(request: pytest.FixtureRequest) -> worlds.Mode:
    """Root's sandboxes and an ordinary user's. Skips what cannot be made here."""
    chosen = cast(worlds.Mode, request.param)
    worlds.skip_unless(chosen)
    return chosen


@pytest.fixture(params=["new", "attached", "classic"])
def api(request: pytest.FixtureRequest) -> str:
    """The mount API of Linux 6.15, of 5.12, and mount(2)."""
    return cast(str, request.param)
