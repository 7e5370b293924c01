"""The part of ``test_io.py`` that a file system faked in Python can do."""

from __future__ import annotations

import os
from pathlib import Path

SCALE = float(os.environ.get("BENCHMARK_SCALE", "1"))


def test_nothing(fs: object) -> None:
    pass


def test_small_files(fs: object) -> None:
    Path("/benchmark").mkdir()
    for number in range(max(1, int(10_000 * SCALE))):
        path = os.path.join("/benchmark", f"file{number}")
        with open(path, "wb") as file:
            file.write(b"x" * 100)
        assert os.stat(path).st_size == 100
        os.unlink(path)
