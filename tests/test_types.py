"""The public names under type checkers: an example without errors, and one with errors."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "typed" / "user.py"

WRONG = """
from pytest_mountns import Nothing, Volume
Volume("/a", "/b", read_only="yes")
def test(overlay_root: "pytest_mountns.OverlayRoot") -> None:
    overlay_root.changes(1)
"""

CHECKERS = {
    "mypy": ("mypy", "--strict", "--no-error-summary", "--cache-dir", os.devnull, "."),
    "pyright": ("pyright", "--pythonpath", sys.executable),
}


def _check(checker: str, file: Path, home: Path) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = CHECKERS[checker]
    if importlib.util.find_spec(checker) is None:
        pytest.skip(f"{checker} is not installed")
    # By default it ignores directories whose name begins with a dot, such as the tests' basetemp.
    settings = {"include": ["."], "exclude": ["nothing"], "typeCheckingMode": "strict"}
    (file.parent / "pyrightconfig.json").write_text(json.dumps(settings))
    # pyright's package fetches the checker itself when it is first used.
    environment = {**os.environ, "PYRIGHT_PYTHON_CACHE_DIR": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=file.parent,
        env=environment,
        capture_output=True,
        text=True,
    )
    if checker == "pyright" and not done.stdout.strip():
        pytest.skip(f"pyright cannot be run: {done.stderr[-300:]}")
    return done


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_typed_example(tmp_path: Path, checker: str) -> None:
    # Outside of the checkout and its settings, so that the installed package is checked.
    shutil.copy(EXAMPLE, tmp_path)
    done = _check(checker, tmp_path / EXAMPLE.name, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_wrong_one_has_errors(tmp_path: Path, checker: str) -> None:
    file = tmp_path / "wrong.py"
    file.write_text(WRONG)
    done = _check(checker, file, tmp_path)
    assert done.returncode == 1
    assert "Nothing" in done.stdout
    assert "read_only" in done.stdout
