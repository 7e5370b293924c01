"""Plans of sandboxes with another root than the host's, or with layers on that.

Pure, as :mod:`.decide`.

A root from elsewhere is one overlay, and in it what of the host has to be there: what Python
needs as read-only binds, directories of the run (the project, the base of ``tmp_path``) as
overlays. The places to mount on are there from the start, in the upper: see :class:`.plan.Piece`.

A layer on the host's root is spread over the mounts: of each overlay it becomes a lower as far as
it has a directory at that place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from ..linux.mountinfo import is_below, owning
from .decide import complete, host_root, mount_attributes, system_trees
from .model import (
    PSEUDO,
    Assemble,
    Bind,
    Features,
    Host,
    Overlay,
    Piece,
    Plan,
    Seed,
    Step,
    User,
)
from .spec import SandboxSpec


@final
@dataclass(frozen=True, slots=True)
class Foreign:
    """A root from elsewhere.

    ``lowers``: its directories, topmost first. ``model``: the one whose attributes ``/`` has.
    ``pieces``: of its upper. ``shown``: paths of the host, and where they are shown read-only;
    ``kept``: those that are overlays.
    """

    lowers: tuple[str, ...]
    model: str
    pieces: tuple[Piece, ...] = ()
    shown: tuple[tuple[str, str], ...] = ()
    kept: tuple[tuple[str, str], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Spread:
    """Layers on the host's root. Directories of layers are topmost first.

    ``parts``: for a mountpoint of an overlay, those that the layers have there. ``extra``: further
    directories that layers are stacked on, none of which contains a mount. ``covered``: files
    that the layers have in place of mounted ones.
    """

    parts: Mapping[str, tuple[str, ...]]
    extra: tuple[str, ...] = ()
    covered: Collection[str] = ()


def plan_foreign(
    spec: SandboxSpec,
    host: Host,
    features: Features,
    user: User | None,
    foreign: Foreign,
) -> Plan:
    """The plan of ``spec`` in a root from elsewhere."""
    owners = [owning(host.mounts, lower) for lower in foreign.lowers]
    attributes = 0
    for owner in owners:
        attributes |= mount_attributes(owner) if owner else 0
    root = Overlay("/", foreign.lowers, "0", attributes, foreign.model, foreign.pieces)
    kept: list[Step] = []
    for source, target in foreign.kept:
        kept += _kept(source, target, host, features, len(kept))
    steps: list[Step] = [root, *system_trees(spec, host, features)]
    if features.user_namespace and host.has_sys:
        # In the host's own root it is there already.
        steps.append(Bind("/sys", "/sys", read_only=True))
    shown = [Bind(source, target, read_only=True) for source, target in foreign.shown]
    steps += sorted([*shown, *kept], key=lambda step: getattr(step, "target", ""))
    return complete(spec, steps, features, user, root_filesystem=[root, *kept])


def _kept(source: str, target: str, host: Host, features: Features, number: int) -> list[Step]:
    """A directory of the host and what is mounted below it, as in the host's own root."""
    owner = owning(host.mounts, source)
    attributes = mount_attributes(owner) if owner else 0
    inner = [step for step in host_root(host, features)[1:] if _is_in(step, source)]
    points = [mount.mountpoint for mount in host.mounts if is_below(mount.mountpoint, source)]
    if owner and (owner.read_only or owner.fstype in PSEUDO or source in host.unlayerable):
        return [Bind(source, target, read_only=True)]
    steps: list[Step] = []
    if not features.user_namespace or not points:
        steps.append(Overlay(target, (source,), f"k{number}", attributes))
        inner = [] if not points else inner
    else:
        names = tuple(sorted({point[len(source) + 1 :].partition("/")[0] for point in points}))
        dead = tuple(name for name in names if f"{source}/{name}" in host.dead)
        if source == target:
            steps.append(Assemble(target, f"k{number}", names, dead, attributes))
        else:
            return [Bind(source, target, read_only=True)]
    for step in inner:
        place = target + getattr(step, "target", "")[len(source) :]
        match step:
            case Overlay() | Assemble():
                name = f"k{number}.{step.name}"
                steps.append(replace(step, target=place, name=name))
            case Bind():
                steps.append(replace(step, target=place))
            case _:
                continue
    return steps


def _is_in(step: Step, directory: str) -> bool:
    return is_below(getattr(step, "target", ""), directory)


def plan_layered(
    spec: SandboxSpec,
    host: Host,
    features: Features,
    user: User | None,
    spread: Spread,
) -> Plan:
    """The plan of ``spec`` on the host's root, with layers on that."""
    rooted: list[Step] = []
    for step in host_root(host, features):
        match step:
            case Overlay(target, lowers):
                parts = spread.parts.get(target, ())
                rooted.append(replace(step, lowers=(*parts, *lowers), model=_model(target, lowers)))
            case Assemble(target):
                rooted.append(replace(step, layers=spread.parts.get(target, ())))
            case Seed(path) if path in spread.covered:
                continue
            case _:
                rooted.append(step)
    for number, path in enumerate(spread.extra):
        owner = owning(host.mounts, path)
        attributes = mount_attributes(owner) if owner else 0
        lowers = (*spread.parts[path], path)
        rooted.append(Overlay(path, lowers, f"x{number}", attributes))
    if spread.extra:
        rooted[1:] = sorted(rooted[1:], key=lambda step: getattr(step, "target", ""))
    steps = [*rooted, *system_trees(spec, host, features)]
    return complete(spec, steps, features, user, root_filesystem=_ground(rooted))


def _model(target: str, lowers: Sequence[str]) -> str:
    """A layer says how its directories are, but not how the root is that it is put on."""
    return lowers[0] if target == "/" else ""


def _ground(steps: Sequence[Step]) -> list[Step]:
    """As they are before anything is written: a file that is copied for a sandbox, as it is."""
    return [
        Bind(step.path, step.path, read_only=True) if isinstance(step, Seed) else step
        for step in steps
    ]
