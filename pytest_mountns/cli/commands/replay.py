"""``pytest-mountns replay``: the test of a bundle once more, under the conditions of then."""

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
    """What the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory in .mountns")
    parser.add_argument(
        "--root",
        metavar="ROOT",
        help="in another root: a directory, a tar archive or an image",
    )
    parser.add_argument(
        "--from-end",
        action="store_true",
        help="begin with what the test had written then, in place of a fresh root",
    )


def run(options: argparse.Namespace) -> int:
    """Become pytest. Raises :class:`SandboxError` if that cannot be."""
    bundle = load(options.bundle)
    made = bundle.repro
    if made.kind != "test":
        raise SandboxError(
            f"replay {bundle.path}",
            cause=f"it is of a command: {made.name}",
            remedy=f"pytest-mountns run -- {made.name}",
        )
    more = []
    if options.root is not None:
        # Before the working directory is another.
        known = options.root in ("host", "minimal")
        more.append(f"--mountns-root={options.root if known else os.path.abspath(options.root)}")
    if options.from_end:
        bundle.own_layers()
        more.append("--mountns-from-end")
    kept, missing = copied(made.left_out, os.environ)
    for line in preface(bundle, missing):
        # A bundle may come from anywhere, and a terminal obeys.
        say(printable(line))
    try:
        os.chdir(made.cwd)
        os.execve(
            sys.executable,
            [
                *(sys.executable, *made.interpreter, "-p", "pytest_mountns.cli.replay_plugin"),
                *("--mountns-replay", bundle.path, *more, *made.argv),
            ],
            {**made.environment, **kept},
        )
    except OSError as error:
        raise SandboxError(
            f"replay {bundle.path}",
            said(error),
            f"{made.cwd} is not there, where pytest was started"
            if not os.path.isdir(made.cwd)
            else "the arguments and the environment of then cannot be passed on",
            "have the project at the same place as then",
        ) from error


def preface(bundle: Bundle, missing: list[str]) -> Iterator[str]:
    """What is to be known before: what is run, and what is otherwise than then."""
    made = bundle.repro
    yield f"replay: {made.name} ({made.outcome} {made.written})"
    for line in differences(made):
        yield f"  {line}"
    if missing:
        yield f"  not in the bundle, and not set here: {', '.join(missing)}"
