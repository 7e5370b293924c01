"""Tests of permissions, which root breaks: to root nothing is forbidden.

In containers tests often run as root, and these then fail or are skipped. ``user="nobody"`` runs
them as somebody else: in the sandbox, for one test, and nothing is to be arranged before. An
ordinary user is somebody else already.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot

#: Whoever runs pytest; root becomes nobody.
mark = pytest.mark.mountns(user="nobody" if os.geteuid() == 0 else "keep")


def read_settings(places: list[Path]) -> dict[Path, str]:
    """The files that may be read."""
    found = {}
    for place in places:
        try:
            found[place] = place.read_text()
        except (PermissionError, FileNotFoundError):
            continue
    return found


@mark
def test_what_may_not_be_read_is_left_out(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    ours, closed = tmp_path / "ours", tmp_path / "closed"
    ours.write_text("ours")
    closed.write_text("closed")
    closed.chmod(0)
    assert read_settings([ours, closed, Path("/etc/shadow")]) == {ours: "ours"}


@mark
def test_a_closed_directory(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        (tmp_path / "new").write_text("x")


@pytest.mark.mountns(user="root")
def test_somebody_else_is_root(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    """The other way round: an ordinary user sees himself as root, as in ``unshare -r``."""
    assert os.getuid() == 0
    closed = tmp_path / "closed"
    closed.write_text("closed")
    closed.chmod(0)
    assert read_settings([closed]) == {closed: "closed"}
