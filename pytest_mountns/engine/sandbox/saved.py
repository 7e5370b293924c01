"""Saved layers as the base of sandboxes: what a test had written, on the same mounts again.

They are unpacked into a tmpfs that no mount namespace shows. A cache on the host's disk would not
do: the host's ``/`` is a lower as well, and OverlayFS refuses (ELOOP) a lower that lies in another
one.
"""

from __future__ import annotations

import dataclasses
import errno
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
from ..linux.untouched import os
from ..plan.model import Assemble, Overlay, Plan
from ..plan.spec import SandboxSpec
from .manager import SandboxManager
from .sandbox import Layers, Sandbox

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@final
@dataclass(frozen=True, slots=True)
class SavedLayer:
    """The archive of a layer, and the digests that it must have."""

    #: A descriptor of the archive.
    fd: int
    #: Its size in bytes.
    size: int
    #: The digest of the archive as it is, "sha256:...".
    digest: str
    #: The digest of the archive when it is decompressed.
    diff_id: str


def base_layers_spec(spec: SandboxSpec) -> SandboxSpec:
    """Returns the spec of the base layers' plan, for sandboxes of ``spec``."""
    return dataclasses.replace(spec.of_wider_scope(), upper="memory", size=None, inodes=None)


def make_base_layers(manager: SandboxManager, plan: Plan, saved: Sequence[SavedLayer]) -> Layers:
    """Unpack saved layers, to be lowers of sandboxes that this process makes.

    ``saved`` begins with the lowest layer. ``plan`` is that of :func:`base_layers_spec`. The layers
    exist as long as this process. Raises :class:`Unavailable` before Linux 6.15,
    :class:`LayerError` if an archive is not what it should be, and :class:`SandboxError` if it
    cannot be unpacked.
    """
    if not plan.features.layered_uppers:
        raise Unavailable(
            "begin on a saved layer",
            cause="before Linux 6.15 no overlay takes a lower on a mount that is in no namespace",
            remedy="Linux 6.15 or later; before, look at it otherwise: pytest-mountns diff, or"
            " export",
        )
    base = manager.make(plan, shared=False)
    user = plan.user_namespace
    with privileged(user):
        try:
            for number, layer in enumerate(saved):
                os.mkdir(f"saved{number}", 0o755, dir_fd=base.scratch)
                _unpack(layer, base.scratch, f"saved{number}", user)
        except OSError as error:
            raise SandboxError("unpack a saved layer", said(error)) from error
        lowers = {
            place: tuple(
                f"/proc/self/fd/{base.scratch}/{name}"
                for number in reversed(range(len(saved)))
                if (name := _find(base, f"saved{number}", place))
            )
            for place in _mountpoints(plan)
        }
    scratches = frozenset({base.scratch})
    layers = Layers({k: v for k, v in lowers.items() if v}, base.namespace, scratches)
    # A sandbox that nobody writes in shows what they add up to.
    view = manager.make(plan, layers=layers, shared=False)
    return Layers(layers.lowers, view.namespace, scratches)


def _unpack(layer: SavedLayer, scratch: int, name: str, user: bool) -> None:
    """Unpack a layer into the directory ``name``. Raises :class:`LayerError`, :class:`OSError`."""
    blob = Blob(layer.fd, 0, layer.size, layer.digest)
    section = blob.section()
    limits = Limits()
    fd = os.open(name, _DIRECTORY, dir_fd=scratch)
    try:
        with decompressed(section, tempfile.gettempdir()) as plain:
            stream = Stream(plain, section, limits)
            unpacked = unpack(stream, fd, "user" if user else "trusted", limits)
            if f"sha256:{stream.digest()}" != layer.diff_id:
                raise malformed("a layer does not have the digest that it should have")
        blob.verify(section)
    finally:
        os.close(fd)
    if unpacked.opaque:
        raise malformed("a layer replaces the whole root", "use it as a root, not as a layer")


def _mountpoints(plan: Plan) -> Iterable[str]:
    """The paths at which overlays may be mounted: each overlay has its own part of a layer."""
    for step in plan.steps:
        if isinstance(step, Overlay | Assemble):
            yield step.target
        if isinstance(step, Assemble):
            for name in os.listdir(step.target):
                yield f"{step.target}/{name}"


def _find(base: Sandbox, name: str, mountpoint: str) -> str:
    """The path from the scratch on to what a layer has for a mountpoint; "" if it has nothing.

    Raises :class:`LayerError` if the layer hides what is mounted there. Then nothing was mounted
    there when it was saved.
    """
    fd = os.open(name, _DIRECTORY, dir_fd=base.scratch)
    try:
        for part in filter(None, mountpoint.split("/")):
            # Links are not followed: they would lead to the host.
            try:
                step = os.open(part, _DIRECTORY, dir_fd=fd)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    return ""
                raise _hides(mountpoint, said(error)) from error
            os.close(fd)
            fd = step
        prefix = base.plan.features.xattr_prefix
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
