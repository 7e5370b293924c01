"""Mounts with the mount API of Linux 5.2 and later, as far as it goes since 5.12.

A filesystem is made as a detached mount (fsopen(2), fsconfig(2), fsmount(2)), a bind mount is a
cloned tree (open_tree(2)), and either is put in its place with move_mount(2). So nothing needs a
place in the old tree meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, final

from ..linux import syscalls as sys
from ..linux.untouched import os
from ..plan.model import Overlay
from .api import (
    FSCONFIG_MAX,
    NOSUID_NODEV,
    MountApi,
    Options,
    escape_lower,
    fits_one_option,
    mount_data,
    mount_flags,
)

#: The name of a directory in the scratch that is a mountpoint for a moment.
_TEMPORARY_MOUNTPOINT: Final = "overlay"


class NewMountApi(MountApi):
    """Makes detached mounts, and attaches each of them below the new root at once.

    ``attach_scratch`` has the scratch stacked on ``/`` until the old root is left: before Linux
    6.15, OverlayFS refuses (EINVAL) an upper on a mount that is in no mount namespace.
    """

    def __init__(self, *, attach_scratch: bool = False) -> None:
        self._attach_scratch = attach_scratch
        # Detached overlays that are lowers of the next overlay.
        self._lowers: list[int] = []

    def make_scratch(self, options: Options) -> int:
        """Make a detached tmpfs, which lives as long as its descriptor."""
        return self._place_scratch(_make("tmpfs", options, NOSUID_NODEV))

    def make_scratch_on_disk(self, directory: str) -> int:
        """Clone the directory as a detached mount."""
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
        return self._place_scratch(sys.open_tree(sys.AT_FDCWD, directory, flags))

    def _place_scratch(self, scratch: int) -> int:
        if self._attach_scratch:
            _stack_on_root(scratch)
            self._stacked += 1
        return scratch

    def mount_overlay(self, step: Overlay, options: Options) -> None:
        """See :meth:`.api.MountApi.mount_overlay`."""
        try:
            mount = self._make_overlay(step.lowers, options, step.attributes)
        finally:
            while self._lowers:
                os.close(self._lowers.pop())
        self._attach(mount, step.target)

    def open_overlay(self, lower: str, mountpoint: str, options: Options) -> int:
        """Returns a detached overlay; ``mountpoint`` is not needed."""
        return self._make_overlay((lower,), options, 0)

    def mount_as_lower(self, lower: str, mountpoint: str, options: Options) -> str:
        """See :meth:`.api.MountApi.mount_as_lower`."""
        mount = self._make_overlay((lower,), options, 0)
        if not self._attach_scratch:
            self._lowers.append(mount)
            return f"/proc/self/fd/{mount}"
        # A kernel that refuses detached uppers refuses detached lowers as well.
        try:
            sys.move_mount(mount, sys.AT_FDCWD, mountpoint)
        finally:
            os.close(mount)
        return mountpoint

    def _make_overlay(self, lowers: tuple[str, ...], options: Options, attributes: int) -> int:
        opened: list[int] = []
        try:
            names = [_name_lower(path, opened) for path in lowers]
            joined = ":".join(names)
            if len(os.fsencode(joined)) <= FSCONFIG_MAX:
                return _make("overlay", [("lowerdir", joined), *options], attributes)
            # "lowerdir+" takes paths as they are: an escape would be a part of the name.
            pairs = zip(names, lowers, strict=True)
            plain = [path if name == escape_lower(path) else name for name, path in pairs]
            return self._make_overlay_of_many(plain, joined, options, attributes)
        finally:
            for fd in opened:
                os.close(fd)

    def _make_overlay_of_many(
        self, names: list[str], joined: str, options: Options, attributes: int
    ) -> int:
        """Make an overlay whose lowers, ``joined``, are too long for one call of fsconfig(2)."""
        try:
            lowers: list[tuple[str, str | None]] = [("lowerdir+", name) for name in names]
            return _make("overlay", [*lowers, *options], attributes)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._attach_scratch:
                raise
        # "lowerdir+" came with Linux 6.7, Documentation/filesystems/overlayfs.rst. mount(2) takes
        # a page of options, but needs a mountpoint.
        os.mkdir(_TEMPORARY_MOUNTPOINT)
        try:
            data = mount_data([("lowerdir", joined), *options])
            sys.mount("overlay", _TEMPORARY_MOUNTPOINT, "overlay", mount_flags(attributes), data)
            try:
                flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
                return sys.open_tree(sys.AT_FDCWD, _TEMPORARY_MOUNTPOINT, flags)
            finally:
                sys.umount(_TEMPORARY_MOUNTPOINT, sys.MNT_DETACH)
        finally:
            os.rmdir(_TEMPORARY_MOUNTPOINT)

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """See :meth:`.api.MountApi.bind`."""
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        scratch_is_on_source = self.root < 0 and self._stacked
        if scratch_is_on_source:
            # A recursive clone of / would contain the scratch, which is stacked on it.
            # mount_namespaces(7): unbindable mounts are left out of a recursive bind.
            sys.mount(None, ".", None, sys.MS_UNBINDABLE)
        tree = sys.open_tree(sys.AT_FDCWD, source, flags | sys.AT_NO_AUTOMOUNT)
        if scratch_is_on_source:
            # Only for the moment: an overlay refuses uppers on an unbindable mount.
            sys.mount(None, ".", None, sys.MS_PRIVATE)
        self.attach_tree(tree, target, read_only=read_only)

    def attach_tree(self, tree: int, target: str, *, read_only: bool) -> None:
        """Attach a tree that open_tree(2) has cloned, and close its descriptor."""
        try:
            seal(tree, read_only=read_only)
        except OSError:
            os.close(tree)
            raise
        self._attach(tree, target)

    def make_tree_read_only(self, target: str) -> None:
        """See :meth:`.api.MountApi.make_tree_read_only`."""
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        tree = sys.open_tree(self.root, target[1:], flags | sys.AT_NO_AUTOMOUNT)
        self.attach_tree(tree, target, read_only=True)

    def make_mount_read_only(self, target: str) -> None:
        """See :meth:`.api.MountApi.make_mount_read_only`."""
        path, flags = (target[1:], 0) if target != "/" else ("", sys.AT_EMPTY_PATH)
        sys.mount_setattr(self.root, path, flags, sys.MOUNT_ATTR_RDONLY)

    def mount(self, fstype: str, target: str, options: Options, attributes: int) -> None:
        """See :meth:`.api.MountApi.mount`."""
        self._attach(_make(fstype, options, attributes), target)

    def _attach(self, mount: int, target: str) -> None:
        """Attach a detached mount, and close its descriptor unless it is the new root's.

        The first one is the new root. It is stacked on ``/``.
        """
        if self.root < 0:
            _stack_on_root(mount)
            self.root = mount
            return
        try:
            sys.move_mount(mount, self.root, target[1:])
        finally:
            os.close(mount)


@final
class DeferredMountApi(NewMountApi):
    """Makes all mounts in one mount namespace, and attaches them later, in another one.

    Until :meth:`attach_all`, mounts are held as descriptors. What has to be done in the new root
    is deferred as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self._new_root = -1
        self._detached: list[tuple[int, str]] = []
        self._deferred: list[Callable[[], None]] = []

    def open_directory(self, target: str) -> int:
        """Returns a descriptor of the detached mount that belongs at ``target``."""
        return os.dup(next(fd for fd, place in reversed(self._detached) if place == target))

    def when_attached(self, action: Callable[[], None]) -> None:
        """Defer ``action`` until :meth:`attach_all` has attached what was mounted so far."""
        self._deferred.append(action)

    def make_mount_read_only(self, target: str) -> None:
        """See :meth:`.api.MountApi.make_mount_read_only`."""
        self._deferred.append(partial(super().make_mount_read_only, target))

    def _attach(self, mount: int, target: str) -> None:
        if target == "/":
            self._new_root = mount
            return
        self._detached.append((mount, target))
        self._deferred.append(partial(self._move, mount, target))

    def _move(self, mount: int, target: str) -> None:
        sys.move_mount(mount, self.root, target[1:])

    def attach_all(self, template_root: int, trees: Sequence[tuple[str, str]]) -> None:
        """Attach everything, in the mount namespace that this thread is in now.

        ``trees`` are mounts of the template: for each its name below ``template_root``, a
        descriptor, and the path in the sandbox to which it is moved. If this object has not made
        the root itself, it is one of them.
        """
        if self._new_root < 0:
            name = next(name for name, target in trees if target == "/")
            self._new_root = sys.open_tree(template_root, name, sys.OPEN_TREE_CLOEXEC)
        self.root, self._new_root = self._new_root, -1
        sys.move_mount(self.root, sys.AT_FDCWD, "/")
        for name, target in trees:
            if target != "/":
                sys.move_mount_from(template_root, name, self.root, target[1:])
        for action in self._deferred:
            action()

    def close(self) -> None:
        """Close all descriptors. Mounts that are attached stay."""
        for fd in (self.root, self._new_root, *(fd for fd, _ in self._detached)):
            if fd >= 0:
                os.close(fd)
        self.root = self._new_root = -1
        self._detached.clear()


def seal(tree: int, *, read_only: bool) -> None:
    """Have a cloned tree stay as it is while the host mounts and unmounts.

    A mount that appeared in it later, as by autofs(5), would have the host's flags: a test could
    write to it, mount_namespaces(7). With ``read_only``, all mounts of the tree become so. Raises
    :class:`OSError`.
    """
    flags = sys.AT_EMPTY_PATH | sys.AT_RECURSIVE
    attributes = sys.MOUNT_ATTR_RDONLY if read_only else 0
    sys.mount_setattr(tree, "", flags, attributes, propagation=sys.MS_PRIVATE)


def forget_entries(dirfd: int, mountpoint: str) -> None:
    """Have a mounted filesystem forget all names and attributes that nobody uses at the moment.

    An overlay that stays mounted would go on to show what it has looked up in a lower before the
    host has changed that. Whatever is reconfigured drops such entries first (``reconfigure_super``,
    fs/super.c); nothing else is changed here. Raises :class:`OSError`.
    """
    context = sys.fspick(dirfd, mountpoint)
    try:
        sys.fsconfig_reconfigure(context, mountpoint)
    finally:
        os.close(context)


def clone_own(scratch: int, name: str, attributes: int) -> int:
    """Returns a descriptor of a detached mount of the directory ``name`` in ``scratch``.

    ``attributes`` are all the ``MOUNT_ATTR_*`` flags that it gets; the scratch has others. Raises
    :class:`OSError`, before Linux 6.15 in any case.
    """
    atime = sys.MOUNT_ATTR_ATIME_MASK if attributes & sys.MOUNT_ATTR_NOATIME else 0
    others = (NOSUID_NODEV | sys.MOUNT_ATTR_NOEXEC) & ~attributes
    tree = sys.open_tree(scratch, name, sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC)
    try:
        try:
            sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attributes, others | atime)
        except OSError as error:
            # A user namespace may not change what the disk of the uppers was mounted with, but for
            # further restrictions, mount_namespaces(7).
            if error.errno != errno.EPERM:
                raise
            restrictions = attributes & ~sys.MOUNT_ATTR_NOATIME
            sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, restrictions)
    except OSError:
        os.close(tree)
        raise
    return tree


def _make(fstype: str, options: Options, attributes: int) -> int:
    """Returns a descriptor of a new detached mount."""
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


def _stack_on_root(mount: int) -> None:
    """Attach a detached mount on ``/``. If that fails, its descriptor is closed."""
    try:
        sys.move_mount(mount, sys.AT_FDCWD, "/")
    except OSError:
        os.close(mount)
        raise


def _name_lower(path: str, opened: list[int]) -> str:
    """Returns ``path`` as fsconfig(2) takes it, by way of a descriptor if it must.

    Such a descriptor is added to ``opened``.
    """
    if fits_one_option(path):
        return escape_lower(path)
    opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    return f"/proc/self/fd/{opened[-1]}"
