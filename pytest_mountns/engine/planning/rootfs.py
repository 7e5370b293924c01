"""What tests stand on, if that is not the host's root alone: roots from elsewhere, and layers.

Looks at what the sources of a spec hold, and plans with that: see :mod:`.stacking`.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, final

from ..layers.session import Sources
from ..linux.errors import LayerError, Unavailable
from ..linux.mountinfo import is_below
from ..plan.decide import host_root, is_system
from ..plan.model import EMPTY, Assemble, Features, Host, Overlay, Plan, Upper, User
from ..plan.spec import SandboxSpec, SpecError
from ..plan.stacking import Foreign, Spread, plan_foreign, plan_layered
from .python_runtime import Runtime, survey_runtime
from .rootfs_contents import furnish

_MOST_LOWERS: Final = 490


@final
class RootFilesystems:
    """Plans for the specs of one session that have a root or layers. ``sources``: theirs."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._runtime: Runtime | None = None

    def prepare(self, spec: SandboxSpec, features: Features) -> None:
        """Unpack what the spec needs. Raises :class:`SandboxError`, as :meth:`plan` does then."""
        self._directories(spec.layers, features)
        if spec.root not in ("host", "minimal"):
            self._directories([spec.root], features)

    def plan(
        self,
        spec: SandboxSpec,
        host: Host,
        features: Features,
        user: User | None,
        *,
        project: str,
        kept: Collection[str],
        settled: bool,
    ) -> Plan:
        """The plan of ``spec``, whose volumes have targets without links if its root is the host's.

        ``project``: what has to be importable. ``kept``: directories of the run that tests write
        to. ``user``: who the spec's is. ``settled``: an ordinary user's process lives in a user
        namespace already. Raises :class:`SandboxError`.
        """
        layers = self._directories(spec.layers, features)
        if spec.root == "host":
            spread = _spread(layers, host, features)
            return plan_layered(spec, host, features, user, spread)
        minimal = spec.root == "minimal"
        own = (EMPTY,) if minimal else self._directories([spec.root], features)
        lowers = (*layers, *own)
        if len(lowers) > _MOST_LOWERS:
            raise SpecError(
                f"root={spec.root!r} has {len(lowers)} layers",
                remedy=f"flatten the image: OverlayFS takes no more than {_MOST_LOWERS}",
            )
        root_filesystem = (Overlay("/", lowers, "0", model=own[0]),)
        # In an empty root, to write to the project is a mistake to be found.
        writable = [*kept] if minimal else [project, *kept]
        furniture = furnish(
            Plan(features.user_namespace, False, Upper("none"), root_filesystem, features),
            self._survey(),
            projects=[project] if minimal else [],
            kept=[path for path in writable if not is_system(path)],
            targets=[*(v.target for v in spec.volumes), *(t.target for t in spec.tmpfs)],
            minimal=minimal,
            settled=settled,
        )
        for library in furniture.preload:
            try:
                ctypes.CDLL(library)
            except OSError:
                # Whoever needs it will say so, and better.
                continue
        places = dict(furniture.targets)
        spec = replace(
            spec,
            volumes=tuple(replace(v, target=places[v.target]) for v in spec.volumes),
            tmpfs=tuple(replace(t, target=places[t.target]) for t in spec.tmpfs),
        )
        foreign = Foreign(lowers, own[0], furniture.pieces, furniture.shown, furniture.kept)
        return plan_foreign(spec, host, features, user, foreign)

    def _directories(self, sources: Iterable[str], features: Features) -> tuple[str, ...]:
        """Topmost first; of several sources, the last is on top."""
        found: tuple[str, ...] = ()
        for source in sources:
            user = features.user_namespace
            found = (*self._sources.directories(source, user_namespace=user), *found)
        return found

    def _survey(self) -> Runtime:
        if self._runtime is None:
            self._runtime = survey_runtime()
        return self._runtime


def _spread(layers: Sequence[str], host: Host, features: Features) -> Spread:
    """Where the layers go on the host's root."""
    steps = host_root(host, features)
    overlays = [step.target for step in steps if isinstance(step, Overlay | Assemble)]
    for mount in host.mounts[1:]:
        _check_mountpoint(mount.mountpoint, layers)
    covered = [path for path in host.files if any(os.path.lexists(d + path) for d in layers)]
    extra = _beside(layers, host, steps) if features.user_namespace else []
    places = [*overlays, *extra]
    parts = {place: tuple(_parts(layers, place)) for place in places}
    return Spread(parts, tuple(extra), covered)


def _parts(layers: Iterable[str], place: str) -> list[str]:
    return [layer + place.rstrip("/") for layer in layers if _has_directory(layer, place)]


def _has_directory(layer: str, path: str) -> bool:
    """Whether it has, without a link on the way."""
    at = layer
    for name in path.strip("/").split("/"):
        at = os.path.join(at, name) if name else at
        try:
            if not stat.S_ISDIR(os.lstat(at).st_mode):
                return False
        except OSError:
            return False
    return True


def _check_mountpoint(path: str, layers: Iterable[str]) -> None:
    """A layer cannot take away, or turn into something else, what the host mounts on."""
    if is_system(path):
        return
    parts = path.strip("/").split("/")
    for layer in layers:
        at = layer
        for depth, name in enumerate(parts):
            at = os.path.join(at, name)
            last = depth == len(parts) - 1
            try:
                mode = os.lstat(at).st_mode
            except OSError:
                break
            if not stat.S_ISDIR(mode) and not (last and stat.S_ISREG(mode)):
                place = "/" + "/".join(parts[: depth + 1])
                raise LayerError(
                    f"stack {layer} on the host's root",
                    cause=f"it has something else than a directory at {place}, and the host has a"
                    f" mount at {path}",
                    remedy="leave that out of the layer",
                )


def _beside(layers: Sequence[str], host: Host, steps: Sequence[object]) -> list[str]:
    """Directories that an ordinary user cannot write to, and that layers have something for."""
    whole = [step.target for step in steps if isinstance(step, Overlay)]
    mixed = [step.target for step in steps if isinstance(step, Assemble)]
    points = [*(mount.mountpoint for mount in host.mounts), *host.dead]
    found: list[str] = []
    pending = ["/"]
    while pending:
        place = pending.pop()
        names = {name for layer in _parts(layers, place) for name in os.listdir(layer)}
        for name in sorted(names):
            path = os.path.join(place, name)
            if is_system(path) or path in whole:
                continue
            is_directory = os.path.isdir(path) and not os.path.islink(path)
            if is_directory and bool(_parts(layers, path)):
                if any(is_below(point, path) for point in points):
                    pending.append(path)
                    continue
                if place in mixed and path not in points:
                    continue
                found.append(path)
            elif place not in mixed:
                raise Unavailable(
                    f"put {path} of a layer on the host's root",
                    cause=f"an ordinary user's sandbox can stack layers on directories in {place},"
                    f" but add nothing to {place} itself, in which the host has mounts",
                    remedy="run as root, put it into a directory that is there and has no mounts"
                    ' in it, or use another root: root="minimal"',
                )
    return found
