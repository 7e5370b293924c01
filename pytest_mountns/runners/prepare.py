"""What comes before a sandbox, with a fork or without: the plan, and the wider fixtures."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NoReturn, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.plan.model import Plan
from ..engine.plan.spec import SandboxSpec
from ..engine.sandbox.sandbox import Layers

if TYPE_CHECKING:
    from ..session.session import Gate


@final
class Preparation:
    """One item's way to its sandbox, in the pytest process."""

    def __init__(self, gate: Gate, item: pytest.Item) -> None:
        self._gate = gate
        self._item = item

    @pytest_internals.unseen
    def prepare(self) -> Plan:
        """The plan of the item's sandbox; its wider fixtures are set up when this returns.

        Skips or fails the item if there can be no sandbox, and raises what a fixture raises.
        """
        __tracebackhide__ = True
        # Before wider fixtures do work for nothing, and again: they may have mounted something.
        self._tell(self.plan())
        # Where it is chosen by a wider fixture, its sandbox would keep it to itself.
        pytest_internals.choose_basetemp(self._item)
        basetemp = pytest_internals.basetemp(self._item.config)
        if basetemp is not None:
            self._gate.planner.add_run_directory(str(basetemp))
        if pytest_internals.sets_up_wider_fixtures(self._item):
            self._gate.before_host_changes()
        pytest_internals.fill_wider_fixtures(self._item, self._gate.scopes.within(self._item))
        plan = self.plan()
        self._tell(plan)
        return plan

    def _tell(self, plan: Plan) -> None:
        for told in self._gate.at_the_door:
            told(self._item, self._gate.spec(self._item), plan)

    def spec(self) -> SandboxSpec:
        """With the ways through. Raises :class:`pytest.UsageError`."""
        return self._gate.run_volumes.add(self._item, self._gate.spec(self._item))

    def plan(self) -> Plan:
        """Skips or fails the item if there can be none."""
        __tracebackhide__ = True
        gate = self._gate
        if gate.everything is False:
            pytest_internals.skip_item("--no-mountns: this test runs in a sandbox or not at all")
        problem: pytest.UsageError | SandboxError | None = None
        try:
            spec = self.spec()
            plan = gate.planner.plan(spec)
            gate.scopes.check(spec)
        except (pytest.UsageError, SandboxError) as error:
            problem = error
        if problem is not None:
            # Not in the handler: the report would say it twice.
            self.refuse(problem)
        return plan

    def layers(self) -> Layers | None:
        """What the test begins on: what wider fixtures have written, if that is captured.

        Raises :class:`SandboxError`.
        """
        if self._gate.base_layers is not None:
            return self._gate.base_layers(self.spec())
        return self._gate.scopes.layers(self._item)

    def working_directory(self) -> str:
        """Where the test begins: a wider fixture may have gone where only its layer leads."""
        return self._gate.scopes.working_directory or os.getcwd()

    def refuse(self, error: SandboxError | pytest.UsageError) -> NoReturn:
        """Skip where the machine cannot and that is allowed; fail otherwise. Never run bare."""
        # This frame stays visible: where all are hidden, pytest says so below the message.
        if isinstance(error, Unavailable) and self._gate.policy == "skip":
            self._gate.summary.skipped(self._item.nodeid)
            pytest_internals.skip_item(str(error))
        pytest.fail(str(error), pytrace=False)
