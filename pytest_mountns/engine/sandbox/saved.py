"""Layers that were saved, under sandboxes again: as they were over the same mounts.

They are unpacked into a tmpfs that no namespace shows. Not into a cache on the host's disk: with
the host's ``/`` among the lowers too, overlayfs refuses a lower that lies in another one (ELOOP).
"""

from __future__ import annotations

import dataclasses
import errno
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, final

from ..layers.images import Blob
from ..layers.limits import Limits
from ..layers.streams import Stream, decompressed
from ..layers.unpack import unpack
from ..linux.errors import LayerError, SandboxError, Unavailable, malformed, said
from ..linux.namespaces import privileged
from ..plan.model import Assemble, Overlay, Plan
from ..plan.spec import SandboxSpec
from .manager import SandboxManager
from .sandbox import Layers, Sandbox

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
@dataclass(frozen=True, slots=True)
class Source:
    """The archive of a layer: an open file of ``size`` bytes, and the digests it must have."""

    fd: int
    size: int
    digest: str
    diff_id: str


def base_layers_spec(spec: SandboxSpec) -> SandboxSpec:
    """The spec of the plan that :func:`lay` wants, for sandboxes of ``spec``."""
    return dataclasses.replace(spec.of_wider_scope(), upper="memory", size=None, inodes=None)


def lay(manager: SandboxManager, plan: Plan, sources: Sequence[Source]) -> Layers:
    """Saved layers, the lowest first, as lowers of sandboxes that this process makes.

    ``plan``: of :func:`floor_spec`. What is made lasts as long as this process. Raises
    :class:`SandboxError`.
    """
    if not plan.features.layered_uppers:
        raise Unavailable(
            "begin on a saved layer",
            cause="before Linux 6.15 no overlay takes a lower on a mount that is in no namespace",
            remedy="look at it otherwise: pytest-mountns diff, or export",
        )
    base_layers = manager.make(plan, shared=False)
    user = plan.user_namespace
    with privileged(user):
        try:
            for number, source in enumerate(sources):
                os.mkdir(f"saved{number}", 0o755, dir_fd=base_layers.scratch)
                _unpack(source, base_layers.scratch, f"saved{number}", user)
        except OSError as error:
            raise SandboxError("unpack a saved layer", said(error)) from error
        uppers = {
            place: tuple(
                f"/proc/self/fd/{base_layers.scratch}/{name}"
                for number in reversed(range(len(sources)))
                if (name := _found(base_layers, f"saved{number}", place))
            )
            for place in _mountpoints(plan)
        }
    scratches = frozenset({base_layers.scratch})
    layers = Layers({k: v for k, v in uppers.items() if v}, base_layers.namespace, scratches)
    # A sandbox that nobody writes in shows what they add up to.
    view = manager.make(plan, layers=layers, shared=False)
    return Layers(layers.uppers, view.namespace, scratches)


def _unpack(source: Source, scratch: int, name: str, user: bool) -> None:
    """Raises :class:`LayerError`, :class:`OSError`."""
    blob = Blob(source.fd, 0, source.size, source.digest)
    section = blob.section()
    limits = Limits()
    fd = os.open(name, _DIRECTORY, dir_fd=scratch)
    try:
        with decompressed(section, tempfile.gettempdir()) as plain:
            stream = Stream(plain, section, limits)
            unpacked = unpack(stream, fd, "user" if user else "trusted", limits)
            if f"sha256:{stream.digest()}" != source.diff_id:
                raise malformed("a layer does not have the digest that it should have")
        blob.verify(section)
    finally:
        os.close(fd)
    if unpacked.opaque:
        raise malformed("a layer replaces the whole root", "use it as a root, not as a layer")


def _mountpoints(plan: Plan) -> Iterable[str]:
    """Where overlays may be mounted: each of them has its own part of a layer."""
    for step in plan.steps:
        if isinstance(step, Overlay | Assemble):
            yield step.target
        if isinstance(step, Assemble):
            for name in os.listdir(step.target):
                yield f"{step.target}/{name}"


def _found(base_layers: Sandbox, name: str, mountpoint: str) -> str:
    """The directory for a mountpoint in a saved layer, from the scratch on; "" if it has none.

    Raises :class:`LayerError` if it hides what is mounted there: where it was made, nothing was.
    """
    fd = os.open(name, _DIRECTORY, dir_fd=base_layers.scratch)
    try:
        for part in filter(None, mountpoint.split("/")):
            # Never through a link: it would lead to the host.
            try:
                step = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return ""
                raise _hides(mountpoint, said(error)) from error
            os.close(fd)
            fd = step
        prefix = base_layers.plan.features.xattr_prefix
        if mountpoint != "/" and f"{prefix}opaque" in os.listxattr(fd):
            raise _hides(mountpoint, "")
    finally:
        os.close(fd)
    return f"{name}/{mountpoint.strip('/')}".rstrip("/")


def _hides(mountpoint: str, kernel: str) -> LayerError:
    return LayerError(
        f"use a saved layer below {mountpoint}",
        kernel,
        f"it replaces {mountpoint}, which has a layer of its own here: it was saved on a machine"
        " with other mounts, or by another user",
        "use it where it was saved",
    )
