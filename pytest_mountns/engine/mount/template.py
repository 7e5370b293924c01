"""Mounts that all sandboxes of one plan share, made once, in a mount namespace that is copied.

A copy of a mount namespace costs next to nothing for each mount in it, and to move a mount is one
system call. So what no test can change (``/proc`` with its protections, ``/sys``, read-only bind
mounts, an ordinary user's root) is mounted in the namespace of a *template*, whose root is an empty
tmpfs. To make a sandbox, that namespace is copied, the new root is stacked on its root, and what
is mounted below it is moved to its place. The namespace has no tree of the host that would have to
be detached each time: that waits for a grace period of the kernel.

Overlays can be in a template as well, as long as no test writes to them, see
:meth:`Template.written_overlays`. That is for machines with many mounts that the tests of a suite
have nothing to do with. So can ``/dev``, but for shared memory, as long as no test makes, removes
or changes a node or opens a terminal. Few tests do, and it takes half of the system calls that
make a sandbox.

Templates exist for speed alone; ``MOUNTNS_ABLATE=templates`` leaves them out. What they gain
depends on how many mounts the machine has. Measured on Linux 6.18 as root, with and without them in
turn:

* With nothing mounted but ``/``, one more directory, ``/proc`` and ``/sys``, a sandbox that is
  made, entered and left takes 0.8 ms of CPU time in place of 1.1 ms. (An ordinary user's takes
  0.9 ms in place of 1.4 ms.) Of a run of 500 empty tests with ``process="inline"`` that is lost in
  the noise: six pairs of runs took between 0.93 and 1.14 times the CPU time without templates, 1.0
  in the median.
* With 20 more mounts, as where packages (snaps) or volumes are mounted, it takes 1.0 ms in place of
  4.9 ms. The same run takes 1.7 times the CPU time without templates (1.60 to 1.74, five pairs).
* With 100 more mounts, a test takes 5.3 times the CPU time without templates with
  ``process="inline"``, and 2.3 times with ``process="fork"``.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, TypeAlias, final

from ..linux import syscalls as sys
from ..linux.ablation import is_left_out
from ..linux.errors import SandboxError
from ..linux.mountinfo import is_below
from ..linux.namespaces import closed_on_error, current_namespace, explained, high, mounting
from ..linux.untouched import os
from ..linux.watches import Watches
from ..plan.model import (
    DEV,
    SHM,
    Assemble,
    Bind,
    Layered,
    MakeDev,
    Overlay,
    Plan,
    Protect,
    Seed,
    Step,
)
from .executor import PlanExecutor
from .new_api import NewMountApi, forget_entries
from .root_calls import RootCalls, path_in_root, root_calls
from .shown_files import DirectoryStates, parents_in_overlays

#: A step that can be carried out in a template.
_Shared: TypeAlias = Overlay | Bind | Protect | MakeDev

#: With more remaining steps than this no template is made: each of their mounts is held as a
#: descriptor, and the usual limit is 1024.
_MOST_REMAINING: Final = 300
#: How many plans have templates at a time.
_MOST_KEPT: Final = 32


class UpperState(NamedTuple):
    """What differs when something was written to one of several uppers on one tmpfs."""

    #: How many inodes the tmpfs has in use, statvfs(3).
    inodes: int
    #: What is known of each upper directory itself.
    uppers: bytes
    #: What is known of the directories of the host that :attr:`Template.models` are.
    models: bytes


@final
class Template(NamedTuple):
    """Mounts that sandboxes of one plan are made from."""

    #: A descriptor of the mount namespace that is copied.
    namespace: int
    #: A descriptor of the tmpfs in which the uppers of its overlays lie.
    scratch: int
    #: What is mounted below its root: the name there, and the path in the sandbox.
    trees: tuple[tuple[str, str], ...]
    #: The steps of the plan that are carried out for each sandbox.
    remaining_steps: tuple[Step, ...]
    #: Its overlays, with uppers relative to the scratch.
    overlays: tuple[Layered, ...]
    #: For each of them its path, relative to the root of the template.
    shared: tuple[str, ...]
    #: Directories of the host whose attributes its overlays know: for each overlay the directory
    #: whose attributes its root has, and those in which something is mounted.
    models: DirectoryStates
    #: For each of these directories the index of the overlay.
    knowing: tuple[int, ...]
    #: The directories of the uppers.
    uppers: DirectoryStates
    #: The state of the uppers when the template was made.
    state: UpperState
    #: Makes the root of a sandbox at once; None if it has to be made step by step.
    calls: RootCalls | None
    #: Notice changes of its ``/dev``, if it has one.
    dev_watches: frozenset[int] = frozenset()

    @property
    def absolute_overlays(self) -> list[Layered]:
        """The overlays, with uppers as absolute paths for this process."""
        return [
            Layered(one.mountpoint, f"/proc/self/fd/{self.scratch}/{one.upper}")
            for one in self.overlays
        ]

    def stale_overlays(self) -> list[str]:
        """Returns the mountpoints of the overlays that know outdated attributes of the host's.

        Their roots show what they have copied. What is mounted in them keeps them from looking up
        anew the directories that lead there.
        """
        changed = DirectoryStates.differing(self.models.look(), self.state.models)
        found = dict.fromkeys(self.knowing[index] for index in changed)
        return [self.overlays[index].mountpoint for index in found]

    def written_overlays(self) -> list[str]:
        """Returns the mountpoints of the overlays that a test has written to.

        They cannot be used for another test. Whatever changes in an upper takes an inode of the
        tmpfs or changes the upper directory itself. Raises :class:`SandboxError` if the uppers
        cannot be looked at.
        """
        if not self.overlays:
            return []
        now, before = _upper_state(self.scratch, self.uppers, b""), self.state
        changed = set(DirectoryStates.differing(now.uppers, before.uppers))
        found = [
            overlay.mountpoint
            for index, overlay in enumerate(self.overlays)
            if index in changed
            or (now.inodes != before.inodes and _is_filled(self.scratch, overlay))
        ]
        if not found and now.inodes != before.inodes:
            # It is in a work directory, or something was written and removed again.
            return [overlay.mountpoint for overlay in self.overlays]
        return found

    @property
    def descriptors(self) -> tuple[int, int]:
        """It is gone when these are closed. What is mounted in sandboxes made from it goes on."""
        return self.namespace, self.scratch


def shared_steps(plan: Plan, *, unshared: Collection[str] | None) -> tuple[_Shared, ...]:
    """Returns the steps of a plan that can be carried out once, in a template.

    ``unshared`` are mountpoints of overlays that cannot be shared; None means that none can.
    """
    shared: list[_Shared] = []
    made_each_time: list[str] = []
    # Each sandbox writes its own copies of these.
    seeds = [step.path for step in plan.steps if isinstance(step, Seed)]
    for step in plan.steps:
        match step:
            case Overlay(target="/"):
                continue
            case Overlay(target=target) | Assemble(target=target):
                can_be_shared = (
                    isinstance(step, Overlay)
                    and unshared is not None
                    and not any(_is_in(place, [target]) for place in (*unshared, *seeds))
                )
            case Bind(target=target, create=False):
                can_be_shared = True
            case MakeDev():
                can_be_shared = unshared is not None and _can_share_dev(plan, step, unshared)
                if can_be_shared:
                    step = step._replace(part="rest")
            case Protect(target=target, tree=True):
                binds = [one.target for one in shared if isinstance(one, Bind)]
                can_be_shared = _is_in(target, binds)
            case _:
                continue
        # What is mounted on a mount that is made each time has to come after that.
        if can_be_shared and not isinstance(step, Assemble) and not _is_in(target, made_each_time):
            shared.append(step)
        elif isinstance(step, Overlay | Assemble):
            made_each_time.append(target)
    return tuple(shared)


def _can_share_dev(plan: Plan, step: MakeDev, unshared: Collection[str]) -> bool:
    # Further nodes have the attributes that the host's have now, and queues belong to one test.
    usual = not step.more and step.mqueue != "own"
    others = (one.target for one in plan.steps if not isinstance(one, MakeDev | Seed))
    return usual and not any(
        place == DEV or (is_below(place, DEV) and not _is_in(place, (SHM,)))
        for place in (*unshared, *others)
    )


def can_share_mounts(plan: Plan) -> bool:
    """Whether sandboxes of this plan can be made from a template."""
    # A procfs of its own can only be mounted from within its PID namespace, pid_namespaces(7).
    possible = plan.features.layered_uppers and not plan.pid_namespace
    return possible and not is_left_out("templates")


def can_share_overlays(plan: Plan) -> bool:
    """Whether sandboxes can share overlays, one after another, as long as nobody writes there.

    They cannot if the uppers have a common limit, or if overlays are made read-only for each
    sandbox.
    """
    limited = plan.upper.size or plan.upper.inodes or plan.upper.medium == "disk"
    read_only = any(isinstance(step, Protect) and not step.tree for step in plan.steps)
    return not limited and not read_only


def make_template(
    plan: Plan, stage: int, watches: Watches, *, unshared: Collection[str] | None
) -> Template | None:
    """Make the mounts that can be shared, as :func:`shared_steps` says.

    ``watches`` notice changes of what is shared. Returns None if there are no such steps, or if too
    many remain. Raises :class:`SandboxError` if a step fails.
    """
    steps = shared_steps(plan, unshared=unshared)
    shares_dev = any(isinstance(step, MakeDev) for step in steps)
    remaining = tuple(
        step._replace(part="shm") if shares_dev and isinstance(step, MakeDev) else step
        for step in plan.steps
        if step not in steps
    )
    if not steps or len(remaining) > _MOST_REMAINING:
        return None
    user = plan.user_namespace
    with mounting(user, dropped=user) as (back, opened), closed_on_error() as held:
        with explained("make a mount namespace", user, "namespace"):
            back.leave_for(stage)
            sys.unshare(sys.CLONE_NEWNS)
            opened.append(current_namespace())
        api = NewMountApi()
        with explained("mount the root of a template", user, "scratch"):
            scratch = high(api.make_scratch([("mode", "0755")]))
            opened.append(scratch)
            os.fchdir(scratch)
            if steps[0].target == "/":
                # Cloned before the template's root covers it.
                held.append(_clone_root())
            api.mount("tmpfs", "/", [("mode", "0755")], 0)
            held.insert(0, api.root)
        parents = parents_in_overlays(plan)
        known = [
            (index, path)
            for index, step in enumerate(step for step in steps if isinstance(step, Overlay))
            for path in (step.model or step.lowers[0], *parents.get(step.target, ()))
        ]
        # An ordinary user may not look at some.
        models = DirectoryStates([path for _, path in known], may_be_missing=True)
        # Before they are copied, so that no change is missed.
        attributes = models.look()
        executor = PlanExecutor(api, plan, {})
        trees = _mount_trees(executor, api, steps, held)
        dev_watches = _watch_dev(watches, api.root, trees) if shares_dev else frozenset()
        with explained("pivot into a template", user, "pivot"):
            # It closes the descriptor.
            held.remove(api.root)
            api.pivot_root()
        shared = tuple(one.mountpoint[1:] for one in executor.overlays)
        with explained("refresh a shared overlay", user):
            # Whether it is allowed. It is done for each sandbox.
            for path in shared[:1]:
                forget_entries(sys.AT_FDCWD, path)
        overlays = tuple(
            Layered(f"/{path_in_root(path, trees)}", one.upper)
            for path, one in zip(shared, executor.overlays, strict=True)
        )
        uppers = DirectoryStates([one.upper for one in overlays], top=scratch)
        state = _upper_state(scratch, uppers, attributes)
    namespace, scratch = opened
    calls = root_calls(plan, remaining, namespace, trees, shared)
    return Template(
        namespace,
        scratch,
        trees,
        remaining,
        overlays,
        shared,
        models,
        tuple(index for index, _ in known),
        uppers,
        state,
        calls,
        dev_watches,
    )


def _mount_trees(
    executor: PlanExecutor, api: NewMountApi, steps: tuple[_Shared, ...], held: list[int]
) -> tuple[tuple[str, str], ...]:
    """Carry out the steps, each tree of mounts at a name of its own below the template's root.

    The last one of ``held`` is a clone of ``/``, for a step that bind-mounts it.
    """
    names: dict[str, str] = {}
    device = os.fstat(api.root).st_dev
    for step in steps:
        target = step.target
        top = max((one for one in names if _is_in(target, [one])), key=len, default=target)
        if top not in names:
            names[top] = str(len(names))
            _make_placeholder(api.root, names[top], step)
        place = f"/{names[top]}{target[len(top.rstrip('/')) :].rstrip('/')}"
        if target == "/":
            api.attach_tree(held.pop(), place, read_only=True)
        else:
            executor.execute([step._replace(target=place)])
    # Nothing is mounted where the kernel has refused an optional step.
    return tuple(
        (name, target)
        for target, name in names.items()
        if os.stat(name, dir_fd=api.root, follow_symlinks=False).st_dev != device
    )


def _watch_dev(
    watches: Watches, template_root: int, trees: tuple[tuple[str, str], ...]
) -> frozenset[int]:
    """Watch the ``/dev`` of a template and the terminals in it."""
    with explained("watch a shared /dev", False):
        # An ordinary user's is in the tree of the root.
        name, target = max((one for one in trees if _is_in(DEV, one[1:])), key=lambda one: one[1])
        place = f"/proc/self/fd/{template_root}/{name}{DEV[len(target.rstrip('/')) :]}"
        return frozenset(watches.add(path) for path in (place, f"{place}/pts"))


def _clone_root() -> int:
    flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
    return sys.open_tree(sys.AT_FDCWD, "/", flags | sys.AT_NO_AUTOMOUNT)


def _make_placeholder(template_root: int, name: str, step: _Shared) -> None:
    """Make what the step's mount is mounted on."""
    source = step.source if isinstance(step, Bind) else "/"
    try:
        directory = stat.S_ISDIR(os.stat(source).st_mode)
    except OSError:
        # Root may not look at it. The bind mount will be refused, and is optional.
        directory = True
    if directory:
        os.mkdir(name, 0o755, dir_fd=template_root)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=template_root))


def _is_in(target: str, places: Collection[str]) -> bool:
    """Whether ``target`` is one of the places, or lies below one."""
    return any(place == target or is_below(target, place) for place in places)


def _upper_state(scratch: int, uppers: DirectoryStates, models: bytes) -> UpperState:
    with explained("look at the uppers of shared overlays", False):
        status = os.fstatvfs(scratch)
        return UpperState(status.f_files - status.f_ffree, uppers.look(), models)


def _is_filled(scratch: int, overlay: Layered) -> bool:
    with explained("look into the uppers of shared overlays", False):
        fd = os.open(overlay.upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=scratch)
        try:
            return bool(os.listdir(fd))
        finally:
            os.close(fd)


@final
@dataclass(slots=True, eq=False, repr=False)
class _Kept:
    """The templates of one plan."""

    #: It is held, or its identity might become another plan's.
    plan: Plan
    without_overlays: Template | None
    #: The same as :attr:`without_overlays` if no overlay can be shared.
    with_overlays: Template | None = None
    #: Whether :attr:`with_overlays` was looked for.
    looked_for: bool = False

    def templates(self) -> list[Template]:
        """Each of them once."""
        both = {id(one): one for one in (self.without_overlays, self.with_overlays) if one}
        return list(both.values())


@final
class Templates:
    """The templates of one process, made when they are first asked for.

    Those of the plans that were asked for last are kept, 32 of them: each holds up to four
    descriptors, and a suite may have any number of different plans.

    ``places`` are directories that tests are expected to write to. Overlays that hold one of them
    are made for each sandbox: such directories are written to on the host as well. If that happens
    under a mounted overlay, what the overlay shows is undefined,
    Documentation/filesystems/overlayfs.rst, "Changes to underlying filesystems". ``let_go`` is
    called with each template that is given to nobody any more, to close its descriptors when no
    sandbox uses them.
    """

    def __init__(self, places: Sequence[str], let_go: Callable[[Template], None]) -> None:
        self._let_go = let_go
        self._unshared = {os.path.realpath(place) for place in places}
        self._watches = Watches()
        # By the identity of the plan: to compare long plans takes time. The one that was asked for
        # last comes last.
        self._kept: dict[int, _Kept] = {}

    def without_overlays(self, plan: Plan, stage: int) -> Template | None:
        """Returns the template that has no overlays, or None if there is none for this plan.

        Raises :class:`SandboxError` if it cannot be made.
        """
        return self._of(plan, stage).without_overlays

    def _of(self, plan: Plan, stage: int) -> _Kept:
        known = self._kept.pop(id(plan), None)
        if known is None:
            while len(self._kept) >= _MOST_KEPT:
                for template in self._kept.pop(next(iter(self._kept))).templates():
                    self._close(template)
            made = None
            if can_share_mounts(plan):
                made = make_template(plan, stage, self._watches, unshared=None)
            known = _Kept(plan, made)
        self._kept[id(plan)] = known
        return known

    def with_overlays(self, plan: Plan, stage: int) -> Template | None:
        """Returns the template with the overlays that no test has written to so far.

        It is the one without overlays if there are no such overlays. Raises :class:`SandboxError`
        if it cannot be made.
        """
        known = self._of(plan, stage)
        with_overlays, other = known.with_overlays, known.without_overlays
        if with_overlays is not None and with_overlays is not other:
            written = with_overlays.written_overlays() or with_overlays.stale_overlays()
            watches = with_overlays.dev_watches
            if watches and self._watches.have_seen(watches):
                written.append(DEV)
            if not written:
                return with_overlays
            # A suite that writes there once usually does it again, and so does the host.
            self._unshared.update(written)
            known.with_overlays, known.looked_for = None, False
            self._close(with_overlays)
        if not known.looked_for:
            made = other
            if other is not None and can_share_overlays(plan):
                steps = shared_steps(plan, unshared=self._unshared)
                if any(isinstance(step, Overlay | MakeDev) for step in steps):
                    made = self._make_with_overlays(plan, stage) or other
            known.with_overlays, known.looked_for = made, True
        return known.with_overlays

    def _make_with_overlays(self, plan: Plan, stage: int) -> Template | None:
        try:
            return make_template(plan, stage, self._watches, unshared=self._unshared)
        except SandboxError:
            if DEV in self._unshared:
                # Nothing can be shared here, and all is made for each sandbox.
                return None
            # This user may have no more watches, inotify(7).
            self._unshared.add(DEV)
            return self._make_with_overlays(plan, stage)

    def _close(self, template: Template) -> None:
        self._watches.remove(template.dev_watches)
        self._let_go(template)

    def close(self) -> None:
        """Let go of all templates. They are made again when they are asked for."""
        while self._kept:
            for template in self._kept.popitem()[1].templates():
                self._close(template)
        self._watches.close()
