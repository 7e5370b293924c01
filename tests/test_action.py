"""The action for GitHub: its shell scripts run, and it says what the doctor says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).parents[1]
yaml = pytest.importorskip("yaml")


def steps() -> list[dict[str, Any]]:
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    found: list[dict[str, Any]] = action["runs"]["steps"]
    return found


SCRIPTS: Final = {step["name"]: step["run"] for step in steps() if "run" in step}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", "-c", SCRIPTS[name]], check=True)


def doctor(python: str, tmp_path: Path, required: str) -> tuple[int, str]:
    """Run the step as a runner does. Returns the exit status and what it has put out."""
    output = tmp_path / "output"
    variables = {"PYTHON": python, "REQUIRED": required, "GITHUB_OUTPUT": str(output)}
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", SCRIPTS["Doctor"]],
        env={**os.environ, **variables},
        check=False,
    )
    return done.returncode, output.read_text()


@pytest.mark.sandboxes
def test_where_tests_can_be_isolated(tmp_path: Path) -> None:
    assert doctor(sys.executable, tmp_path, "true") == (0, "possible=true\n")


@pytest.mark.parametrize(("required", "status"), [("true", 1), ("false", 0)])
def test_where_they_cannot(tmp_path: Path, required: str, status: int) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    assert doctor(str(broken), tmp_path, required) == (status, "possible=false\n")
