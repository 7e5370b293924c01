"""Makes the plan of a sandbox from the spec, the host and the features of the kernel.

It makes no system call, so it can be tested anywhere.

The root depends on whether a user namespace is needed. Without one (root), ``/`` is an overlay, and
every mount below it gets an overlay of its own. In a user namespace the mounts that are inherited
from the host are locked together: ``/`` can only be cloned as a whole. So it becomes a recursive
read-only bind, and overlays are mounted over the directories that the user can write. A directory
that was missed stays read-only, so no write reaches the host. See mount_namespaces(7) and
Documentation/filesystems/overlayfs.rst in the kernel's source.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..linux import syscalls as sys
from ..linux.mountinfo import Mount, is_below, owning
from .model import (
    PSEUDO,
    SHM,
    Assemble,
    Bind,
    Features,
    FreshProc,
    Host,
    MakeDev,
    MountTmpfs,
    Overlay,
    Plan,
    Protect,
    Seed,
    Step,
    Upper,
    User,
    WritableRoot,
)
from .spec import SandboxSpec


def plan(spec: SandboxSpec, host: Host, features: Features, user: User | None = None) -> Plan:
    """The plan of the sandbox that ``spec`` asks for; ``user`` is the user that it names."""
    root = host_root(host, features)
    steps = [*root, *system_trees(spec, host, features)]
    # Copies of the user's own lie between the host's files and the uppers.
    below = below_uppers(root) if host.writable_root is not None else ()
    return complete(spec, steps, features, user, below)


def host_root(host: Host, features: Features) -> list[Step]:
    """The steps for the host's own root and everything that is mounted below it."""
    return _user_root(host) if features.user_namespace else _own_root(host)


def below_uppers(steps: Sequence[Step]) -> list[Step]:
    """What lies below the uppers of the host's root, the first of ``steps``, and what is in it.

    A file that a sandbox gets a copy of is shown itself. ``/dev`` is the host's, since ``/dev/shm``
    may be an overlay.
    """
    shown = [
        Bind(step.path, step.path, read_only=True) if isinstance(step, Seed) else step
        for step in steps
    ]
    return [*shown, Bind("/dev", "/dev", read_only=True)]


def complete(
    spec: SandboxSpec,
    steps: Sequence[Step],
    features: Features,
    user: User | None = None,
    root_filesystem: Sequence[Step] = (),
) -> Plan:
    """A plan of these steps, with what ``spec`` asks for besides.

    ``root_filesystem``: the steps of :attr:`.Plan.root_filesystem`.
    """
    apart = features.user_namespace
    wanted: list[Bind | MountTmpfs] = [
        *(Bind(v.source, v.target, v.read_only, create=True) for v in spec.volumes),
        *(MountTmpfs(t.target, t.size, t.mode) for t in spec.tmpfs),
    ]
    wanted.sort(key=lambda step: step.target)
    # Made read-only at the end, since the targets of volumes may have to be made first. What a
    # volume or tmpfs covers is left out: it cannot be reached, and the volume stays writable.
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
            "disk" if spec.upper == "disk" or not features.memory_upper else "memory",
            spec.size,
            spec.inodes,
        ),
        steps=(*steps, *wanted, *frozen),
        features=features,
        root_filesystem=Plan(apart, False, Upper("none"), tuple(root_filesystem), features)
        if root_filesystem
        else None,
        network_namespace=spec.network == "none",
        hostname=spec.hostname,
        user=user,
        fake_root=features.user_namespace and spec.user == "root",
    )


def mount_attributes(mount: Mount) -> int:
    """The flags of the host's mount, which its overlay has to have as well."""
    flags = {
        "nosuid": sys.MOUNT_ATTR_NOSUID,
        "nodev": sys.MOUNT_ATTR_NODEV,
        "noexec": sys.MOUNT_ATTR_NOEXEC,
        "noatime": sys.MOUNT_ATTR_NOATIME,
    }
    return sum(bit for name, bit in flags.items() if name in mount.options)


def is_system(path: str) -> bool:
    """Whether ``path`` belongs to what every sandbox has of its own."""
    return any(path == tree or is_below(path, tree) for tree in ("/proc", "/sys", "/dev"))


def _own_root(host: Host) -> list[Step]:
    """For root: an overlay for every filesystem that can be a lower."""
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
            # A bind would let writes reach the host. In a read-only tree the file is shown by the
            # bind of the tree.
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
        # The recursive bind of / shows everything else.
        steps = [steps[0], *(step for step in steps[1:] if isinstance(step, Overlay))]
    return steps


def _user_root(host: Host) -> list[Step]:
    """For an ordinary user: one read-only tree, and overlays where the user can write."""
    root: Step = Bind("/", "/", read_only=True)
    steps: list[Step] = []
    if host.writable_root is not None:
        root, *steps = _writable_root(host, host.writable_root)
    points = [*(mount.mountpoint for mount in host.mounts), *host.dead]
    mixed = frozenset(host.mixed)
    # Sorted, so that a directory is mounted before those that it contains.
    for path in sorted((*host.writable, *host.mixed)):
        owner = owning(host.mounts, path)
        if path in host.unlayerable or (owner and owner.read_only):
            continue
        name, attributes = str(len(steps) + 1), mount_attributes(owner) if owner else 0
        if path in mixed:
            inner = [point[len(path) + 1 :] for point in points if is_below(point, path)]
            mounted = tuple(sorted({rest.partition("/")[0] for rest in inner}))
            dead = tuple(entry for entry in mounted if f"{path}/{entry}" in host.dead)
            steps.append(Assemble(path, name, mounted, dead, attributes))
        else:
            steps.append(Overlay(path, (path,), name, attributes))
    return [root, *sorted(steps, key=lambda step: getattr(step, "target", ""))]


def _writable_root(host: Host, wanted: WritableRoot) -> list[Step]:
    """The steps for what an ordinary user who is shown as root may write to, the root first."""
    steps: list[Step] = []
    for number, (path, lowers) in enumerate(wanted.overlays):
        owner = owning(host.mounts, path)
        attributes = mount_attributes(owner) if owner else 0
        steps.append(Overlay(path, lowers, f"w{number}", attributes))
    if not wanted.overlays or wanted.overlays[0][0] != "/":
        steps.insert(0, Bind("/", "/", read_only=True))
    elif host.has_sys:
        steps.append(Bind("/sys", "/sys", read_only=True))
    steps += [Bind(path, path, read_only=True, optional=True) for path in wanted.binds]
    return steps


def system_trees(spec: SandboxSpec, host: Host, features: Features) -> list[Step]:
    """The steps for ``/proc``, ``/sys`` and ``/dev``."""
    steps: list[Step] = []
    if spec.pid:
        steps.append(FreshProc())
    elif host.has_proc:
        steps.append(Bind("/proc", "/proc"))
    if not features.user_namespace:
        # A user cannot change anything there, and each of these steps costs a mount.
        steps.extend(Protect(path) for path in host.protected)
        if host.has_sys:
            steps.append(Bind("/sys", "/sys", read_only=True))
    mqueue = any(mount.mountpoint == "/dev/mqueue" for mount in host.mounts)
    steps.append(
        MakeDev(
            host.devices,
            bind=features.user_namespace or not features.mknod,
            mqueue=("own" if spec.pid else "host") if mqueue else "",
            more=tuple(path.removeprefix("/dev/") for path in spec.devices),
            host_shm=host.uses_shm and spec.root == "host" and SHM not in host.unlayerable,
        )
    )
    return steps
