"""The two ways to make the mounts of a new root, and to pivot into it.

:class:`NewApi` (Linux 5.12 and later) works on detached mounts, so that nothing ever needs a place
in the old tree. :class:`Classic` uses mount(2): it stacks a tmpfs on the old ``/`` and works
inside that. They do the same; :mod:`.executor` says what.

The working directory is the scratch (where the uppers lie), so that overlay options name them
relatively; sources are absolute paths of the host, targets absolute paths of the sandbox.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, final

from ..linux import syscalls as sys
from ..linux.mountinfo import is_below, read, visible
from ..plan.model import Features, Overlay

NOSUID_NODEV: Final = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV
_CLASSIC_FLAGS: Final = {
    sys.MOUNT_ATTR_RDONLY: sys.MS_RDONLY,
    sys.MOUNT_ATTR_NOSUID: sys.MS_NOSUID,
    sys.MOUNT_ATTR_NODEV: sys.MS_NODEV,
    sys.MOUNT_ATTR_NOEXEC: sys.MS_NOEXEC,
    sys.MOUNT_ATTR_NOATIME: sys.MS_NOATIME,
}
_FSCONFIG_MAX: Final = 255
_PLACE: Final = "overlay"


class Builder(Protocol):
    """What both ways offer. Targets are absolute paths of the sandbox."""

    root: int

    def scratch(self, options: list[tuple[str, str]]) -> int: ...
    def scratch_on_disk(self, directory: str) -> int: ...
    def overlay(self, step: Overlay, options: list[tuple[str, str | None]]) -> None: ...
    def overlay_descriptor(
        self, lower: str, place: str, options: list[tuple[str, str | None]]
    ) -> int: ...
    def apart(self, lower: str, place: str, options: list[tuple[str, str | None]]) -> str: ...
    def bind(self, source: str, target: str, *, read_only: bool) -> None: ...
    def rebind(self, target: str) -> None: ...
    def freeze(self, target: str) -> None: ...
    def mount(
        self, fstype: str, target: str, options: list[tuple[str, str]], attributes: int
    ) -> None: ...
    def directory(self, target: str) -> int: ...
    def later(self, action: Callable[[], None]) -> None: ...


def escape(path: str) -> str:
    """A path as a value of ``lowerdir=``, where ``\\ : ,`` have a meaning."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


class NewApi:
    """fsopen(2), fsconfig(2), fsmount(2), open_tree(2), move_mount(2), mount_setattr(2).

    ``attach``: the scratch is stacked on ``/`` until the old root is left. Before Linux 6.15 an
    overlay refuses (EINVAL) an upper on a mount that is in no namespace.
    """

    def __init__(self, *, attach: bool = False) -> None:
        self.root = -1
        self._attach_scratch = attach
        self._stacked = 0
        self._lowers: list[int] = []

    def scratch(self, options: list[tuple[str, str]]) -> int:
        """A tmpfs in no namespace at all; it lives as long as its descriptor."""
        return self._place(self._make("tmpfs", [(k, v) for k, v in options], NOSUID_NODEV))

    def scratch_on_disk(self, directory: str) -> int:
        """A mount of its own, detached: ``..`` of a plain descriptor would lead to the host."""
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
        return self._place(sys.open_tree(sys.AT_FDCWD, directory, flags))

    def _place(self, scratch: int) -> int:
        if self._attach_scratch:
            try:
                sys.move_mount(scratch, sys.AT_FDCWD, "/")
            except OSError:
                os.close(scratch)
                raise
            self._stacked += 1
        return scratch

    def overlay(self, step: Overlay, options: list[tuple[str, str | None]]) -> None:
        try:
            mount = self._overlay(step.lowers, options, step.attributes)
        finally:
            while self._lowers:
                os.close(self._lowers.pop())
        self._attach(mount, step.target)

    def overlay_descriptor(
        self, lower: str, place: str, options: list[tuple[str, str | None]]
    ) -> int:
        return self._overlay((lower,), options, 0)

    def apart(self, lower: str, place: str, options: list[tuple[str, str | None]]) -> str:
        """An overlay to be a lower of another; the path to name it by.

        ``place``: an empty directory below the working directory.
        """
        mount = self._overlay((lower,), options, 0)
        if not self._attach_scratch:
            self._lowers.append(mount)
            return f"/proc/self/fd/{mount}"
        try:
            sys.move_mount(mount, sys.AT_FDCWD, place)
        finally:
            os.close(mount)
        return place

    def _overlay(
        self, lowers: tuple[str, ...], options: list[tuple[str, str | None]], attributes: int
    ) -> int:
        opened: list[int] = []
        try:
            names = [self._lower(path, opened) for path in lowers]
            joined = ":".join(names)
            if len(os.fsencode(joined)) <= _FSCONFIG_MAX:
                return self._make("overlay", [("lowerdir", joined), *options], attributes)
            # Not unescaped there.
            pairs = zip(names, lowers, strict=True)
            plain = [path if name == escape(path) else name for name, path in pairs]
            return self._overlay_of_many(plain, joined, options, attributes)
        finally:
            for fd in opened:
                os.close(fd)

    def _overlay_of_many(
        self,
        names: list[str],
        joined: str,
        options: list[tuple[str, str | None]],
        attributes: int,
    ) -> int:
        try:
            lowers: list[tuple[str, str | None]] = [("lowerdir+", name) for name in names]
            return self._make("overlay", [*lowers, *options], attributes)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._attach_scratch:
                raise
        # Before Linux 6.7: mount(2) takes a page of options, but needs a place.
        os.mkdir(_PLACE)
        try:
            data = _as_data([("lowerdir", joined), *options])
            sys.mount("overlay", _PLACE, "overlay", _flags(attributes), data)
            try:
                flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
                return sys.open_tree(sys.AT_FDCWD, _PLACE, flags)
            finally:
                sys.umount(_PLACE, sys.MNT_DETACH)
        finally:
            os.rmdir(_PLACE)

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        covered = self.root < 0 and self._stacked
        if covered:
            # As in Classic: or a recursive bind of / would take the scratch along.
            sys.mount(None, ".", None, sys.MS_UNBINDABLE)
        tree = sys.open_tree(sys.AT_FDCWD, source, flags | sys.AT_NO_AUTOMOUNT)
        if covered:
            sys.mount(None, ".", None, sys.MS_PRIVATE)
        self.attach_bind(tree, target, read_only=read_only)

    def rebind(self, target: str) -> None:
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        tree = sys.open_tree(self.root, target[1:], flags | sys.AT_NO_AUTOMOUNT)
        self.attach_bind(tree, target, read_only=True)

    def attach_bind(self, tree: int, target: str, *, read_only: bool) -> None:
        """:meth:`bind` of a tree that is cloned already."""
        try:
            if read_only:
                set_read_only(tree)
        except OSError:
            os.close(tree)
            raise
        self._attach(tree, target)

    def freeze(self, target: str) -> None:
        path, flags = (target[1:], 0) if target != "/" else ("", sys.AT_EMPTY_PATH)
        sys.mount_setattr(self.root, path, flags, sys.MOUNT_ATTR_RDONLY)

    def mount(
        self, fstype: str, target: str, options: list[tuple[str, str]], attributes: int
    ) -> None:
        self._attach(self._make(fstype, [(k, v) for k, v in options], attributes), target)

    def directory(self, target: str) -> int:
        """A descriptor of what is mounted at ``target``."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(target[1:], flags, dir_fd=self.root)

    def later(self, action: Callable[[], None]) -> None:
        """Do what needs everything so far in its place: now, for it is."""
        action()

    def pivot(self) -> None:
        os.fchdir(self.root)
        os.close(self.root)
        self.root = -1
        sys.pivot_root(".", ".")
        _forget_old_root(layers=1 + self._stacked)

    def _make(self, fstype: str, options: list[tuple[str, str | None]], attributes: int) -> int:
        context = sys.fsopen(fstype)
        try:
            sys.fsconfig_string(context, "source", fstype)
            for key, value in options:
                if value is None:
                    sys.fsconfig_flag(context, key)
                else:
                    sys.fsconfig_string(context, key, value)
            sys.fsconfig_create(context, fstype)
            return sys.fsmount(context, attributes)
        finally:
            os.close(context)

    def _attach(self, mount: int, target: str) -> None:
        """Put a detached mount in its place. The first one, the root, goes on top of ``/``."""
        if self.root < 0:
            try:
                sys.move_mount(mount, sys.AT_FDCWD, "/")
            except OSError:
                os.close(mount)
                raise
            self.root = mount
            return
        try:
            sys.move_mount(mount, self.root, target[1:])
        finally:
            os.close(mount)

    @staticmethod
    def _lower(path: str, opened: list[int]) -> str:
        text = escape(path)
        # Before 6.5 fsconfig refuses any comma; it never takes more than 255 bytes.
        if "," not in path and len(os.fsencode(text)) <= _FSCONFIG_MAX:
            return text
        opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
        return f"/proc/self/fd/{opened[-1]}"


@final
class Grafting(NewApi):
    """Makes everything on the stage, and puts it in place elsewhere, in :meth:`graft`.

    Until then mounts wait as descriptors. What needs one in its place waits as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._root = -1
        self._waiting: list[tuple[int, str]] = []
        self._work: list[Callable[[], None]] = []

    def directory(self, target: str) -> int:
        return os.dup(next(fd for fd, place in reversed(self._waiting) if place == target))

    def later(self, action: Callable[[], None]) -> None:
        self._work.append(action)

    def freeze(self, target: str) -> None:
        self._work.append(partial(super().freeze, target))

    def _attach(self, mount: int, target: str) -> None:
        if target == "/":
            self._root = mount
            return
        self._waiting.append((mount, target))
        self._work.append(partial(self._put, mount, target))

    def _put(self, mount: int, target: str) -> None:
        sys.move_mount(mount, self.root, target[1:])

    def graft(self, bench: int, tops: Sequence[tuple[str, str]]) -> None:
        """Put everything in place, in the namespace that this thread is in now.

        ``tops``: what is mounted below ``bench`` already, and where it belongs. The new root,
        one of these if none was made, goes on top of ``/``.
        """
        if self._root < 0:
            name = next(name for name, target in tops if target == "/")
            self._root = sys.open_tree(bench, name, sys.OPEN_TREE_CLOEXEC)
        self.root, self._root = self._root, -1
        sys.move_mount(self.root, sys.AT_FDCWD, "/")
        for name, target in tops:
            if target != "/":
                sys.move_mount_from(bench, name, self.root, target[1:])
        for action in self._work:
            action()

    def close(self) -> None:
        """Let go of the descriptors; what is in its place stays."""
        for fd in (self.root, self._root, *(fd for fd, _ in self._waiting)):
            if fd >= 0:
                os.close(fd)
        self.root = self._root = -1
        self._waiting.clear()


@final
class Classic:
    """mount(2) alone. The scratch is stacked on ``/``, the new root is a directory in it."""

    def __init__(self) -> None:
        self.root = -1
        self._stacked = 0
        self._mounts = visible(read())

    def scratch(self, options: list[tuple[str, str]]) -> int:
        data = ",".join(f"{key}={value}" for key, value in options)
        sys.mount("tmpfs", "/", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, data)
        self._stacked += 1
        # ".." of the root is the root again, but looked up anew: with what now covers it.
        return os.open("/..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def scratch_on_disk(self, directory: str) -> int:
        sys.mount(directory, "/", None, sys.MS_BIND)
        self._stacked += 1
        return os.open("/..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def overlay(self, step: Overlay, options: list[tuple[str, str | None]]) -> None:
        self._overlay(step.lowers, self._place(step.target), options, step.attributes)
        self._opened()

    def overlay_descriptor(
        self, lower: str, place: str, options: list[tuple[str, str | None]]
    ) -> int:
        self._overlay((lower,), place, options, 0)
        return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def apart(self, lower: str, place: str, options: list[tuple[str, str | None]]) -> str:
        self._overlay((lower,), place, options, 0)
        return place

    @staticmethod
    def _overlay(
        lowers: tuple[str, ...],
        place: str,
        options: list[tuple[str, str | None]],
        attributes: int,
    ) -> None:
        pairs = [("lowerdir", ":".join(escape(path) for path in lowers)), *options]
        sys.mount("overlay", place, "overlay", _flags(attributes), _as_data(pairs))

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        if self.root < 0:
            # Or a recursive bind of / would take the scratch along and be covered by it. Only
            # for now: an overlay refuses uppers on an unbindable mount.
            sys.mount(None, ".", None, sys.MS_UNBINDABLE)
        sys.mount(source, self._place(target), None, sys.MS_BIND | sys.MS_REC)
        if self.root < 0:
            sys.mount(None, ".", None, sys.MS_PRIVATE)
        self._opened()
        if read_only:
            self._set_read_only(source, target)

    def rebind(self, target: str) -> None:
        place = self._place(target)
        sys.mount(place, place, None, sys.MS_BIND | sys.MS_REC)
        self._set_read_only(target, target)

    def freeze(self, target: str) -> None:
        flags = sys.MS_REMOUNT | sys.MS_BIND | sys.MS_RDONLY | self._kept_flags(target)
        sys.mount(None, self._place(target), None, flags)

    def mount(
        self, fstype: str, target: str, options: list[tuple[str, str]], attributes: int
    ) -> None:
        data = ",".join(f"{key}={value}" if value else key for key, value in options)
        sys.mount(fstype, self._place(target), fstype, _flags(attributes), data)

    def directory(self, target: str) -> int:
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(target[1:], flags, dir_fd=self.root)

    def later(self, action: Callable[[], None]) -> None:
        action()

    def pivot(self) -> None:
        os.fchdir(self.root)
        os.close(self.root)
        self.root = -1
        sys.pivot_root(".", ".")
        _forget_old_root(layers=1 + self._stacked)

    def _place(self, target: str) -> str:
        if self.root < 0:
            os.makedirs("root", exist_ok=True)
            return "root"
        return "root" + target.rstrip("/")

    def _opened(self) -> None:
        if self.root < 0:
            self.root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _kept_flags(self, source: str) -> int:
        """The flags a locked mount must repeat when it is remounted, or EPERM."""
        names = {
            "nosuid": sys.MS_NOSUID,
            "nodev": sys.MS_NODEV,
            "noexec": sys.MS_NOEXEC,
            "noatime": sys.MS_NOATIME,
            "nodiratime": sys.MS_NODIRATIME,
            "relatime": sys.MS_RELATIME,
        }
        owners = [
            m for m in self._mounts if m.mountpoint == source or is_below(source, m.mountpoint)
        ]
        options = max(owners, key=lambda m: len(m.mountpoint)).options if owners else frozenset()
        return sum(bit for name, bit in names.items() if name in options)

    def _set_read_only(self, source: str, target: str) -> None:
        base = target.rstrip("/")
        inner = [m.mountpoint for m in self._mounts if is_below(m.mountpoint, source)]
        prefix = source.rstrip("/")
        for path in [source, *inner]:
            place = self._place(base + path[len(prefix) :])
            flags = sys.MS_REMOUNT | sys.MS_BIND | sys.MS_RDONLY | self._kept_flags(path)
            sys.mount(None, place, None, flags)


def builder_for(features: Features) -> NewApi | Classic:
    """The way to mount that this machine has."""
    return NewApi(attach=not features.detached_uppers) if features.new_api else Classic()


def set_read_only(tree: int) -> None:
    """Make a detached tree of mounts read-only, all of it, mount_setattr(2)."""
    flags = sys.AT_EMPTY_PATH | sys.AT_RECURSIVE
    sys.mount_setattr(tree, "", flags, sys.MOUNT_ATTR_RDONLY)


def _as_data(options: list[tuple[str, str | None]]) -> str:
    """As mount(2) takes them."""
    return ",".join(key if value is None else f"{key}={value}" for key, value in options)


def _flags(attributes: int) -> int:
    return sum(flag for bit, flag in _CLASSIC_FLAGS.items() if attributes & bit)


def _forget_old_root(layers: int) -> None:
    """Detach what pivot_root(".", ".") has left stacked on the new root, pivot_root(2)."""
    # A slave first: the detaching must not propagate to the host.
    sys.mount(None, ".", None, sys.MS_SLAVE | sys.MS_REC)
    for _ in range(layers):
        sys.umount(".", sys.MNT_DETACH)
