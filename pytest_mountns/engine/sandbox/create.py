"""Makes sandboxes, and enters them for good.

:func:`make` builds a root in a mount namespace of its own and returns to where it was; nobody is in
there yet. :meth:`.sandbox.Sandbox.join` moves the calling thread in. Between the two, or in another
process by fork, is where the cost of the first can be hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..linux.errors import Unavailable
from ..linux.namespaces import enter_mount_namespace, make_stage, working_directory
from ..mount.root import ReusedUppers, make_new_root
from ..mount.template import Template
from ..plan.model import Bind, Plan
from .sandbox import Layers, Sandbox


def make(
    plan: Plan,
    stage: int,
    *,
    directory: str | None = None,
    layers: Layers | None = None,
    bound: Sequence[Bind] = (),
    template: Template | None = None,
    base: Template | None = None,
    directory_is_used: bool = False,
    reused: ReusedUppers | None = None,
) -> Sandbox:
    """A sandbox as planned, on a copy of the stage's mounts. This thread stays where it is.

    ``directory``: an empty directory of the host for ``upper="disk"``; ``directory_is_used``: it
    has been used. ``bound``: further binds. ``template``: of this plan, and ``base`` the one that what is
    made from the sandbox is made from. ``reused``: uppers of another sandbox, for this one to go on
    with. The caller is in the right user and PID namespace already. Raises :class:`SandboxError`.
    """
    if layers and not plan.features.layered_uppers:
        raise Unavailable(
            "lay one upper over another",
            cause="before Linux 6.15 no overlay takes a lower on a mount that is in no namespace",
            remedy='scope="function", and reset() in place of checkpoint()',
        )
    root = make_new_root(
        plan,
        stage,
        directory=directory,
        directory_is_used=directory_is_used,
        additional_lowers=layers.uppers if layers else None,
        bound=bound,
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
        base=base,
        created=root.created,
        overlays=root.overlays,
        bound=list(bound),
    )


def enter(plan: Plan, directory: str | None = None) -> Sandbox:
    """Put this process into a sandbox as planned, for good.

    For a process that is not to return, in the right user and PID namespace already. Raises
    :class:`SandboxError`.
    """
    # Of a user namespace's process, what it was in belongs to the one above: no way back to that.
    stage = enter_mount_namespace(True) if plan.user_namespace else make_stage()
    sandbox = make(plan, stage, directory=directory)
    sandbox.join(working_directory())
    return sandbox
