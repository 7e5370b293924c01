"""Spec + host + capabilities -> :class:`.plan.Plan`. Pure: no system call, testable anywhere.

What decides the shape of the root is whether a user namespace is needed. Without one (root), an
overlay of ``/`` works and every mount below gets its own. With one, the mounts inherited from
the host are locked together: ``/`` can only be cloned whole, so it becomes a recursive read-only
bind, and overlays are laid over the directories the user can write. Whatever was overlooked
there refuses writes; it cannot leak. See mount_namespaces(7) and the kernel's
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..linux import syscalls as sys
from ..linux.mountinfo import Mount, is_below, owning
from .model import (
    PSEUDO,
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
)
from .spec import SandboxSpec


def plan(spec: SandboxSpec, host: Host, features: Features, user: User | None = None) -> Plan:
    """The plan of a sandbox as ``spec`` wants it on this host. ``user``: who its ``user`` is."""
    steps = [*host_root(host, features), *system_trees(spec, host, features)]
    return complete(spec, steps, features, user)


def host_root(host: Host, features: Features) -> list[Step]:
    """The host's own root, and everything mounted below it."""
    return _user_root(host) if features.user_namespace else _own_root(host)


def complete(
    spec: SandboxSpec,
    steps: Sequence[Step],
    features: Features,
    user: User | None = None,
    root_filesystem: Sequence[Step] = (),
) -> Plan:
    """A plan of these steps, and what ``spec`` wants besides. ``ground``: see :class:`Plan`."""
    apart = features.user_namespace
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


def system_trees(spec: SandboxSpec, host: Host, features: Features) -> list[Step]:
    """``/proc``, ``/sys`` and ``/dev``."""
    steps: list[Step] = []
    if spec.pid:
        steps.append(FreshProc())
    elif host.has_proc:
        steps.append(Bind("/proc", "/proc"))
    if not features.user_namespace:
        # A user can change nothing there anyway, and a lock less is a mount less.
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
        )
    )
    return steps
