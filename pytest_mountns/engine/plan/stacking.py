"""Plans of sandboxes with another root than the host's, or with layers on the host's root.

It makes no system call, as :mod:`.decide`.

Another root is one overlay. What has to be there of the host is mounted in it: what Python needs as
read-only binds, and directories of the run (the project, the parent of ``tmp_path``) as overlays.
The upper contains their mountpoints from the start: see :class:`.model.Piece`.

A layer on the host's root is spread over the host's mounts: if it has a directory at the mountpoint
of an overlay, that directory becomes a lower of the overlay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from ..linux.mountinfo import is_below, owning
from .decide import below_uppers, complete, host_root, mount_attributes, system_trees
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
    """Another root than the host's."""

    #: Its directories, the topmost first.
    lowers: tuple[str, ...]
    #: The one of them whose attributes ``/`` gets.
    model: str
    #: What the upper contains from the start.
    pieces: tuple[Piece, ...] = ()
    #: Paths of the host that are shown read-only, and where.
    shown: tuple[tuple[str, str], ...] = ()
    #: Paths of the host that are shown as overlays, and where.
    kept: tuple[tuple[str, str], ...] = ()


@final
@dataclass(frozen=True, slots=True)
class Spread:
    """Layers on the host's root, spread over its mounts."""

    #: For the mountpoint of each overlay: what the layers have there, the topmost first.
    parts: Mapping[str, tuple[str, ...]]
    #: Further directories that layers are stacked on; none of them contains a mount.
    extra: tuple[str, ...] = ()
    #: Files that the layers have in the place of mounted ones.
    covered: Collection[str] = ()


def plan_foreign(
    spec: SandboxSpec,
    host: Host,
    features: Features,
    user: User | None,
    foreign: Foreign,
) -> Plan:
    """The plan of ``spec`` in another root."""
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
        # The bind of the host's own root shows it already; here it has to be mounted.
        steps.append(Bind("/sys", "/sys", read_only=True))
    shown = [Bind(source, target, read_only=True) for source, target in foreign.shown]
    steps += sorted([*shown, *kept], key=lambda step: getattr(step, "target", ""))
    return complete(spec, steps, features, user, root_filesystem=[root, *kept])


def _kept(source: str, target: str, host: Host, features: Features, number: int) -> list[Step]:
    """The steps for a directory of the host and what is mounted below it."""
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
                steps.append(step._replace(target=place, name=name))
            case Bind():
                steps.append(step._replace(target=place))
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
    """The plan of ``spec`` on the host's root with layers."""
    rooted: list[Step] = []
    for step in host_root(host, features):
        match step:
            case Overlay(target, lowers):
                parts = spread.parts.get(target, ())
                rooted.append(step._replace(lowers=(*parts, *lowers), model=_model(target, lowers)))
            case Assemble(target):
                rooted.append(step._replace(layers=spread.parts.get(target, ())))
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
    return complete(spec, steps, features, user, root_filesystem=below_uppers(rooted))


def _model(target: str, lowers: Sequence[str]) -> str:
    """Whose attributes an overlay gets: a layer's directories have their own, ``/`` the host's."""
    return lowers[0] if target == "/" else ""
