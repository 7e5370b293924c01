"""Makes the plans of specs that have a root other than the host's, or layers.

It unpacks roots and layers, looks at what is in them, and passes that to :mod:`.stacking`, which
decides without looking at anything.
"""

from __future__ import annotations

import ctypes
import stat
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Final, final

from ..layers.session import Sources
from ..linux.errors import LayerError, Unavailable
from ..linux.mountinfo import is_below
from ..linux.untouched import os
from ..plan.decide import host_root, is_system
from ..plan.model import EMPTY, Assemble, Bind, Features, Host, Overlay, Plan, Upper, User
from ..plan.spec import SandboxSpec, SpecError
from ..plan.stacking import Foreign, Spread, plan_foreign, plan_layered
from .python_runtime import Runtime, survey_runtime
from .rootfs_contents import find_root_contents

#: How many lowers a root may have. The kernel takes 500 (OVL_MAX_STACK of fs/overlayfs); the others
#: are left for layers that are added while tests run.
_MOST_LOWERS: Final = 490


@final
class RootPlanner:
    """Makes the plans of those specs of a session that have a root of their own, or layers.

    ``sources`` unpacks them.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._runtime: Runtime | None = None

    def unpack(self, spec: SandboxSpec, features: Features) -> None:
        """Unpack the root and the layers of ``spec``.

        Raises :class:`SandboxError` if one of them cannot be read; :meth:`plan` raises it as well.
        """
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
        run_directories: Collection[str],
        in_user_namespace: bool,
    ) -> Plan:
        """The plan of ``spec``.

        If its root is the host's, the targets of its volumes must be without symbolic links.
        ``user`` is the user that the test process becomes. ``project`` is the directory that must
        be importable, and ``run_directories`` are those of the run that tests may write to.
        ``in_user_namespace`` says that this process, an ordinary user's, has entered a user
        namespace already. Raises :class:`SandboxError` if there can be no such plan.
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
        # A test that wants an empty root and then writes to the project does so by mistake: there
        # the project is read-only.
        writable = [*run_directories] if minimal else [project, *run_directories]
        contents = find_root_contents(
            Plan(features.user_namespace, False, Upper("none"), root_filesystem, features),
            self._python_runtime(),
            projects=[project] if minimal else [],
            run_directories=[path for path in writable if not is_system(path)],
            targets=[*(v.target for v in spec.volumes), *(t.target for t in spec.tmpfs)],
            minimal=minimal,
            in_user_namespace=in_user_namespace,
        )
        for library in contents.preload:
            try:
                ctypes.CDLL(library)
            except OSError:
                # The extension module that needs it will fail with a better message.
                continue
        places = dict(contents.targets)
        spec = replace(
            spec,
            volumes=tuple(replace(v, target=places[v.target]) for v in spec.volumes),
            tmpfs=tuple(replace(t, target=places[t.target]) for t in spec.tmpfs),
        )
        foreign = Foreign(lowers, own[0], contents.pieces, contents.shown, contents.run_directories)
        return plan_foreign(spec, host, features, user, foreign)

    def _directories(self, sources: Iterable[str], features: Features) -> tuple[str, ...]:
        """The directories that ``sources`` are unpacked to, the topmost first.

        The last one of the sources is the topmost.
        """
        found: tuple[str, ...] = ()
        for source in sources:
            user = features.user_namespace
            found = (*self._sources.directories(source, user_namespace=user), *found)
        return found

    def _python_runtime(self) -> Runtime:
        if self._runtime is None:
            self._runtime = survey_runtime()
        return self._runtime


def _spread(layers: Sequence[str], host: Host, features: Features) -> Spread:
    """On which directories of the host's root the layers are stacked.

    Raises :class:`SandboxError` if that is not possible.
    """
    steps = host_root(host, features)
    overlays = [step.target for step in steps if isinstance(step, Overlay | Assemble)]
    for mount in host.mounts[1:]:
        _check_mountpoint(mount.mountpoint, layers)
    covered = [path for path in host.files if any(os.path.lexists(d + path) for d in layers)]
    extra = _extra_directories(layers, host, steps) if features.user_namespace else []
    parts = {place: tuple(_parts(layers, place)) for place in [*overlays, *extra]}
    return Spread(parts, tuple(extra), covered)


def _parts(layers: Iterable[str], place: str) -> list[str]:
    """The directories that layers have at ``place``."""
    return [layer + place.rstrip("/") for layer in layers if _has_directory(layer, place)]


def _has_directory(layer: str, path: str) -> bool:
    """Whether ``layer`` has a directory at ``path`` that is reached without symbolic links."""
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
    """Raise :class:`LayerError` if a layer has something else where the host mounts on ``path``.

    The directory or file that is mounted on must be there.
    """
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
                    cause=f"it has something other than a directory at {place}, but the host has a"
                    f" mount at {path}",
                    remedy=f"remove {place} from the layer",
                )


def _step_over(path: str, steps: Sequence[object]) -> object:
    """The step that mounts what ``path`` lies on."""
    over = [step for step in steps if isinstance(step, Overlay | Assemble | Bind)]
    over = [step for step in over if path == step.target or is_below(path, step.target)]
    return max(over, key=lambda step: len(step.target), default=None)


def _extra_directories(layers: Sequence[str], host: Host, steps: Sequence[object]) -> list[str]:
    """Directories to stack layers on that an ordinary user cannot write to.

    ``steps`` of the plan make no overlays for those. Raises :class:`Unavailable` if a layer has
    something in a directory that no overlay can be made for.
    """
    mixed = [step.target for step in steps if isinstance(step, Assemble)]
    points = [*(mount.mountpoint for mount in host.mounts), *host.dead]
    found: list[str] = []
    pending = ["/"]
    while pending:
        place = pending.pop()
        names = {name for layer in _parts(layers, place) for name in os.listdir(layer)}
        for name in sorted(names):
            path = os.path.join(place, name)
            if is_system(path) or isinstance(_step_over(path, steps), Overlay):
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
                    cause=f"the host has mounts in {place}, so an ordinary user's sandbox can stack"
                    f" layers on directories there, but cannot add anything to {place} itself",
                    remedy="run as root, put it into a directory that exists on the host and has no"
                    ' mounts in it, or use another root: root="minimal"',
                )
    return found
