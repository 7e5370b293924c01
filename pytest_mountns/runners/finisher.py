"""Tears down wider scopes in place of an item, within pytest's own wrappers."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import pytest


@final
class Finisher:
    """A plugin that, in place of running an item, tears down what ends with it.

    So the teardown happens where it always does: within pytest's own wrappers of the protocol,
    which record warnings and explain assertions.
    """

    def __init__(self) -> None:
        #: What to do in place of the item's protocol; None while items run as usual.
        self.work: Callable[[], None] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        """Do the work, and keep others from running the item."""
        if self.work is None:
            return None
        self.work()
        return True
