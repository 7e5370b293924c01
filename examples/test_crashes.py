"""A program is killed, or the power is cut, wherever that may happen: its file is whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot


def save(path: Path, settings: object) -> None:
    """Replace a file in such a way that it is the old or the new one, whatever happens."""
    with open(f"{path}.tmp", "w") as file:
        json.dump(settings, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)


@pytest.mark.parametrize("power", [False, True], ids=["killed", "power-cut"])
def test_settings_survive(overlay_root: OverlayRoot, tmp_path: Path, power: bool) -> None:
    path = tmp_path / "settings.json"
    save(path, {"colour": "red"})
    for crash in overlay_root.crashes(lambda: save(path, {"colour": "blue"}), power=power):
        assert json.loads(path.read_text())["colour"] in ("red", "blue"), crash
