"""Remove a directory that nobody can do without; the next test has it back.

Root loses ``/etc``, an ordinary user the home directory: a user's sandbox has overlays over what
the user can write, so the home directory is a mountpoint there. It can be emptied, but not be
removed itself (EBUSY), which is what ``ignore_errors`` is for.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot

from . import mounts

DIRECTORY = Path("/etc") if os.geteuid() == 0 else Path.home()

pytestmark = pytest.mark.skipif(
    not mounts.can_be_lost(DIRECTORY),
    reason=f"{DIRECTORY} is not to be written, or holds other mounts",
)


@pytest.fixture(scope="module", autouse=True)
def names() -> list[str]:
    """What the host has there, before any test."""
    return os.listdir(DIRECTORY)


def test_remove(overlay_root: OverlayRoot, expendable: Callable[[Path], Path]) -> None:
    shutil.rmtree(expendable(DIRECTORY), ignore_errors=True)
    assert not list(DIRECTORY.glob("*"))


def test_it_is_back(names: list[str]) -> None:
    assert set(names) <= set(os.listdir(DIRECTORY))
