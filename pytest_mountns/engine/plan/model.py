"""A plan is data, and so is what it is made from: the host, what kernel and user can do.

:mod:`.decide` makes it, :mod:`.executor` carries it out; :meth:`Plan.describe` prints it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

from ..linux.mountinfo import Mount
from ..linux.overlayfs import TRUSTED, USER

# Filesystems that show kernel state: a copy-on-write layer over them means nothing.
PSEUDO: Final = frozenset(
    [
        "autofs",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "fusectl",
        "hugetlbfs",
        "mqueue",
        "nfsd",
        "nsfs",
        "proc",
        "pstore",
        "resctrl",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "sysfs",
        "tracefs",
    ]
)

# What Docker makes read-only too: root can change the whole machine there.
PROTECTED_PROC: Final = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")


@final
@dataclass(frozen=True, slots=True)
class Host:
    """What the machine shows, read once and again only when its mount table changes.

    ``mounts``: the visible ones, root first, without the ``dead``: remote ones that do not
    answer, which nothing may touch. ``files``: mountpoints that are regular files; ``specials``:
    mountpoints that are neither file nor directory. ``writable``: the highest directories the
    user can write, none of which contains a mount; ``mixed``: writable ones that do contain some
    (both only for a user namespace). ``unlayerable``: directories the kernel refused as a lower.
    ``protected``: the entries of :data:`PROTECTED_PROC` that exist. ``devices``: names below
    ``/dev`` to offer.
    """

    mounts: tuple[Mount, ...]
    files: frozenset[str] = frozenset()
    specials: frozenset[str] = frozenset()
    writable: tuple[str, ...] = ()
    mixed: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    unlayerable: frozenset[str] = frozenset()
    protected: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    has_proc: bool = True
    has_sys: bool = True


@final
@dataclass(frozen=True, slots=True)
class Features:
    """What this kernel lets this user do, found by trying (:mod:`.features`).

    ``user_namespace``: one is needed. ``new_api``: ``fsopen``, ``open_tree``, ``mount_setattr``
    and the rest are there and make overlays. ``detached_uppers``: an upper may lie on a mount that
    is nowhere mounted (Linux 6.15). ``memory_upper``: a tmpfs can be an upper.
    ``mknod``: device nodes can be made. ``pid_namespace``: one with its own procfs can be made.
    """

    user_namespace: bool
    new_api: bool = True
    detached_uppers: bool = True
    memory_upper: bool = True
    mknod: bool = True
    pid_namespace: bool = True

    @property
    def layered_uppers(self) -> bool:
        """Whether an upper can be a lower of another overlay, or the upper of another root's."""
        return self.new_api and self.detached_uppers

    @property
    def overlay_options(self) -> tuple[tuple[str, str | None], ...]:
        """Mount options of every overlay; None as value is a flag.

        Spelled out where defaults vary by kernel. ``redirect_dir``: or renaming a lower directory
        is EXDEV. ``xino``: or files and directories differ in ``st_dev``. A user namespace
        refuses the first and needs ``userxattr``: without it, a lower directory that is removed
        and made again gives EIO.
        """
        if self.user_namespace:
            return (("userxattr", None), ("xino", "on"), ("index", "off"))
        return (("redirect_dir", "on"), ("xino", "on"), ("index", "off"), ("metacopy", "off"))

    @property
    def xattr_prefix(self) -> str:
        """Where overlays of this kind keep whiteout and opaque marks."""
        return USER if self.user_namespace else TRUSTED


#: As a lower: an empty directory, made for the sandbox.
EMPTY: Final = "empty.lower"


@final
@dataclass(frozen=True, slots=True)
class Piece:
    """What an upper has from the start: a place to mount on, or a link on the way to one.

    ``kind``: "kept" is a directory that the lowers have as well, with the same attributes.
    ``link``: where a link leads.
    """

    path: str
    kind: Literal["kept", "directory", "file", "link"]
    mode: int = 0o755
    link: str = ""


@final
@dataclass(frozen=True, slots=True)
class Layered:
    """One overlay of a sandbox, for whoever reads its upper."""

    #: Where it is mounted, an absolute path.
    mountpoint: str
    #: Its upper directory: "0/upper", relative to where the uppers lie, or an absolute path.
    upper: str


@final
@dataclass(frozen=True, slots=True)
class Overlay:
    """An overlay at ``target``. ``name`` is its directory among the uppers.

    ``lowers``: topmost first. ``model``: whose attributes its root has; "" for the topmost
    lower's. ``pieces``: what its upper has from the start, parents first.
    """

    target: str
    lowers: tuple[str, ...]
    name: str
    attributes: int = 0
    model: str = ""
    pieces: tuple[Piece, ...] = ()

    def describe(self) -> str:
        return f"overlay {self.target} (lower {':'.join(self.lowers)}, upper {self.name})"


@final
@dataclass(frozen=True, slots=True)
class Assemble:
    """A directory that the user can write and that contains mounts: no overlay may lie over it.

    The overlay's lower is a directory made for it, with one entry for each of the host's when the
    sandbox is made: see :mod:`.assemble`. ``mounted``: the entries that are mounts or contain
    some; later steps may lay overlays over them. ``dead``: those that are not to be touched.
    ``layers``: directories to stack on it, topmost first.
    """

    target: str
    name: str
    mounted: tuple[str, ...] = ()
    dead: tuple[str, ...] = ()
    attributes: int = 0
    layers: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"overlay {self.target} (lower assembled around its mounts, upper {self.name})"


@final
@dataclass(frozen=True, slots=True)
class Bind:
    """``source`` of the host, with everything mounted below it, at ``target``.

    ``create``: make the target if it is missing. ``optional``: a source that even root may not
    look at (another user's FUSE mount) is left out.
    """

    source: str
    target: str
    read_only: bool = False
    create: bool = False
    optional: bool = False

    def describe(self) -> str:
        mode = "read-only bind" if self.read_only else "bind"
        return f"{mode} {self.target} (from {self.source})"


@final
@dataclass(frozen=True, slots=True)
class Seed:
    """The host shows another file at ``path`` than lies in the lower: its content goes in.

    Big files are bound read-only instead; a test would wait for the copy.
    """

    path: str

    def describe(self) -> str:
        return f"copy {self.path} into the upper"


@final
@dataclass(frozen=True, slots=True)
class MountTmpfs:
    """An empty tmpfs; ``size`` in bytes."""

    target: str
    size: int | None = None
    mode: int = 0o1777

    def describe(self) -> str:
        return f"tmpfs {self.target}"


@final
@dataclass(frozen=True, slots=True)
class FreshProc:
    """A procfs of the sandbox's own PID namespace."""

    target: str = "/proc"

    def describe(self) -> str:
        return f"proc {self.target}"


@final
@dataclass(frozen=True, slots=True)
class Protect:
    """``target``, already there, read-only from now on. ``tree``: and all that is below it."""

    target: str
    tree: bool = True

    def describe(self) -> str:
        return f"make {self.target} read-only"


@final
@dataclass(frozen=True, slots=True)
class MakeDev:
    """A minimal ``/dev``. ``bind``: the nodes are the host's (mknod is refused to users).

    ``mqueue``: show message queues. They are the IPC namespace's: "own", or the "host"'s, and then
    read-only. ``more``: further nodes, relative to ``/dev``.
    """

    devices: tuple[str, ...]
    bind: bool
    mqueue: Literal["", "host", "own"] = ""
    target: str = "/dev"
    more: tuple[str, ...] = ()

    def describe(self) -> str:
        return f"tmpfs {self.target} with {' '.join((*self.devices, *self.more))}, pts, shm"


Step: TypeAlias = Overlay | Assemble | Bind | Seed | MountTmpfs | FreshProc | Protect | MakeDev


@final
@dataclass(frozen=True, slots=True)
class Upper:
    """Where the uppers lie: ``medium`` "memory" (a tmpfs no namespace shows) or "disk".

    "none": overlays are read-only, and show what would lie below their uppers.
    """

    medium: str
    size: int | None = None
    inodes: int | None = None

    def describe(self) -> str:
        limits = [f"{k}={v}" for k, v in (("size", self.size), ("inodes", self.inodes)) if v]
        return f"upper in {self.medium} {' '.join(limits)}".rstrip()


@final
@dataclass(frozen=True, slots=True)
class User:
    """Whom root's test process becomes: ids, supplementary groups, and what the environment says.

    ``name``: "" for one that the host does not know.
    """

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    name: str = ""
    home: str = "/"

    def describe(self) -> str:
        return f"become {self.name or 'user'} ({self.uid}:{self.gid})"

    def variables(self) -> dict[str, str | None]:
        """What the environment says of it; None for what is not in there."""
        name = self.name or None
        return {"HOME": self.home, "USER": name, "LOGNAME": name}


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that makes one sandbox, in order. ``steps[0]`` is the root.

    ``ground``: shows what lies below the uppers; None if the host does. ``user``: whom the test
    process becomes when it is in. ``fake_root``: its user namespace shows the user as root.
    """

    user_namespace: bool
    pid_namespace: bool
    upper: Upper
    steps: tuple[Step, ...]
    features: Features
    root_filesystem: Plan | None = None
    network_namespace: bool = False
    hostname: str | None = None
    user: User | None = None
    fake_root: bool = False

    @property
    def uts_namespace(self) -> bool:
        """Root's tests may set the host's name, whether a name was asked for or not."""
        return self.hostname is not None or not self.user_namespace

    @property
    def drops_capabilities(self) -> bool:
        """Whether the test process has capabilities that the test must not use."""
        return self.user_namespace or self.user is not None

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """The overlays, in mounting order."""
        return tuple(step for step in self.steps if isinstance(step, Overlay))

    def describe(self) -> str:
        """One line a step."""
        names = ["mount", *["user"] * self.user_namespace, *["pid", "ipc"] * self.pid_namespace]
        names += [*["net"] * self.network_namespace, *["uts"] * self.uts_namespace]
        lines = [f"new namespaces: {', '.join(names)}", self.upper.describe()]
        last = [self.user.describe()] if self.user else []
        return "\n".join([*lines, *(step.describe() for step in self.steps), *last])
