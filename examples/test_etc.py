"""Remove what nobody can do without; the next test has it back.

Root loses ``/etc``, an ordinary user what is in the home directory. That itself stays: a user's
sandbox has overlays over what the user can write, so it is a mountpoint there. The way to this
project and to Python stays too, if they lie in there: pytest's cache is the host's, a volume.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot

from . import mounts

DIRECTORY = Path("/etc") if os.geteuid() == 0 else Path.home()

pytestmark = pytest.mark.skipif(
    not os.access(DIRECTORY, os.W_OK), reason=f"{DIRECTORY} is not to be written"
)


@pytest.fixture(scope="module", autouse=True)
def names() -> list[str]:
    """What the host has there, before any test."""
    return os.listdir(DIRECTORY)


@pytest.fixture
def doomed(request: pytest.FixtureRequest) -> list[Path]:
    if os.geteuid() == 0:
        return [DIRECTORY]
    needed = [request.config.rootpath, Path(sys.prefix), Path(sys.base_prefix)]
    kept = {place for path in needed for place in (path, *path.parents)}
    return [
        path
        for path in DIRECTORY.iterdir()
        if path not in kept and not path.is_symlink() and mounts.can_be_lost(path)
    ]


def test_remove(
    overlay_root: OverlayRoot, expendable: Callable[[Path], Path], doomed: list[Path]
) -> None:
    for path in map(expendable, doomed):
        if path.is_dir():
            # A home directory may hold some that are closed, or have what is somebody else's.
            shutil.rmtree(path, ignore_errors=os.geteuid() != 0)
        else:
            path.unlink()
    assert not [path for path in doomed if path.is_file()]
    assert os.geteuid() != 0 or not DIRECTORY.exists()


def test_it_is_back(names: list[str]) -> None:
    assert set(names) <= set(os.listdir(DIRECTORY))
