"""``pytest-mountns shell``: a shell in the root filesystem that a test has left."""

from __future__ import annotations

import argparse
import dataclasses
import os

from ...engine.changes.diffs import printable
from ...engine.plan.spec import SandboxSpec
from ...repro.bundle import copied, load, spec_from
from .sandboxed import SandboxedCommands, say


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory in .mountns")


def run(options: argparse.Namespace) -> int:
    """Run a shell on what was saved. Returns its exit status.

    Raises :class:`SandboxError` if the bundle cannot be read or used.
    """
    bundle = load(options.bundle)
    bundle.own_layers()
    made = bundle.repro
    set_here, _ = copied(made.left_out, os.environ)
    program = os.environ.get("SHELL") or "/bin/sh"
    environment = {**made.environment, **set_here, "MOUNTNS_SHELL": bundle.path}
    # Those of this terminal, not of the one that the test ran on.
    environment |= {name: os.environ[name] for name in ("TERM", "SHELL") if name in os.environ}
    what = printable(f"{made.name} ({made.outcome} {made.written})")
    say(f"shell: {what}, in a copy: nothing of it stays")
    command, spec = [program], harmless(spec_from(made.spec))
    with SandboxedCommands().run(
        command, spec, cwd=made.cwd, environment=environment, saved=bundle
    ) as ended:
        return ended.status


def harmless(spec: SandboxSpec) -> SandboxSpec:
    """The spec of the test, changed so that a shell can write everywhere except on the host.

    Volumes become read-only, and those whose source is gone are left out.
    """
    volumes = tuple(
        dataclasses.replace(volume, read_only=True)
        for volume in spec.volumes
        if os.path.exists(volume.source)
    )
    # An ordinary user is root in a user namespace of the test, which was not saved.
    user = "keep" if spec.user == "root" else spec.user
    return dataclasses.replace(
        spec, volumes=volumes, read_only=False, size=None, inodes=None, pid=False, user=user
    )
