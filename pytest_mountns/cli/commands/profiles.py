"""``pytest-mountns profiles``: lists the profiles in pyproject.toml."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ...config import profiles


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="a pyproject.toml (default: the nearest one, here or above)",
    )


def run(options: argparse.Namespace) -> int:
    """List the profiles. Returns 0, or 2 if they are not valid."""
    file = options.file or profiles.find(Path.cwd())
    try:
        known = profiles.read(file, file.parent)
    except profiles.ProfileError as error:
        print(error, file=sys.stderr)
        return 2
    for paragraph in known.describe():
        print(f"{paragraph}\n")
    if not known.tables:
        print(f"{file} has no [tool.mountns.profiles.NAME]")
    return 0
