"""Read bundles, and run the command ``pytest-mountns`` as its users do."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pytest_mountns.engine.layers.limits import Limits
from pytest_mountns.engine.layers.streams import CHUNK, Section, Stream, decompressed


def program() -> str:
    """The path of the command in this environment. Skips the test if it is not installed."""
    found = Path(sys.executable).with_name("pytest-mountns")
    if not found.exists():
        pytest.skip("the package's commands are not installed")
    return str(found)


def command(
    *arguments: str, cwd: Path | None = None, text: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, with ``text`` as its input."""
    return subprocess.run(
        [program(), *arguments],
        cwd=cwd,
        input=text,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def bundles(directory: Path) -> list[Path]:
    """The bundles in a directory, sorted by name."""
    return sorted(path.parent for path in directory.glob("*/repro.json"))


def document(bundle: Path) -> dict[str, Any]:
    """The content of the bundle's ``repro.json``."""
    found: dict[str, Any] = json.loads((bundle / "repro.json").read_text())
    return found


def members(bundle: Path, layer: str = "layer") -> dict[str, bytes | None]:
    """The names in a layer of the bundle, and the content of those that are files."""
    (path,) = bundle.glob(f"{layer}.tar.*")
    with open(path, "rb") as file:
        section = Section(file.fileno(), 0, path.stat().st_size)
        with decompressed(section, str(path.parent)) as source:
            stream = Stream(source, section, Limits())
            data = b"".join(iter(lambda: stream.some(CHUNK), b""))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return {
            one.name: content.read()
            if not one.issym() and (content := tar.extractfile(one))
            else None
            for one in tar.getmembers()
        }
