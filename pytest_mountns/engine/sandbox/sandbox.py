"""One sandbox: entered, bind-mounted into, read, and replaced by another one.

:func:`.create.make` makes sandboxes, and :mod:`.stack` resets them and makes checkpoints.

Things that do not work, and so are not done here:

* Holding a descriptor of the old root: ``fchdir`` and ``/proc/self/fd`` would lead out of the
  sandbox. What is held is a descriptor of a mount *namespace*, the stage, which no path leads into.
* Emptying an upper under a mounted overlay: the result is undefined, see "Changes to underlying
  filesystems" in Documentation/filesystems/overlayfs.rst. A reset makes a new root and enters it.
  A checkpoint makes one whose lower is the upper so far, and returns to the old one.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final, NamedTuple, final

from ..linux import syscalls as sys
from ..linux.attributes import copy_attributes
from ..linux.errors import SandboxError, Unavailable
from ..linux.mountinfo import is_below
from ..linux.namespaces import (
    change_directory,
    close_all,
    closed_on_error,
    despite_signals,
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
from ..linux.open_directories import Opened, is_open, open_directories, reopen
from ..linux.threads import StuckThread, explain_stuck, move_other_threads, stuck_threads
from ..linux.untouched import os
from ..mount.mountpoint import make_mountpoint
from ..mount.new_api import clone_own, seal
from ..mount.root import ReusedUppers, mount_root_filesystem
from ..mount.template import Template
from ..plan.model import Bind, Layered, MountTmpfs, OwnDirectory, Plan, UppersDescription

if TYPE_CHECKING:
    from ..changes.changes import Changes
    from ..changes.entries import Side
    from ..layers.layer_writer import WrittenLayer
    from ..layers.tar_writer import Compression
    from .uppers import Uppers


#: For the flags of statvfs(3) those of mount_setattr(2).
_ATTRIBUTES: Final = {
    os.ST_NOSUID: sys.MOUNT_ATTR_NOSUID,
    os.ST_NODEV: sys.MOUNT_ATTR_NODEV,
    os.ST_NOEXEC: sys.MOUNT_ATTR_NOEXEC,
    os.ST_NOATIME: sys.MOUNT_ATTR_NOATIME,
}


@final
class Layers(NamedTuple):
    """Uppers of other sandboxes that lie below a sandbox, on the lowers of its plan."""

    #: For the mountpoint of an overlay the directories that are its additional lowers, topmost
    #: first.
    lowers: Mapping[str, tuple[str, ...]]
    #: A descriptor of a mount namespace that shows what they and the root below them add up to.
    namespace: int
    #: The descriptors of directories that the paths in ``lowers`` go through.
    scratches: frozenset[int]


@final
class Usage(NamedTuple):
    """How much memory or disk space is used by what was written.

    A file that was changed counts as a whole, since OverlayFS copies it up as a whole.
    """

    #: Bytes, in allocated blocks.
    bytes: int
    #: Files, directories, links, and marks of deletions (whiteouts), which take an inode as well.
    inodes: int


@final
@dataclass(slots=True, eq=False, repr=False)
class Sandbox:
    """A root in a mount namespace of its own, and the uppers that take what is written there."""

    #: The plan that it was made from.
    plan: Plan
    #: A descriptor of a mount namespace that shows the host's mounts.
    stage: int
    #: A descriptor of the mount namespace in which the sandbox is the root.
    namespace: int
    #: A descriptor of the directory in which its uppers lie.
    scratch: int
    #: That directory on the host, for uppers on disk.
    directory: str | None = None
    #: What lies below its uppers, besides the lowers of the plan.
    layers: Layers | None = None
    #: The template that it was made from.
    template: Template | None = None
    #: The template that other sandboxes on its layers are made from.
    template_without_overlays: Template | None = None
    #: The paths in it that were made only to be mounted on.
    created: set[str] = field(default_factory=set)
    #: Its overlays, with uppers relative to ``scratch``, without those of the template.
    overlays: list[Layered] = field(default_factory=list)
    #: The bind mounts that were made in it after it was made.
    bound: list[Bind] = field(default_factory=list)
    #: Directories in it that were made mounts of their own. Each is one of ``overlays`` as well:
    #: what lies in it is read like an upper.
    own: list[OwnDirectory] = field(default_factory=list)
    #: Descriptors of other directories in which uppers of its overlays lie.
    other_scratches: frozenset[int] = frozenset()
    #: The numbers of directories that were open when the process entered from the host, and what
    #: each of them stands for now. What replaces this sandbox, or is stacked on it, has the same.
    reopened: dict[int, os.stat_result] = field(default_factory=dict)

    def enter(
        self,
        cwd: str,
        directories: Sequence[Opened] | None = None,
        others: Sequence[Sandbox] = (),
    ) -> None:
        """Move this process in, with ``cwd`` as working directory, or ``/`` if that is not there.

        All its threads move. Its open directories are opened again in the sandbox. ``directories``
        are those; who gives them holds all signals (:class:`.signals_held`). If it is None, they
        are looked for, and what this sandbox and ``others`` need is left alone. Raises
        :class:`SandboxError` if the kernel refuses it, or if a thread cannot move; the caller then
        returns to where it was.
        """
        if stuck := stuck_threads():
            raise explain_stuck(stuck)
        if stuck := self._enter(cwd, directories, others):
            raise explain_stuck(stuck)

    def _enter(
        self,
        cwd: str,
        directories: Sequence[Opened] | None,
        others: Sequence[Sandbox],
    ) -> list[StuckThread]:
        """Move in. Returns the threads that have not moved."""
        held = directories is not None
        if directories is None:
            own = set().union(*(one.own_directories for one in (self, *others)))
            directories = open_directories(own)
        user_namespace = self.plan.user_namespace
        signals = nullcontext() if held else signals_held()
        with signals, privileged(self.plan.drops_capabilities):
            with explained("enter the sandbox", user_namespace, "namespace"):
                go(self.namespace)
            with explained("open directories again in the sandbox", user_namespace):
                renewed = [fd for fd, inside in self.reopened.items() if is_open(fd, inside)]
                reopen(directories)
                self.reopened.update((fd, os.fstat(fd)) for fd in renewed)
                change_directory(cwd)
            return move_other_threads(
                self.namespace, raise_capabilities=self.plan.drops_capabilities
            )

    def reenter(self, cwd: str, others: Sequence[Sandbox]) -> None:
        """Enter the sandbox that the process was in before. If that fails, the process ends.

        It is in another root than the one in which it is to go on: see :func:`.give_up`. A thread
        that cannot move any more is left behind. What a handler of a signal raises meanwhile is
        raised when the process is there.
        """
        try:
            despite_signals(lambda: self._enter(cwd, None, others))
        except SandboxError as error:
            give_up(error)

    def replace_with(self, other: Sandbox, others: Sequence[Sandbox] = ()) -> None:
        """Enter the sandbox ``other``, which this object stands for from then on.

        ``others`` is as for :meth:`enter`. Raises :class:`SandboxError` if it cannot be entered;
        the process is then in the sandbox that it was in. What a handler of a signal raises may
        come from before or after: what this object stands for is where the process is.
        """
        old, cwd = (self.namespace, self.scratch), working_directory()
        other.reopened = self.reopened
        try:
            # A signal that comes meanwhile waits until this object stands for the other sandbox.
            with signals_held():
                other.enter(cwd, others=(*others, self))
                despite_signals(lambda: self._become(other))
        finally:
            is_replaced = self.namespace == other.namespace
            try:
                if not is_replaced:
                    # It may have moved already, and then a thread could not.
                    self.reenter(cwd, (*others, other))
            finally:
                close_all(old if is_replaced else other.take_descriptors())

    def _become(self, other: Sandbox) -> None:
        """Stand for ``other``. This may be begun again."""
        self.namespace, self.scratch = other.namespace, other.scratch
        self.created, self.overlays, self.own = other.created, other.overlays, other.own
        self.layers, self.directory, self.plan = other.layers, other.directory, other.plan
        self.template = other.template
        self.template_without_overlays = other.template_without_overlays
        self.other_scratches |= other.other_scratches

    def directories_to_reopen(self) -> list[Opened]:
        """The open directories of this process that :meth:`enter` opens again.

        Raises :class:`SandboxError` if they cannot be listed.
        """
        return open_directories(self.own_directories)

    @property
    def own_directories(self) -> set[int]:
        """Descriptors of directories in which only uppers lie: they lead nowhere else."""
        own = {self.scratch, *(self.layers.scratches if self.layers else ())}
        templates = (self.template, self.template_without_overlays)
        return own | {one.scratch for one in templates if one is not None} | self.other_scratches

    @property
    def shared_descriptors(self) -> set[int]:
        """Those that it uses, and that other sandboxes may use as well: of stage and template."""
        return {self.stage} | self.own_directories

    @property
    def is_open(self) -> bool:
        """Whether this process can enter it: neither closed nor left to another process."""
        return self.namespace >= 0

    def take_descriptors(self) -> tuple[int, int]:
        """Its descriptors, for the caller to close.

        The sandbox is gone when they are closed and the last process in it has ended.
        """
        taken = self.namespace, self.scratch
        self.namespace = self.scratch = -1
        return taken

    def leave_to_child(self) -> None:
        """Close this process's descriptor of the mount namespace, after the fork.

        The forked process, which enters the sandbox, then holds the last one. The mounts go away
        when it ends, and this process need not wait for that. This process can still read the
        uppers through another descriptor: the last one to close the descriptor from fsmount(2)
        waits for a grace period of the kernel. Raises :class:`OSError` if too many files are open.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        scratch = high(os.open(f"/proc/self/fd/{self.scratch}", flags))
        os.close(self.namespace)
        os.close(self.scratch)
        self.namespace, self.scratch = -1, scratch

    def close(self) -> None:
        """Close the descriptors. Whoever is the last to do so waits until all is unmounted."""
        close_all(fd for fd in self.take_descriptors() if fd >= 0)

    def changes(self) -> Changes:
        """Returns what the test has added, modified, replaced, deleted or re-labelled.

        What the changes hold can be read until the sandbox is reset. Raises :class:`SandboxError`
        if something cannot be read.
        """
        from ..changes.entries import Contents

        dropped = self.plan.drops_capabilities
        overlays = self.overlays

        @contextmanager
        def trees(side: Side) -> Iterator[int]:
            if self.overlays is not overlays:
                raise SandboxError("read changes", cause="the sandbox was reset since")
            tree = self._lower() if side == "before" else nullcontext(self.scratch)
            with privileged(dropped), tree as fd:
                yield fd

        # With all capabilities: a test may have made files unreadable to itself.
        with (
            privileged(dropped),
            self._lower() as lower,
            explained("read the changes", self.plan.user_namespace),
        ):
            return self._uppers().changes(lower, Contents(trees))

    def write_layer(
        self, file: IO[bytes], *, compression: Compression, ignore: Collection[str] = ()
    ) -> WrittenLayer:
        """Write what the test has written to ``file``, as a layer of an OCI image.

        ``ignore`` are paths that are left out. Raises :class:`SandboxError` if that fails.
        """
        with (
            privileged(self.plan.drops_capabilities),
            self._lower() as lower,
            explained("save what the sandbox has written", self.plan.user_namespace),
        ):
            return self._uppers().write_layer(file, lower, compression=compression, ignore=ignore)

    @contextmanager
    def _lower(self) -> Iterator[int]:
        """A descriptor of the root of the tree that the uppers lie on."""
        user = self.plan.user_namespace
        if self.layers is not None or self.plan.root_filesystem is None:
            with root_of(self.layers.namespace if self.layers else self.stage, user) as root:
                yield root
            return
        namespace = mount_root_filesystem(self.plan.root_filesystem, self.stage)
        try:
            with root_of(namespace, user) as root:
                yield root
        finally:
            os.close(namespace)

    def status_on_host(self, path: str) -> os.stat_result | None:
        """The status of an absolute path on the host; None if it is not there.

        Raises :class:`SandboxError` if the host cannot be looked at, as by a thread of several that
        share their working directory.
        """
        with root_of(self.stage, self.plan.user_namespace) as root:
            try:
                return os.stat(path.lstrip("/"), dir_fd=root, follow_symlinks=False)
            except OSError:
                return None

    def _uppers(self) -> Uppers:
        from .uppers import Uppers

        overlays = [*self.overlays, *self.written_template_overlays()]
        return Uppers(self.scratch, overlays, self.created, self.plan.features.xattr_prefix)

    def describe_uppers(self) -> UppersDescription:
        """Returns what another process has to know to read the uppers, besides the template's."""
        overlays = [(overlay.mountpoint, overlay.upper) for overlay in self.overlays]
        return UppersDescription(overlays, list(self.created))

    def usage(self) -> Usage:
        """Returns how much takes what was written. Raises :class:`SandboxError`."""
        entries: dict[tuple[int, int], int] = {}
        with (
            privileged(self.plan.drops_capabilities),
            explained("read what the uppers take", self.plan.user_namespace),
        ):
            for overlay in self._uppers().overlays:
                pending = [os.path.join(f"/proc/self/fd/{self.scratch}", overlay.upper)]
                while pending:
                    with os.scandir(pending.pop()) as listing:
                        for entry in listing:
                            status = entry.stat(follow_symlinks=False)
                            entries[(status.st_dev, status.st_ino)] = 512 * status.st_blocks
                            if entry.is_dir(follow_symlinks=False):
                                pending.append(entry.path)
        return Usage(sum(entries.values()), len(entries))

    def written_template_overlays(self) -> list[Layered]:
        """The overlays of the template that were written to, with absolute uppers.

        Raises :class:`SandboxError` if that cannot be found out.
        """
        if self.template is None:
            return []
        written = self.template.written_overlays()
        return [one for one in self.template.absolute_overlays if one.mountpoint in written]

    def reusable_uppers(self) -> ReusedUppers:
        """The uppers, for a sandbox that goes on with them. Raises :class:`SandboxError`."""
        with privileged(self.plan.drops_capabilities):
            overlays = self._uppers().overlays
        return ReusedUppers(self.scratch, {one.mountpoint: one.upper for one in overlays})

    def as_layers(self) -> Layers:
        """Returns what was written here and what lies below, as lowers of other sandboxes."""
        below = self.layers.lowers if self.layers else {}
        here = f"/proc/self/fd/{self.scratch}"
        own = [one._replace(upper=os.path.join(here, one.upper)) for one in self.overlays]
        if self.template is not None:
            own += self.template.absolute_overlays
        lowers = {one.mountpoint: (one.upper, *below.get(one.mountpoint, ())) for one in own}
        scratches = self.layers.scratches if self.layers else frozenset()
        return Layers(lowers, self.namespace, scratches | {self.scratch} | self.other_scratches)

    def as_layers_on(self, under: Layers | None) -> Layers:
        """Returns what was written here, on other layers than the sandbox was made on."""
        now = self.as_layers()
        before = self.layers.lowers if self.layers else {}
        below = under.lowers if under else {}
        lowers = {
            place: (*paths[: len(paths) - len(before.get(place, ()))], *below.get(place, ()))
            for place, paths in now.lowers.items()
        }
        scratches = now.scratches | (under.scratches if under else frozenset())
        return Layers(lowers, now.namespace, scratches)

    def bind(self, source: str, target: str, *, read_only: bool = False) -> None:
        """Bind-mount the host's ``source`` at ``target`` now; writes persist on the host.

        Both are absolute paths. A missing target is made. This thread is in the sandbox. Raises
        :class:`Unavailable` on kernels before Linux 5.12, and :class:`SandboxError` if the mount
        is refused.
        """
        step = Bind(source, os.path.realpath(target), read_only, create=True)
        if not self.plan.features.new_api:
            raise Unavailable(
                step.describe(),
                cause="before Linux 5.12 a mount cannot be carried between namespaces",
                remedy="Linux 5.12 or later; before, name it before the test starts:"
                ' volumes=["SRC:DST"] of the marker',
            )
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        user_namespace = self.plan.user_namespace
        with (
            privileged(self.plan.drops_capabilities),
            explained(step.describe(), user_namespace, "bind"),
        ):
            opened: list[int] = []
            try:
                with visiting(self.stage, user_namespace):
                    opened.append(tree := sys.open_tree(sys.AT_FDCWD, step.source, flags))
                opened.append(root := os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
                seal(tree, read_only=step.read_only)
                is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
                make_mountpoint(root, step.target, directory=is_directory, created=self.created)
                sys.move_mount(tree, root, step.target[1:])
            finally:
                close_all(opened)
        self.bound.append(step)

    def make_own(self, path: str) -> bool:
        """Make the empty directory ``path`` a mount of its own, without an overlay.

        It has the attributes that it had; what is written there is read with the rest, and counts
        for the limits of the upper. Nothing is done, and False returned, where ``path`` does not
        lie on an overlay of this sandbox: in a volume, on a tmpfs, or on what the test has mounted.

        This thread is in the sandbox, and ``path`` is absolute. Raises :class:`SandboxError` if the
        mount is refused.
        """
        target = os.path.realpath(path)
        attributes = self._attributes_on_overlay(target)
        if attributes is None:
            return False
        step = OwnDirectory(target, f"own{len(self.own)}", attributes)
        user_namespace = self.plan.user_namespace
        with (
            privileged(self.plan.drops_capabilities),
            explained(step.describe(), user_namespace, "bind"),
        ):
            opened: list[int] = []
            try:
                os.mkdir(step.name, 0o700, dir_fd=self.scratch)
                for place, at in ((target, None), (step.name, self.scratch)):
                    opened.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at))
                copy_attributes(*opened, own=True)
                opened.append(tree := self._clone_own(step))
                sys.move_mount(tree, sys.AT_FDCWD, target)
            finally:
                for fd in opened:
                    os.close(fd)
        self._note_own(step)
        return True

    def take_own(self, other: Sandbox, steps: Sequence[OwnDirectory]) -> None:
        """Mount directories of their own of ``other``, whose uppers this sandbox goes on with.

        This thread is in ``other``. Raises :class:`SandboxError` if a mount is refused.
        """
        user_namespace = self.plan.user_namespace
        for step in steps:
            with (
                privileged(self.plan.drops_capabilities),
                explained(step.describe(), user_namespace, "bind"),
            ):
                tree = other._clone_own(step)
                try:
                    with visiting(self.namespace, user_namespace):
                        sys.move_mount(tree, sys.AT_FDCWD, step.target)
                finally:
                    os.close(tree)
            self._note_own(step)

    def _note_own(self, step: OwnDirectory) -> None:
        self.own.append(step)
        self.overlays.append(Layered(step.target, step.name))

    def _clone_own(self, step: OwnDirectory) -> int:
        """Returns a descriptor of a new mount. Raises :class:`OSError`."""
        try:
            return clone_own(self.scratch, step.name, step.attributes)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        # A clone of a directory on disk is cloned again only in the namespace that it was made in:
        # in this one, or on the stage if the sandbox was made from a template.
        with closed_on_error() as opened, visiting(self.stage, self.plan.user_namespace):
            opened.append(tree := clone_own(self.scratch, step.name, step.attributes))
            return tree

    def _attributes_on_overlay(self, path: str) -> int | None:
        """The ``MOUNT_ATTR_*`` flags of the overlay that shows ``path``; None if none does."""
        shared = self.template.overlays if self.template is not None else ()
        places = (
            one.mountpoint
            for one in (*self.overlays, *shared)
            if one.mountpoint == path or is_below(path, one.mountpoint)
        )
        overlay = max(places, key=len, default="")
        covers = [
            step.target
            for step in (*self.plan.steps, *self.bound)
            if isinstance(step, MountTmpfs) or (isinstance(step, Bind) and step.create)
        ]
        if any(
            len(cover) >= len(overlay) and (cover == path or is_below(path, cover))
            for cover in covers
        ):
            return None
        if any(one.target == overlay for one in self.own):
            return None
        # The test may have mounted something. All directories of an overlay have its device number.
        if not overlay or os.stat(overlay).st_dev != os.stat(path).st_dev:
            return None
        flags = os.statvfs(path).f_flag
        return sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)

    @contextmanager
    def on_stage(self) -> Iterator[None]:
        """Be in the namespace with the host's mounts meanwhile. Raises :class:`SandboxError`."""
        user = self.plan.user_namespace
        with privileged(self.plan.drops_capabilities), visiting(self.stage, user):
            yield
