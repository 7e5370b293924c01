"""A place for temporary files that takes whiteouts."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def place_for_whiteouts(usual: Path) -> Iterator[Path]:
    """Yield ``usual``, or a directory on a tmpfs if ``usual`` takes no whiteouts, as on an overlay.

    Skips the test where neither does.
    """
    if _takes_whiteouts(usual):
        yield usual
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        if not _takes_whiteouts(Path(other)):
            pytest.skip("no filesystem here takes whiteouts")
        yield Path(other)


def _takes_whiteouts(place: Path) -> bool:
    trial = place / "trial"
    try:
        os.mknod(trial, stat.S_IFCHR, os.makedev(0, 0))
    except PermissionError:
        return False
    trial.unlink()
    return True
