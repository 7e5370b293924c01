"""What the two mount APIs have in common: the operations that the steps of a plan need.

:mod:`.new_api` makes detached mounts with fsopen(2), fsconfig(2), fsmount(2), open_tree(2) and
move_mount(2). :mod:`.classic_api` uses mount(2) alone. :mod:`.executor` says which operations a
plan needs, and in which order; :func:`.root.mount_api_for` chooses the API.

While a root is made, the working directory is the scratch, the directory in which the uppers lie.
Overlay options can therefore name uppers by short relative paths.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from ..linux import syscalls as sys
from ..linux.untouched import os
from ..plan.model import Overlay

#: Options of a filesystem, as in ``mount -o``. None as value stands for an option without value.
Options: TypeAlias = "Sequence[tuple[str, str | None]]"

#: The longest value that fsconfig(2) takes, in bytes.
FSCONFIG_MAX: Final = 255
NOSUID_NODEV: Final = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NODEV
_MS_FLAGS: Final = {
    sys.MOUNT_ATTR_RDONLY: sys.MS_RDONLY,
    sys.MOUNT_ATTR_NOSUID: sys.MS_NOSUID,
    sys.MOUNT_ATTR_NODEV: sys.MS_NODEV,
    sys.MOUNT_ATTR_NOEXEC: sys.MS_NOEXEC,
    sys.MOUNT_ATTR_NOATIME: sys.MS_NOATIME,
}


class MountApi(ABC):
    """Makes the mounts of one new root, and pivots into it.

    A ``source`` or ``lower`` is an absolute path of the host, or is relative to the scratch. A
    ``target`` is an absolute path of the sandbox. The first mount that is made must be the new
    root itself, with ``target="/"``. Every operation raises :class:`OSError` if the kernel
    refuses it.
    """

    #: A descriptor of the new root; -1 until it is mounted.
    root: int = -1
    #: How many mounts of ours are stacked on the old ``/``, besides the new root.
    _stacked: int = 0

    @abstractmethod
    def make_scratch(self, options: Options) -> int:
        """Mount a tmpfs for the uppers. Returns a descriptor of its root."""

    @abstractmethod
    def make_scratch_on_disk(self, directory: str) -> int:
        """Make the host's ``directory`` the place for the uppers. Returns a descriptor of it.

        It is a mount of its own: from the descriptor of a plain directory, ``..`` would lead to
        the rest of the host.
        """

    @abstractmethod
    def mount_overlay(self, step: Overlay, options: Options) -> None:
        """Mount the overlay of a plan's step at its target.

        ``options`` are those besides ``lowerdir``.
        """

    @abstractmethod
    def open_overlay(self, lower: str, mountpoint: str, options: Options) -> int:
        """Mount an overlay outside of the new root. Returns a descriptor of its root.

        ``mountpoint`` is an empty directory in the scratch, for an API that needs one.
        """

    @abstractmethod
    def mount_as_lower(self, lower: str, mountpoint: str, options: Options) -> str:
        """Mount an overlay to be a lower of the next one. Returns the path to name it by.

        ``mountpoint`` is an empty directory in the scratch, for an API that needs one.
        """

    @abstractmethod
    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Bind-mount ``source``, with everything that is mounted below it, at ``target``."""

    @abstractmethod
    def make_tree_read_only(self, target: str) -> None:
        """Cover ``target`` by a read-only bind mount of itself and of everything below it.

        That works for directories that are not mountpoints as well.
        """

    @abstractmethod
    def make_mount_read_only(self, target: str) -> None:
        """Make the one mount at ``target`` read-only, without those below it."""

    @abstractmethod
    def mount(self, fstype: str, target: str, options: Options, attributes: int) -> None:
        """Mount a filesystem that has no source; ``attributes`` are ``MOUNT_ATTR_*`` bits."""

    def open_directory(self, target: str) -> int:
        """Returns a descriptor (``O_PATH``) of what is mounted at ``target``."""
        flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
        return os.open(target[1:], flags, dir_fd=self.root)

    def when_attached(self, action: Callable[[], None]) -> None:
        """Call ``action`` as soon as everything mounted so far is in its place: by default, now."""
        action()

    def pivot_root(self) -> None:
        """Make the new root the root of this mount namespace, and detach the old one.

        ``pivot_root(".", ".")`` needs no directory for the old root: it leaves that stacked on the
        new one, see the notes in pivot_root(2).
        """
        os.fchdir(self.root)
        os.close(self.root)
        self.root = -1
        sys.pivot_root(".", ".")
        # A slave first: the detaching must not propagate to the host, mount_namespaces(7).
        sys.mount(None, ".", None, sys.MS_SLAVE | sys.MS_REC)
        for _ in range(1 + self._stacked):
            sys.umount(".", sys.MNT_DETACH)


def escape_lower(path: str) -> str:
    """Escape a path as one of ``lowerdir=``: backslash, colon and comma have a meaning there."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def fits_one_option(path: str) -> bool:
    """Whether fsconfig(2) takes a path as ``lowerdir``, and not only a descriptor's name.

    Before Linux 6.5 it refuses any comma. It never takes more than 255 bytes.
    """
    return "," not in path and len(os.fsencode(escape_lower(path))) <= FSCONFIG_MAX


def mount_data(options: Options) -> str:
    """Returns the options as the ``data`` argument of mount(2)."""
    return ",".join(key if value is None else f"{key}={value}" for key, value in options)


def mount_flags(attributes: int) -> int:
    """Returns the ``MS_*`` flags of mount(2) for ``MOUNT_ATTR_*`` bits of fsmount(2)."""
    return sum(flag for bit, flag in _MS_FLAGS.items() if attributes & bit)
