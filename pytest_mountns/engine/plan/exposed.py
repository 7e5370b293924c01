"""What of the host can be written to in a sandbox, by its mount table.

A call that makes a mount, or makes it read-only, may seem to have worked without having done
anything: a seccomp filter may answer it. So the mount table is compared with the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..linux.mountinfo import Mount, is_below, owning, visible
from .model import Bind, MakeDev, Plan, Protect


def exposed_paths(plan: Plan, filesystems: Collection[str], table: Iterable[Mount]) -> list[str]:
    """The paths at which a sandbox shows a filesystem of the host writable, against its plan.

    ``filesystems`` are those of the host, by their device numbers (``major:minor``). ``table`` is
    the mount table of the sandbox.
    """
    shown = visible(table)
    # By their targets: whether what is bound there, with all that is mounted below, is read-only.
    bound = {step.target: step.read_only for step in plan.steps if isinstance(step, Bind)}
    for step in plan.steps:
        if isinstance(step, MakeDev) and step.bind:
            bound.update((f"{step.target}/{name}", False) for name in step.devices)
        elif isinstance(step, Protect) and step.tree:
            bound[step.target] = True

    def is_meant(path: str) -> bool:
        above = [target for target in bound if target == path or is_below(path, target)]
        return bool(above) and not bound[max(above, key=len)]

    found = [
        mount.mountpoint
        for mount in shown
        if mount.device in filesystems and not mount.read_only and not is_meant(mount.mountpoint)
    ]
    for step in plan.steps:
        if isinstance(step, Protect):
            owner = owning(shown, step.target)
            if owner is not None and not owner.read_only:
                found.append(step.target)
    return sorted(set(found))
