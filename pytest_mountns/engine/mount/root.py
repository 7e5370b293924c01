"""Builds roots in mount namespaces of their own; nobody is in there yet.

From nothing, or in a copy of a :class:`.template.Template`'s namespace.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

from ..linux import syscalls as sys
from ..linux.errno_advice import explain
from ..linux.errors import Unavailable, said
from ..linux.namespaces import current_namespace, explained, high, mounting
from ..plan.model import Bind, Features, Layered, Plan
from .api import MountApi
from .classic_api import ClassicMountApi
from .executor import Building, open_scratch
from .new_api import DeferredMountApi, NewMountApi
from .template import Template


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """Uppers of a sandbox that another one goes on with: for each mountpoint its path.

    ``scratch`` is a descriptor of where they lie.
    """

    scratch: int
    uppers: Mapping[str, str]


@final
@dataclass(frozen=True, slots=True)
class Root:
    """``namespace`` is a descriptor of what shows it, ``scratch`` one of where its uppers lie.

    ``created``: what was made only to be mounted on. ``overlays``: where each is mounted, and its
    upper.
    """

    namespace: int
    scratch: int
    created: set[str]
    overlays: list[Layered]


def make_root(
    plan: Plan,
    stage: int,
    *,
    directory: str | None = None,
    again: bool = False,
    lowers: Mapping[str, tuple[str, ...]] | None = None,
    bound: Sequence[Bind] = (),
    template: Template | None = None,
    kept: Kept | None = None,
) -> Root:
    """A root as planned, on a copy of the stage's mounts. This thread stays where it is.

    ``lowers``: more of them for the overlay at a mountpoint. The rest: as for
    :func:`.create.make`. Raises :class:`SandboxError`.
    """
    with mounting(plan.user_namespace, dropped=plan.drops_capabilities) as (back, opened):
        with _possible(plan):
            back.leave_for(stage)
        if directory is not None and again:
            # Another root: an upper is never used twice.
            with explained("make a directory for an upper", plan.user_namespace):
                directory = tempfile.mkdtemp(dir=directory)
        if template is None:
            building = _build(plan, directory, lowers or {}, bound, opened, kept)
        else:
            building = _graft(plan, directory, lowers or {}, bound, opened, template)
    overlays = [Layered(o.target, building.uppers[o.target]) for o in building.overlays]
    namespace, scratch = opened
    return Root(namespace, scratch, building.created, overlays)


def make_root_filesystem(plan: Plan, stage: int) -> int:
    """A descriptor of a mount namespace that shows what a :attr:`.plan.Plan.ground` says.

    As :func:`make_root`. Raises :class:`SandboxError`.
    """
    root = make_root(plan, stage)
    os.close(root.scratch)
    return root.namespace


def mount_api_for(features: Features) -> MountApi:
    """The mount API of this machine, as :mod:`.probe.features` has found it."""
    if features.new_api:
        return NewMountApi(attach_scratch=not features.detached_uppers)
    return ClassicMountApi()


@contextmanager
def _possible(plan: Plan) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause, remedy = explain(error.errno or 0, plan.user_namespace, "namespace")
        raise Unavailable("make a mount namespace", said(error), cause, remedy) from error


def _build(
    plan: Plan,
    directory: str | None,
    lowers: Mapping[str, tuple[str, ...]],
    bound: Sequence[Bind],
    opened: list[int],
    kept: Kept | None,
) -> Building:
    """Build in a copy of this namespace and pivot. Adds the copy and the scratch to ``opened``.

    ``kept``: the uppers that it is to have.
    """
    with _possible(plan):
        sys.unshare(sys.CLONE_NEWNS)
        opened.append(current_namespace())
    with explained("read the mount table", plan.user_namespace, "proc"):
        api = mount_api_for(plan.features)
    try:
        with explained("make a root", plan.user_namespace):
            taken = high(os.dup(kept.scratch)) if kept else open_scratch(api, plan, directory)
            opened.append(scratch := high(taken))
            os.fchdir(scratch)
            building = Building(api, plan, lowers, kept.uppers if kept else None)
            building.carry_out([*plan.steps, *bound])
        with explained("pivot into the new root", plan.user_namespace, "pivot"):
            api.pivot_root()
    except BaseException:
        if api.root >= 0:
            os.close(api.root)
        raise
    return building


def _graft(
    plan: Plan,
    directory: str | None,
    lowers: Mapping[str, tuple[str, ...]],
    bound: Sequence[Bind],
    opened: list[int],
    template: Template,
) -> Building:
    """The same, in a copy of the template's namespace, for what the template has not."""
    api = DeferredMountApi()
    building = Building(api, plan, lowers)
    passing: list[int] = []
    try:
        with explained("make a root", plan.user_namespace):
            scratch = high(open_scratch(api, plan, directory))
            passing.append(scratch)
            os.fchdir(scratch)
            building.carry_out([*template.steps, *bound])
            passing.append(proc := os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        with _possible(plan):
            sys.setns(template.namespace, sys.CLONE_NEWNS)
            sys.unshare(sys.CLONE_NEWNS)
            namespace = os.open("thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            opened += [high(namespace), passing.pop(0)]
        with explained("put the root together", plan.user_namespace):
            passing.append(bench := os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
            api.attach_all(bench, template.tops)
    finally:
        api.close()
        for fd in passing:
            os.close(fd)
    return building
