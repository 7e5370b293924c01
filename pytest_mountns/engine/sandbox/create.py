"""Makes sandboxes, and puts a process into one for good.

:func:`make` makes a root in a mount namespace of its own and returns to where it was. Nobody is in
that namespace yet; :meth:`.sandbox.Sandbox.enter` moves the calling thread in. Between the two, the
process may fork, and either process may enter.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..linux.errors import Unavailable
from ..linux.namespaces import enter_mount_namespace, make_stage, working_directory
from ..mount.root import NewRoot, ReusedUppers, make_new_root
from ..mount.template import Template
from ..plan.model import Bind, OwnDirectory, Plan
from .sandbox import Layers, Sandbox


def make(
    plan: Plan,
    stage: int,
    *,
    directory: str | None = None,
    directory_is_used: bool = False,
    layers: Layers | None = None,
    bound: Sequence[Bind] = (),
    own: Sequence[OwnDirectory] = (),
    template: Template | None = None,
    template_without_overlays: Template | None = None,
    reused: ReusedUppers | None = None,
    root: NewRoot | None = None,
) -> Sandbox:
    """Make a sandbox as planned, on a copy of the stage's mounts. This thread stays where it is.

    The caller is in the user namespace and the PID namespace that the plan wants already. For an
    upper on disk, ``directory`` is a directory of the host; it is empty, unless
    ``directory_is_used`` says that another sandbox has used it. ``layers`` lie below the uppers.
    ``bound`` are bind mounts besides those of the plan, ``own`` the directories of their own among
    the layers. ``template`` is one of the same plan to make the sandbox from;
    ``template_without_overlays`` is for sandboxes on its layers. ``reused`` are uppers of another
    sandbox that this one goes on with; there is no template then. ``root`` is the root of the
    sandbox, if it was made already.

    Raises :class:`Unavailable` if this machine cannot do it, and :class:`SandboxError` if a step
    fails.
    """
    if layers and not plan.features.layered_uppers:
        raise Unavailable(
            "lay one upper over another",
            cause="before Linux 6.15 no overlay takes a lower on a mount that is in no namespace",
            remedy='Linux 6.15 or later; before, scope="function", and reset() in place of'
            " checkpoint()",
        )
    if root is None:
        root = make_new_root(
            plan,
            stage,
            directory=directory,
            directory_is_used=directory_is_used,
            additional_lowers=layers.lowers if layers else None,
            more=(*bound, *(one.on_layers() for one in own)),
            template=template,
            reused=reused,
        )
    return Sandbox(
        plan,
        stage,
        root.namespace,
        root.scratch,
        directory=directory,
        layers=layers,
        template=template,
        template_without_overlays=template_without_overlays,
        created=root.created,
        overlays=root.overlays,
        bound=list(bound),
        own=list(own),
    )


def enter(plan: Plan, directory: str | None = None) -> Sandbox:
    """Put this process into a sandbox as planned, for good.

    ``directory`` is as for :func:`make`. The process is in the user namespace and the PID namespace
    that the plan wants already. Raises :class:`SandboxError` if that fails.
    """
    # The mount namespace that a process was in before it made a user namespace belongs to the one
    # above. It has no rights there to go back to it, user_namespaces(7).
    stage = enter_mount_namespace(True) if plan.user_namespace else make_stage()
    sandbox = make(plan, stage, directory=directory)
    sandbox.enter(working_directory())
    return sandbox
