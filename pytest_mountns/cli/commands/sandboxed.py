"""What commands have in common that run something in a sandbox."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import final

from ...engine.plan.spec import SandboxSpec
from ...engine.planning.planner import Planner
from ...engine.sandbox.command import Ended, run_command
from ...engine.sandbox.disk_uppers import DiskUppers
from ...engine.sandbox.manager import SandboxManager
from ...engine.sandbox.sandbox import Layers
from ...engine.sandbox.saved import base_layers_spec, lay
from ...repro.bundle import Bundle


@final
class Stage:
    """This process, where sandboxes can be made. Raises :class:`SandboxError`."""

    def __init__(self) -> None:
        self.planner = Planner([os.getcwd()])

    def _lay(self, spec: SandboxSpec, saved: Bundle, stack: ExitStack) -> tuple[int, Layers]:
        """A stage, and what was saved as layers of sandboxes that are made on that."""
        manager = SandboxManager(self.planner.places)
        if self.planner.findings.user_namespace:
            manager.move_to_user_namespace()
            self.planner.entered_user_namespace()
        base_layers = self.planner.plan(base_layers_spec(spec))
        return manager.stage, lay(manager, base_layers, saved.sources(stack))

    @contextmanager
    def run(
        self,
        command: Sequence[str],
        spec: SandboxSpec,
        *,
        cwd: str,
        environment: Mapping[str, str],
        saved: Bundle | None = None,
    ) -> Iterator[Ended]:
        """Run a command, on the layers of ``saved``. What it has written is there in the context.

        Raises :class:`SandboxError`.
        """
        plan = self.planner.plan(spec)
        with ExitStack() as stack:
            stage, layers = -1, None
            if saved is not None:
                stage, layers = self._lay(spec, saved, stack)
                plan = self.planner.plan(spec)
            uppers = DiskUppers()
            stack.callback(uppers.close)
            ended = run_command(
                command,
                plan,
                cwd=cwd,
                environment=environment,
                stage=stage,
                directory=uppers.new() if plan.upper.medium == "disk" else None,
                layers=layers,
            )
            stack.callback(os.close, ended.remains.scratch)
            yield ended


def say(text: str) -> None:
    """A line on standard error, which belongs to this program and not to a command's output."""
    print(text, file=sys.stderr, flush=True)
