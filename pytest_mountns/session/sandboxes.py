"""The sandboxes of one session: planned, made, kept for reuse, and let go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, final

import pytest

from ..config import options
from ..engine.linux import processes, threads
from ..engine.linux.errors import Unavailable
from ..engine.probe.features import ProbeResult
from ..engine.sandbox import disk_uppers
from ..engine.sandbox.manager import SandboxManager
from .early import early_findings, entered_key
from .planner import make_planner
from .progress import UnpackingProgress
from .run_volumes import RunVolumes
from .runner_pipes import RunnerPipes

if TYPE_CHECKING:
    from ..engine.layers.limits import Limits
    from ..engine.layers.session import Sources
    from ..engine.linux.threads import StuckThread
    from ..engine.plan.model import Plan
    from ..engine.plan.spec import SandboxSpec
    from ..engine.sandbox.sandbox import Layers


@final
class Sandboxes:
    """Plans sandboxes for the tests of a session, and has what they are made with."""

    def __init__(self, config: pytest.Config) -> None:
        limits = options.layer_limits(config)
        self._progress = UnpackingProgress(config)
        #: Pipes of the program that has started pytest.
        self.pipes = RunnerPipes()
        self._run_volumes = RunVolumes(config, self.pipes.paths)
        self._manager: SandboxManager | None = None
        #: Finds out what this machine can do, and plans sandboxes accordingly.
        self.planner = make_planner(config, self.drop_caches, lambda: self._sources(limits))
        #: Uppers on disk.
        self.uppers = disk_uppers.DiskUppers()
        #: If set, returns the layers below every test's upper, in place of those of its fixtures.
        self.base_layers: Callable[[SandboxSpec], Layers] | None = None
        #: Test processes that have sent their last message, or were killed, and are about to end.
        self.leaving: list[int] = []
        self._unended: list[int] = []
        #: Called with words about one that does not end.
        self.tell_unended: Callable[[str], None] = lambda why: None
        self._why_not: Unavailable | None = None
        if (findings := early_findings(config)) is not None:
            self.planner.findings = findings
        if (entered := config.stash.get(entered_key, None)) and entered.manager is not None:
            self._manager = entered.manager
            self.planner.entered_user_namespace()

    @property
    def manager(self) -> SandboxManager:
        """Makes sandboxes, and moves this process in and out of them."""
        if self._manager is None:
            self._manager = SandboxManager(self.planner.places)
        return self._manager

    def adopt_manager(self, manager: SandboxManager, findings: ProbeResult) -> None:
        """Use a manager whose process has entered its user namespace already.

        ``findings`` are those of before: in the user namespace the probe would find other ones.
        """
        self._manager = manager
        self.planner.findings = findings
        self.planner.entered_user_namespace()

    def plan_on_stage(self, item: pytest.Item, spec: SandboxSpec) -> Plan:
        """The plan of ``spec`` with the volumes of the run: see :meth:`.Planner.plan_on_stage`.

        Raises :class:`SandboxError` if there can be none.
        """
        return self.planner.plan_on_stage(self.with_run_volumes(item, spec))

    def with_run_volumes(self, item: pytest.Item, spec: SandboxSpec) -> SandboxSpec:
        """``spec`` with the volumes of the run: see :class:`.run_volumes.RunVolumes`."""
        return self._run_volumes.add(item, spec)

    def unpack(self, specs: Iterable[SandboxSpec]) -> None:
        """Unpack the roots and layers of these now, and not in the time of the first test."""
        try:
            for spec in dict.fromkeys(specs):
                self.planner.unpack(spec)
        finally:
            self._progress.end()

    def _sources(self, limits: Limits) -> Sources:
        from ..engine.layers.session import Sources

        return Sources(limits, self._progress)

    def move_to_user_namespace(self) -> None:
        """Move an ordinary user's process into a user namespace, for tests that run in it.

        Root needs none. Where it is refused, :attr:`why_not_inline` says why.
        """
        if not self.planner.findings.user_namespace or self.manager.in_user_namespace:
            return
        try:
            self.manager.move_to_user_namespace()
        except Unavailable as error:
            self._why_not = error
        else:
            self.planner.entered_user_namespace()

    @property
    def obstacle(self) -> str:
        """Why this process itself cannot enter a sandbox and return to the host; "" if it can.

        Its other threads have to be able to, too: see :attr:`stuck_threads`.
        """
        features = self.planner.findings.features
        if features is None:
            return "this machine cannot isolate tests"
        if not features.user_namespace or self.manager.in_user_namespace:
            return ""
        why = self._why_not
        return "this process could not enter a user namespace" + (
            f": {why.cause or why.kernel}" if why is not None else ""
        )

    @property
    def can_enter_and_return(self) -> bool:
        """Whether there is no :attr:`obstacle`."""
        return not self.obstacle

    @property
    def stuck_threads(self) -> list[StuckThread]:
        """The threads of this process that cannot move into a sandbox.

        Raises :class:`SandboxError` without ``/proc``.
        """
        return threads.stuck_threads()

    def lost_by_fork(self) -> tuple[list[StuckThread], list[str]]:
        """The threads that a forked process would miss, and the libraries that they may be of.

        Those of OpenBLAS are started anew by it; they have no name of their own, so they are taken
        to be its if no other such library is there. Raises :class:`SandboxError` without ``/proc``.
        """
        native = threads.native_threads()
        libraries = threads.libraries_with_threads() if native else []
        return ([] if libraries == [threads.OPENBLAS] else native), libraries

    @property
    def why_not_inline(self) -> Unavailable | None:
        """Why this process could not move into a user namespace, if it has tried."""
        return self._why_not

    def drop_caches(self) -> None:
        """Let go of what is kept for reuse: the host's mounts have changed, or may do so.

        See :meth:`.SandboxManager.drop_caches`.
        """
        if self._manager is not None:
            self._manager.drop_caches()

    def drop_ahead(self) -> None:
        """See :meth:`.SandboxManager.drop_ahead`."""
        if self._manager is not None:
            self._manager.drop_ahead()

    def begin_in_fork(self) -> None:
        """In a process that was forked to make sandboxes itself: share no state with its parent.

        Raises :class:`SandboxError` if it cannot go on in the user namespace of its parent.
        """
        # They are children of the parent.
        self.leaving, self._unended = [], []
        before, self._manager = self._manager, None
        if before is not None:
            before.close()
            if before.in_user_namespace:
                self.manager.move_to_user_namespace()
        self.planner.begin_in_fork()

    def reap(self, *, spare: int = 0) -> None:
        """Wait for the test processes that are about to end, but for ``spare`` of them.

        To unmount what was mounted in them, the kernel waits for a grace period. One that has not
        ended in time is told of, and not waited for again.
        """
        self._unended = [child for child in self._unended if not processes.reap_ended(child)]
        self.leaving = [child for child in self.leaving if not processes.reap_ended(child)]
        until = processes.deadline()
        while len(self.leaving) > spare:
            if processes.reap_soon(self.leaving[0], until) is None:
                self.tell_unended(processes.describe_unended(self.leaving[0]))
                self._unended.append(self.leaving[0])
            del self.leaving[0]

    def before_host_changes(self) -> None:
        """Called before code runs in this process that may mount, unmount, or wait for children.

        When this returns, no child of the plugin is alive, but for those that do not end, and it
        keeps no mount of the host busy.
        """
        self.reap()
        self.drop_caches()

    def close(self) -> None:
        """Let go of everything, at the end of the session."""
        self.pipes.close()
        self.planner.close()
        self.reap()
        if self._manager is not None:
            self._manager.close()
        self.uppers.close()
