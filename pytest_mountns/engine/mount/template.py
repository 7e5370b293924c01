"""What all sandboxes of one plan have in common, mounted once, in a namespace to be copied.

A copy of a namespace costs next to nothing for each mount, and moving a mount is one system call.
So what no test can change (``/proc`` with its protections, ``/sys``, read-only binds, an ordinary
user's root) is mounted on a *bench*: an empty tmpfs, the root of a namespace of its own. A
sandbox is a copy of that namespace, in which the new root goes on top of the bench, and what
stands on the bench is moved to its place. No tree of the host is in there that would have to be
detached: that waits for a grace period of the kernel, each time.

Overlays can stand on the bench as well, as long as no test writes to them: see
:meth:`Template.touched`. That is for mounts that a machine has many of and a suite none to do with.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final

from ..linux import syscalls as sys
from ..linux.ablation import is_left_out
from ..linux.mountinfo import is_below
from ..linux.namespaces import current_namespace, explained, high, mounting
from ..plan.model import Assemble, Bind, Layered, Overlay, Plan, Protect, Step
from .executor import Building
from .new_api import NewMountApi

_Marks: TypeAlias = "tuple[int, tuple[int, ...]]"
_Standing: TypeAlias = Overlay | Bind | Protect

# So many descriptors at a time are few enough under the usual limit of 1024.
_MOST_STEPS = 300


@final
@dataclass(frozen=True, slots=True)
class Template:
    """``namespace`` is a descriptor of the one to be copied, ``scratch`` of where the uppers of
    the overlays in it lie.

    ``tops``: what stands on the bench, by name, and where it belongs. ``steps``: those of the plan
    that are left for each sandbox.
    """

    namespace: int
    scratch: int
    tops: tuple[tuple[str, str], ...]
    steps: tuple[Step, ...]
    overlays: tuple[Layered, ...]
    marks: _Marks

    @property
    def absolute(self) -> list[Layered]:
        """The overlays, with the paths of their uppers for this process."""
        return [
            Layered(one.mountpoint, f"/proc/self/fd/{self.scratch}/{one.upper}")
            for one in self.overlays
        ]

    def touched(self) -> list[str]:
        """The mountpoints of overlays that something was written to; they cannot be used again.

        Whatever changes in an upper takes an inode of the tmpfs or changes its own directory.
        """
        if not self.overlays:
            return []
        used, changed = _marks(self.scratch, self.overlays)
        before, unchanged = self.marks
        found = [
            overlay.mountpoint
            for overlay, now, then in zip(self.overlays, changed, unchanged, strict=True)
            if now != then or (used != before and _is_filled(self.scratch, overlay))
        ]
        # Not in any upper: in a directory for work, and gone again or not.
        return found or ([o.mountpoint for o in self.overlays] if used != before else [])

    def close(self) -> None:
        """Let go of it; sandboxes that were made from it go on."""
        os.close(self.namespace)
        os.close(self.scratch)


def standing(plan: Plan, *, besides: Collection[str] | None) -> tuple[_Standing, ...]:
    """The steps of a plan that can be done once.

    ``besides``: mountpoints of overlays that cannot; None: no overlay can.
    """
    found: list[_Standing] = []
    fresh: list[str] = []
    for step in plan.steps:
        match step:
            case Overlay(target="/"):
                continue
            case Overlay(target=target) | Assemble(target=target):
                stands = (
                    isinstance(step, Overlay)
                    and besides is not None
                    and not any(place == target or is_below(place, target) for place in besides)
                )
            case Bind(target=target, create=False):
                stands = True
            case Protect(target=target, tree=True):
                stands = _over(target, [one.target for one in found if isinstance(one, Bind)])
            case _:
                continue
        # Below what is new each time it would have to come after that.
        if stands and not isinstance(step, Assemble) and not _over(target, fresh):
            found.append(step)
        elif isinstance(step, Overlay | Assemble):
            fresh.append(target)
    return tuple(found)


def can_stand(plan: Plan) -> bool:
    """Whether sandboxes of this plan can be made from a template."""
    # A /proc of its own can only be mounted from within its PID namespace.
    possible = plan.features.layered_uppers and not plan.pid_namespace
    return possible and not is_left_out("templates")


def overlays_can_stand(plan: Plan) -> bool:
    """Whether its overlays can be shared by sandboxes, one after another, if nobody writes there.

    Not if they have a limit in common, or are made read-only for each sandbox.
    """
    limited = plan.upper.size or plan.upper.inodes or plan.upper.medium == "disk"
    frozen = any(isinstance(step, Protect) and not step.tree for step in plan.steps)
    return not limited and not frozen


def make_template(plan: Plan, stage: int, *, besides: Collection[str] | None) -> Template | None:
    """Mount what can stand; None if that is not worth it, or leaves too much to be done.

    Raises :class:`SandboxError`.
    """
    steps = standing(plan, besides=besides)
    left = tuple(step for step in plan.steps if step not in steps)
    if not steps or len(left) > _MOST_STEPS:
        return None
    user = plan.user_namespace
    with mounting(user, dropped=user) as (back, opened):
        with explained("make a mount namespace", user, "namespace"):
            back.leave_for(stage)
            sys.unshare(sys.CLONE_NEWNS)
            opened.append(current_namespace())
        api = NewMountApi()
        with explained("make a bench", user, "scratch"):
            scratch = high(api.make_scratch([("mode", "0755")]))
            opened.append(scratch)
            os.fchdir(scratch)
            # Before the bench is on top of it.
            root = _clone_root(steps[0])
            api.mount("tmpfs", "/", [("mode", "0755")], 0)
        building = Building(api, plan, {})
        tops = _lay_out(building, api, steps, root)
        with explained("pivot to the bench", user, "pivot"):
            api.pivot_root()
        overlays = tuple(
            Layered(_in_place(o.target, tops), f"{o.name}.upper") for o in building.overlays
        )
        marks = _marks(scratch, overlays)
    namespace, scratch = opened
    return Template(namespace, scratch, tops, left, overlays, marks)


def _lay_out(
    building: Building, api: NewMountApi, steps: tuple[_Standing, ...], root: int
) -> tuple[tuple[str, str], ...]:
    """Do the steps, each top one in a place of its own on the bench. ``root``: a clone of ``/``."""
    tops: dict[str, str] = {}
    bench = os.fstat(api.root).st_dev
    for step in steps:
        target = step.target
        top = max((one for one in tops if _over(target, [one])), key=len, default=target)
        if top not in tops:
            tops[top] = str(len(tops))
            _placeholder(api.root, tops[top], step)
        place = f"/{tops[top]}{target[len(top.rstrip('/')) :].rstrip('/')}"
        if target == "/":
            api.attach_tree(root, place, read_only=True)
        else:
            building.carry_out([replace(step, target=place)])
    # Without what is optional, and was refused.
    return tuple(
        (name, target)
        for target, name in tops.items()
        if os.stat(name, dir_fd=api.root, follow_symlinks=False).st_dev != bench
    )


def _clone_root(step: _Standing) -> int:
    if step.target != "/":
        return -1
    flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
    return sys.open_tree(sys.AT_FDCWD, "/", flags | sys.AT_NO_AUTOMOUNT)


def _placeholder(bench: int, name: str, step: _Standing) -> None:
    source = step.source if isinstance(step, Bind) else "/"
    try:
        directory = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError:
        # Root may not look at it, and it is left out.
        directory = True
    if directory:
        os.mkdir(name, 0o755, dir_fd=bench)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=bench))


def _in_place(path: str, tops: tuple[tuple[str, str], ...]) -> str:
    name, _, rest = path[1:].partition("/")
    top = next(target for known, target in tops if known == name)
    return f"{top.rstrip('/')}/{rest}" if rest else top


def _over(target: str, places: Collection[str]) -> bool:
    return any(place == target or is_below(target, place) for place in places)


def _marks(scratch: int, overlays: Collection[Layered]) -> _Marks:
    with explained("look at the uppers of shared overlays", False):
        status = os.fstatvfs(scratch)
        changed = tuple(os.stat(overlay.upper, dir_fd=scratch).st_ctime_ns for overlay in overlays)
    return status.f_files - status.f_ffree, changed


def _is_filled(scratch: int, overlay: Layered) -> bool:
    with explained("look into the uppers of shared overlays", False):
        fd = os.open(overlay.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
        try:
            return bool(os.listdir(fd))
        finally:
            os.close(fd)


@final
class Templates:
    """The templates of one process, made when first asked for.

    ``places``: overlays that hold one of them are made for each sandbox. What lies below an
    overlay may be written to from outside while it is mounted, and it does not always notice.
    """

    def __init__(self, places: Sequence[str]) -> None:
        self._besides = {os.path.realpath(place) for place in places}
        # By identity: a plan is long. The plan is kept, or its number might be another's.
        self._bases: dict[int, tuple[Plan, Template | None]] = {}
        self._fulls: dict[int, tuple[Plan, Template | None]] = {}

    def base(self, plan: Plan, stage: int) -> Template | None:
        """Without overlays. Raises :class:`SandboxError`."""
        known = self._bases.get(id(plan))
        if known is None:
            made = make_template(plan, stage, besides=None) if can_stand(plan) else None
            known = self._bases[id(plan)] = (plan, made)
        return known[1]

    def full(self, plan: Plan, stage: int, base: Template | None) -> Template | None:
        """With the overlays that nobody has written to so far. Raises :class:`SandboxError`."""
        known = self._fulls.get(id(plan))
        if known is not None and known[1] is not None and known[1] is not base:
            touched = known[1].touched()
            if not touched:
                return known[1]
            # Whoever writes there once does it again, as a rule.
            self._besides.update(touched)
            self._fulls.pop(id(plan))
            known[1].close()
            known = None
        if known is None:
            made = base
            if base is not None and overlays_can_stand(plan):
                steps = standing(plan, besides=self._besides)
                if any(isinstance(step, Overlay) for step in steps):
                    made = make_template(plan, stage, besides=self._besides)
            known = self._fulls[id(plan)] = (plan, made)
        return known[1]

    def close(self) -> None:
        """Let go of all; they are made again when they are asked for."""
        made = {id(one): one for _, one in (*self._bases.values(), *self._fulls.values()) if one}
        for template in made.values():
            template.close()
        self._bases.clear()
        self._fulls.clear()
