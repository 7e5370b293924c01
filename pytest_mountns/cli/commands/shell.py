"""``pytest-mountns shell``: look around where a test has ended."""

from __future__ import annotations

import argparse
import dataclasses
import os

from ...engine.changes.diffs import printable
from ...engine.plan.spec import SandboxSpec
from ...repro.bundle import copied, load, spec_from
from .sandboxed import Stage, say


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory in .mountns")


def run(options: argparse.Namespace) -> int:
    """A shell in the state that was saved. Its exit status. Raises :class:`SandboxError`."""
    bundle = load(options.bundle)
    bundle.own_layers()
    made = bundle.repro
    kept, _ = copied(made.left_out, os.environ)
    program = os.environ.get("SHELL") or "/bin/sh"
    environment = {**made.environment, **kept, "MOUNTNS_SHELL": bundle.path}
    # Of this terminal, not of the one that the test ran on.
    environment |= {name: os.environ[name] for name in ("TERM", "SHELL") if name in os.environ}
    what = printable(f"{made.name} ({made.outcome} {made.written})")
    say(f"shell: {what}, in a copy: nothing of it stays")
    command, spec = [program], harmless(spec_from(made.spec))
    with Stage().run(command, spec, cwd=made.cwd, environment=environment, saved=bundle) as ended:
        return ended.status


def harmless(spec: SandboxSpec) -> SandboxSpec:
    """Of the test's, without what would keep a shell from writing, or let it write on the host.

    Volumes that are gone are left out.
    """
    volumes = tuple(
        dataclasses.replace(volume, read_only=True)
        for volume in spec.volumes
        if os.path.exists(volume.source)
    )
    # What an ordinary user's process shows itself as takes a user namespace that was not saved.
    user = "keep" if spec.user == "root" else spec.user
    return dataclasses.replace(
        spec, volumes=volumes, read_only=False, size=None, inodes=None, pid=False, user=user
    )
