"""Remove what nobody can do without, ``/etc``; the next test has it back.

An ordinary user is shown as root for that, ``user="root"``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot

from . import mounts

DIRECTORY = Path("/etc")

pytestmark = [
    pytest.mark.mountns(user="root"),
    pytest.mark.skipif(
        not mounts.can_be_lost_by_root(DIRECTORY), reason=f"{DIRECTORY} holds other mounts"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def names() -> list[str]:
    """What the host has there, before any test."""
    return os.listdir(DIRECTORY)


def test_remove(overlay_root: OverlayRoot, expendable: Callable[[Path], Path]) -> None:
    shutil.rmtree(expendable(DIRECTORY))
    assert not DIRECTORY.exists()
    assert overlay_root.changes()["/etc"].kind == "deleted"


def test_it_is_back(names: list[str]) -> None:
    assert set(names) <= set(os.listdir(DIRECTORY))
