"""The plan of a sandbox, and what it is made from: the host, and what the kernel can do.

All of it is data. :mod:`.decide` makes plans, :mod:`pytest_mountns.engine.mount.executor` carries
them out, and :meth:`Plan.describe` prints them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, final

from ..linux.mountinfo import Mount
from ..linux.overlayfs import TRUSTED, USER

if TYPE_CHECKING:
    from ..linux.subordinate_ids import IdMaps

#: Filesystems that show the state of the kernel, over which an overlay makes no sense.
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

#: Where root can change the whole machine. Docker makes them read-only as well.
PROTECTED_PROC: Final = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs")


#: Where the minimal directory of devices is mounted.
DEV: Final = "/dev"
#: Where POSIX shared memory lies, shm_overview(7).
SHM: Final = "/dev/shm"


@final
class WritableRoot(NamedTuple):
    """Directories of the host's root that an ordinary user who is shown as root may write to."""

    #: Where overlays are mounted, parents first, and the lowers of each, the topmost first: copies
    #: of the user's own, and the directory itself unless it contains mounts. With ``/`` among them,
    #: the root is an overlay of copies alone, and the others are mounted in it.
    overlays: tuple[tuple[str, tuple[str, ...]], ...]
    #: What is shown as it is, read-only, with everything that is mounted below.
    binds: tuple[str, ...] = ()


@final
class Host(NamedTuple):
    """What the machine shows. It is read once, and again when its mount table changes."""

    #: The visible mounts, the root first, without those that are ``dead``.
    mounts: tuple[Mount, ...]
    #: Mountpoints that are regular files.
    files: frozenset[str] = frozenset()
    #: Mountpoints that are neither files nor directories.
    specials: frozenset[str] = frozenset()
    #: For a user namespace: the highest directories that the user can write, if they contain no
    #: mounts.
    writable: tuple[str, ...] = ()
    #: For a user namespace: directories that the user can write and that contain mounts.
    mixed: tuple[str, ...] = ()
    #: Remote mounts that do not answer; nothing may touch them.
    dead: tuple[str, ...] = ()
    #: Directories that the kernel refused as a lower.
    unlayerable: frozenset[str] = frozenset()
    #: The entries of :data:`PROTECTED_PROC` that exist.
    protected: tuple[str, ...] = ()
    #: Names below ``/dev`` that sandboxes show.
    devices: tuple[str, ...] = ()
    has_proc: bool = True
    has_sys: bool = True
    #: Whether ``/dev/shm`` holds something of this test run: its directories, or shared memory of
    #: wider fixtures.
    uses_shm: bool = False
    #: For a user namespace: what else the user may write to, as the spec wants it.
    writable_root: WritableRoot | None = None


@final
class Features(NamedTuple):
    """What this kernel lets this user do, found by trying.

    Not to be confused with capabilities(7).
    """

    #: Whether a user namespace is needed.
    user_namespace: bool
    #: Whether fsopen(2), open_tree(2), mount_setattr(2) and the others exist and make overlays.
    new_api: bool = True
    #: Whether an upper may be stored on a detached mount (Linux 6.15).
    detached_uppers: bool = True
    #: Whether a tmpfs can be an upper.
    memory_upper: bool = True
    #: Whether device nodes can be made.
    mknod: bool = True

    @property
    def layered_uppers(self) -> bool:
        """Whether an upper can be a lower of another overlay, or the upper of another root's."""
        return self.new_api and self.detached_uppers

    @property
    def overlay_options(self) -> tuple[tuple[str, str | None], ...]:
        """Mount options of every overlay; an option whose value is None is a flag.

        Options are given even where they are the default of some kernels. Without
        ``redirect_dir``, renaming a lower directory is EXDEV. Without ``xino``, files and
        directories differ in ``st_dev``. In a user namespace the first one is refused, and
        ``userxattr`` is needed: without it, a lower directory that is removed and made again gives
        EIO.

        With ``index=on``, hard links of lower files would stay linked when one of them is written
        to. Measured on Linux 6.18, it costs 10 us of the 85 us that a mount takes. It is not used
        for other reasons:

        * The upper lists only the name that was written to. So the changes, layers and bundles that
          are read from the upper would lack the others, which have changed as well.
        * The upper of a checkpoint or of a wider fixture is a lower of another overlay. With
          ``index=on`` that is refused (EBUSY) while it is mounted, and without, the other overlay
          shows the old content at the other names.
        * To remove one of several names copies the content up first: ``rm -rf /usr`` in a test
          would fill the upper.
        """
        if self.user_namespace:
            return (("userxattr", None), ("xino", "on"), ("index", "off"))
        return (("redirect_dir", "on"), ("xino", "on"), ("index", "off"), ("metacopy", "off"))

    @property
    def xattr_prefix(self) -> str:
        """How the names of the attributes begin in which overlays store their marks."""
        return USER if self.user_namespace else TRUSTED


#: The name of a lower that is an empty directory, made for the sandbox.
EMPTY: Final = "empty.lower"


@final
class Piece(NamedTuple):
    """What an upper contains from the start: a mountpoint, or a link on the path to one."""

    #: Relative to the upper.
    path: str
    #: "kept" is a directory that the lowers have as well, with the same attributes.
    kind: Literal["kept", "directory", "file", "link"]
    mode: int = 0o755
    #: Where a link leads.
    link: str = ""


@final
class Layered(NamedTuple):
    """One overlay of a sandbox, for whoever reads its upper.

    A directory of its own is read in the same way, as if an overlay without lowers were there.
    """

    #: Where it is mounted, an absolute path.
    mountpoint: str
    #: Its upper directory: "0.upper", relative to where the uppers lie, or an absolute path.
    upper: str


@final
class UppersDescription(NamedTuple):
    """What a process has to know of a sandbox that another one has made, to read its uppers.

    It consists of plain types, since it is pickled for each test that makes its sandbox itself.
    """

    #: The mountpoint and the upper of each overlay, as in :class:`Layered`.
    overlays: list[tuple[str, str]]
    #: The paths that were made only to be mounted on.
    created: list[str]


@final
class OwnDirectory(NamedTuple):
    """A directory of a sandbox that is a mount of its own, without an overlay.

    It is no step of a plan: the place is known only when the test is in its sandbox.
    """

    #: An absolute path.
    target: str
    #: The directory that is mounted there, relative to where the uppers lie.
    name: str
    #: Flags of the mount: ``MOUNT_ATTR_...``, mount_setattr(2).
    attributes: int = 0

    def describe(self) -> str:
        """It in words."""
        return f"directory of its own {self.target} (upper {self.name})"

    def on_layers(self) -> Overlay:
        """The step for a sandbox that has it among its layers."""
        return Overlay(self.target, (), self.name, self.attributes)


@final
class Overlay(NamedTuple):
    """Mount an overlay."""

    target: str
    #: Directories of the host, the topmost first.
    lowers: tuple[str, ...]
    #: What the names of its upper and work directories begin with.
    name: str
    #: Flags of the mount: ``MOUNT_ATTR_...``, mount_setattr(2).
    attributes: int = 0
    #: The directory whose attributes its root gets; "" for the topmost lower.
    model: str = ""
    #: What its upper contains from the start, parents first.
    pieces: tuple[Piece, ...] = ()

    def describe(self) -> str:
        """The step in words."""
        return f"overlay {self.target} (lower {':'.join(self.lowers)}, upper {self.name})"


@final
class Assemble(NamedTuple):
    """Mount an overlay over a directory that the user can write and that contains mounts.

    In a user namespace such a directory cannot be a lower. So the lower is a directory that is
    made with the sandbox, with an entry for each of the host's: see :mod:`.assemble`.
    """

    target: str
    #: What the names of its upper and work directories begin with.
    name: str
    #: The entries that are mounts or contain some; later steps may mount overlays over them.
    mounted: tuple[str, ...] = ()
    #: The entries that nothing may touch.
    dead: tuple[str, ...] = ()
    #: Flags of the mount: ``MOUNT_ATTR_...``, mount_setattr(2).
    attributes: int = 0
    #: Directories to stack on it, the topmost first.
    layers: tuple[str, ...] = ()

    def describe(self) -> str:
        """The step in words."""
        return f"overlay {self.target} (lower assembled around its mounts, upper {self.name})"


@final
class Bind(NamedTuple):
    """Bind-mount a path of the host, with everything that is mounted below it."""

    source: str
    target: str
    read_only: bool = False
    #: Whether the target is made if it is missing.
    create: bool = False
    #: Whether the source may be left out if even root may not see it, as another user's FUSE mount.
    optional: bool = False

    def describe(self) -> str:
        """The step in words."""
        mode = "read-only bind" if self.read_only else "bind"
        return f"{mode} {self.target} (from {self.source})"


@final
class Seed(NamedTuple):
    """Copy a file that is mounted over another file into the upper.

    The lower shows the file below that mount. Large files are bound read-only instead, since a
    test would wait for the copy.
    """

    path: str

    def describe(self) -> str:
        """The step in words."""
        return f"copy {self.path} into the upper"


@final
class MountTmpfs(NamedTuple):
    """Mount an empty tmpfs."""

    target: str
    #: In bytes; None for the kernel's default.
    size: int | None = None
    mode: int = 0o1777

    def describe(self) -> str:
        """The step in words."""
        return f"tmpfs {self.target}"


@final
class FreshProc(NamedTuple):
    """Mount a procfs of the sandbox's own PID namespace."""

    target: str = "/proc"

    def describe(self) -> str:
        """The step in words."""
        return f"proc {self.target}"


@final
class Protect(NamedTuple):
    """Make what is mounted at ``target`` read-only."""

    target: str
    #: Whether this applies to all mounts below it, too.
    tree: bool = True

    def describe(self) -> str:
        """The step in words."""
        return f"make {self.target} read-only"


@final
class MakeDev(NamedTuple):
    """Make a minimal ``/dev``."""

    #: Names of the usual nodes.
    devices: tuple[str, ...]
    #: Whether the nodes are bind-mounted from the host: an ordinary user may not make any.
    bind: bool
    #: Whose message queues it shows: none, the host's (read-only), or those of an IPC namespace of
    #: its own.
    mqueue: Literal["", "host", "own"] = ""
    target: str = DEV
    #: Further nodes, relative to ``/dev``.
    more: tuple[str, ...] = ()
    #: Whether ``/dev/shm`` begins with what the host has there: it is an overlay then.
    host_shm: bool = False
    #: What of it is made: shared memory alone, or all the rest.
    part: Literal["all", "shm", "rest"] = "all"

    def describe(self) -> str:
        """The step in words."""
        shm = "the host's shm" if self.host_shm else "shm"
        return f"tmpfs {self.target} with {' '.join((*self.devices, *self.more))}, pts, {shm}"


Step: TypeAlias = Overlay | Assemble | Bind | Seed | MountTmpfs | FreshProc | Protect | MakeDev


@final
class Upper(NamedTuple):
    """Where the uppers are stored."""

    #: "memory" (a tmpfs that no namespace shows), "disk", or "none": overlays are then read-only,
    #: and show what would lie below their uppers.
    medium: str
    #: In bytes.
    size: int | None = None
    inodes: int | None = None

    def describe(self) -> str:
        """It in words, for the plan."""
        limits = [f"{k}={v}" for k, v in (("size", self.size), ("inodes", self.inodes)) if v]
        return f"upper in {self.medium} {' '.join(limits)}".rstrip()


@final
class User(NamedTuple):
    """The user that root's test process becomes."""

    uid: int
    gid: int
    #: Supplementary groups.
    groups: tuple[int, ...] = ()
    #: "" for a user that the host does not know.
    name: str = ""
    home: str = "/"

    def describe(self) -> str:
        """It in words, for the plan."""
        return f"become {self.name or 'user'} ({self.uid}:{self.gid})"

    def variables(self) -> dict[str, str | None]:
        """Its environment variables; None for one that is not set."""
        name = self.name or None
        return {"HOME": self.home, "USER": name, "LOGNAME": name}


@final
class Plan(NamedTuple):
    """Everything that makes one sandbox."""

    user_namespace: bool
    pid_namespace: bool
    upper: Upper
    #: In the order in which they are carried out; the first one mounts the root.
    steps: tuple[Step, ...]
    features: Features
    #: The plan of what lies below the uppers; None if that is the host.
    root_filesystem: Plan | None = None
    network_namespace: bool = False
    hostname: str | None = None
    #: The user that the test process becomes in the sandbox.
    user: User | None = None
    #: Whether the user namespace shows the user as root.
    fake_root: bool = False
    #: The ids that such a namespace has; None if it is the user's own alone.
    id_maps: IdMaps | None = None
    #: Why it has no others, and what helps.
    why_one_id: str = ""

    @property
    def uts_namespace(self) -> bool:
        """Whether there is a UTS namespace: for a host name of the sandbox, and always for root.

        Without it, root's test could change the name of the host.
        """
        return self.hostname is not None or not self.user_namespace

    @property
    def drops_capabilities(self) -> bool:
        """Whether the test process has capabilities that the test must not use."""
        return self.user_namespace or self.user is not None

    @property
    def overlays(self) -> tuple[Overlay, ...]:
        """The overlays, in the order in which they are mounted."""
        return tuple(step for step in self.steps if isinstance(step, Overlay))

    def describe(self) -> str:
        """The plan in words, one line for each step."""
        names = ["mount", *["user"] * self.user_namespace, *["pid", "ipc"] * self.pid_namespace]
        names += [*["net"] * self.network_namespace, *["uts"] * self.uts_namespace]
        lines = [f"new namespaces: {', '.join(names)}", self.upper.describe()]
        last = [self.user.describe()] if self.user else []
        return "\n".join([*lines, *(step.describe() for step in self.steps), *last])
