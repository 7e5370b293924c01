"""``pytest-mountns replay``: runs the test of a bundle again, under its conditions."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from ...engine.changes.diffs import printable
from ...engine.linux.errors import SandboxError, said
from ...repro.bundle import Bundle, copied, differences, load
from .sandboxed import say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory in .mountns")
    parser.add_argument(
        "--root",
        metavar="ROOT",
        help="run it in another root: a directory, a tar archive or an image",
    )
    parser.add_argument(
        "--from-end",
        action="store_true",
        help="begin with what the test had written, instead of a fresh root",
    )


def run(options: argparse.Namespace) -> int:
    """Replace this process by pytest. Raises :class:`SandboxError` if that is not possible."""
    bundle = load(options.bundle)
    made = bundle.repro
    if made.kind != "test":
        raise SandboxError(
            f"replay {bundle.path}",
            cause=f"it was made of a command, not of a test: {made.name}",
            remedy=f"pytest-mountns run -- {made.name}",
        )
    more = []
    if options.root is not None:
        # Made absolute before the working directory changes.
        known = options.root in ("host", "minimal")
        more.append(f"--mountns-root={options.root if known else os.path.abspath(options.root)}")
    if options.from_end:
        bundle.own_layers()
        more.append("--mountns-from-end")
    set_here, missing = copied(made.left_out, os.environ)
    for line in preface(bundle, missing):
        # A bundle may come from anybody, and a terminal obeys control characters.
        say(printable(line))
    try:
        os.chdir(made.cwd)
        os.execve(
            sys.executable,
            [
                *(sys.executable, *made.interpreter, "-p", "pytest_mountns.cli.replay_plugin"),
                *("--mountns-replay", bundle.path, *more, *made.argv),
            ],
            {**made.environment, **set_here},
        )
    except OSError as error:
        raise SandboxError(
            f"replay {bundle.path}",
            said(error),
            f"{made.cwd} is not there, where pytest was started"
            if not os.path.isdir(made.cwd)
            else "the arguments and the environment in the bundle cannot be passed on",
            f"put the project where it was when the bundle was made: {made.root}",
        ) from error


def preface(bundle: Bundle, missing: list[str]) -> Iterator[str]:
    """Lines that say what is run, and how this machine differs from the one in the bundle."""
    made = bundle.repro
    yield f"replay: {made.name} ({made.outcome} {made.written})"
    for line in differences(made):
        yield f"  {line}"
    if missing:
        yield f"  not in the bundle, and not set here: {', '.join(missing)}"
