"""A sandbox started afresh within a test. The first test is what the others cost without that."""

from __future__ import annotations

from typing import Any

import pytest

COUNT = 100


@pytest.fixture
def root(witness: None, overlay_root: Any) -> Any:
    return overlay_root


def test_once(root: Any) -> None:
    """Pays what is paid once a session."""


def test_nothing(root: Any) -> None:
    pass


def test_reset(root: Any) -> None:
    for _ in range(COUNT):
        root.reset()


def test_checkpoint(root: Any) -> None:
    for _ in range(COUNT):
        with root.checkpoint():
            pass
