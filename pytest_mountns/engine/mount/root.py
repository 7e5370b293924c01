"""Makes new roots, each in a mount namespace of its own.

:func:`make_new_root` carries out a plan and pivots, in another mount namespace than that of the
caller, who then returns to where it was. Nobody is in the new namespace yet; a process enters it
with setns(2). The namespace begins as a copy of the host's mounts, which pivoting detaches, or as
a copy of what a :class:`.template.Template` has mounted already.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, NamedTuple, final

from ..linux import syscalls as sys
from ..linux.call_helper import CallHelper
from ..linux.errors import SandboxError, Unavailable, is_failed_call
from ..linux.namespaces import current_namespace, explained, high, mounting, privileged
from ..linux.untouched import os
from ..plan.model import Features, Layered, Plan, Step
from .api import MountApi
from .executor import PlanExecutor, open_scratch
from .new_api import DeferredMountApi, NewMountApi, forget_entries
from .root_calls import RootAtOnce, RootCalls
from .shown_files import ShownFiles
from .template import Template


@final
class ReusedUppers(NamedTuple):
    """The uppers of a sandbox, for another one that goes on with them."""

    #: A descriptor of the directory in which they lie.
    scratch: int
    #: For the mountpoint of each overlay the path of its upper.
    uppers: Mapping[str, str]


@final
class NewRoot(NamedTuple):
    """A new root, mounted."""

    #: A descriptor of the mount namespace whose root it is.
    namespace: int
    #: A descriptor of the directory in which its uppers lie.
    scratch: int
    #: The paths in it that were made only to be mounted on.
    created: set[str]
    #: Its overlays, without those of its template.
    overlays: list[Layered]


def make_new_root(
    plan: Plan,
    stage: int,
    *,
    directory: str | None = None,
    directory_is_used: bool = False,
    additional_lowers: Mapping[str, tuple[str, ...]] | None = None,
    more: Sequence[Step] = (),
    template: Template | None = None,
    reused: ReusedUppers | None = None,
) -> NewRoot:
    """Make a root as planned, on a copy of the stage's mounts. This thread stays where it is.

    ``additional_lowers`` maps the mountpoint of an overlay to directories that are stacked on its
    planned lowers, and ``more`` are steps besides those of the plan. The other arguments are those
    of :func:`.create.make`. Raises :class:`SandboxError` if a step fails, and :class:`Unavailable`
    if this process may not make mount namespaces.
    """
    user_namespace = plan.user_namespace
    with mounting(user_namespace, dropped=plan.drops_capabilities) as (back, opened):
        with _making_a_namespace(user_namespace):
            back.leave_for(stage)
        if directory is not None and directory_is_used:
            # Another root: an upper is never used twice.
            with explained("make a directory for an upper", user_namespace):
                directory = tempfile.mkdtemp(dir=directory)
        lowers = additional_lowers or {}
        if template is not None and template.calls is not None and not (lowers or more):
            with explained("make a root", user_namespace):
                at_once = template.calls.perform()
            if at_once is not None:
                # They are closed if the way back ends by an exception.
                opened += (at_once.namespace, at_once.scratch)
                os.close(at_once.root)
                return _of_calls(at_once, template.calls)
            with _making_a_namespace(user_namespace):
                back.leave_for(stage)
        if template is None:
            executor = _make(plan, directory, lowers, more, opened, reused)
        else:
            executor = _make_from_template(plan, directory, lowers, more, opened, template)
    namespace, scratch = opened
    return NewRoot(namespace, scratch, executor.created, executor.overlays)


@final
class RootAhead:
    """A root that is made before it is needed, for the next sandbox of the same plan."""

    def __init__(
        self,
        plan: Plan,
        template: Template,
        calls: RootCalls,
        files: ShownFiles,
        made: RootAtOnce | CallHelper | None,
    ) -> None:
        """``made`` is the root or the helper that is at work on it; None when it was taken."""
        self._plan = plan
        self._template = template
        self._calls = calls
        self._made = made
        # What is made in it belongs to these.
        self._user = os.geteuid(), os.getegid()
        #: What it shows of the host.
        self.files: Final = files

    @property
    def is_here(self) -> bool:
        """Whether this process has descriptors of it."""
        return isinstance(self._made, RootAtOnce)

    def take(self, plan: Plan, template: Template | None) -> NewRoot | None:
        """The root, if it is the one that would be made now: of this plan, from this template.

        The template is compared by its identity: it is another one when the mounts of the host or
        its own overlays have changed. The process has the user and group that it had
        when the root was begun. None is returned if the root is another one, or if that cannot be
        found out. It is to be closed then.
        """
        if plan is not self._plan or template is not self._template:
            return None
        if (os.geteuid(), os.getegid()) != self._user:
            return None
        made = self._receive()
        if made is None:
            return None
        try:
            if self._calls.look_at_files() != self.files:
                return None
            with privileged(plan.drops_capabilities):
                if not self._calls.complete(made):
                    return None
        except SandboxError:
            return None
        except OSError as error:
            if not is_failed_call(error):
                raise
            return None
        self._made = None
        os.close(made.root)
        return _of_calls(made, self._calls)

    def _receive(self) -> RootAtOnce | None:
        """The root. None if it could not be made: then it is made later, and that says why."""
        if isinstance(self._made, CallHelper):
            received = self._made.end()
            if received is None:
                return None
            self._made = RootAtOnce(*received)
        return self._made

    def descriptors(self) -> tuple[int, ...]:
        """What is to be closed if the root is not taken."""
        return self._receive() or ()


def make_root_ahead(
    plan: Plan,
    stage: int,
    template: Template,
    helper: CallHelper | None,
    files: ShownFiles | None = None,
) -> RootAhead | None:
    """Make the root that :func:`make_new_root` would make of this template, for later.

    The helper makes it, if there is one, while this process does something else. ``files`` are
    those of the root that was just taken, if they are known. Returns None if it cannot be made.
    Raises as :func:`make_new_root`.
    """
    calls = template.calls
    if calls is None:
        return None
    user_namespace = plan.user_namespace
    if helper is not None:
        calls = calls.of_helper()
        if files is None:
            with explained("make a root", user_namespace):
                files = calls.look_at_files()
        if files is None or not calls.begin_in(helper, stage, files):
            return None
        return RootAhead(plan, template, calls, files, helper)
    with mounting(user_namespace, dropped=plan.drops_capabilities) as (back, opened):
        with _making_a_namespace(user_namespace):
            back.leave_for(stage)
        with explained("make a root", user_namespace):
            files = calls.look_at_files()
            if files is None:
                return None
            made = calls.perform_without_copies(files)
        # They are closed if the way back ends by an exception.
        opened += made or ()
    return RootAhead(plan, template, calls, files, made) if made is not None else None


def mount_root_filesystem(plan: Plan, stage: int) -> int:
    """Returns a descriptor of a mount namespace that shows a root filesystem alone.

    ``plan`` is a :attr:`.plan.model.Plan.root_filesystem`: it has no uppers to write to. Raises
    as :func:`make_new_root`.
    """
    root = make_new_root(plan, stage)
    os.close(root.scratch)
    return root.namespace


def mount_api_for(features: Features) -> MountApi:
    """Returns the mount API that works here, as :mod:`.probe.features` has found out."""
    if features.new_api:
        return NewMountApi(attach_scratch=not features.detached_uppers)
    from .classic_api import ClassicMountApi

    return ClassicMountApi()


def _of_calls(made: RootAtOnce, calls: RootCalls) -> NewRoot:
    return NewRoot(made.namespace, made.scratch, set(), list(calls.overlays))


def _making_a_namespace(user_namespace: bool) -> AbstractContextManager[None]:
    return explained("make a mount namespace", user_namespace, "namespace", Unavailable)


def _make(
    plan: Plan,
    directory: str | None,
    additional_lowers: Mapping[str, tuple[str, ...]],
    more: Sequence[Step],
    opened: list[int],
    reused: ReusedUppers | None,
) -> PlanExecutor:
    """Make the root in a copy of this mount namespace, and pivot into it.

    Descriptors of the copy and of the scratch are added to ``opened``.
    """
    user_namespace = plan.user_namespace
    with _making_a_namespace(user_namespace):
        sys.unshare(sys.CLONE_NEWNS)
        opened.append(current_namespace())
    with explained("read the mount table", user_namespace, "proc"):
        api = mount_api_for(plan.features)
    try:
        with explained("make a root", user_namespace):
            taken = os.dup(reused.scratch) if reused else open_scratch(api, plan, directory)
            opened.append(scratch := high(taken))
            os.fchdir(scratch)
            uppers = reused.uppers if reused else None
            executor = PlanExecutor(api, plan, additional_lowers, uppers)
            executor.execute([*plan.steps, *more])
        with explained("pivot into the new root", user_namespace, "pivot"):
            api.pivot_root()
    except BaseException:
        if api.root >= 0:
            os.close(api.root)
        raise
    return executor


def _make_from_template(
    plan: Plan,
    directory: str | None,
    additional_lowers: Mapping[str, tuple[str, ...]],
    more: Sequence[Step],
    opened: list[int],
    template: Template,
) -> PlanExecutor:
    """Make the root in a copy of the template's mount namespace.

    The remaining steps are carried out on the stage, where the host's files are. Their mounts are
    attached in the copy, together with those that the template has. There is nothing to pivot
    away from: the new root covers the template's, which is empty.
    """
    api = DeferredMountApi()
    executor = PlanExecutor(api, plan, additional_lowers)
    to_close: list[int] = []
    try:
        with explained("make a root", plan.user_namespace):
            scratch = high(open_scratch(api, plan, directory))
            to_close.append(scratch)
            os.fchdir(scratch)
            executor.execute([*template.remaining_steps, *more])
            to_close.append(proc := os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        with _making_a_namespace(plan.user_namespace):
            sys.setns(template.namespace, sys.CLONE_NEWNS)
            sys.unshare(sys.CLONE_NEWNS)
            namespace = os.open("thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            opened += [high(namespace), to_close.pop(0)]
        with explained("attach the mounts of a template", plan.user_namespace):
            flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
            to_close.append(template_root := os.open(".", flags))
            for path in template.shared:
                forget_entries(template_root, path)
            api.attach_all(template_root, template.trees)
    finally:
        api.close()
        for fd in to_close:
            os.close(fd)
    return executor
