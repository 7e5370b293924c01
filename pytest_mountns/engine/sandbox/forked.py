"""How a forked process enters its sandbox, and becomes the user that its plan names."""

from __future__ import annotations

from typing import NamedTuple, final

from ..linux.errors import SandboxError
from ..linux.namespaces import (
    drop_user_capabilities,
    enter_mount_namespace,
    enter_user_namespace,
    make_stage,
    take_user_capabilities,
)
from ..linux.pid_namespace import die_with_parent, enter_pid_namespace
from ..plan.model import Plan
from . import disk_uppers
from .create import make
from .credentials import become_user
from .sandbox import Layers, Sandbox
from .uts_and_network import set_up_uts_and_network


@final
class ForkedEntry(NamedTuple):
    """What a forked process needs to enter its sandbox.

    The parent fills it in before the fork. It has either made the sandbox itself, or leaves that to
    the child.
    """

    #: The plan of the sandbox.
    plan: Plan
    #: The working directory in the sandbox.
    cwd: str
    #: An empty directory of the host in which the uppers are made, for uppers on disk.
    directory: str | None = None
    #: A descriptor of a mount namespace with the host's mounts; -1 for the child to make one.
    stage: int = -1
    #: What lies below the uppers, besides the lowers of the plan.
    layers: Layers | None = None
    #: The sandbox, if the parent has made it.
    sandbox: Sandbox | None = None
    #: Whether the child makes a user namespace first. Otherwise, if the plan wants one, the parent
    #: is in one already.
    makes_user_namespace: bool = False

    def enter(self, parent: int, status: int) -> Sandbox:
        """Enter the sandbox, in the child and with all rights still there.

        With a PID namespace this returns in a new process, which is not the first one of the
        namespace: see :func:`.pid_namespace.enter_pid_namespace`, also for ``status``. ``parent``
        is the process id of the parent; when it ends, so does the child. Raises
        :class:`SandboxError` if the sandbox cannot be made or entered.
        """
        die_with_parent(parent)
        if self.plan.user_namespace:
            if self.makes_user_namespace:
                enter_user_namespace(as_root=self.plan.fake_root, maps=self.plan.id_maps)
            else:
                take_user_capabilities()
            # A change of credentials may have cleared it, PR_SET_PDEATHSIG(2const).
            die_with_parent(parent)
        set_up_uts_and_network(self.plan)
        if not self.plan.pid_namespace:
            return self._make_and_enter()
        result: list[Sandbox | SandboxError] = []

        def prepare() -> None:
            try:
                result.append(self._make_and_enter())
            except SandboxError as error:
                result.append(error)

        enter_pid_namespace(prepare, status, self.plan.user_namespace)
        entered = result[0]
        if isinstance(entered, SandboxError):
            raise entered
        return entered

    def _make_and_enter(self) -> Sandbox:
        sandbox = self.sandbox
        if sandbox is None:
            stage = self.stage
            if stage < 0:
                stage = enter_mount_namespace(True) if self.makes_user_namespace else make_stage()
            sandbox = make(self.plan, stage, directory=self.directory, layers=self.layers)
        sandbox.enter(self.cwd)
        return sandbox

    def drop_privileges(self, parent: int) -> None:
        """Become the user that the plan names, and drop the capabilities that a test must not have.

        ``parent`` is as for :meth:`enter`. Raises :class:`Unavailable` if the kernel refuses the
        user.
        """
        if self.plan.user is not None:
            become_user(self.plan.user)
            if not self.plan.pid_namespace:
                # The change of credentials has cleared it.
                die_with_parent(parent)
        elif self.plan.user_namespace and not self.plan.fake_root:
            drop_user_capabilities()

    def close(self) -> None:
        """Close and remove what the parent has, when the child is done or was never forked."""
        if self.sandbox is not None:
            self.sandbox.close()
        if self.directory is not None:
            disk_uppers.remove(self.directory)
