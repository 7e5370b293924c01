"""The handle of a sandbox: to move in, to read what was written, to fetch host directories into it.

:func:`.create.make` makes them, and :mod:`.stack` starts them afresh.

Things that do not work, and so are not done here:

* Keeping a descriptor of the old root: ``fchdir`` and ``/proc/self/fd`` would lead out. What is
  kept is a descriptor of a mount *namespace*, the stage, which no path leads into.
* Emptying an upper under a live overlay: undefined by the kernel's documentation. A reset makes
  a new root and enters that; a checkpoint makes one whose lower is the upper so far, and goes
  back to the old one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, final

from ..changes.changes import Changes
from ..changes.compare import read_changes
from ..changes.entries import Contents, Side
from ..linux import syscalls as sys
from ..linux.errors import SandboxError, Unavailable
from ..linux.namespaces import (
    change_directory,
    explained,
    give_up,
    go,
    high,
    privileged,
    root_of,
    signals_held,
    visiting,
    working_directory,
)
from ..linux.open_directories import Opened, open_directories, reopen
from ..mount.mountpoint import make_mountpoint
from ..mount.new_api import set_read_only
from ..mount.root import ReusedUppers, mount_root_filesystem
from ..mount.template import Template
from ..plan.model import Bind, Layered, Plan

if TYPE_CHECKING:
    from ..layers.layer_writer import WrittenLayer
    from ..layers.tar_writer import Compression


@final
@dataclass(frozen=True, slots=True)
class Layers:
    """Uppers of other sandboxes that lie below one, over the root of its plan.

    ``uppers``: for the mountpoint of an overlay its additional lowers, topmost first. ``view``: a
    descriptor of a mount namespace that shows what they add up to. ``scratches``: the descriptors
    that the paths in ``uppers`` go through.
    """

    uppers: Mapping[str, tuple[str, ...]]
    view: int
    scratches: frozenset[int]


@final
@dataclass(frozen=True, slots=True)
class Usage:
    """What was written takes ``bytes`` of memory or disk, and ``inodes``: deletions need them, too.

    Of a file that was changed, all of it.
    """

    bytes: int
    inodes: int


@final
@dataclass(slots=True)
class Sandbox:
    """A root in a mount namespace.

    ``namespace`` is a descriptor of that; ``scratch`` one of where the uppers lie, and ``stage``
    one of a namespace with the host's mounts. ``template`` is what it was made from, ``base`` one
    without overlays, for what is made from it. ``created`` are the paths that were made only to be
    mounted on; ``overlays`` where each overlay is mounted, and its upper below ``scratch``.
    ``borrowed``: scratches of templates that it has uppers in.
    """

    plan: Plan
    stage: int
    namespace: int
    scratch: int
    directory: str | None = None
    layers: Layers | None = None
    template: Template | None = None
    base: Template | None = None
    created: set[str] = field(default_factory=set)
    overlays: list[Layered] = field(default_factory=list)
    bound: list[Bind] = field(default_factory=list)
    borrowed: frozenset[int] = frozenset()

    def join(
        self,
        cwd: str,
        directories: Sequence[Opened] | None = None,
        kin: Sequence[Sandbox] = (),
    ) -> None:
        """Move this thread in, with ``cwd`` as working directory, or ``/`` if that is not there.

        The open directories of the process are then those of the sandbox; they are looked for
        unless given, and what ``kin`` need is left. The process shares them with its other
        threads. Raises :class:`SandboxError`.
        """
        if directories is None:
            own = set().union(*(one.own_directories for one in (self, *kin)))
            directories = open_directories(own)
        user_namespace = self.plan.user_namespace
        with signals_held(), privileged(self.plan.drops_capabilities):
            with explained("enter the sandbox", user_namespace, "namespace"):
                go(self.namespace)
            with explained("open directories again in the sandbox", user_namespace):
                reopen(directories)
                change_directory(cwd)

    def foreign_directories(self) -> list[Opened]:
        """The open directories of this process that are not the sandbox's own."""
        return open_directories(self.own_directories)

    @property
    def own_directories(self) -> set[int]:
        """Descriptors of directories that belong to the sandbox and lead nowhere else."""
        own = {self.scratch, *(self.layers.scratches if self.layers else ())}
        templates = {one.scratch for one in (self.template, self.base) if one is not None}
        return own | templates | self.borrowed

    @property
    def descriptors(self) -> tuple[int, int]:
        """What keeps it: it is gone when these are closed and the last process in it has ended."""
        return self.namespace, self.scratch

    def leave_to_child(self) -> None:
        """A process forked since will enter. It unmounts all when it ends, and this one does not.

        The uppers can be read here as long as their descriptor is open, by another one: the last
        to close the one that fsmount(2) gave waits for a grace period of the kernel. Raises
        :class:`OSError`.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        own = high(os.open(f"/proc/self/fd/{self.scratch}", flags))
        os.close(self.namespace)
        os.close(self.scratch)
        self.namespace, self.scratch = -1, own

    def close(self) -> None:
        """Let go of it. The last to do so waits until everything in it is unmounted."""
        for fd in self.descriptors:
            if fd >= 0:
                os.close(fd)

    def changes(self) -> Changes:
        """Everything the uppers add, modify, replace, delete or re-label against what is below.

        What they hold can be read until the next :meth:`become`. Raises :class:`SandboxError` if
        what is below cannot be looked at.
        """
        dropped = self.plan.drops_capabilities
        user = self.plan.user_namespace
        overlays = self.overlays

        @contextmanager
        def trees(side: Side) -> Iterator[int]:
            if self.overlays is not overlays:
                raise SandboxError("read changes", cause="the sandbox was reset since")
            tree = self._below() if side == "before" else nullcontext(self.scratch)
            with privileged(dropped), tree as fd:
                yield fd

        # Or what the test has made unreadable to itself would be left out.
        with (
            privileged(dropped),
            self._below() as lower,
            explained("read the changes", user),
        ):
            return read_changes(
                [*overlays, *self.touched()],
                upper_fd=self.scratch,
                lower_fd=lower,
                xattr_prefix=self.plan.features.xattr_prefix,
                ignore=self.created,
                contents=Contents(trees),
            )

    def write_layer(
        self, file: IO[bytes], *, compression: Compression, ignore: Collection[str] = ()
    ) -> WrittenLayer:
        """What the uppers hold, as an OCI layer: see :func:`.oci.write_layer`.

        ``ignore``: paths that are left out. Raises :class:`SandboxError`.
        """
        from ..layers.layer_writer import write_layer

        user = self.plan.user_namespace
        with (
            privileged(self.plan.drops_capabilities),
            self._below() as lower,
            explained("save what the sandbox has written", user),
        ):
            return write_layer(
                file,
                [*self.overlays, *self.touched()],
                upper_fd=self.scratch,
                lower_fd=lower,
                xattr_prefix=self.plan.features.xattr_prefix,
                compression=compression,
                ignore={*self.created, *ignore},
            )

    @contextmanager
    def _below(self) -> Iterator[int]:
        """A descriptor of the tree that the uppers lie over."""
        user = self.plan.user_namespace
        if self.layers is not None or self.plan.root_filesystem is None:
            with root_of(self.layers.view if self.layers else self.stage, user) as root:
                yield root
            return
        root_filesystem = mount_root_filesystem(self.plan.root_filesystem, self.stage)
        try:
            with root_of(root_filesystem, user) as root:
                yield root
        finally:
            os.close(root_filesystem)

    def usage(self) -> Usage:
        """What the uppers take. Raises :class:`SandboxError`."""
        entries: dict[tuple[int, int], int] = {}
        with (
            privileged(self.plan.drops_capabilities),
            explained("read what the uppers take", self.plan.user_namespace),
        ):
            for overlay in (*self.overlays, *self.touched()):
                pending = [os.path.join(f"/proc/self/fd/{self.scratch}", overlay.upper)]
                while pending:
                    with os.scandir(pending.pop()) as listing:
                        for entry in listing:
                            status = entry.stat(follow_symlinks=False)
                            entries[(status.st_dev, status.st_ino)] = 512 * status.st_blocks
                            if entry.is_dir(follow_symlinks=False):
                                pending.append(entry.path)
        return Usage(sum(entries.values()), len(entries))

    def touched(self) -> list[Layered]:
        """The overlays of the template that were written to."""
        if self.template is None:
            return []
        touched = self.template.written_overlays()
        return [one for one in self.template.absolute_overlays if one.mountpoint in touched]

    def reusable_uppers(self) -> ReusedUppers:
        """The uppers, for a sandbox that goes on with them. Raises :class:`SandboxError`."""
        with privileged(self.plan.drops_capabilities):
            own = (*self.overlays, *self.touched())
        return ReusedUppers(self.scratch, {one.mountpoint: one.upper for one in own})

    def as_layers(self) -> Layers:
        """What was written here, and what lies below, as lowers of other sandboxes."""
        below = self.layers.uppers if self.layers else {}
        # One of a template's is absolute already.
        here = f"/proc/self/fd/{self.scratch}"
        own = [replace(one, upper=os.path.join(here, one.upper)) for one in self.overlays]
        if self.template is not None:
            own += self.template.absolute_overlays
        uppers = {one.mountpoint: (one.upper, *below.get(one.mountpoint, ())) for one in own}
        scratches = self.layers.scratches if self.layers else frozenset()
        return Layers(uppers, self.namespace, scratches | {self.scratch} | self.borrowed)

    def moved_onto(self, under: Layers | None) -> Layers:
        """What was written here, as lowers over other layers than the sandbox was made on."""
        now = self.as_layers()
        before = self.layers.uppers if self.layers else {}
        below = under.uppers if under else {}
        uppers = {
            place: (*paths[: len(paths) - len(before.get(place, ()))], *below.get(place, ()))
            for place, paths in now.uppers.items()
        }
        return Layers(uppers, now.view, now.scratches | (under.scratches if under else frozenset()))

    def bind(self, source: str, target: str, *, read_only: bool = False) -> None:
        """Bind-mount the host's ``source`` at ``target``, now; writes persist on the host.

        Both absolute; a missing target is made. This thread is in the sandbox. Raises
        :class:`SandboxError`.
        """
        step = Bind(source, os.path.realpath(target), read_only, create=True)
        if not self.plan.features.new_api:
            raise Unavailable(
                step.describe(),
                cause="before Linux 5.12 a mount cannot be carried between namespaces",
                remedy='name it before the test starts: volumes=["SRC:DST"] of the marker',
            )
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        user_namespace = self.plan.user_namespace
        with (
            privileged(self.plan.drops_capabilities),
            explained(step.describe(), user_namespace, "bind"),
        ):
            with visiting(self.stage, user_namespace):
                tree = sys.open_tree(sys.AT_FDCWD, step.source, flags)
            root = -1
            try:
                root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                if step.read_only:
                    set_read_only(tree)
                is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
                make_mountpoint(root, step.target, directory=is_directory, created=self.created)
                sys.move_mount(tree, root, step.target[1:])
            finally:
                os.close(tree)
                if root >= 0:
                    os.close(root)
        self.bound.append(step)

    def join_again(self, cwd: str, kin: Sequence[Sandbox]) -> None:
        """:meth:`join`, to go on in. What fails in there ends the process: see :func:`give_up`."""
        try:
            self.join(cwd, kin=kin)
        except SandboxError as error:
            give_up(error)

    @contextmanager
    def on_stage(self) -> Iterator[None]:
        """Be among the host's mounts for a moment. Raises :class:`SandboxError`."""
        user = self.plan.user_namespace
        with privileged(self.plan.drops_capabilities), visiting(self.stage, user):
            yield

    def become(self, other: Sandbox, kin: Sequence[Sandbox] = ()) -> None:
        """Enter ``other``, whose descriptors are this object's from now on.

        Raises :class:`SandboxError`; the sandbox is then as it was.
        """
        try:
            other.join(working_directory(), kin=(*kin, self))
        except BaseException:
            other.close()
            raise
        self.close()
        self.namespace, self.scratch = other.namespace, other.scratch
        self.created, self.overlays = other.created, other.overlays
        self.layers, self.directory = other.layers, other.directory
        self.template, self.base, self.plan = other.template, other.base, other.plan
        self.borrowed |= other.borrowed
