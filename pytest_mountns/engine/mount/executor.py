"""Carries out the steps of a plan: what goes into the new root, and in which order.

:mod:`.api` knows how a mount is made. During the build the working directory is the scratch;
absolute paths are the host's, paths relative to ``root`` are the sandbox's. A symbolic link met on
the latter would lead to the host, so no component may be one.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import BinaryIO, Final, final

from ..linux import syscalls as sys
from ..linux.attributes import copy_attributes
from ..linux.errno_advice import Doing, explain
from ..linux.errors import SandboxError, errno_name, said
from ..linux.mountinfo import is_below
from ..plan.model import (
    EMPTY,
    Assemble,
    Bind,
    FreshProc,
    MakeDev,
    MountTmpfs,
    Overlay,
    Plan,
    Protect,
    Seed,
    Step,
)
from .api import NOSUID_NODEV, MountApi
from .assemble import gather

_NUMBERS: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
_LARGEST_SEED: Final = 16 << 20
# fsconfig(2) takes 255 bytes. Escapes make it longer.
_LONGEST_LOWERS: Final = 200
_DOING: Final[dict[type, Doing]] = {
    Assemble: "overlay",
    Overlay: "overlay",
    Bind: "bind",
    FreshProc: "proc",
}


def open_scratch(api: MountApi, plan: Plan, directory: str | None) -> int:
    """A descriptor of the place for the uppers: a tmpfs, or ``directory`` on disk."""
    if plan.upper.medium == "disk":
        if directory is None:
            raise SandboxError("an upper on disk needs a directory")
        place = directory
        return _tell(plan.upper.describe(), lambda: api.make_scratch_on_disk(place), plan)
    options = [("mode", "0755")]
    if plan.upper.size:
        options.append(("size", str(plan.upper.size)))
    if plan.upper.inodes:
        options.append(("nr_inodes", str(plan.upper.inodes)))
    return _tell(plan.upper.describe(), lambda: api.make_scratch(options), plan, "scratch")


@final
class Building:
    """Makes the root and everything in it.

    ``uppers``: for the mountpoint of an overlay what lies over its planned lowers, topmost first.
    ``kept``: for a mountpoint the upper that it has already, of another sandbox with this scratch.
    ``created``: the paths that were made to be mounted on. ``overlays``: what was mounted, which
    is more than the plan says where directories had to be assembled.
    """

    def __init__(
        self,
        api: MountApi,
        plan: Plan,
        uppers: Mapping[str, tuple[str, ...]],
        kept: Mapping[str, str] | None = None,
    ) -> None:
        self._api = api
        self._plan = plan
        self._uppers = uppers
        self._kept = kept or {}
        self.created: set[str] = set()
        self.overlays: list[Overlay] = []
        #: Where the upper of each is.
        self.uppers: dict[str, str] = {}
        # How much is in the scratch already.
        self._before = len(os.listdir(".")) if kept else 0
        self._covers: list[str] = []
        self._links = self._before

    def carry_out(self, steps: Iterable[Step]) -> None:
        """Do the steps. The working directory is the scratch.

        Raises :class:`SandboxError` naming the step.
        """
        for step in steps:
            doing = _DOING.get(type(step), "")
            _tell(step.describe(), partial(self._do, step), self._plan, doing)

    def _do(self, step: Step) -> None:
        api = self._api
        match step:
            case Overlay():
                self._overlay(step)
            case Assemble():
                self._assemble(step)
            case Bind():
                self._bind(step)
            case Seed(path):
                if os.stat(path).st_size > _LARGEST_SEED:
                    api.bind(path, path, read_only=True)
                elif not self._uppers and not self._kept:
                    # Else it is in a layer below, as it was left there.
                    source = open(path, "rb")  # noqa: SIM115 - closed where it is used up
                    self._later(step, lambda: _seed(api.root, path, source))
            case MountTmpfs():
                self._make_target(step, directory=True)
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
                self._later(step, lambda: self._freeze(target))
            case MakeDev():
                _make_dev(api, step, own_root=not self._plan.user_namespace)

    def _later(self, step: Step, action: Callable[[], None]) -> None:
        """When what was done so far is in its place."""
        doing = _DOING.get(type(step), "")

        def told() -> None:
            _tell(step.describe(), action, self._plan, doing)

        self._api.when_attached(told)

    def _make_target(self, step: Bind | MountTmpfs, *, directory: bool) -> None:
        self._later(
            step,
            lambda: make_target(
                self._api.root, step.target, directory=directory, created=self.created
            ),
        )

    def _overlay(self, step: Overlay) -> None:
        if self._kept:
            # Other names than those of the sandbox that is there.
            step = replace(step, name=f"{self._before}-{step.name}")
        upper, work = f"{step.name}.upper", f"{step.name}.work"
        medium = self._plan.upper.medium
        if EMPTY in step.lowers:
            os.makedirs(EMPTY, exist_ok=True)
        model = step.model or step.lowers[0]
        if above := self._uppers.get(step.target):
            step, model = replace(step, lowers=(*above, *step.lowers)), above[0]
        if known := self._kept.get(step.target):
            upper, work = known, f"{known.removesuffix('upper')}{self._before}.work"
        else:
            os.mkdir(upper)
            self._furnish(step, upper, above or ())
            copy_attributes(model, upper, own=not self._plan.user_namespace)
        options: list[tuple[str, str | None]] = list(self._plan.features.overlay_options)
        if medium == "none":
            step = replace(step, lowers=(upper, *step.lowers))
        else:
            os.mkdir(work)
            options = [("upperdir", upper), ("workdir", work), *options]
        if medium == "disk":
            # The upper is thrown away: syncing every copied file would cost seven times as much.
            options.append(("volatile", None))
        lowers = self._shortened(self._apart(step.lowers))
        self._api.mount_overlay(replace(step, lowers=lowers), options)
        self.overlays.append(step)
        self.uppers[step.target] = upper

    def _furnish(self, step: Overlay, upper: str, above: tuple[str, ...]) -> None:
        """Make the pieces, but for those that an upper below has."""
        kept = []
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
                kept.append((model, place))
                continue
            self.created.add(path)
            if piece.kind != "directory":
                # The same in every sandbox, and in what shows the ground.
                os.utime(place, ns=(0, 0), follow_symlinks=False)
        # Inner ones first: whatever is made in a directory changes its times.
        for source, place in reversed(kept):
            copy_attributes(source, place, own=not self._plan.user_namespace)

    def _apart(self, lowers: tuple[str, ...]) -> tuple[str, ...]:
        """With an overlay in place of a lower that another one lies in, which OverlayFS refuses.

        A layer of the user's lies in the host's root, as a rule.
        """
        if len(lowers) == 1:
            return lowers
        # What is named relatively lies in the scratch, by itself.
        places = [
            (os.path.realpath(lower) if os.path.isabs(lower) else "", os.stat(lower).st_dev)
            for lower in lowers
        ]
        found = list(lowers)
        for index, (path, device) in enumerate(places):
            if path and any(is_below(other, path) and its == device for other, its in places):
                name = f"{self._links:x}.apart"
                self._links += 1
                for part in (name, f"{name}.upper", f"{name}.work"):
                    os.mkdir(part)
                # Or numbers of its files would be too big for those of the overlay on it.
                options: list[tuple[str, str | None]] = [
                    ("upperdir", f"{name}.upper"),
                    ("workdir", f"{name}.work"),
                    *(
                        (key, "off" if key == "xino" else value)
                        for key, value in self._plan.features.overlay_options
                    ),
                ]
                copy_attributes(path, f"{name}.upper", own=not self._plan.user_namespace)
                found[index] = self._api.mount_as_lower(lowers[index], name, options)
        return tuple(found)

    def _shortened(self, lowers: tuple[str, ...]) -> tuple[str, ...]:
        """By way of links in the scratch, where they are too long for one mount option."""
        if len(os.fsencode(":".join(lowers))) <= _LONGEST_LOWERS or len(lowers) == 1:
            return lowers
        names = []
        for lower in lowers:
            names.append(f"{self._links:x}")
            os.symlink(lower, names[-1])
            self._links += 1
        return tuple(names)

    def _assemble(self, step: Assemble) -> None:
        lower = f"{step.name}.{self._before}.lower" if self._kept else f"{step.name}.lower"
        parts = gather(step, self._plan, lower)
        if parts.whole:
            lowers = (*step.layers, lower)
            self._overlay(Overlay(step.target, lowers, step.name, step.attributes, lower))
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
                self._overlay(part)
            except OSError:
                # It has vanished meanwhile, or is encrypted or case-folded: no lower for an
                # overlay. Shown read-only if at all, as the plan does with what was found before.
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
            self._make_target(step, directory=directory)
        try:
            self._api.bind(source, step.target, read_only=step.read_only)
        except OSError:
            if not step.optional:
                raise
        if step.create:
            self._covers.append(step.target)

    def _freeze(self, target: str) -> None:
        """Make the overlay there read-only, and what was assembled in it."""
        for overlay in self.overlays:
            path = overlay.target
            part = "." in overlay.name and os.path.dirname(path) == target
            # A volume or tmpfs on a part has taken its place, and stays as it is.
            taken = any(path == cover or is_below(path, cover) for cover in self._covers)
            if path == target or (part and not taken):
                self._api.make_mount_read_only(path)


def _tell(what: str, action: Callable[[], int | None], plan: Plan, doing: Doing = "") -> int:
    try:
        return action() or 0
    except OSError as error:
        cause, remedy = explain(error.errno or 0, plan.user_namespace, doing)
        raise SandboxError(what, said(error), cause, remedy) from error


def make_target(root: int, target: str, *, directory: bool, created: set[str]) -> None:
    """Make ``target`` below ``root`` if it is missing, and note in ``created`` what was made.

    Raises :class:`SandboxError`, also for a symbolic link on the way: it would lead out of
    ``root``, and for a target of the other kind.
    """
    parts = target.strip("/").split("/")
    place = "/"
    # Made with the modes given here, whatever the test has set.
    umask = os.umask(0)
    at = os.dup(root)
    try:
        for index, name in enumerate(parts):
            place = os.path.join(place, name)
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                step = os.open(name, flags, dir_fd=at)
            except FileNotFoundError:
                if index < len(parts) - 1 or directory:
                    os.mkdir(name, 0o755, dir_fd=at)
                else:
                    make = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(name, make, 0o644, dir_fd=at))
                created.add(place)
                step = os.open(name, flags, dir_fd=at)
            os.close(at)
            at = step
            if stat.S_ISLNK(os.fstat(at).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if stat.S_ISDIR(os.fstat(at).st_mode) != directory:
            # Told apart here: depending on its age the kernel says EINVAL.
            raise SandboxError(f"mount on {target}", "", *explain(errno.ENOTDIR, False, "bind"))
    except OSError as error:
        number = error.errno or 0
        # In a user namespace or not, it is the place that refuses, not the namespace.
        raise SandboxError(
            f"make {target} to be mounted on",
            f"{errno_name(number)} ({os.strerror(number)}) at {place}",
            *explain(number, False, "target"),
        ) from error
    finally:
        os.close(at)
        os.umask(umask)


def _seed(root: int, path: str, source: BinaryIO) -> None:
    """The file that the host shows at ``path``, into the upper."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with source, open(os.open(path[1:], flags, dir_fd=root), "wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        copy_attributes(source.fileno(), file.fileno(), own=True)


def _show_device(api: MountApi, step: MakeDev, name: str, dev: int) -> None:
    """A node of the host's. Where nodes can be made it is another: chmod(2) of it stays here."""
    status = os.stat(f"/dev/{name}")
    place = ""
    for part in name.split("/")[:-1]:
        place = os.path.join(place, part)
        with suppress(FileExistsError):
            os.mkdir(place, 0o755, dir_fd=dev)
    if step.bind:
        os.close(os.open(name, os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=dev))
        api.bind(f"/dev/{name}", f"{step.target}/{name}", read_only=False)
        return
    os.mknod(name, status.st_mode, status.st_rdev, dir_fd=dev)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=dev)
    os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=dev)


def _make_dev(api: MountApi, step: MakeDev, *, own_root: bool) -> None:
    dev = step.target
    api.mount("tmpfs", dev, [("mode", "0755")], sys.MOUNT_ATTR_NOSUID)
    fd = api.open_directory(dev)
    try:
        for name in step.devices:
            if step.bind:
                os.close(os.open(name, os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=fd))
                api.bind(f"/dev/{name}", f"{dev}/{name}", read_only=False)
            else:
                os.mknod(name, stat.S_IFCHR | 0o666, os.makedev(*_NUMBERS[name]), dir_fd=fd)
        for name in step.more:
            _show_device(api, step, name, fd)
        for name, link in _LINKS.items():
            os.symlink(link, name, dir_fd=fd)
        for name in ("pts", "shm", *["mqueue"] * bool(step.mqueue)):
            os.mkdir(name, 0o755, dir_fd=fd)
    finally:
        os.close(fd)
    # The group tty; a user namespace of one id does not map it.
    group = [("gid", "5")] if own_root else []
    attributes = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NOEXEC
    options = [("ptmxmode", "0666"), ("mode", "620"), *group]
    api.mount("devpts", f"{dev}/pts", options, attributes)
    api.mount("tmpfs", f"{dev}/shm", [("mode", "1777")], NOSUID_NODEV)
    if step.mqueue == "own":
        api.mount("mqueue", f"{dev}/mqueue", [], NOSUID_NODEV | sys.MOUNT_ATTR_NOEXEC)
    elif step.mqueue:
        api.bind("/dev/mqueue", f"{dev}/mqueue", read_only=True)
