"""Spec + host + capabilities -> :class:`Plan`. Pure: no system call, testable anywhere.

A plan is data. :mod:`.build` carries it out; :meth:`Plan.describe` prints it.

What decides the shape of the root is whether a user namespace is needed. Without one (root), an
overlay of ``/`` works and every mount below gets its own. With one, the mounts inherited from
the host are locked together: ``/`` can only be cloned whole, so it becomes a recursive read-only
bind, and overlays are laid over the directories the user can write. Whatever was overlooked
there refuses writes; it cannot leak. See mount_namespaces(7) and the kernel's
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, final

from . import syscalls as sys
from .mountinfo import Mount, is_below, owning
from .spec import SandboxSpec

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
class Capabilities:
    """What this kernel lets this user do, found by trying (:mod:`.capabilities`).

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
        return "user.overlay." if self.user_namespace else "trusted.overlay."


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
    capabilities: Capabilities
    ground: Plan | None = None
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


def plan(
    spec: SandboxSpec, host: Host, capabilities: Capabilities, user: User | None = None
) -> Plan:
    """The plan of a sandbox as ``spec`` wants it on this host. ``user``: who its ``user`` is."""
    steps = [*host_root(host, capabilities), *system_trees(spec, host, capabilities)]
    return complete(spec, steps, capabilities, user)


def host_root(host: Host, capabilities: Capabilities) -> list[Step]:
    """The host's own root, and everything mounted below it."""
    return _user_root(host) if capabilities.user_namespace else _own_root(host)


def complete(
    spec: SandboxSpec,
    steps: Sequence[Step],
    capabilities: Capabilities,
    user: User | None = None,
    ground: Sequence[Step] = (),
) -> Plan:
    """A plan of these steps, and what ``spec`` wants besides. ``ground``: see :class:`Plan`."""
    apart = capabilities.user_namespace
    wanted: list[Bind | MountTmpfs] = [
        *(Bind(v.source, v.target, v.read_only, create=True) for v in spec.volumes),
        *(MountTmpfs(t.target, t.size, t.mode) for t in spec.tmpfs),
    ]
    wanted.sort(key=lambda step: step.target)
    # Frozen last: the targets of volumes may have to be made first. What a volume or tmpfs covers
    # cannot be reached any more, and the cover is to stay writable.
    covers = [step.target for step in wanted]
    frozen = [
        Protect(step.target, tree=False)
        for step in steps
        if spec.read_only
        and isinstance(step, Overlay | Assemble)
        and not any(step.target == cover or is_below(step.target, cover) for cover in covers)
    ]
    return Plan(
        user_namespace=apart,
        pid_namespace=spec.pid,
        upper=Upper(
            "disk" if spec.upper == "disk" or not capabilities.memory_upper else "memory",
            spec.size,
            spec.inodes,
        ),
        steps=(*steps, *wanted, *frozen),
        capabilities=capabilities,
        ground=Plan(apart, False, Upper("none"), tuple(ground), capabilities) if ground else None,
        network_namespace=spec.network == "none",
        hostname=spec.hostname,
        user=user,
        fake_root=capabilities.user_namespace and spec.user == "root",
    )


def mount_attributes(mount: Mount) -> int:
    """The per-mount flags of the host's mount, which its overlay must show as well."""
    flags = {
        "nosuid": sys.MOUNT_ATTR_NOSUID,
        "nodev": sys.MOUNT_ATTR_NODEV,
        "noexec": sys.MOUNT_ATTR_NOEXEC,
        "noatime": sys.MOUNT_ATTR_NOATIME,
    }
    return sum(bit for name, bit in flags.items() if name in mount.options)


def is_system(path: str) -> bool:
    """Whether a sandbox has a ``path`` of its own."""
    return any(path == tree or is_below(path, tree) for tree in ("/proc", "/sys", "/dev"))


def _own_root(host: Host) -> list[Step]:
    """Root's way: an overlay for every filesystem that can take one."""
    steps: list[Step] = []
    bound: list[str] = []
    root, *below = host.mounts
    if root.read_only:
        steps.append(Bind("/", "/", read_only=True))
    else:
        steps.append(Overlay("/", ("/",), "0", mount_attributes(root)))
    for mount in below:
        path = mount.mountpoint
        if is_system(path):
            continue
        inside_bind = any(is_below(path, tree) for tree in bound)
        if path in host.files and not mount.read_only:
            # A bind from the host would let writes through. In a read-only tree nothing of the
            # upper can stand there; the read-only bind of the tree shows the file already.
            if not inside_bind:
                steps.append(Seed(path))
        elif (
            path in host.files
            or path in host.specials
            or mount.fstype in PSEUDO
            or mount.read_only
            or path in host.unlayerable
        ):
            if not inside_bind:
                steps.append(Bind(path, path, read_only=True, optional=True))
                bound.append(path)
        else:
            steps.append(Overlay(path, (path,), str(len(steps)), mount_attributes(mount)))
    if root.read_only:
        # The recursive bind of / shows everything already; only writable filesystems are relaid.
        steps = [steps[0], *(step for step in steps[1:] if isinstance(step, Overlay))]
    return steps


def _user_root(host: Host) -> list[Step]:
    """The ordinary user's way: one locked read-only tree, overlays where the user can write."""
    steps: list[Step] = [Bind("/", "/", read_only=True)]
    points = [*(mount.mountpoint for mount in host.mounts), *host.dead]
    mixed = frozenset(host.mixed)
    # Sorted, so that what contains another is mounted first.
    for path in sorted((*host.writable, *host.mixed)):
        owner = owning(host.mounts, path)
        if path in host.unlayerable or (owner and owner.read_only):
            continue
        name, attributes = str(len(steps)), mount_attributes(owner) if owner else 0
        if path in mixed:
            inner = [point[len(path) + 1 :] for point in points if is_below(point, path)]
            mounted = tuple(sorted({rest.partition("/")[0] for rest in inner}))
            dead = tuple(entry for entry in mounted if f"{path}/{entry}" in host.dead)
            steps.append(Assemble(path, name, mounted, dead, attributes))
        else:
            steps.append(Overlay(path, (path,), name, attributes))
    return steps


def system_trees(spec: SandboxSpec, host: Host, capabilities: Capabilities) -> list[Step]:
    """``/proc``, ``/sys`` and ``/dev``."""
    steps: list[Step] = []
    if spec.pid:
        steps.append(FreshProc())
    elif host.has_proc:
        steps.append(Bind("/proc", "/proc"))
    if not capabilities.user_namespace:
        # A user can change nothing there anyway, and a lock less is a mount less.
        steps.extend(Protect(path) for path in host.protected)
        if host.has_sys:
            steps.append(Bind("/sys", "/sys", read_only=True))
    mqueue = any(mount.mountpoint == "/dev/mqueue" for mount in host.mounts)
    steps.append(
        MakeDev(
            host.devices,
            bind=capabilities.user_namespace or not capabilities.mknod,
            mqueue=("own" if spec.pid else "host") if mqueue else "",
            more=tuple(path.removeprefix("/dev/") for path in spec.devices),
        )
    )
    return steps
