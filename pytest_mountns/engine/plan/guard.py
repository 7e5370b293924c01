"""What a guarded test may write: decisions over data, without a system call.

A guard is for machines on which no sandbox can be made. A test then runs on the host itself, in a
process that Landlock keeps from writing anywhere but in some places. What it writes there stays.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, final

from ..linux.mountinfo import is_below
from .spec import SandboxSpec

#: What every program writes to: the usual devices, terminals, and POSIX shared memory, in which the
#: locks of ``multiprocessing`` lie (shm_overview(7)).
DEVICES: Final = (
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
    *("/dev/tty", "/dev/ptmx", "/dev/pts", "/dev/shm"),
)
#: Keys that a guard fulfils, or that mean nothing without an upper. Every other key, if it is set,
#: needs a sandbox.
_FULFILLED: Final = frozenset({"process", "volumes", "upper", "writes", "network", "tmp_path"})


@final
@dataclass(frozen=True, slots=True)
class GuardPlan:
    """What a guard allows."""

    #: Directories, with everything below, and files.
    places: tuple[str, ...]
    #: Globs that stand for the files that match them when the guard is made.
    globs: tuple[str, ...] = ()
    #: Whether TCP is forbidden.
    no_network: bool = False


def why_sandbox(spec: SandboxSpec, *, network: bool) -> str:
    """Why a guard is not enough for a test of this spec; "" if it is.

    ``network``: whether the guards of this machine can forbid TCP.
    """
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if field.name not in _FULFILLED and value != field.default:
            return f"{field.name}={value!r} needs a sandbox"
    for volume in spec.volumes:
        if volume.source != volume.target:
            return f"the volume {volume} has another place in the sandbox than on the host"
    if spec.network == "none" and not network:
        return 'network="none" needs a sandbox, or Linux 6.7'
    return ""


def plan_guard(spec: SandboxSpec, run_places: Sequence[str]) -> GuardPlan:
    """What a test of this spec may write. ``run_places`` are of the test run: tmp_path, cache."""
    volumes = [volume.source for volume in spec.volumes if not volume.read_only]
    trees, globs = split_globs(spec.writes or ())
    places = dict.fromkeys((*run_places, *volumes, *trees, *DEVICES))
    return GuardPlan(tuple(places), tuple(globs), spec.network == "none")


def split_globs(globs: Iterable[str]) -> tuple[list[str], list[str]]:
    """Of the globs of ``writes=``, those that are a path or a whole tree, as paths; the others.

    Landlock knows files and trees that exist, and no patterns.
    """
    trees: list[str] = []
    others: list[str] = []
    for glob in globs:
        path = glob.rstrip("/").removesuffix("/**") or "/"
        if not re.search(r"[*?[]", path):
            trees.append(path)
        elif path.startswith("/"):
            others.append(glob)
    return trees, others


def is_allowed(path: str, places: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``places`` or lies below one. All are absolute, without links."""
    return any(path == place or is_below(path, place) for place in places)
