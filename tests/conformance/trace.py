"""What a run leaves on the host: mounts, and files where the suites like to put them."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

Entry = tuple[int, int, int]
"""Mode, size and time of change; directories have neither size nor time."""

# pytest makes its numbered directories before the first test, in the process that the user
# started; bytecode of a suite's own modules is written while they are collected, likewise. The
# directory of Hypothesis is a volume.
PYTESTS_OWN = re.compile(r"/pytest-of-[^/]+(/|$)|/__pycache__(/|$)|/\.hypothesis(/|$)")


@dataclass(frozen=True)
class Snapshot:
    mounts: frozenset[str]
    own: dict[str, Entry] = field(default_factory=dict)
    """Everything below the directories that only the run uses."""
    shared: frozenset[str] = frozenset()
    """Names near the top of directories that others use meanwhile, too."""


@dataclass(frozen=True)
class Trace:
    """What is there, or is other, after a run."""

    certain: list[str]
    """Nobody else could have done it."""
    possible: list[str]
    """New where other processes write as well."""


def take(own: Sequence[Path], shared: Sequence[Path], *, skip: Sequence[Path] = ()) -> Snapshot:
    return Snapshot(
        mounts=frozenset(Path("/proc/self/mountinfo").read_text().splitlines()),
        own=dict(whole_trees(own)),
        shared=frozenset(near_the_top(shared, skip)),
    )


def whole_trees(tops: Iterable[Path]) -> Iterator[tuple[str, Entry]]:
    for top in tops:
        for directory, names, files in os.walk(top):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                if PYTESTS_OWN.search(path):
                    continue
                found = os.lstat(path)
                if stat.S_ISDIR(found.st_mode):
                    yield path, (found.st_mode, 0, 0)
                else:
                    yield path, (found.st_mode, found.st_size, found.st_mtime_ns)


def near_the_top(tops: Iterable[Path], skip: Sequence[Path], depth: int = 3) -> Iterator[str]:
    for top in tops:
        for directory, names, files in os.walk(top):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                if not PYTESTS_OWN.search(path):
                    yield path
            deep = len(Path(directory).relative_to(top).parts) + 1 >= depth
            names[:] = [] if deep else [n for n in names if Path(directory, n) not in skip]


def compare(before: Snapshot, after: Snapshot, allowed: Sequence[str] = ()) -> Trace:
    certain = [f"mount gone: {line}" for line in sorted(before.mounts - after.mounts)]
    certain += [f"mount new: {line}" for line in sorted(after.mounts - before.mounts)]
    for path in topmost(after.own.keys() - before.own.keys()):
        if not any(fnmatchcase(path, pattern) for pattern in allowed):
            certain.append(f"left behind: {path}")
    certain += [f"deleted: {path}" for path in topmost(before.own.keys() - after.own.keys())]
    certain += [
        f"changed: {path}"
        for path in sorted(before.own.keys() & after.own.keys())
        if before.own[path] != after.own[path]
    ]
    return Trace(certain, [f"new: {path}" for path in topmost(after.shared - before.shared)])


def topmost(paths: Iterable[str]) -> list[str]:
    """Without what lies below another one of them."""
    found: list[str] = []
    for path in sorted(paths, key=lambda path: path.split("/")):
        if not (found and path.startswith(found[-1] + "/")):
            found.append(path)
    return found
