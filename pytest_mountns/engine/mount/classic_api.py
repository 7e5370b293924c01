"""Mounts with mount(2) alone, for kernels before Linux 5.12.

mount(2) needs a mountpoint for everything. The scratch is stacked on the old ``/``, and the new
root is a directory in it until it is pivoted to.
"""

from __future__ import annotations

import errno
from typing import Final, final

from ..linux import syscalls as sys
from ..linux.errors import SyscallError
from ..linux.mountinfo import is_below, out_of_reach, owning, read, visible
from ..linux.untouched import os
from ..plan.model import Overlay
from .api import MountApi, Options, escape_lower, mount_data, mount_flags

#: The mountpoint of the new root, in the scratch.
_NEW_ROOT: Final = "root"
#: Flags of a mount, as mountinfo names them.
_FLAG_NAMES: Final = {
    "nosuid": sys.MS_NOSUID,
    "nodev": sys.MS_NODEV,
    "noexec": sys.MS_NOEXEC,
    "noatime": sys.MS_NOATIME,
    "nodiratime": sys.MS_NODIRATIME,
    "relatime": sys.MS_RELATIME,
}


@final
class ClassicMountApi(MountApi):
    """Makes each mount in its place below the new root.

    It is made in the mount namespace of the new root. Raises :class:`OSError` if the mount table
    cannot be read.
    """

    def __init__(self) -> None:
        # See new_api.seal(). It is this namespace's alone, and no tree is cloned with the flags
        # of mounts that are not in the table below.
        sys.mount(None, "/", None, sys.MS_PRIVATE | sys.MS_REC)
        self._mounts = visible(read())

    def make_scratch(self, options: Options) -> int:
        """Stack a tmpfs on ``/``."""
        sys.mount("tmpfs", "/", "tmpfs", sys.MS_NOSUID | sys.MS_NODEV, mount_data(options))
        return self._open_scratch()

    def make_scratch_on_disk(self, directory: str) -> int:
        """Stack a bind mount of the directory on ``/``."""
        sys.mount(directory, "/", None, sys.MS_BIND)
        return self._open_scratch()

    def _open_scratch(self) -> int:
        self._stacked += 1
        # ".." of the root is the root again, but it is looked up anew: with what now covers it.
        scratch = os.open("/..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.path.samestat(os.fstat(scratch), os.stat("/")):
            # What is made in it would be made in the host's root.
            os.close(scratch)
            raise sys.pretended("mount(2)")
        return scratch

    def mount_overlay(self, step: Overlay, options: Options) -> None:
        """See :meth:`.api.MountApi.mount_overlay`."""
        mountpoint = self._mountpoint(step.target)
        _mount_overlay(step.lowers, mountpoint, options, step.attributes)
        self._open_new_root()

    def open_overlay(self, lower: str, mountpoint: str, options: Options) -> int:
        """See :meth:`.api.MountApi.open_overlay`."""
        _mount_overlay((lower,), mountpoint, options, 0)
        return os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def mount_as_lower(self, lower: str, mountpoint: str, options: Options) -> str:
        """See :meth:`.api.MountApi.mount_as_lower`."""
        _mount_overlay((lower,), mountpoint, options, 0)
        return mountpoint

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """See :meth:`.api.MountApi.bind`."""
        if self.root < 0:
            # A recursive bind of / would contain the scratch, which is stacked on it, and be
            # covered by it. mount_namespaces(7): unbindable mounts are left out. Only for the
            # moment: an overlay refuses uppers on an unbindable mount.
            sys.mount(None, ".", None, sys.MS_UNBINDABLE)
        sys.mount(source, self._mountpoint(target), None, sys.MS_BIND | sys.MS_REC)
        if self.root < 0:
            sys.mount(None, ".", None, sys.MS_PRIVATE)
        self._open_new_root()
        if read_only:
            try:
                self._set_read_only(source, target)
            except OSError:
                # The caller may go on without this bind, but not with one that can be written to.
                if target != "/":
                    sys.umount(self._mountpoint(target), sys.MNT_DETACH)
                raise

    def make_tree_read_only(self, target: str) -> None:
        """See :meth:`.api.MountApi.make_tree_read_only`."""
        mountpoint = self._mountpoint(target)
        sys.mount(mountpoint, mountpoint, None, sys.MS_BIND | sys.MS_REC)
        self._set_read_only(target, target)

    def make_mount_read_only(self, target: str) -> None:
        """See :meth:`.api.MountApi.make_mount_read_only`."""
        self._remount_read_only(self._mountpoint(target), target)

    def mount(self, fstype: str, target: str, options: Options, attributes: int) -> None:
        """See :meth:`.api.MountApi.mount`."""
        flags = mount_flags(attributes)
        sys.mount(fstype, self._mountpoint(target), fstype, flags, mount_data(options))

    def _mountpoint(self, target: str) -> str:
        """Returns the path from the scratch on to a path of the sandbox."""
        if self.root < 0:
            os.makedirs(_NEW_ROOT, exist_ok=True)
            return _NEW_ROOT
        return _NEW_ROOT + target.rstrip("/")

    def _open_new_root(self) -> None:
        if self.root < 0:
            self.root = os.open(_NEW_ROOT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _set_read_only(self, source: str, target: str) -> None:
        """Make a recursive bind of ``source`` read-only, mount by mount.

        mount(2) has no recursive ``MS_REMOUNT``.
        """
        base = target.rstrip("/")
        inner = [m.mountpoint for m in self._mounts if is_below(m.mountpoint, source)]
        prefix = source.rstrip("/")
        self._remount_read_only(self._mountpoint(target), source)
        for path in inner:
            mountpoint = self._mountpoint(base + path[len(prefix) :])
            try:
                self._remount_read_only(mountpoint, path)
            except SyscallError as error:
                # In a directory that is closed to this user, as the roots of containers are, it
                # cannot be named, by the test no more than here. AppArmor refuses mounts with the
                # same number, of what a test could very well write to.
                if error.errno != errno.EACCES or not out_of_reach(mountpoint):
                    raise

    def _remount_read_only(self, mountpoint: str, source: str) -> None:
        """Make one mount read-only that shows what the host's mount of ``source`` shows.

        The flags of that mount are given again: in a user namespace they are locked, and to clear
        them is refused (EPERM), mount_namespaces(7).
        """
        owner = owning(self._mounts, source)
        options = owner.options if owner is not None else frozenset()
        flags = sum(bit for name, bit in _FLAG_NAMES.items() if name in options)
        flags |= sys.MS_REMOUNT | sys.MS_BIND | sys.MS_RDONLY
        sys.mount(None, mountpoint, None, flags)


def _mount_overlay(
    lowers: tuple[str, ...], mountpoint: str, options: Options, attributes: int
) -> None:
    pairs = [("lowerdir", ":".join(escape_lower(path) for path in lowers)), *options]
    sys.mount("overlay", mountpoint, "overlay", mount_flags(attributes), mount_data(pairs))
