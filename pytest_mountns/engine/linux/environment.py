"""Reads what is known of the environment that this process runs in: kernel, user, container.

This module only reads. It does not decide what this machine can do: :mod:`.probe.features` finds
that out by trying. :mod:`.diagnosis` uses what is read here to tell which of several causes led to
an error number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final

from . import syscalls as sys
from .untouched import open, os

#: The number of the capability: see capabilities(7), linux/capability.h.
CAP_SYS_ADMIN: Final = 21

#: Settings that forbid or limit what a sandbox needs: the name for sysctl(8), and the file.
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
class Environment(NamedTuple):
    """The environment of a process.

    The names of the fields are those in the JSON of ``pytest-mountns doctor``.
    """

    #: The release of the kernel, as "6.1.0-18-amd64".
    kernel: str = ""
    #: The effective user id.
    uid: int = 0
    #: Whether the process has the capability CAP_SYS_ADMIN.
    sys_admin: bool = True
    #: Whether the process has a seccomp filter.
    seccomp: bool = False
    #: The AppArmor profile of the process without its mode, "" if there is none.
    apparmor: str = ""
    #: The profile that AppArmor puts a process under which makes a user namespace, "" if none.
    apparmor_userns: str = ""
    #: Whether the process is in another user namespace than the machine's first one.
    nested: bool = False
    #: The name of the container engine, "a container" if it is not known which one, else "".
    container: str = ""
    #: Whether the kernel has OverlayFS loaded.
    overlay: bool = True
    #: The type of the filesystem at ``/``.
    root: str = ""
    #: Whether the process is in a chroot, as far as it can tell: its ``/`` is no mountpoint.
    chroot: bool = False
    #: How many threads the process has.
    threads: int = 1
    #: The values of those settings in :data:`SYSCTLS` that exist.
    sysctls: Mapping[str, int] = {}

    @property
    def version(self) -> tuple[int, int]:
        """The major and minor number of the kernel; (0, 0) if its release has no such numbers."""
        major, _, rest = self.kernel.partition(".")
        minor = "".join(c if c.isdigit() else " " for c in rest).partition(" ")[0]
        return (int(major), int(minor)) if major.isdigit() and minor else (0, 0)

    def as_data(self) -> dict[str, Any]:
        """The fields and their values, for JSON."""
        return {**self._asdict(), "sysctls": dict(self.sysctls)}

    def describe(self) -> str:
        """The environment in one line, for people."""
        parts = [f"Linux {self.kernel}", f"uid {self.uid}"]
        parts += ["CAP_SYS_ADMIN"] * self.sys_admin
        parts += ["in a user namespace"] * self.nested
        if self.container:
            parts.append(f"in {_with_article(self.container)}")
        parts += ["seccomp filter"] * self.seccomp
        if self.apparmor not in ("", "unconfined"):
            parts.append(f"AppArmor profile {self.apparmor}")
        parts += ["/ is an overlay"] * (self.root == "overlay")
        parts += ["in a chroot"] * self.chroot
        return ", ".join(parts)


def read_environment() -> Environment:
    """Read the environment of this process. What cannot be read has its default."""
    status = dict(
        line.split(":", 1) for line in _text("/proc/self/status").splitlines() if ":" in line
    )
    effective, _, _ = sys.capget()
    root = _root_fstype()
    values = ((name, _text(path).strip()) for name, path in SYSCTLS.items())
    return Environment(
        kernel=os.uname().release,
        uid=os.geteuid(),
        sys_admin=bool(effective >> CAP_SYS_ADMIN & 1),
        seccomp=status.get("Seccomp", "0").strip() == "2",
        apparmor=apparmor_profile(),
        nested=_text("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"]),
        container=_container(),
        overlay="overlay" in _text("/proc/filesystems").split(),
        root=root or "",
        chroot=root == "",
        threads=int(status.get("Threads", "1")),
        sysctls={name: int(value) for name, value in values if value.lstrip("-").isdigit()},
    )


def _text(path: str) -> str:
    """The content of a file, "" if it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def apparmor_profile() -> str:
    """The AppArmor profile of this process without its mode, "" if there is none."""
    # The first file is AppArmor's own. The second one, which older kernels have, may be that of
    # another security module: see proc_pid_attr(5).
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
    # Container engines set this variable for the first process of a container. Processes that it
    # starts inherit it.
    variables = [*_text("/proc/1/environ").split("\0"), *_text("/proc/self/environ").split("\0")]
    name = next((v[len("container=") :] for v in variables if v.startswith("container=")), "")
    return "a container" if name == "oci" else name


def _root_fstype() -> str | None:
    """The filesystem's type; "" if ``/`` is no mountpoint, None if there is no mount table."""
    found = ""
    mounts = _text("/proc/self/mountinfo").splitlines()
    for line in mounts:
        fields = line.split(" ")
        if fields[4] == "/" and "-" in fields:
            found = fields[fields.index("-") + 1]
    return found if mounts else None


def _with_article(container: str) -> str:
    return container if container.startswith("a ") else f"a {container} container"
