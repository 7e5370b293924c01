"""Environments that cannot make some or all sandboxes, each in a process of its own.

The kernel itself refuses: because of its settings, of missing capabilities, or of a seccomp filter
that answers as is known of that environment. The tests of the doctor use them, and
``python -m tests.helpers.doctor`` for the doctor's page.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.environment import CAP_SYS_ADMIN
from pytest_mountns.engine.linux.namespaces import enter_user_namespace
from tests.helpers.seccomp import CLONE_NEW, Refusal, install, refuse
from tests.helpers.worlds import BASE, Mode, bind, in_sandbox, in_world, mkdir, mount_tmpfs, write

_PR_CAPBSET_DROP: Final = 24
_CAP_MKNOD: Final = 27
NEW_MOUNT_API: Final = ("open_tree", "move_mount", "fsopen", "fsconfig", "fsmount", "mount_setattr")
# What a container of Docker's keeps: chown, dac_override, fowner, fsetid, kill, setgid, setuid,
# setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
_DOCKERS: Final = frozenset((0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31))


@dataclass(frozen=True)
class Environment:
    """One environment, and how to get into it."""

    name: str
    #: The heading on the page.
    title: str
    #: Whose sandboxes the machine must be able to make.
    needs: Mode
    #: Makes the environment around the calling process and calls the action in it.
    enter: Callable[[Callable[[], object]], object]
    #: Whether a seccomp filter stands for something else, which the doctor cannot see.
    imitates: bool = False
    #: Called before with the privileges to mount, as by :func:`in_world`.
    prepare: Callable[[], object] = lambda: None

    def run(self, action: Callable[[], object]) -> object:
        """Call ``action`` in the environment. Returns its result."""
        return in_world(lambda: self.enter(action), self.needs, self.prepare)


def drop_capabilities(gone: frozenset[int]) -> None:
    """Drop capabilities from all sets, as ``setpriv --bounding-set`` and container engines do."""
    _, permitted, inheritable = syscalls.capget()
    syscalls.capset(permitted, permitted, inheritable)
    for number in gone:
        if permitted >> number & 1:
            syscalls.prctl(_PR_CAPBSET_DROP, number)
    rest = permitted & ~sum(1 << number for number in gone)
    syscalls.capset(rest, rest, inheritable & rest)


def drop_sys_admin() -> None:
    """Drop CAP_SYS_ADMIN."""
    drop_capabilities(frozenset((CAP_SYS_ADMIN,)))


def forbid_user_namespaces() -> None:
    """Enter a user namespace, and set its limit of user namespaces to none."""
    enter_user_namespace()
    write("/proc/sys/user/max_user_namespaces", "0")
    # All of them: with permitted ones, sandboxes could be made in this namespace.
    syscalls.capset(0, 0, 0)


def forbid_as_docker() -> None:
    """Forbid this process for good what Docker forbids in a container without options."""
    drop_capabilities(frozenset(range(41)) - _DOCKERS)
    calls = ("mount", "umount2", "pivot_root", "setns", "unshare", *NEW_MOUNT_API)
    namespaces = [Refusal("clone", errno.EPERM, CLONE_NEW), Refusal("clone3", errno.ENOSYS)]
    install([*refuse(calls, errno.EPERM), *namespaces])


def _docker(action: Callable[[], object]) -> object:
    forbid_as_docker()
    return action()


def _docker_with_sys_admin(action: Callable[[], object]) -> object:
    # With the capability the seccomp profile allows these calls, but AppArmor's profile does not.
    mounts = refuse(("mount", "umount2", "fsmount", "move_mount", "mount_setattr"), errno.EACCES)
    install([*mounts, Refusal("pivot_root", errno.EPERM)])
    return action()


def _set_apparmors_sysctl() -> None:
    mount_tmpfs("/proc/sys/kernel")
    write("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n")


def _apparmor(action: Callable[[], object]) -> object:
    # AppArmor lets the namespace be made, but gives no capability in it, so that the first write
    # of a map is refused. Here no namespace is made at all, and that write is refused as well.
    install([Refusal("unshare", 0, syscalls.CLONE_NEWUSER)])
    return action()


def _apparmor_late(action: Callable[[], object]) -> object:
    # Where the maps may be written, the next call that needs a capability is refused.
    install([Refusal("unshare", errno.EPERM, syscalls.CLONE_NEWNS)])
    return action()


def _no_user_namespaces(action: Callable[[], object]) -> object:
    forbid_user_namespaces()
    return action()


def _hidden_calls(action: Callable[[], object]) -> object:
    install(refuse(NEW_MOUNT_API, errno.ENOSYS))
    return action()


def _no_mknod(action: Callable[[], object]) -> object:
    drop_capabilities(frozenset((_CAP_MKNOD,)))
    return action()


def _no_xattrs(action: Callable[[], object]) -> object:
    install(refuse(("setxattr",), errno.EOPNOTSUPP))
    return action()


def _chroot(action: Callable[[], object]) -> object:
    mkdir("jail/proc")
    bind("/proc", "jail/proc")
    os.chroot("jail")
    os.chdir("/")
    return action()


def _too_deep(action: Callable[[], object]) -> object:
    def level(number: int) -> object:
        if number == 0:
            return action()
        return in_sandbox(lambda _: level(number - 1), mode="root")

    os.chdir(BASE)
    return level(2)


ENVIRONMENTS: Final = (
    Environment("docker", "Root in a Docker container without options", "root", _docker),
    Environment(
        "docker-sys-admin",
        "Root in a Docker container with `--cap-add SYS_ADMIN` and nothing else",
        "root",
        _docker_with_sys_admin,
    ),
    Environment(
        "apparmor",
        "An ordinary user of Ubuntu 23.10 or later, where AppArmor restricts user namespaces",
        "user",
        _apparmor,
        imitates=True,
        prepare=_set_apparmors_sysctl,
    ),
    Environment(
        "apparmor-late",
        "The same, where the maps may be written",
        "user",
        _apparmor_late,
        imitates=True,
        prepare=_set_apparmors_sysctl,
    ),
    Environment(
        "no-user-namespaces",
        "An ordinary user, and `user.max_user_namespaces` is 0",
        "user",
        _no_user_namespaces,
    ),
    Environment(
        "hidden-calls",
        "Root, and a seccomp profile hides the new mount API",
        "root",
        _hidden_calls,
    ),
    Environment("no-mknod", "Root without `CAP_MKNOD`, as in a container", "root", _no_mknod),
    Environment(
        "no-xattrs",
        "An ordinary user, and tmpfs takes no extended attributes (Linux before 6.6)",
        "user",
        _no_xattrs,
        imitates=True,
    ),
    Environment("chroot", "Root in a chroot that is no mountpoint", "root", _chroot),
    Environment("too-deep", "In a sandbox in a sandbox", "root", _too_deep),
)
