"""Carries out the steps of a plan: mounts each of them below the new root, in their order.

This module knows what is mounted; :mod:`.new_api` and :mod:`.classic_api` know how a mount is made.
Where a root can be made by one list of system calls, :mod:`.root_calls` is used in place of this
module.

While the steps are carried out, the working directory is the scratch, the directory in which the
uppers lie. Absolute paths are the host's. Paths that are relative to the descriptor of the new root
are the sandbox's. A symbolic link in one of the latter would lead to the host, so they are never
followed.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from typing import BinaryIO, Final, final

from ..linux import syscalls as sys
from ..linux.attributes import copy_attributes
from ..linux.errno_advice import Doing
from ..linux.errors import SandboxError
from ..linux.mountinfo import is_below
from ..linux.namespaces import explained
from ..linux.untouched import open, os
from ..plan.model import (
    EMPTY,
    SHM,
    Assemble,
    Bind,
    FreshProc,
    Layered,
    MakeDev,
    MountTmpfs,
    Overlay,
    Plan,
    Protect,
    Seed,
    Step,
)
from .api import NOSUID_NODEV, MountApi
from .dev import mount_dev
from .mountpoint import make_mountpoint

#: The largest file whose content is copied into an upper, in bytes.
LARGEST_SEED: Final = 16 << 20
#: The longest ``lowerdir`` that is passed as it is: fsconfig(2) takes 255 bytes, and escapes make
#: it longer.
_LONGEST_LOWERDIR: Final = 200
#: What a step does, for the advice on an errno.
_DOING: Final[dict[type, Doing]] = {
    Assemble: "overlay",
    Overlay: "overlay",
    Bind: "bind",
    FreshProc: "proc",
}


def open_scratch(api: MountApi, plan: Plan, directory: str | None) -> int:
    """Returns a descriptor of the place for the uppers: a tmpfs, or ``directory`` on disk.

    Raises :class:`SandboxError` if the kernel refuses it.
    """
    what, user_namespace = plan.upper.describe(), plan.user_namespace
    if plan.upper.medium == "disk":
        if directory is None:
            raise SandboxError("an upper on disk needs a directory")
        with explained(what, user_namespace):
            return api.make_scratch_on_disk(directory)
    options = [("mode", "0755")]
    if plan.upper.size:
        options.append(("size", str(plan.upper.size)))
    if plan.upper.inodes:
        options.append(("nr_inodes", str(plan.upper.inodes)))
    with explained(what, user_namespace, "scratch"):
        return api.make_scratch(options)


@final
class PlanExecutor:
    """Makes the mounts of one new root.

    ``additional_lowers`` maps the mountpoint of an overlay to directories that are stacked on the
    lowers of the plan, topmost first. ``reused_uppers`` maps the mountpoint of an overlay to the
    upper that another sandbox with the same scratch has used, and that this one goes on with.
    """

    def __init__(
        self,
        api: MountApi,
        plan: Plan,
        additional_lowers: Mapping[str, tuple[str, ...]],
        reused_uppers: Mapping[str, str] | None = None,
    ) -> None:
        self._api = api
        self._plan = plan
        self._additional_lowers = additional_lowers
        self._reused_uppers = reused_uppers or {}
        #: The paths in the sandbox that were made only to be mounted on.
        self.created: set[str] = set()
        #: The overlays that were mounted: more than the plan has where directories are assembled.
        self.overlays: list[Layered] = []
        self._overlay_steps: list[Overlay] = []
        # Volumes and tmpfs, which cover what was mounted there before.
        self._covers: list[str] = []
        # How many entries the other sandbox left in the scratch. No name has this number yet.
        self._unused_number = len(os.listdir(".")) if reused_uppers else 0
        self._next_number = self._unused_number

    def execute(self, steps: Iterable[Step]) -> None:
        """Carry out the steps. The working directory is the scratch.

        Raises :class:`SandboxError`, which names the step that has failed.
        """
        user_namespace = self._plan.user_namespace
        for step in steps:
            with explained(step.describe(), user_namespace, _DOING.get(type(step), "")):
                self._execute(step)

    def _execute(self, step: Step) -> None:
        api = self._api
        match step:
            case Overlay():
                self._mount_overlay(step)
            case Assemble():
                self._assemble(step)
            case Bind():
                self._bind(step)
            case Seed(path):
                if os.stat(path).st_size > LARGEST_SEED:
                    api.bind(path, path, read_only=True)
                elif not self._additional_lowers and not self._reused_uppers:
                    # Otherwise a layer below has it, as it was left there.
                    source = open(path, "rb")
                    self._when_attached(step, lambda: copy_seed(source, api.root, path))
            case MountTmpfs():
                self._make_mountpoint(step, directory=True)
                options = [("mode", f"{step.mode:o}")]
                if step.size:
                    options.append(("size", str(step.size)))
                api.mount("tmpfs", step.target, options, NOSUID_NODEV)
                self._covers.append(step.target)
            case FreshProc():
                attributes = NOSUID_NODEV | sys.MOUNT_ATTR_NOEXEC
                api.mount("proc", step.target, [], attributes)
            case Protect(target, tree=True):
                api.make_tree_read_only(target)
            case Protect(target):
                self._when_attached(step, lambda: self._make_overlays_read_only(target))
            case MakeDev(part="shm", host_shm=False):
                # Listed in the mount table behind the directory that it is in.
                self._when_attached(step, lambda: mount_dev(api, step, user_namespace=False))
            case MakeDev():
                mount_dev(api, step, user_namespace=self._plan.user_namespace)
                if step.host_shm and step.part != "rest":
                    self._mount_overlay(Overlay(SHM, (SHM,), "shm", NOSUID_NODEV))

    def _when_attached(self, step: Step, action: Callable[[], None]) -> None:
        """Do a part of ``step`` as soon as what was mounted so far is in its place."""

        def explained_action() -> None:
            with explained(step.describe(), self._plan.user_namespace, _DOING.get(type(step), "")):
                action()

        self._api.when_attached(explained_action)

    def _make_mountpoint(self, step: Bind | MountTmpfs, *, directory: bool) -> None:
        def make() -> None:
            make_mountpoint(self._api.root, step.target, directory=directory, created=self.created)

        self._when_attached(step, make)

    def _mount_overlay(self, step: Overlay) -> None:
        plan = self._plan
        if self._reused_uppers:
            # The other sandbox has used the plain names.
            step = step._replace(name=f"{self._unused_number}-{step.name}")
        upper, work = f"{step.name}.upper", f"{step.name}.work"
        if EMPTY in step.lowers:
            os.makedirs(EMPTY, exist_ok=True)
        # The root of an overlay shows the attributes of the upper directory.
        if above := self._additional_lowers.get(step.target):
            step, model = step._replace(lowers=(*above, *step.lowers)), above[0]
        else:
            model = step.model or step.lowers[0]
        if reused := self._reused_uppers.get(step.target):
            # A work directory belongs to one overlay, Documentation/filesystems/overlayfs.rst.
            upper, work = reused, f"{reused.removesuffix('upper')}{self._unused_number}.work"
        else:
            os.mkdir(upper)
            self._make_pieces(step, upper, above or ())
            copy_attributes(model, upper, own=not plan.user_namespace)
        options: list[tuple[str, str | None]] = list(plan.features.overlay_options)
        if plan.upper.medium == "none":
            step = step._replace(lowers=(upper, *step.lowers))
        else:
            os.mkdir(work)
            options = [("upperdir", upper), ("workdir", work), *options]
        if plan.upper.medium == "disk":
            # The upper is thrown away, so it need not be synced: to sync each file that is copied
            # up takes seven times as long. See "Volatile mount" in
            # Documentation/filesystems/overlayfs.rst.
            options.append(("volatile", None))
        lowers = self._with_short_names(self._without_nested_lowers(step.lowers))
        self._api.mount_overlay(step._replace(lowers=lowers), options)
        self._overlay_steps.append(step)
        self.overlays.append(Layered(step.target, upper))

    def _make_pieces(self, step: Overlay, upper: str, above: tuple[str, ...]) -> None:
        """Make the pieces of an overlay in its upper, without those that a directory above has."""
        copied = []
        for piece in step.pieces:
            path = piece.path
            if any(os.path.lexists(directory + path) for directory in above):
                continue
            place = upper + path
            if piece.kind == "link":
                os.symlink(piece.link, place)
            elif piece.kind == "file":
                os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, piece.mode))
            else:
                os.mkdir(place, piece.mode)
            if piece.kind == "kept":
                places = (lower + path for lower in step.lowers)
                model = next(p for p in places if os.path.isdir(p) and not os.path.islink(p))
                copied.append((model, place))
                continue
            self.created.add(path)
            if piece.kind != "directory":
                # The same time in every sandbox, and in the root filesystem that changes are
                # compared with.
                os.utime(place, ns=(0, 0), follow_symlinks=False)
        # Inner ones first: whatever is made in a directory changes its times.
        for source, place in reversed(copied):
            copy_attributes(source, place, own=not self._plan.user_namespace)

    def _without_nested_lowers(self, lowers: tuple[str, ...]) -> tuple[str, ...]:
        """Returns the lowers. A lower that contains another lower is replaced by an overlay.

        OverlayFS refuses (ELOOP) lowers that overlap, Documentation/filesystems/overlayfs.rst. A
        layer of the user's usually lies somewhere in the host's root, which is a lower as well. Of
        a lower that is there twice, the upper one hides the other.
        """
        if len(lowers) == 1:
            return lowers
        unique: dict[tuple[int, int], str] = {}
        for lower in lowers:
            status = os.stat(lower)
            unique.setdefault((status.st_dev, status.st_ino), lower)
        found = list(unique.values())
        places = [(_place_of(lower), device) for (device, _), lower in unique.items()]
        for index, (path, device) in enumerate(places):
            if path and any(
                its == device and (other is None or is_below(other, path)) for other, its in places
            ):
                name = self._new_name() + ".nested"
                for part in (name, f"{name}.upper", f"{name}.work"):
                    os.mkdir(part)
                # With xino, its inode numbers would leave no bits for the overlay on it.
                options: list[tuple[str, str | None]] = [
                    ("upperdir", f"{name}.upper"),
                    ("workdir", f"{name}.work"),
                    *(
                        (key, "off" if key == "xino" else value)
                        for key, value in self._plan.features.overlay_options
                    ),
                ]
                copy_attributes(path, f"{name}.upper", own=not self._plan.user_namespace)
                found[index] = self._api.mount_as_lower(found[index], name, options)
        return tuple(found)

    def _with_short_names(self, lowers: tuple[str, ...]) -> tuple[str, ...]:
        """Returns links in the scratch to the lowers if these are too long for one mount option."""
        if len(os.fsencode(":".join(lowers))) <= _LONGEST_LOWERDIR or len(lowers) == 1:
            return lowers
        names = []
        for lower in lowers:
            names.append(self._new_name())
            os.symlink(lower, names[-1])
        return tuple(names)

    def _new_name(self) -> str:
        """Returns a short name that nothing in the scratch has."""
        self._next_number += 1
        return f"{self._next_number - 1:x}"

    def _assemble(self, step: Assemble) -> None:
        lower = (
            f"{step.name}.{self._unused_number}.lower"
            if self._reused_uppers
            else f"{step.name}.lower"
        )
        from .assemble import make_lower

        parts = make_lower(step, self._plan, lower)
        if parts.has_lower:
            lowers = (*step.layers, lower)
            self._mount_overlay(Overlay(step.target, lowers, step.name, step.attributes, lower))
        elif step.layers:
            raise SandboxError(
                step.describe(),
                cause="it has too many entries for a layer to be stacked on it",
                remedy="put what the layer has into a directory of its own",
            )
        for index, name in enumerate(parts.overlays):
            path = f"{step.target}/{name}"
            over = [f"{layer}/{name}" for layer in step.layers]
            lowers = (*(place for place in over if os.path.isdir(place)), path)
            part = Overlay(path, lowers, f"{step.name}.{index}", step.attributes)
            try:
                self._mount_overlay(part)
            except OSError:
                # The directory has vanished meanwhile, or is encrypted or case-folded, which no
                # lower may be. It is shown read-only if at all, as the plan does with such
                # directories that were known before.
                self._bind(Bind(path, path, read_only=True, optional=True))
        for name in parts.binds:
            path = f"{step.target}/{name}"
            self._bind(Bind(path, path, read_only=True, optional=True))

    def _bind(self, step: Bind) -> None:
        source = step.source
        if step.create:
            # Resolved here: the kernel would follow a link with too many ".." into the new root.
            source = os.path.realpath(source)
            directory = stat.S_ISDIR(os.stat(source).st_mode)
            self._make_mountpoint(step, directory=directory)
        try:
            self._api.bind(source, step.target, read_only=step.read_only)
        except OSError:
            if not step.optional:
                raise
        if step.create:
            self._covers.append(step.target)

    def _make_overlays_read_only(self, target: str) -> None:
        """Make the overlay at ``target`` read-only, and those that were assembled in it."""
        for overlay in self._overlay_steps:
            path = overlay.target
            part = "." in overlay.name and os.path.dirname(path) == target
            # A volume or tmpfs that covers a part stays as it is.
            covered = any(path == cover or is_below(path, cover) for cover in self._covers)
            if path == target or (part and not covered):
                self._api.make_mount_read_only(path)


def copy_seed(source: BinaryIO, root: int, path: str) -> None:
    """Copy what the host shows at ``path`` over the file that the new root has there."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with source, open(os.open(path[1:], flags, dir_fd=root), "wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        copy_attributes(source.fileno(), file.fileno(), own=True)


def _place_of(lower: str) -> str | None:
    """The path of a lower on the host; None if it may lie anywhere, "" if it contains no other."""
    if not os.path.isabs(lower):
        # It is in the scratch.
        return ""
    if lower.startswith("/proc/self/fd/"):
        # It is an upper of another sandbox. On disk it lies below other directories of the host,
        # but on a mount of its own, at which its path begins.
        return None
    return os.path.realpath(lower)
