"""The way into a sandbox and out: the one place between wider and function-scoped fixtures.

The gate is the item's ``setup``. In the parent it instantiates the wider fixtures, forks, relays
what the child reports, and leaves the item's protocol by an exception that nothing catches. In
the child it enters the sandbox and lets pytest go on up the same stack: function-scoped fixtures,
call and teardown run there as if nothing had happened, through every plugin's hooks.

Things that do not work with fork, and so are done otherwise:

* Tearing down a wider scope in the child. It ends at the item; the parent tears the rest down
  and adds what that took and printed to the child's teardown report.
* Running the parent's ``pytest_runtest_makereport`` hooks on a report that is finished: plugins
  re-interpret it. Reports arrive whole and go to ``pytest_runtest_logreport``.
* Timers and threads: fork(2) leaves them behind. See :mod:`.timers` and :mod:`.after_fork`.
* What plugins note in memory for the end of the session: see :mod:`.plugin_state`.
"""

from __future__ import annotations

import contextlib
import gc
import mmap
import os
import sys
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..config import options as settings
from ..engine.layers.limits import Limits
from ..engine.linux import processes
from ..engine.linux.errors import SandboxError, Unavailable
from ..engine.linux.fork_pages import ForkPages
from ..engine.plan.spec import SandboxSpec
from ..engine.planning.planner import Planner
from ..engine.probe.features import ProbeResult
from ..engine.sandbox import disk_uppers
from ..engine.sandbox.manager import SandboxManager
from ..forking.timers import TimeoutSettings, Timers
from ..plugin_state import PluginStates
from ..reports import terminal
from ..reports.changes import changes_key
from ..reports.summary import summary_key
from ..reports.terminal import Unpacking
from ..runners.child import TestProcess
from ..runners.forked import PHASES, ForkedTest
from ..runners.inline import HostHooks, InlineTest
from .fixture_scopes import FixtureScopes
from .run_volumes import RunVolumes
from .selection import Finisher, is_wanted

if TYPE_CHECKING:
    from ..engine.layers.session import Sources
    from ..engine.plan.model import Plan
    from ..engine.sandbox.sandbox import Layers
    from ..repro.keeper import Keeper

spec_key: Final = pytest.StashKey[SandboxSpec]()


@final
class Gate:
    """What the tests of a session share: options, plans, and the test that is on its way."""

    def __init__(self, config: pytest.Config, hooks: object, finisher: Finisher) -> None:
        self.config = config
        self.everything = settings.sandbox_everything(config)
        self.policy = settings.unavailable_policy(config)
        self.keys = settings.session_keys(config)
        limits = settings.layer_limits(config)
        self._unpacking = Unpacking(config)
        self.planner = Planner(
            [str(config.rootpath), sys.prefix],
            self.drop_caches,
            lambda: self._sources(limits),
        )
        self.uppers = disk_uppers.DiskUppers()
        # A byte that both processes see: how far a test got that can no longer say so.
        self.phase = mmap.mmap(-1, 1)
        self._hot_pages: ForkPages | None = None
        #: This process, if it is a test process.
        self.process: TestProcess | None = None
        #: The test that is in a sandbox in this process, whichever it is.
        self.inside: TestProcess | InlineTest | None = None
        self.scopes = FixtureScopes(self)
        self._manager: SandboxManager | None = None
        #: Why an ordinary user's pytest process cannot go in and out itself.
        self.why_not_inline: Unavailable | None = None
        self.plugin_states = PluginStates(config)
        self.summary = config.stash[summary_key]
        self.run_volumes = RunVolumes(config)
        #: Where a Ctrl-C has met a test, to be shown at the end.
        self.interrupt: object = None
        self._timers: Timers | None = None
        #: The plugin that tears down in place of an item.
        self.finisher = finisher
        #: The plugin whose hooks forward what is reported in the test process.
        self.hooks = hooks
        self._settled = False
        #: Test processes that have said all they had to say.
        self.leaving: list[int] = []
        #: The test that was the last to go into a sandbox in this process.
        self._last_inline: InlineTest | None = None
        #: Layers that tests of a spec begin on, if these are not those of their fixtures.
        self.base_layers: Callable[[SandboxSpec], Layers] | None = None
        #: Saves what tests have written, if that is asked for.
        self.keeper: Keeper | None = None
        #: Called for each test before its wider fixtures are set up, and again before it enters
        #: its sandbox.
        self.at_the_door: list[Callable[[pytest.Item, SandboxSpec, Plan], None]] = []

    @property
    def manager(self) -> SandboxManager:
        """Makes sandboxes, and takes this process into them."""
        if self._manager is None:
            self._manager = SandboxManager(self.planner.places)
        return self._manager

    def adopt_manager(self, manager: SandboxManager, findings: ProbeResult) -> None:
        """Take over one that has settled already, and what was found out before it did so."""
        self._manager = manager
        self.planner.findings = findings
        self.planner.entered_user_namespace()

    @property
    def fork_pages(self) -> ForkPages:
        """What of this process's memory is copied for test processes in advance."""
        if self._hot_pages is None:
            self._hot_pages = ForkPages(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
        return self._hot_pages

    def drop_caches(self) -> None:
        """The host's mounts have changed or may do so, and nobody is in a sandbox."""
        if self._manager is not None:
            self._manager.drop_caches()

    def reap(self, *, spare: int = 0) -> None:
        """Wait for the test processes that are on their way out, but for ``spare`` of them.

        The kernel takes its time: to unmount what was mounted in there it waits for others.
        """
        self.leaving = [child for child in self.leaving if not processes.reap_ended(child)]
        while len(self.leaving) > spare:
            processes.reap(self.leaving.pop(0))

    def before_host_changes(self) -> None:
        """Before something runs in this process that may mount, unmount, or wait for children."""
        self.reap()
        self.drop_caches()

    @property
    def can_enter_and_return(self) -> bool:
        """Whether this process can enter a sandbox and return."""
        features = self.planner.findings.features
        if features is None:
            return False
        return not features.user_namespace or self.manager.in_user_namespace

    def begin(self, items: Sequence[pytest.Item]) -> None:
        """After collection: an ordinary user's process moves, if some test asks it to go in."""
        if self.everything is False:
            return
        self._unpack(items)
        if not any(self._visits(item) for item in items):
            return
        if not self.planner.findings.user_namespace or self.manager.in_user_namespace:
            return
        try:
            self.manager.move_to_user_namespace()
        except Unavailable as error:
            self.why_not_inline = error
        else:
            self.planner.entered_user_namespace()

    def _sources(self, limits: Limits) -> Sources:
        from ..engine.layers.session import Sources

        return Sources(limits, self._unpacking)

    def _unpack(self, items: Sequence[pytest.Item]) -> None:
        """What the tests stand on: not in the time of the first one that asks for it."""
        specs = []
        for item in items:
            if self.wants(item):
                # Said by the test itself.
                with contextlib.suppress(pytest.UsageError):
                    specs.append(self.spec(item))
        try:
            for spec in dict.fromkeys(specs):
                self.planner.unpack(spec)
        finally:
            self._unpacking.end()

    def _visits(self, item: pytest.Item) -> bool:
        if not self.wants(item):
            return False
        try:
            spec = self.spec(item)
        except pytest.UsageError:
            # Said by the test itself.
            return False
        return spec.process == "inline" or spec.scope != "function" or self.base_layers is not None

    def _is_inline(self, item: pytest.Item) -> bool:
        try:
            spec = self.spec(item)
            return spec.process == "inline" and not spec.needs_process and self.can_enter_and_return
        except (pytest.UsageError, SandboxError):
            return False

    def wants(self, item: pytest.Item) -> bool:
        """Whether ``item`` is to run in a sandbox, if there are to be any."""
        return is_wanted(item, self.everything)

    def spec(self, item: pytest.Item) -> SandboxSpec:
        """The spec of ``item``. Raises :class:`pytest.UsageError`."""
        spec = item.stash.get(spec_key, None)
        if spec is None:
            spec = item.stash[spec_key] = settings.item_spec(item, self.keys)
        return spec

    def protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Around ``pytest_runtest_protocol`` of an isolated item."""
        if self._is_inline(item):
            return (yield from self._protocol_inline(item, nextitem))
        timers = self._timers = Timers(item)
        passage = ForkedTest(self, item, nextitem, timers)
        item.setup = passage.setup  # type: ignore[method-assign]
        result: object = True
        try:
            result = yield
        except pytest_internals.Delegated:
            pass
        except BaseException as error:
            if self.process is not None:
                self.process.leave(error)
            if passage.delegated:
                pytest_internals.drop(item)
            raise
        finally:
            item.__dict__.pop("setup", None)
            self._timers = None
        if self.process is not None:
            self.process.leave(None)
        # Not in the handler above: an error in here would be shown as a consequence of that one.
        if passage.delegated:
            pytest_internals.drop(item)
            passage.ending.finish_in_protocol()
        return result

    def _protocol_inline(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        if self._last_inline is None:
            self.config.pluginmanager.register(HostHooks(self), "mountns-home")
        test = self._last_inline = InlineTest(self, item, nextitem)
        item.setup = test.setup  # type: ignore[method-assign]
        try:
            return (yield)
        except BaseException:
            # What would end with the session ends here, in the sandbox it belongs to.
            with contextlib.suppress(BaseException):
                pytest_internals.tear_down_function_scope(item)
            raise
        finally:
            test.leave()
            test.end()
            item.__dict__.pop("setup", None)

    def _complete_inline(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """Add to a report of this process what the test has changed, if it is to say so."""
        inside = self.inside
        if isinstance(inside, InlineTest):
            self.config.stash[changes_key].complete(item, report, inside.read_changes)
            if self.keeper is not None:
                with self.manager.on_host():
                    self.keeper.capture(item, report, inside.remains)
        elif self.process is None and self._last_inline is not None and report.when == "teardown":
            self.config.stash[changes_key].carry(item, report)
            if self.keeper is not None:
                self.keeper.capture(item, report, self._last_inline.remains)
            self._last_inline.end()

    def make_report(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Around ``pytest_runtest_makereport`` of any item."""
        if call.excinfo is not None:
            pytest_internals.drop_unseen(call.excinfo.value)
        report = yield
        if call.excinfo is not None and self.inside is not None:
            terminal.explain_failure(report, call.excinfo.value, self.inside.stack.sandbox)
        self._complete_inline(item, report)
        return report

    def show_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Of a Ctrl-C that has met a test process: where it did."""
        if self.interrupt is not None:
            pytest_internals.show_interrupt(excinfo, self.interrupt)

    def timeout_is_set(self, settings: TimeoutSettings | None) -> None:
        """pytest-timeout has set a timer for the running item, or cancelled it (None)."""
        if self._timers is not None:
            self._timers.timeout_is_set(settings)

    def enter_phase(self, phase: pytest_internals.Phase) -> None:
        """Note, in the test process, how far it got."""
        # A copy that the test has forked may come this far, too.
        if self.process is not None and not self.process.sender.is_copy:
            self.phase[0] = PHASES.index(phase)

    def settle(self) -> None:
        """Once, before the first fork: collect, so that children have no cause to.

        Not ``gc.freeze``, which keeps their collections off the shared pages: what is frozen is
        gone from ``gc.get_objects`` and ``gc.get_referrers``, and tests look there for leaks.
        """
        if not self._settled:
            self._settled = True
            gc.collect()

    def close(self) -> None:
        """At the end of the session."""
        if self.keeper is not None:
            self.keeper.close()
        self.run_volumes.close()
        self.planner.close()
        self.reap()
        if self._manager is not None:
            self._manager.close()
        self.uppers.close()
        if self._hot_pages is not None:
            self._hot_pages.close()
        self.phase.close()
