"""``pytest-mountns diff``: what a test has changed."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from typing import IO, Final

from ...engine.changes.diffs import printable
from ...engine.changes.render import COLOURS, styled
from ...repro.bundle import CHANGES, CHANGES_JSON, load

_CODES: Final = {
    "bold": 1,
    "red": 31,
    "green": 32,
    "yellow": 33,
    "blue": 34,
    "purple": 35,
    "cyan": 36,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory in .mountns")
    parser.add_argument("--json", action="store_true", help="print all changes as a JSON document")


def run(options: argparse.Namespace) -> int:
    """Print the changes. Returns 0. Raises :class:`SandboxError` if the bundle cannot be read."""
    bundle = load(options.bundle)
    if options.json:
        print(bundle.text(CHANGES_JSON), end="")
        return 0
    for line in coloured(bundle.text(CHANGES), sys.stdout):
        print(line)
    for note in bundle.repro.notes:
        print(f"note: {printable(note)}", file=sys.stderr)
    return 0


def coloured(text: str, stream: IO[str]) -> Iterator[str]:
    """The lines of ``text``, with colours if ``stream`` is a terminal."""
    plain = not stream.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    for style, raw in styled(text):
        # A bundle may come from anybody, and a terminal obeys control characters.
        line = printable(raw)
        yield line if plain or not style else f"\033[{_CODES[COLOURS[style]]}m{line}\033[0m"
