"""Subordinate ids: further uids and gids for a user namespace of an ordinary user's.

By himself a user can map one uid and one gid, user_namespaces(7). The set-user-ID programs
newuidmap(1) and newgidmap(1) map the ranges that subuid(5) and subgid(5) give to that user. Only a
process in the parent namespace can run them, so a process that enters a namespace forks one that
stays behind and does it.
"""

from __future__ import annotations

import pwd
import shutil
from collections.abc import Callable
from typing import Final, NamedTuple, final

from . import syscalls
from .errors import Unavailable, said
from .processes import fork, reap
from .untouched import _signal, open, os

_PROGRAMS: Final = ("newuidmap", "newgidmap")
_FILES: Final = ("/etc/subuid", "/etc/subgid")
#: Seconds after which such a program is ended.
_TIMEOUT: Final = 20
#: How many ids are mapped at most: as many as login.defs(5) gives to a user.
_MOST: Final = 65536
_WHAT: Final = "map subordinate ids"
_INSTALL: Final = "sudo apt install uidmap, or dnf install shadow-utils"


class Range(NamedTuple):
    """One line of a map: ids of the namespace, and those of its parent that they stand for."""

    inside: int
    outside: int
    length: int


@final
class IdMaps(NamedTuple):
    """The maps of a namespace in which the user is root, and has further ids."""

    uids: tuple[Range, ...]
    gids: tuple[Range, ...]


def find_maps() -> IdMaps:
    """The maps that this user may have.

    Raises :class:`Unavailable` if the programs are missing or no ranges are given to the user.
    """
    for program in _PROGRAMS:
        if shutil.which(program) is None:
            raise Unavailable(_WHAT, cause=f"{program} is not installed", remedy=_INSTALL)
    names = {str(os.geteuid())}
    try:
        names.add(pwd.getpwuid(os.geteuid()).pw_name)
    except KeyError:
        # Ranges may be given to the number, too.
        pass
    found = []
    for file, own in zip(_FILES, (os.geteuid(), os.getegid()), strict=True):
        try:
            with open(file, encoding="utf-8", errors="replace") as lines:
                ranges = parse(lines.read(), names)
        except OSError:
            ranges = []
        if not ranges:
            user = sorted(names)[-1]
            option = "--add-subuids" if file == _FILES[0] else "--add-subgids"
            raise Unavailable(
                _WHAT,
                cause=f"{file} gives no range to user {user}",
                remedy=f"sudo usermod {option} 100000-165535 {user}",
            )
        found.append(as_map(own, ranges))
    return IdMaps(*found)


def parse(text: str, names: set[str]) -> list[tuple[int, int]]:
    """The ranges of a user, subuid(5): of each the first id and how many there are."""
    ranges = []
    for line in text.splitlines():
        name, *numbers = line.strip().split(":")
        if name in names and len(numbers) == 2 and all(number.isdigit() for number in numbers):
            ranges.append((int(numbers[0]), int(numbers[1])))
    return ranges


def as_map(own: int, ranges: list[tuple[int, int]]) -> tuple[Range, ...]:
    """A map that shows ``own`` as 0, and the ranges from 1 on."""
    found = [Range(0, own, 1)]
    for start, count in ranges:
        first = found[-1].inside + found[-1].length
        count = min(count, _MOST - first)
        if count > 0:
            found.append(Range(first, start, count))
    return tuple(found)


def enter_mapped(maps: IdMaps, enter: Callable[[], object]) -> None:
    """Call ``enter``, which enters a user namespace, and have its ids mapped from outside.

    Raises what ``enter`` raises, :class:`OSError` if there can be no process for it, and
    :class:`Unavailable` if the programs refuse.
    """
    go_reader, go_writer = os.pipe()
    said_reader, said_writer = os.pipe()
    target = os.getpid()
    try:
        child = fork()
        if child == 0:
            os.close(go_writer)
            _map_when_told(maps, target, go_reader, said_writer)
        os.close(said_writer)
        said_writer = -1
        try:
            enter()
            os.write(go_writer, b"x")
        finally:
            os.close(go_writer)
            go_writer = -1
            answer = b""
            while piece := os.read(said_reader, 1 << 16):
                answer += piece
            reap(child)
    finally:
        for fd in (go_reader, go_writer, said_reader, said_writer):
            if fd >= 0:
                os.close(fd)
    if answer != b"mapped":
        raise Unavailable(
            _WHAT,
            answer.decode(errors="replace") or "the process that was to do it has ended",
            "the programs have no rights here, as in a container, or another user has the ranges",
            "ls -l $(which newuidmap newgidmap); cat /etc/subuid /etc/subgid",
        )


def _map_when_told(maps: IdMaps, target: int, reader: int, writer: int) -> None:
    """In the process that stays behind: run the programs, whose errors go to ``writer``."""
    try:
        # No handler of the test process's Python may run. SIGALRM ends this process.
        syscalls.block_all_signals()
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        # Where it is ignored, the kernel drops the status of a program that has ended, wait(2).
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGALRM})
        _signal.alarm(_TIMEOUT)
        if os.read(reader, 1):
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            streams = [(os.POSIX_SPAWN_DUP2, fd, n) for n, fd in enumerate((null, writer, writer))]
            for program, ranges in zip(_PROGRAMS, (maps.uids, maps.gids), strict=True):
                numbers = [str(number) for one in ranges for number in one]
                arguments = [program, str(target), *numbers]
                child = os.posix_spawnp(program, arguments, os.environ, file_actions=streams)
                if os.waitpid(child, 0)[1]:
                    os.write(writer, f"{program} has failed".encode())
                    return
            os.write(writer, b"mapped")
    except Exception as error:  # noqa: BLE001 - for the other process to say
        text = said(error) if isinstance(error, OSError) else repr(error)
        os.write(writer, text.encode()[:1000])
    finally:
        syscalls.exit_now(0)
