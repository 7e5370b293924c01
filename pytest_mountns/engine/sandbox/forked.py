"""How a forked process comes into a sandbox, and becomes whom its plan says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

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
from .credentials import become, leave_outer_namespaces
from .sandbox import Layers, Sandbox


@final
@dataclass(frozen=True, slots=True)
class ForkedEntry:
    """The way of a process that was forked for it: to a sandbox that is made, or what makes it.

    ``cwd``: the working directory in there. ``directory``: where an upper on disk lies.
    ``enter_user_namespace``: first, and then a stage of its own; of its own as well if ``stage``
    is -1.
    """

    plan: Plan
    cwd: str
    directory: str | None = None
    stage: int = -1
    layers: Layers | None = None
    sandbox: Sandbox | None = None
    enter_user_namespace: bool = False

    def enter(self, parent: int, status: int) -> Sandbox:
        """Enter, with all rights still there; with a PID namespace this returns in a new process.

        ``parent``: of this process; it ends with that. ``status``: see
        :func:`.init.enter_pid_namespace`. Raises :class:`SandboxError`.
        """
        die_with_parent(parent)
        if self.plan.user_namespace:
            if self.enter_user_namespace:
                enter_user_namespace(as_root=self.plan.fake_root)
            else:
                take_user_capabilities()
            # The new credentials may have cleared it.
            die_with_parent(parent)
        leave_outer_namespaces(self.plan)
        if not self.plan.pid_namespace:
            return self._make_and_join()
        result: list[Sandbox | SandboxError] = []

        def prepare() -> None:
            try:
                result.append(self._make_and_join())
            except SandboxError as error:
                result.append(error)

        enter_pid_namespace(prepare, status, self.plan.user_namespace)
        entered = result[0]
        if isinstance(entered, SandboxError):
            raise entered
        return entered

    def _make_and_join(self) -> Sandbox:
        sandbox = self.sandbox
        if sandbox is None:
            stage = self.stage
            if stage < 0:
                stage = enter_mount_namespace(True) if self.enter_user_namespace else make_stage()
            sandbox = make(self.plan, stage, directory=self.directory, layers=self.layers)
        sandbox.join(self.cwd)
        return sandbox

    def give_up_rights(self, parent: int) -> None:
        """Become whom the plan says, with what rights that one has. Raises :class:`Unavailable`."""
        if self.plan.user is not None:
            become(self.plan.user)
            if not self.plan.pid_namespace:
                # The new credentials have cleared it.
                die_with_parent(parent)
        elif self.plan.user_namespace and not self.plan.fake_root:
            drop_user_capabilities()

    def close(self) -> None:
        """In the parent, when the process is done, or there is none."""
        if self.sandbox is not None:
            self.sandbox.close()
        if self.directory is not None:
            disk_uppers.remove(self.directory)
