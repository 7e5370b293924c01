"""What is known of the place a process runs in, read and never tried.

None of it decides what can be done: that is found out by trying (:mod:`.features`). It tells
apart the reasons for one and the same refusal, which the kernel does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from ..linux import syscalls as sys

CAP_SYS_ADMIN: Final = 21

#: Settings that forbid, or limit, what a sandbox is made of: sysctl(8) name -> file.
SYSCTLS: Final = {
    "kernel.apparmor_restrict_unprivileged_userns": (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns"
    ),
    "kernel.unprivileged_userns_clone": "/proc/sys/kernel/unprivileged_userns_clone",
    "user.max_user_namespaces": "/proc/sys/user/max_user_namespaces",
    "user.max_mnt_namespaces": "/proc/sys/user/max_mnt_namespaces",
    "user.max_pid_namespaces": "/proc/sys/user/max_pid_namespaces",
    "fs.mount-max": "/proc/sys/fs/mount-max",
}


@final
@dataclass(frozen=True, slots=True)
class Environment:
    """Where a process runs.

    ``kernel``: its release, as "6.1.0-18-amd64". ``sys_admin``: the process has CAP_SYS_ADMIN.
    ``seccomp``: a seccomp filter is on it. ``apparmor``: its AppArmor profile without the mode,
    empty if there is none. ``nested``: it is in a user namespace other than the machine's own.
    ``container``: the engine's name, "a container" if that is not known, else empty. ``overlay``:
    the kernel has OverlayFS loaded. ``root``: the type of the filesystem that is ``/``.
    ``threads``: how many the process has. ``sysctls``: those of :data:`SYSCTLS` that exist.
    """

    kernel: str = ""
    uid: int = 0
    sys_admin: bool = True
    seccomp: bool = False
    apparmor: str = ""
    nested: bool = False
    container: str = ""
    overlay: bool = True
    root: str = ""
    threads: int = 1
    sysctls: Mapping[str, int] = field(default_factory=dict)

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor number of the kernel; (0, 0) if it has a name of its own."""
        major, _, rest = self.kernel.partition(".")
        minor = "".join(c if c.isdigit() else " " for c in rest).partition(" ")[0]
        return (int(major), int(minor)) if major.isdigit() and minor else (0, 0)

    def as_data(self) -> dict[str, Any]:
        """For JSON."""
        names = [name for name in self.__slots__ if name != "sysctls"]
        return {**{name: getattr(self, name) for name in names}, "sysctls": dict(self.sysctls)}

    def describe(self) -> str:
        """One line."""
        parts = [f"Linux {self.kernel}", f"uid {self.uid}"]
        parts += ["CAP_SYS_ADMIN"] * self.sys_admin
        parts += ["in a user namespace"] * self.nested
        if self.container:
            parts.append(f"in {_with_article(self.container)}")
        parts += ["seccomp filter"] * self.seccomp
        if self.apparmor not in ("", "unconfined"):
            parts.append(f"AppArmor profile {self.apparmor}")
        parts += ["/ is an overlay"] * (self.root == "overlay")
        return ", ".join(parts)


def look() -> Environment:
    """Those of this process."""
    status = dict(
        line.split(":", 1) for line in _text("/proc/self/status").splitlines() if ":" in line
    )
    effective, _, _ = sys.capget()
    values = ((name, _text(path).strip()) for name, path in SYSCTLS.items())
    return Environment(
        kernel=os.uname().release,
        uid=os.geteuid(),
        sys_admin=bool(effective >> CAP_SYS_ADMIN & 1),
        seccomp=status.get("Seccomp", "0").strip() == "2",
        apparmor=_apparmor(),
        nested=_text("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"]),
        container=_container(),
        overlay="overlay" in _text("/proc/filesystems").split(),
        root=_root_fstype(),
        threads=int(status.get("Threads", "1")),
        sysctls={name: int(value) for name, value in values if value.lstrip("-").isdigit()},
    )


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _apparmor() -> str:
    # The first is AppArmor's own; the other one is of whichever security module is on.
    for path in ("/proc/self/attr/apparmor/current", "/proc/self/attr/current"):
        label = _text(path).strip("\0\n ")
        if label:
            name, _, mode = label.partition(" (")
            return name if mode or name == "unconfined" else ""
    return ""


def _container() -> str:
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/.dockerenv"):
        return "docker"
    # Set for the first process; those that it starts have it too.
    variables = [*_text("/proc/1/environ").split("\0"), *_text("/proc/self/environ").split("\0")]
    name = next((v[len("container=") :] for v in variables if v.startswith("container=")), "")
    return "a container" if name == "oci" else name


def _root_fstype() -> str:
    found = ""
    for line in _text("/proc/self/mountinfo").splitlines():
        fields = line.split(" ")
        if fields[4] == "/" and "-" in fields:
            found = fields[fields.index("-") + 1]
    return found


def _with_article(container: str) -> str:
    return container if container.startswith("a ") else f"a {container} container"
