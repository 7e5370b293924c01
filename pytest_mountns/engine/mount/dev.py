"""Mounts the minimal ``/dev`` of a sandbox: device nodes, terminals, shared memory, queues."""

from __future__ import annotations

import stat
from contextlib import suppress
from typing import Final

from ..linux import syscalls as sys
from ..linux.untouched import os
from ..plan.model import MakeDev
from .api import NOSUID_NODEV, MountApi

#: Major and minor numbers of the standard nodes, Documentation/admin-guide/devices.txt.
DEVICE_NUMBERS: Final = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
LINKS: Final = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
#: The number of the group ``tty``, which terminals belong to, on nearly all distributions.
_TTY_GROUP: Final = "5"
#: The flags of the mount of terminals.
TERMINALS: Final = sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NOEXEC


def mount_dev(api: MountApi, step: MakeDev, *, user_namespace: bool) -> None:
    """Mount a tmpfs at the step's target, with what it names. Raises :class:`OSError`.

    The caller mounts the overlay of :attr:`.MakeDev.host_shm`.
    """
    dev = step.target
    if step.part == "shm":
        _mount_shm(api, step)
        return
    api.mount("tmpfs", dev, [("mode", "0755")], sys.MOUNT_ATTR_NOSUID)
    fd = api.open_directory(dev)
    try:
        for name in step.devices:
            if step.bind:
                _bind_node(api, dev, name, fd)
            else:
                device = os.makedev(*DEVICE_NUMBERS[name])
                os.mknod(name, stat.S_IFCHR | 0o666, device, dir_fd=fd)
        for name in step.more:
            _show_host_node(api, step, name, fd)
        for name, link in LINKS.items():
            os.symlink(link, name, dir_fd=fd)
        for name in ("pts", "shm", *["mqueue"] * bool(step.mqueue)):
            os.mkdir(name, 0o755, dir_fd=fd)
    finally:
        os.close(fd)
    # Every devpts mount is an instance of its own, Documentation/filesystems/devpts.rst.
    options = terminal_options(user_namespace=user_namespace)
    api.mount("devpts", f"{dev}/pts", options, TERMINALS)
    if step.part == "all":
        _mount_shm(api, step)
    if step.mqueue == "own":
        api.mount("mqueue", f"{dev}/mqueue", [], NOSUID_NODEV | sys.MOUNT_ATTR_NOEXEC)
    elif step.mqueue:
        api.bind("/dev/mqueue", f"{dev}/mqueue", read_only=True)


def _mount_shm(api: MountApi, step: MakeDev) -> None:
    if not step.host_shm:
        api.mount("tmpfs", f"{step.target}/shm", [("mode", "1777")], NOSUID_NODEV)


def terminal_options(*, user_namespace: bool) -> list[tuple[str, str | None]]:
    """The options of the mount of terminals."""
    # A user namespace of one group does not map that of terminals.
    group = [] if user_namespace else [("gid", _TTY_GROUP)]
    return [("ptmxmode", "0666"), ("mode", "620"), *group]


def _bind_node(api: MountApi, dev: str, name: str, fd: int) -> None:
    """Show a node of the host's by a bind mount. ``fd`` is a descriptor of ``dev``."""
    os.close(os.open(name, os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=fd))
    api.bind(f"/dev/{name}", f"{dev}/{name}", read_only=False)


def _show_host_node(api: MountApi, step: MakeDev, name: str, fd: int) -> None:
    """Show a node of the host's that is not one of the standard ones.

    Where nodes can be made, a new one is made for the same device, so that a chmod(2) of it does
    not reach the host.
    """
    status = os.stat(f"/dev/{name}")
    place = ""
    for part in name.split("/")[:-1]:
        place = os.path.join(place, part)
        with suppress(FileExistsError):
            os.mkdir(place, 0o755, dir_fd=fd)
    if step.bind:
        _bind_node(api, step.target, name, fd)
        return
    os.mknod(name, status.st_mode, status.st_rdev, dir_fd=fd)
    os.chown(name, status.st_uid, status.st_gid, dir_fd=fd)
    os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=fd)
