"""Likely causes of what the kernel says, and commands that help.

An errno means different things at different steps: EINVAL when an overlay is mounted is a limit of
OverlayFS, and EINVAL of pivot_root(2) means that the process is in a chroot. So the errno is looked
up together with the step first.
"""

from __future__ import annotations

import errno
from typing import Final, Literal, TypeAlias

#: The step that has failed; "" if it is none of these.
Doing: TypeAlias = Literal[
    "",
    "user namespace",
    "id map",
    "namespace",
    "network",
    "scratch",
    "overlay",
    "bind",
    "target",
    "proc",
    "pivot",
    "mknod",
    "disk",
    "user",
    "landlock",
]

_DOCTOR: Final = "pytest --mountns-doctor shows which step fails"

_USER_EPERM: Final = (
    "unprivileged user namespaces are restricted here (AppArmor on Ubuntu 23.10 and later,"
    " Debian's kernel.unprivileged_userns_clone, a container's seccomp profile), or the process"
    " is in a chroot",
    "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or"
    " sudo sysctl -w kernel.unprivileged_userns_clone=1 (Debian), or run as root;"
    " in Docker: --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    " --security-opt apparmor=unconfined",
)
_ROOT_EPERM: Final = (
    "this root lacks CAP_SYS_ADMIN, or a seccomp or AppArmor profile forbids the call, as in a"
    " default Docker container",
    "docker run --privileged, or --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    " --security-opt apparmor=unconfined",
)
_USER_MKNOD: Final = ("a user namespace makes no device nodes", "")
_ROOT_MKNOD: Final = (
    "this root lacks CAP_MKNOD, or a device cgroup forbids it, as in a container",
    "docker run --cap-add MKNOD, if tests make device nodes",
)
_CHROOT: Final = (
    "the process is in a chroot, or its / is the initial ramfs: neither can be pivoted away from",
    "run outside of the chroot, or make its / a mount of its own before entering it:"
    " mount --bind DIR DIR",
)
_HIDDEN: Final = (
    "a directory on the way there is closed to this user",
    "choose a source that the user who runs the tests may look at",
)

_NO_RIGHTS: Final = (
    "the kernel makes user namespaces and then gives no rights in them, as with AppArmor (Ubuntu"
    " 23.10 and later) and other security modules",
    "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or run as root",
)
_NO_PLACE: Final = (
    "the place for uppers on disk cannot be written to",
    "export TMPDIR=/some/disk that this user can write",
)

_BY_STEP: Final[dict[tuple[Doing, int], tuple[str, str]]] = {
    ("user namespace", errno.ENOSPC): (
        "no more user namespaces are allowed: user.max_user_namespaces is 0 or used up, or they"
        " are nested too deep",
        "sudo sysctl -w user.max_user_namespaces=15000",
    ),
    # Before Linux 4.9, user_namespaces(7); since then it is ENOSPC.
    ("user namespace", errno.EUSERS): (
        "user namespaces are nested too deep: 32 levels are allowed",
        "run the tests some levels further out",
    ),
    ("id map", errno.EPERM): _NO_RIGHTS,
    ("id map", errno.EACCES): _NO_RIGHTS,
    ("id map", errno.ENOENT): ("there is no /proc here", "mount -t proc proc /proc"),
    ("id map", errno.EROFS): (
        "/proc is mounted read-only, as in some containers",
        "mount -o remount,rw /proc",
    ),
    ("user namespace", errno.EINVAL): (
        "the kernel has no user namespaces, or the process has more than one thread",
        "run as root",
    ),
    ("namespace", errno.ENOSPC): (
        "no more namespaces are allowed: user.max_mnt_namespaces or user.max_pid_namespaces is"
        " used up, or fs.mount-max",
        "sudo sysctl -w user.max_mnt_namespaces=15000 user.max_pid_namespaces=15000"
        " fs.mount-max=100000",
    ),
    ("namespace", errno.EINVAL): _CHROOT,
    ("network", errno.EPERM): (
        "this root lacks CAP_NET_ADMIN, as in a container, and cannot make user namespaces",
        "docker run --cap-add NET_ADMIN, or leave out network and isolated_net",
    ),
    ("pivot", errno.EINVAL): _CHROOT,
    ("pivot", errno.EBUSY): _CHROOT,
    ("overlay", errno.EINVAL): (
        "a limit of OverlayFS: overlays nest two deep at most (one is used up in a container, one"
        " in another sandbox), or what lies below is on a filesystem it cannot use",
        "run the tests one level further out, or give the directory as a volume; the kernel's log"
        " (dmesg) says which limit",
    ),
    ("overlay", errno.ELOOP): ("a layer lies inside another", "choose layers that do not overlap"),
    ("overlay", errno.ENOENT): (
        "a directory below has vanished since the mounts were read",
        "run the tests again",
    ),
    ("bind", errno.EINVAL): (
        "the source lies on an unbindable mount, or is neither file nor directory",
        "mount --make-private on the source's mount",
    ),
    ("bind", errno.ENOENT): (
        "the source does not exist on the host",
        "create it before the tests run",
    ),
    ("bind", errno.ENOTDIR): (
        "of source and target, one is a directory and the other is not",
        "choose a target of the source's kind, or one that does not exist yet",
    ),
    ("bind", errno.EACCES): _HIDDEN,
    ("bind", errno.EPERM): _HIDDEN,
    ("target", errno.EROFS): (
        "the target is missing, and the directory it would be made in is read-only in the sandbox",
        "choose a target that exists already, or one below a writable directory",
    ),
    ("target", errno.ENOTDIR): (
        "a component of the target's path is not a directory",
        "choose another target",
    ),
    ("target", errno.ELOOP): (
        "a symbolic link stands on the way to the target",
        "name the place that the link leads to",
    ),
    ("target", errno.EACCES): (
        "the target is missing, and the directory it would be made in is closed to this user",
        "choose a target that exists already, or one below a writable directory",
    ),
    ("disk", errno.ENOSPC): (
        "the disk is full, or has no inodes left",
        "df -h; df -i; or export TMPDIR=/another/disk",
    ),
    ("disk", errno.EDQUOT): (
        "the user's quota on this disk is used up",
        "quota -s; or export TMPDIR=/another/disk",
    ),
    ("disk", errno.EACCES): _NO_PLACE,
    ("disk", errno.EPERM): _NO_PLACE,
    ("disk", errno.EROFS): _NO_PLACE,
    ("disk", errno.EAGAIN): ("too many processes", "ulimit -u"),
    ("landlock", errno.ENOSYS): (
        "the kernel is older than 5.13 or was built without Landlock, or a seccomp profile hides"
        " the call",
        "Linux 5.13 or later, and a container engine that knows Landlock (Docker 23)",
    ),
    ("landlock", errno.EOPNOTSUPP): (
        "Landlock was not enabled when the machine was started",
        "add landlock to the kernel parameter lsm=: cat /sys/kernel/security/lsm has the others",
    ),
    ("landlock", errno.EPERM): (
        "a seccomp profile forbids the call",
        "a container engine that knows Landlock (Docker 23), or --security-opt seccomp=unconfined",
    ),
    ("landlock", errno.E2BIG): (
        "16 rulesets are in force already, one in another, landlock(7)",
        "run the tests some levels further out",
    ),
    ("user", errno.EINVAL): (
        "this root is one of a user namespace, which does not map that user",
        "run as the machine's own root",
    ),
    ("user", errno.EAGAIN): ("that user has too many processes", "ulimit -u"),
    ("proc", errno.ENOENT): ("there is no /proc here", "mount -t proc proc /proc"),
    ("proc", errno.EPERM): (
        "the visible /proc is partly covered, as in a container, and the kernel shows a user no"
        " more of it",
        "docker run --security-opt systempaths=unconfined, or leave out pid=True",
    ),
}


def explain(number: int, user_namespace: bool, doing: Doing = "") -> tuple[str, str]:
    """The likely cause of an errno at a step, and a remedy; both may be empty."""
    known = _BY_STEP.get((doing, number))
    if known is not None:
        return known
    if doing == "mknod" and number == errno.EPERM:
        return _USER_MKNOD if user_namespace else _ROOT_MKNOD
    if number in (errno.EPERM, errno.EACCES):
        return _USER_EPERM if user_namespace else _ROOT_EPERM
    if number == errno.ENOSPC:
        return (
            "the upper is full, or fs.mount-max is used up",
            "raise size=/inodes= of the marker, or sudo sysctl -w fs.mount-max=100000",
        )
    if number == errno.ENODEV:
        return ("the kernel has no such filesystem loaded", "sudo modprobe overlay")
    if number == errno.EROFS:
        return ("the place is read-only in the sandbox", "choose one below a writable directory")
    if number == errno.EOVERFLOW:
        return (
            "the directory has an owner or group that the user namespace does not map, so nothing"
            " can be made in it",
            "choose a place in a directory of the user's own, or run as root",
        )
    if number == errno.ENOSYS:
        return ("the kernel is too old, or a seccomp profile hides the call", "uname -r; use 5.11+")
    if number in (errno.EMFILE, errno.ENFILE):
        return ("too many open files", "ulimit -n 4096")
    if number == errno.ENOMEM:
        return ("not enough memory", "free -m")
    if number == errno.EPROTO:
        return (
            "something answers system calls in the kernel's place, such as a seccomp filter or a"
            " program that runs this one under ptrace(2)",
            "run pytest outside of it; grep -E 'Seccomp|TracerPid' /proc/self/status shows it",
        )
    if number == errno.EINVAL:
        return ("the kernel does not take this as it was asked for", _DOCTOR)
    return ("", "")
