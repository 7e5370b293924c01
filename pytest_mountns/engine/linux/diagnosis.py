"""Tells why a step of making a sandbox has failed in a known environment.

An error number can have many reasons. :mod:`.errno_advice` knows all that it can mean for a step on
any machine. If what :mod:`.environment` has read leaves only one of them, the cause and the remedy
for that one are given here. Nothing is looked at but the arguments.
"""

from __future__ import annotations

from typing import Final, TypeAlias

from .environment import Environment
from .errors import Unavailable, errno_name

#: A cause and the remedy for it.
Advice: TypeAlias = tuple[str, str]

_REFUSALS: Final = ("EPERM", "EACCES")
_DOCKER: Final = (
    "docker run --privileged, or --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    " --security-opt apparmor=unconfined"
)
_PODMAN: Final = (
    "podman run --privileged, or --cap-add SYS_ADMIN --security-opt seccomp=unconfined"
    " --security-opt unmask=ALL"
)
_APPARMOR_REMEDY: Final = (
    "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile"
    " with the rule `userns,` for this Python, or run under sudo"
)
_GUARD: Final = "guard (Landlock)"
#: Steps that only a newer Linux can do: the first version that can, and the error of older ones.
_SINCE: Final = {
    "new mount API": ((5, 12), "ENOSYS"),
    "uppers on a detached mount": ((6, 15), "EINVAL"),
    "extended attributes on tmpfs": ((6, 6), "ENOTSUP"),
    _GUARD: ((5, 13), "ENOSYS"),
}


def diagnosed(error: Unavailable, step: str, here: Environment) -> Unavailable:
    """Returns ``error`` with the cause and the remedy in an environment, if they are sure.

    ``error`` was raised from an :class:`OSError` by ``step``, which was to make a user namespace or
    was tried in one. ``here`` is the environment of before that.
    """
    number = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
    advice = diagnose(step, errno_name(number or 0), here, user_namespace=True)
    return error if advice is None else Unavailable(error.tried, error.kernel, *advice)


def diagnose(step: str, errno: str, here: Environment, *, user_namespace: bool) -> Advice | None:
    """Why ``step`` has failed with ``errno`` in the environment ``here``; None if that is not sure.

    ``step`` is the name of a trial, ``errno`` that of an error number. ``user_namespace`` says that
    the step was tried in a user namespace, or was to make one.
    """
    by_privileges = _as_user if user_namespace else _as_root
    overlay = (_no_overlay, _old_overlay, _nested)
    rules = [_too_old, _hidden_call, *overlay, _limit_is_zero, _covered_proc]
    if user_namespace:
        rules += [_threads, _chroot]
    for rule in (*rules, by_privileges):
        advice = rule(step, errno, here)
        if advice is not None:
            return advice
    return None


def diagnose_guard(errno: str, here: Environment) -> Advice | None:
    """Why no process can be guarded by Landlock in the environment ``here``; None if not sure.

    No privileges are needed for it, so that the rules of the steps of a sandbox do not hold.
    """
    advice = _too_old(_GUARD, errno, here)
    # A filter may hide the call, or hide that the kernel has none.
    if advice is not None or errno != "ENOSYS" or here.seccomp or here.version == (0, 0):
        return advice
    return (
        f"Linux {here.kernel} was built without Landlock",
        "a kernel that is built with CONFIG_SECURITY_LANDLOCK",
    )


def _too_old(step: str, errno: str, here: Environment) -> Advice | None:
    since, answer = _SINCE.get(step, ((0, 0), ""))
    if errno != answer or not (0, 0) < here.version < since:
        return None
    wanted = f"{since[0]}.{since[1]}"
    return (f"Linux {here.kernel} is older than {wanted}", f"Linux {wanted} or later")


def _hidden_call(step: str, errno: str, here: Environment) -> Advice | None:
    if errno != "ENOSYS" or not here.seccomp:
        return None
    return (
        "a seccomp filter hides the call",
        f"{_engine(here, 'seccomp=unconfined')}, or a newer container engine",
    )


def _no_overlay(step: str, errno: str, here: Environment) -> Advice | None:
    if errno != "ENODEV" or here.overlay:
        return None
    where = " on the machine that runs the container" if here.container else ""
    return (
        "the kernel has not loaded OverlayFS, and only root can load it",
        f"sudo modprobe overlay{where}; to load it at each start: echo overlay | sudo tee"
        " /etc/modules-load.d/overlay.conf",
    )


def _old_overlay(step: str, errno: str, here: Environment) -> Advice | None:
    if step != "overlay" or errno != "EPERM" or not (0, 0) < here.version < (5, 11):
        return None
    return (
        f"Linux {here.kernel} lets nobody but root mount an overlay",
        "Linux 5.11 or later, or run the tests as root",
    )


def _nested(step: str, errno: str, here: Environment) -> Advice | None:
    whole = ("a whole root and pivot_root", "a PID namespace with its own /proc")
    if step not in whole or errno != "EINVAL" or here.root != "overlay":
        return None
    return (
        "/ is an overlay on an overlay already, and OverlayFS nests two deep at most",
        "run the tests one level further out, for example not in a sandbox in a container",
    )


def _limit_is_zero(step: str, errno: str, here: Environment) -> Advice | None:
    if errno != "ENOSPC":
        return None
    for kind in ("user", "mnt", "pid"):
        name = f"user.max_{kind}_namespaces"
        if here.sysctls.get(name) == 0 and _kind(step) in ("", kind):
            return (f"{name} is 0", f"sudo sysctl -w {name}=15000")
    return None


def _kind(step: str) -> str:
    """The kind of the namespace that a step makes, in sysctl's words; "" if there are several."""
    known = {"user namespace": "user", "mount namespace": "mnt"}
    return known.get(step, "pid" if "PID" in step else "")


def _covered_proc(step: str, errno: str, here: Environment) -> Advice | None:
    if "/proc" not in step or errno != "EPERM" or not here.container:
        return None
    option = "unmask=ALL" if here.container == "podman" else "systempaths=unconfined"
    return (
        "parts of the visible /proc are covered by the container engine, and the kernel then gives"
        " a user namespace no fresh one",
        f"{_engine(here, option)}; without it, leave out pid=True",
    )


def _threads(step: str, errno: str, here: Environment) -> Advice | None:
    if step != "user namespace" or errno != "EINVAL" or here.threads == 1:
        return None
    return (
        "only a process with one thread can enter a new user namespace, unshare(2), and it has"
        f" {here.threads} threads",
        "run as root, or without what starts threads (pytest-xdist does)",
    )


def _chroot(step: str, errno: str, here: Environment) -> Advice | None:
    if step != "user namespace" or errno != "EPERM" or not here.chroot:
        return None
    return (
        "the process is in a chroot, where nobody can make a user namespace, user_namespaces(7)",
        "run outside of the chroot, or run as root",
    )


def _as_user(step: str, errno: str, here: Environment) -> Advice | None:
    if errno not in _REFUSALS or step not in ("user namespace", "mount namespace", "tmpfs"):
        return None
    if here.apparmor_userns:
        return (
            "AppArmor has put the process under its profile"
            f" {here.apparmor_userns} when it made the user namespace, and that profile gives no"
            " capability (kernel.apparmor_restrict_unprivileged_userns is 1, as in Ubuntu 23.10 and"
            " later)",
            _APPARMOR_REMEDY,
        )
    if here.sysctls.get("kernel.apparmor_restrict_unprivileged_userns") == 1 and not here.sys_admin:
        return (
            "AppArmor lets unprivileged users make user namespaces and then do nothing in them"
            " (kernel.apparmor_restrict_unprivileged_userns is 1, as in Ubuntu 23.10 and later)",
            _APPARMOR_REMEDY,
        )
    if here.sysctls.get("kernel.unprivileged_userns_clone") == 0:
        return (
            "kernel.unprivileged_userns_clone is 0",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        )
    return _by_profile(errno, here)


def _as_root(step: str, errno: str, here: Environment) -> Advice | None:
    if errno not in _REFUSALS:
        return None
    if not here.sys_admin:
        return ("this root lacks CAP_SYS_ADMIN", _unconfined(here))
    sure = _by_profile(errno, here)
    if sure is None and step == "mount namespace":
        # The process has the capability that the kernel asks for, so something else forbids it.
        return (
            "a seccomp filter or a security module (AppArmor, SELinux) forbids it, as container"
            " engines set them up",
            _unconfined(here),
        )
    return sure


def _by_profile(errno: str, here: Environment) -> Advice | None:
    confined = here.apparmor not in ("", "unconfined")
    # AppArmor refuses with EACCES, except for pivot_root; seccomp profiles of container engines
    # refuse with EPERM.
    if confined and (errno == "EACCES" or not here.seccomp):
        return (f"the AppArmor profile {here.apparmor} forbids it", _unconfined(here))
    if here.seccomp and errno == "EPERM" and not confined:
        return ("a seccomp filter forbids it", _unconfined(here))
    return None


def _unconfined(here: Environment) -> str:
    if here.container == "podman":
        return _PODMAN
    if here.container or here.seccomp:
        return _DOCKER
    return f"run with CAP_SYS_ADMIN; in a container: {_DOCKER}"


def _engine(here: Environment, option: str) -> str:
    engine = here.container if here.container in ("docker", "podman") else "docker"
    return f"{engine} run --security-opt {option}"
