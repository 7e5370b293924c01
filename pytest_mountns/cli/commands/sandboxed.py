"""What those commands share that run something in a sandbox."""

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
class SandboxedCommands:
    """Runs commands in sandboxes."""

    def __init__(self) -> None:
        self.planner = Planner([os.getcwd()])

    def _lay(self, spec: SandboxSpec, saved: Bundle, stack: ExitStack) -> tuple[int, Layers]:
        """A stage, and the layers of ``saved`` for sandboxes that are made on it.

        Raises :class:`SandboxError` if they cannot be unpacked.
        """
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
        """Run a command, on the layers of ``saved`` if given.

        What it has written can be read within the context. Raises :class:`SandboxError` if there
        can be no sandbox.
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
    """Print a line on standard error: standard output is that of the command."""
    print(text, file=sys.stderr, flush=True)
