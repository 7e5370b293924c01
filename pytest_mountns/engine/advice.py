"""From what the kernel said to why, and to the command that helps."""

from __future__ import annotations

import errno

_USER_EPERM = (
    "unprivileged user namespaces are restricted here (AppArmor on Ubuntu 23.10 and later,"
    " Debian's kernel.unprivileged_userns_clone, or a container's seccomp profile)",
    "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu), or"
    " sudo sysctl -w kernel.unprivileged_userns_clone=1 (Debian), or run as root;"
    " in Docker: --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    " --security-opt apparmor=unconfined",
)
_ROOT_EPERM = (
    "this root lacks CAP_SYS_ADMIN, or a seccomp or AppArmor profile forbids the call, as in a"
    " default Docker container",
    "docker run --privileged, or --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    " --security-opt apparmor=unconfined",
)


def explain(number: int, user_namespace: bool) -> tuple[str, str]:
    """Likely cause and remedy of an errno met while a sandbox is made; both may be empty."""
    if number in (errno.EPERM, errno.EACCES):
        return _USER_EPERM if user_namespace else _ROOT_EPERM
    if number == errno.ENOSPC and user_namespace:
        return (
            "no more user namespaces are allowed: user.max_user_namespaces is 0 or used up",
            "sudo sysctl -w user.max_user_namespaces=15000",
        )
    if number == errno.ENOSPC:
        return (
            "the upper is full, or fs.mount-max or user.max_mnt_namespaces is used up",
            "raise size=/inodes= of the marker, or sudo sysctl -w fs.mount-max=100000",
        )
    if number == errno.ENODEV:
        return ("the kernel has no overlay (or tmpfs) filesystem loaded", "sudo modprobe overlay")
    if number == errno.EROFS:
        return (
            "the place is read-only in the sandbox",
            "choose a target that exists already, or one below a writable directory",
        )
    if number == errno.EINVAL:
        return (
            "an OverlayFS limit: overlays nest two deep at most (one is used up inside a"
            " container or another sandbox), a lower may lie on an unsupported filesystem, or"
            " the process is in a chroot that is no mountpoint",
            "pytest --mountns-doctor shows which step fails",
        )
    if number == errno.ENOSYS:
        return ("the kernel is too old, or a seccomp profile hides the call", "uname -r; use 5.11+")
    if number == errno.EMFILE:
        return ("too many open files", "ulimit -n 4096")
    if number == errno.ENOENT:
        return ("a path of the spec does not exist on the host", "create it before the tests run")
    return ("", "")
