"""What comes before a sandbox, with a fork or without: the plan, and the wider fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.linux.untouched import os
from ..engine.plan.model import Plan
from ..engine.plan.spec import SandboxSpec
from ..engine.sandbox.sandbox import Layers
from .choice import worker_processes
from .context import RunnerContext
from .process_state import worker_names

if TYPE_CHECKING:
    from ..engine.sandbox.guard import Guard

T = TypeVar("T")


@final
class Preparation:
    """Prepares the sandbox of one item, in the pytest process and on the host."""

    def __init__(self, context: RunnerContext, item: pytest.Item) -> None:
        self._context = context
        self._session = context.session
        self._item = item
        self._is_begun = False

    def _begin_attempt(self) -> None:
        if self._is_begun:
            # Another plugin runs the item again.
            self._context.plugin_states.before_another_attempt(self._item)
        self._is_begun = True

    @pytest_internals.unseen
    def prepare(self, *, of_module: bool = True) -> Plan:
        """Set up the wider fixtures of the item. Returns the plan of its sandbox.

        Without ``of_module`` those of class and module scope are left to a module process.

        Skips or fails the item if there can be no sandbox, and raises what a fixture raises.
        """
        __tracebackhide__ = True
        self._begin_attempt()
        # Planned before wider fixtures do work in vain, and again after them: they may have mounted
        # something.
        plan = self.plan()
        self._tell(plan)
        if self._session.selection.spec(self._item).tmp_path == "own":
            from . import own_tmp_path

            own_tmp_path.watch(self._item.config, self._session)
        # If a wider fixture of the item's sandbox chose it, no other test would know of it.
        pytest_internals.choose_basetemp(self._item)
        basetemp = pytest_internals.basetemp(self._item.config)
        is_outdated = basetemp is not None and self._session.sandboxes.planner.add_run_directory(
            str(basetemp)
        )
        is_outdated |= self._fill_wider_fixtures(of_module=of_module)
        if is_outdated:
            plan = self.plan()
            self._tell(plan)
        if names := worker_names():
            self._context.note_once("workers", worker_processes(names))
        if self._session.trace.enabled:
            self._session.trace("planned", self._item.nodeid, plan.describe())
        return plan

    @pytest_internals.unseen
    def prepare_guarded(self) -> Guard:
        """Set up the wider fixtures of the item. Returns its guard.

        Fails the item if there can be none, and raises what a fixture raises.
        """
        __tracebackhide__ = True
        self._begin_attempt()
        guards = self._session.guards
        self._or_refuse(guards.begin)
        self._fill_wider_fixtures()
        return self._or_refuse(lambda: guards.guard(self._item))

    @pytest_internals.unseen
    def _fill_wider_fixtures(self, *, of_module: bool = True) -> bool:
        """Set up the wider fixtures of the item, or look up their values.

        Returns whether code of a fixture has run, which may have mounted something.
        """
        __tracebackhide__ = True
        runs_code = pytest_internals.sets_up_wider_fixtures(self._item, of_module=of_module)
        if runs_code:
            self._session.sandboxes.before_host_changes()
        within = self._context.fixture_scopes.within(self._item)
        pytest_internals.fill_wider_fixtures(self._item, within, of_module=of_module)
        return runs_code

    def _or_refuse(self, make: Callable[[], T]) -> T:
        """What ``make`` returns; see :meth:`refuse` for what it raises."""
        __tracebackhide__ = True
        problem: pytest.UsageError | SandboxError
        try:
            return make()
        except (pytest.UsageError, SandboxError) as error:
            problem = error
        # Not in the handler: the report would show the error twice.
        return self.refuse(problem)

    def _why_not_guarded(self) -> str:
        guards = self._session.guards
        if guards.why_none:
            return f"\n  no guard is possible either: {guards.why_none}"
        why = guards.why_not(self._item) if guards.are_made else ""
        return f"\n  a guard is not enough: {why}" if why else ""

    def announce(self) -> Plan | None:
        """Tell observers of an item whose module process prepares it. Returns the plan.

        None if there can be none: the process finds that out, and says so.
        """
        try:
            plan = self._session.sandboxes.planner.plan(self.spec())
        except (pytest.UsageError, SandboxError):
            return None
        self._tell(plan)
        return plan

    def _tell(self, plan: Plan) -> None:
        if self._context.process is not None:
            # The pytest process has done so.
            return
        spec = self._session.selection.spec(self._item)
        self._session.observers.before(self._item, spec, plan)

    def spec(self) -> SandboxSpec:
        """The spec of the item with the volumes of the run.

        Raises :class:`pytest.UsageError` if its marks are not valid.
        """
        spec = self._session.selection.spec(self._item)
        return self._session.sandboxes.with_run_volumes(self._item, spec)

    def plan(self) -> Plan:
        """The plan of the item's sandbox. Skips or fails the item if there can be none."""
        __tracebackhide__ = True
        session = self._session
        if session.selection.everything is False:
            pytest_internals.skip_item("--no-mountns: this test runs in a sandbox or not at all")

        def make() -> Plan:
            spec = self.spec()
            plan = session.sandboxes.planner.plan(spec)
            self._context.fixture_scopes.check(spec, plan.features)
            return plan

        return self._or_refuse(make)

    def layers(self) -> Layers | None:
        """What the test begins on: what wider fixtures have written, if that is captured.

        Raises :class:`SandboxError` if it cannot be had.
        """
        if self._session.sandboxes.base_layers is not None:
            return self._session.sandboxes.base_layers(self.spec())
        return self._context.fixture_scopes.layers(self._item)

    def working_directory(self) -> str:
        """The test's working directory. It may exist only in the layer of a wider fixture."""
        return self._context.fixture_scopes.working_directory or os.getcwd()

    def goes_on_alike(self, nextitem: pytest.Item | None) -> bool:
        """Whether the next test has the same kind of sandbox, and no fixture runs before it."""
        selection = self._session.selection
        return (
            nextitem is not None
            and selection.valid_spec(nextitem) == selection.spec(self._item)
            and not pytest_internals.wider_teardown_runs_code(self._item, nextitem)
        )

    def refuse(self, error: SandboxError | pytest.UsageError) -> NoReturn:
        """Skip the item where the machine cannot isolate and that is allowed, else fail it.

        It never runs without a sandbox.
        """
        # This frame is not hidden: where all frames are, pytest says so below the message.
        text = str(error)
        if isinstance(error, Unavailable):
            text += self._why_not_guarded()
            if self._session.guards.skips:
                if self._context.process is not None:
                    self._context.process.skipped()
                else:
                    self._session.observers.skipped(self._item)
                pytest_internals.skip_item(text)
        pytest.fail(text, pytrace=False)
