"""What sandbox is wanted: :class:`SandboxSpec` and its parts, as validated data."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from ..linux.errors import SandboxError

_SIZE: Final = r"(\d+)([kmgKMG]?)"
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_HOSTNAME: Final = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?"
_OWN_TREES: Final = ("/proc", "/sys", "/dev")


class SpecError(SandboxError):
    """A spec that is not valid on any machine."""


def parse_size(text: str | int) -> int:
    """The number of bytes that ``"64m"`` (k, m, g: powers of 1024) or a plain number means.

    Raises :class:`SpecError` if it is anything else, or zero.
    """
    match = re.fullmatch(_SIZE, str(text))
    size = int(match[1]) * _UNITS[match[2].lower()] if match else 0
    if size <= 0:
        raise SpecError(
            f"{text!r} is not a size",
            remedy='write bytes or a suffix, as 4096, "512k", "64m", "1g"',
        )
    return size


def _inside(path: str, what: str) -> str:
    """Returns ``path`` in normal form. Raises SpecError if nothing can be mounted there."""
    if not posixpath.isabs(path) or "\0" in path:
        raise SpecError(
            f"{what} {path!r} is not an absolute path",
            remedy="write the path as the test sees it, from / on",
        )
    if ".." in path.split("/"):
        raise SpecError(
            f"{what} {path!r} leads outside by '..'", remedy="write the path without '..'"
        )
    normal = "/" + posixpath.normpath(path).lstrip("/")
    if normal == "/":
        raise SpecError(
            f"{what} {path!r} would hide the sandbox's whole root",
            remedy="name a directory or file below /",
        )
    for tree in _OWN_TREES:
        if normal == tree or (normal.startswith(tree + "/") and tree != "/dev"):
            raise SpecError(
                f"{what} {path!r} lies outside what a test may cover: the sandbox makes {tree}",
                remedy="choose a place that is not /proc, /sys or /dev itself",
            )
    return normal


@final
@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host that a sandbox shows; what is written there stays.

    Raises :class:`SpecError` if a path is not absolute.
    """

    #: The path on the host.
    source: str
    #: The path in the sandbox.
    target: str
    read_only: bool = False

    def __post_init__(self) -> None:
        if not posixpath.isabs(self.source):
            raise SpecError(
                f"volume source {self.source!r} is not an absolute path",
                remedy="write the whole path of the directory or file on the host",
            )
        object.__setattr__(self, "target", _inside(self.target, "volume target"))

    @classmethod
    def parse(cls, text: str, base: str = "/") -> Volume:
        r"""Read ``SRC:DST[:ro|rw]`` or ``SRC[:ro|rw]``; ``\:`` is a colon in a path.

        Without ``DST`` the target is the source. A relative source begins at ``base``, an absolute
        path; ``~`` is the home directory. Raises :class:`SpecError` if the text is not valid.
        """
        fields = [part.replace("\\:", ":") for part in re.split(r"(?<!\\):", text)]
        mode = fields.pop() if len(fields) > 1 and fields[-1] in ("ro", "rw") else "rw"
        if not 1 <= len(fields) <= 2 or not all(fields):
            raise SpecError(
                f"{text!r} is not a volume",
                remedy='write "SRC:DST" or "SRC:DST:ro", as with Docker',
            )
        source = posixpath.normpath(posixpath.join(base, posixpath.expanduser(fields[0])))
        return cls(source, fields[1] if len(fields) == 2 else source, mode == "ro")

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + (":ro" if self.read_only else "")


@final
@dataclass(frozen=True, slots=True)
class Tmpfs:
    """An empty tmpfs. Raises :class:`SpecError` if the target is not an absolute path."""

    #: The path in the sandbox.
    target: str
    #: In bytes; None for the kernel's default, half of the memory.
    size: int | None = None
    mode: int = 0o1777

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", _inside(self.target, "tmpfs"))

    @classmethod
    def parse(cls, text: str) -> Tmpfs:
        """Read ``PATH[:size=64m,mode=1777]``. Raises :class:`SpecError` if it is not valid."""
        target, _, options = text.partition(":")
        size: int | None = None
        mode = 0o1777
        for option in filter(None, options.split(",")):
            key, _, value = option.partition("=")
            if key == "size":
                size = parse_size(value)
            elif key == "mode" and re.fullmatch("[0-7]{3,4}", value):
                mode = int(value, 8)
            else:
                raise SpecError(
                    f"{option!r} is not an option of a tmpfs", remedy="valid: size=64m, mode=1777"
                )
        return cls(target, size, mode)


@final
@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """The sandbox that the marks, profiles, options, fixtures and hooks of one test add up to.

    The fields are the keys of the marker, which docs/reference.md describes. Raises
    :class:`SpecError` if they contradict each other.
    """

    #: How the test is run: in a process of its own, in one that it shares with other tests of its
    #: module, or by the pytest process; "auto" is inline where that is possible.
    process: Literal["auto", "fork", "module", "inline"] = "fork"
    #: "host", "minimal", or the absolute path of a directory, archive or image.
    root: str = "host"
    #: Absolute paths of what is stacked on the root, the last one on top.
    layers: tuple[str, ...] = ()
    #: The widest scope of fixtures whose writes are captured, as a layer under the test's upper.
    scope: Literal["function", "class", "module", "package", "session"] = "function"
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    #: Limits of the upper: bytes, and inodes.
    size: int | None = None
    inodes: int | None = None
    #: Where the upper is stored.
    upper: Literal["memory", "disk"] = "memory"
    #: Whether the root refuses writes (EROFS).
    read_only: bool = False
    #: Whether the test has PID and IPC namespaces of its own.
    pid: bool = False
    #: "none": a network namespace with nothing but loopback.
    network: Literal["host", "none"] = "host"
    #: A host name for the test alone.
    hostname: str | None = None
    #: "keep", "root", or the name or uid of the user that root's test process becomes.
    user: str | int = "keep"
    #: For an ordinary user who is shown as root: directories of the host's root to write to. None
    #: for all of it.
    writable: tuple[str, ...] | None = None
    #: Device nodes below /dev to show besides the usual ones.
    devices: tuple[str, ...] = ()
    #: Globs of what the test may change; None for everything. The sandbox is the same.
    writes: tuple[str, ...] | None = None
    #: What is made of processes that the test leaves running.
    leaks: Literal["ignore", "warn", "error"] = "warn"
    #: System calls that fail, as the text of :class:`.fault_rules.FaultRule`.
    faults: tuple[str, ...] = ()
    #: "own": ``tmp_path`` is a mount of its own, without an overlay.
    tmp_path: Literal["shared", "own"] = "shared"

    def __post_init__(self) -> None:
        targets: dict[str, str] = {}
        parts: tuple[Volume | Tmpfs, ...] = (*self.volumes, *self.tmpfs)
        for part in parts:
            if part.target in targets:
                raise SpecError(
                    f"two mounts want {part.target}: {targets[part.target]} and {part}",
                    remedy="give each its own target",
                )
            targets[part.target] = str(part)
        if self.hostname is not None and not re.fullmatch(_HOSTNAME, self.hostname):
            raise SpecError(
                f"{self.hostname!r} is not a host name",
                remedy="write at most 64 letters, digits, '-' and '.', hostname(7)",
            )
        for device in self.devices:
            if posixpath.normpath(device) != device or not device.startswith("/dev/"):
                raise SpecError(
                    f"device {device!r} is not a path below /dev",
                    remedy='write it as on the host, as "/dev/fuse"',
                )
        if self.user != "keep" and self.scope != "function":
            raise SpecError(
                f"user={self.user!r} cannot be combined with scope={self.scope!r}:"
                " wider fixtures run as the user of pytest",
                remedy='leave out scope, or user (user="keep")',
            )
        if self.writable is not None and self.user != "root":
            raise SpecError(
                f"writable={list(self.writable)!r} needs user='root'",
                remedy='add user="root", or leave out writable',
            )
        for place in self.writable or ():
            if not posixpath.isabs(place) or posixpath.normpath(place) != place:
                raise SpecError(
                    f"writable={place!r} is not the path of a directory",
                    remedy='write it from / on, without "..", as "/etc"',
                )
        if self.upper == "disk" and (self.size or self.inodes):
            raise SpecError(
                "size and inodes cannot limit an upper on disk",
                remedy='leave out upper="disk", or the limits',
            )

    @property
    def is_forked(self) -> bool:
        """Whether the test never runs in the pytest process: it was asked for, or is necessary."""
        return self.process in ("fork", "module") or self.needs_process

    @property
    def why_not_in_module(self) -> str:
        """Why the test cannot share a process with other tests of its module; "" if it can."""
        if self.needs_process:
            return "a PID namespace, network, host name, user or faults need a process of their own"
        if self.scope != "function":
            # What these fixtures write would have to be read by the pytest process.
            return f'scope="{self.scope}" has wider fixtures set up by the pytest process'
        return ""

    @property
    def needs_process(self) -> bool:
        """Whether the test has to be forked, whatever ``process`` says."""
        return (
            self.pid
            or self.network != "host"
            or self.hostname is not None
            or self.user != "keep"
            # A seccomp filter stays on a process for good.
            or bool(self.faults)
        )

    def of_wider_scope(self) -> SandboxSpec:
        """The spec for wider fixtures, which the pytest process sets up."""
        return replace(
            self,
            pid=False,
            network="host",
            hostname=None,
            user="keep",
            writable=None,
            read_only=False,
            faults=(),
            # It has function scope.
            tmp_path="shared",
        )
