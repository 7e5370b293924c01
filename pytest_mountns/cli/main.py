"""The command ``pytest-mountns``.

There is one function for each subcommand: it adds the parser, which names the function that runs
the subcommand. To add a subcommand, add a module to :mod:`.commands` and a line to
:data:`COMMANDS`.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

from ..engine.layers.cache import Cache
from ..engine.linux.errors import SandboxError
from ..reports import doctor
from .commands import diff, export, profiles, replay, run, shell

if TYPE_CHECKING:
    Subparsers: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0, 1 if it has failed, or 2 if its arguments are wrong."""
    parser = argparse.ArgumentParser(
        prog="pytest-mountns", description="Throwaway root filesystems for tests."
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in COMMANDS:
        add(subparsers)
    words = list(sys.argv[1:] if arguments is None else arguments)
    command: list[str] = []
    if words[:1] == ["run"] and "--" in words:
        # Versions of argparse differ in how they treat "--".
        place = words.index("--")
        words, command = words[:place], words[place + 1 :]
    options = parser.parse_args(words)
    if options.run is run.run:
        if not command:
            options.parser.error('no command; it comes after "--"')
        options.command = command
    try:
        status: int = options.run(options)
    except SandboxError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return status


def _doctor(subparsers: Subparsers) -> None:
    """``doctor``: what works here."""
    parser = subparsers.add_parser(
        "doctor", help="say what works here, and which commands help where it does not"
    )
    parser.add_argument("--json", action="store_true", help="print the facts as JSON")
    parser.set_defaults(run=lambda options: doctor.main(["--json"] * options.json))


def _run(subparsers: Subparsers) -> None:
    """``run``: any command in a throwaway root."""
    parser = subparsers.add_parser(
        "run",
        help="run a command in a throwaway root, then list what it has changed",
        usage="pytest-mountns run [options] -- COMMAND ...",
    )
    run.arguments(parser)
    parser.set_defaults(run=run.run, parser=parser)


class _Module(Protocol):
    """A command that has a module of its own."""

    @property
    def arguments(self) -> Callable[[argparse.ArgumentParser], None]: ...

    @property
    def run(self) -> Callable[[argparse.Namespace], int]: ...


def _of(module: _Module, name: str, text: str) -> Callable[[Subparsers], None]:
    def add(subparsers: Subparsers) -> None:
        parser = subparsers.add_parser(name, help=text)
        module.arguments(parser)
        parser.set_defaults(run=module.run)

    return add


def _cache(subparsers: Subparsers) -> None:
    """``cache``: the layers that were unpacked from archives and images."""
    parser = subparsers.add_parser("cache", help="layers unpacked from archives and images")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    ls = commands.add_parser("ls", help="list them, the longest unused first")
    ls.add_argument("--json", action="store_true", help="as a JSON document")
    ls.set_defaults(run=_list_layers)

    prune = commands.add_parser(
        "prune",
        help="remove those not used for a while",
        description="Remove layers not used for a while, and what killed processes left."
        " Layers in use stay.",
    )
    age = prune.add_mutually_exclusive_group()
    age.add_argument(
        "--unused-for",
        type=_days,
        default=30.0,
        metavar="DAYS",
        help="how long they must not have been used (default: 30)",
    )
    age.add_argument(
        "--all", action="store_const", const=0.0, dest="unused_for", help="all that are not in use"
    )
    prune.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    prune.set_defaults(run=_prune_layers)


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < 1e6:
        raise argparse.ArgumentTypeError(f"{text} is no number of days")
    return days


def _list_layers(options: argparse.Namespace) -> int:
    cache = Cache()
    entries = cache.entries()
    if options.json:
        document = {"directory": cache.directory, "layers": [asdict(entry) for entry in entries]}
        print(json.dumps(document, indent=2))
        return 0
    print(f"{cache.directory}: {len(entries)} layers, {_size(sum(e.bytes for e in entries))}")
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        mark = "in use" if entry.in_use else used
        # The kind of overlay, and as much of the digest as tells them apart.
        form, _, digest = entry.name.split("-", 2)
        print(f"{form:8} {digest[:12]} {_size(entry.bytes):>10} {mark:16} {entry.source}")
    return 0


def _prune_layers(options: argparse.Namespace) -> int:
    cache = Cache()
    before = {entry.name: entry.bytes for entry in cache.entries()}
    removed = cache.prune(options.unused_for, dry_run=options.dry_run)
    for name in removed:
        print(name)
    freed = _size(sum(before.get(name, 0) for name in removed))
    word = "would be removed" if options.dry_run else "removed"
    print(f"{len(removed)} {word}, {freed}")
    return 0


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


#: Every command, in the order of the help.
COMMANDS: Final[tuple[Callable[[Subparsers], None], ...]] = (
    _run,
    _of(replay, "replay", "run a saved test again, under the same conditions"),
    _of(shell, "shell", "start a shell in the root filesystem that a saved test has left"),
    _of(diff, "diff", "list what a saved test has changed"),
    _of(export, "export", "write what a saved test has written as an OCI archive"),
    _of(profiles, "profiles", "list the profiles in pyproject.toml"),
    _cache,
    _doctor,
)
