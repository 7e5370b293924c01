"""``pytest-mountns run``: runs any command in a throwaway root, then lists what it has changed."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any, Final, cast

from ...config import marker_keys
from ...engine.changes.render import text_of
from ...engine.linux.errors import SandboxError, said
from ...engine.plan.model import Plan
from ...engine.plan.spec import SandboxSpec, SpecError
from ...engine.sandbox.command import Ended
from ...repro import bundle
from ...repro.capture import save
from ...repro.store import Content, write
from .diff import coloured
from .sandboxed import SandboxedCommands, say

#: Keys of the marker that are options of the command, too.
_KEYS: Final = (
    "root",
    "layers",
    "volumes",
    "tmpfs",
    "size",
    "inodes",
    "upper",
    "read_only",
    "pid",
    "network",
    "hostname",
    "user",
    "devices",
)
#: The exit status if there is no sandbox, as timeout(1) and container engines have it.
FAILED: Final = 125


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments; the command to run comes after "--", see :mod:`..main`."""
    parser.add_argument(
        "--root",
        default="host",
        metavar="ROOT",
        help="a directory, a tar archive or an image in place of the host's root; minimal: only"
        " what Python and the current directory need",
    )
    parser.add_argument(
        "--layer",
        dest="layers",
        action="append",
        default=[],
        metavar="LAYER",
        help="a directory or a tar archive over the root",
    )
    parser.add_argument(
        "--volume",
        dest="volumes",
        action="append",
        default=[],
        metavar="SRC:DST[:ro]",
        help="a host directory or file; what is written there stays",
    )
    parser.add_argument(
        "--tmpfs",
        action="append",
        default=[],
        metavar="PATH[:size=64m,mode=1777]",
        help="an empty tmpfs",
    )
    parser.add_argument("--size", metavar="SIZE", help="how much may be written: 64m, 1g")
    parser.add_argument("--inodes", type=int, metavar="N", help="how many files may be made")
    parser.add_argument(
        "--upper",
        choices=("memory", "disk"),
        default="memory",
        help="where what is written is stored",
    )
    parser.add_argument("--read-only", action="store_true", help="the root refuses writes")
    parser.add_argument("--pid", action="store_true", help="a PID namespace of its own")
    parser.add_argument(
        "--network",
        choices=("host", "none"),
        default="host",
        help="none: only a loopback interface",
    )
    parser.add_argument("--hostname", metavar="NAME", help="the host name in the sandbox")
    parser.add_argument(
        "--user",
        type=lambda text: int(text) if text.isdecimal() else text,
        default="keep",
        help="root, or (for root) the user it runs as",
    )
    parser.add_argument(
        "--device",
        dest="devices",
        action="append",
        default=[],
        metavar="PATH",
        help="a device node of the host to show",
    )
    parser.add_argument("--keep", metavar="DIR", help="write a bundle to DIR, which must not exist")
    parser.add_argument("--quiet", action="store_true", help="do not list the changes")


def run(options: argparse.Namespace) -> int:
    """Run the command.

    Returns its exit status, 128 + N if signal N has ended it, or 125 if it never ran.
    """
    try:
        return _run(options)
    except SandboxError as error:
        say(str(error))
        return FAILED


def _run(options: argparse.Namespace) -> int:
    spec = _spec(options)
    keep = None if options.keep is None else os.path.abspath(options.keep)
    if keep is not None:
        _check_place(keep)
    cwd = os.getcwd()
    before = dict(os.environ)
    commands = SandboxedCommands()
    with commands.run(options.command, spec, cwd=cwd, environment=before) as ended:
        if not options.quiet:
            with ended.remains.changes() as changes:
                text = "\n".join(text_of(changes))
            for line in coloured(text, sys.stderr):
                say(line)
        if keep is not None:
            _keep(keep, options.command, spec, commands.planner.plan(spec), ended, cwd)
        return ended.status


def _spec(options: argparse.Namespace) -> SandboxSpec:
    """The spec of the options. Raises :class:`SandboxError` if one is not valid."""
    wanted = {name: getattr(options, name) for name in _KEYS}
    try:
        read = {name: marker_keys.read(name, value, Path.cwd()) for name, value in wanted.items()}
    except (TypeError, ValueError) as error:
        raise SpecError(str(error)) from error
    return SandboxSpec(**cast("dict[str, Any]", read))


def _check_place(path: str) -> None:
    """Check, before the command runs, that a bundle can be written there."""
    if os.path.lexists(path):
        raise SandboxError(
            f"write a bundle to {path}", cause="it is there already", remedy="choose another name"
        )
    parent = os.path.dirname(path)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise SandboxError(
            f"write a bundle to {path}",
            cause=f"{parent} is not there, or cannot be written",
            remedy="make the directory first, or choose another place",
        )


def _keep(
    path: str, command: list[str], spec: SandboxSpec, plan: Plan, ended: Ended, cwd: str
) -> None:
    """Write the bundle. Raises :class:`SandboxError` if that fails."""
    try:
        saved = save([ended.remains], os.path.dirname(path))
        try:
            variables, left_out = bundle.environment(os.environ)
            made = bundle.Repro(
                kind="command",
                name=shlex.join(command),
                outcome=f"status {ended.status}",
                written=bundle.now(),
                run="",
                interpreter=[],
                argv=command,
                cwd=cwd,
                root=cwd,
                environment=variables,
                left_out=left_out,
                seeds={},
                spec=bundle.spec_data(spec),
                plan=plan.describe().splitlines(),
                layers=[bundle.layer_data(one) for one in saved.layers],
                notes=saved.notes,
                **bundle.conditions(),
            )
            write(path, made, Content(saved.texts, saved.files))
        finally:
            saved.close()
    except OSError as error:
        raise SandboxError(f"write a bundle to {path}", said(error)) from error
