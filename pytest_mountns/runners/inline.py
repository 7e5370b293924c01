"""``process="inline"``: the pytest process itself goes into a sandbox for one test, and returns.

Everything is native, there is no relay: the test runs in the process, and on the stack, that it
would run on without the plugin. Only files are isolated. What is done at home, in between:

* reports are heard there, since reporters write files that are not the test's; pytest's own do not
  while tests run;
* fixtures wider than a function that the test asks for while it runs are set up there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, cast, final

import pytest

from .. import pytest_internals
from ..engine.changes.changes import Changes
from ..engine.linux import processes
from ..engine.linux.errors import SandboxError
from ..engine.plan.model import Plan
from ..engine.sandbox import disk_uppers
from ..engine.sandbox.stack import SandboxStack
from ..engine.sandbox.written import Written
from ..reports.changes import changes_key
from .prepare import Preparation

if TYPE_CHECKING:
    from ..session.session import Gate

# Set by pytest itself in each phase.
_OF_PYTEST = b"PYTEST_CURRENT_TEST"


@final
class InlineTest:
    """One item's way in and out of its sandbox, or of one for each attempt at it."""

    def __init__(self, gate: Gate, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        self._gate = gate
        self._item = item
        self._nextitem = nextitem
        self._original_setup = item.setup
        self._preparation = Preparation(gate, item)
        self._stack: SandboxStack | None = None
        self._directory: str | None = None
        self._children: frozenset[int] = frozenset()
        self._environment: dict[bytes, bytes] = {}
        self._umask = 0
        self._basetemp: object = None

    @property
    def stack(self) -> SandboxStack:
        """The sandbox it is in, and those to go back to."""
        assert self._stack is not None
        return self._stack

    @pytest_internals.unseen
    def setup(self) -> None:
        """In place of the item's setup."""
        __tracebackhide__ = True
        try:
            problem = self._enter(self._preparation.prepare())
        except BaseException:
            if self._stack is None:
                pytest_internals.forget_setup(self._item)
            raise
        if problem is not None:
            pytest_internals.forget_setup(self._item)
            self._preparation.refuse(problem)
        return self._original_setup()

    def _enter(self, plan: Plan) -> SandboxError | None:
        """Go in. Returns why not, if not."""
        gate = self._gate
        gate.plugin_states.before_enter(self._item)
        directory = None
        try:
            directory = gate.uppers.new() if plan.upper.medium == "disk" else None
            sandbox = gate.manager.make(
                plan, directory=directory, layers=self._preparation.layers()
            )
        except SandboxError as error:
            _remove(directory)
            return error
        self._children = frozenset(processes.children(os.getpid()))
        self._environment = dict(cast(Any, os.environ)._data)
        os.umask(umask := os.umask(0o077))
        self._umask, self._directory = umask, directory
        self._basetemp = pytest_internals.basetemp(self._item.config)
        # A handler of a signal may raise when this process is in and not yet back from there.
        self._stack, gate.inside = SandboxStack(sandbox, gate.manager.release), self
        pytest_internals.finalize_last(self._item, self.leave)
        try:
            gate.manager.enter(sandbox, self._preparation.working_directory())
        except SandboxError as error:
            self._let_go()
            return error
        gate.summary.isolated(self._item.nodeid)
        gate.plugin_states.after_enter(self._item)
        self._item.config.stash[changes_key].watch(self._item)
        return None

    def leave(self) -> None:
        """Return home: when all that ends with the item has ended, or never came to begin."""
        gate = self._gate
        if gate.inside is not self:
            return
        wider = pytest_internals.wider_teardown_is_due(self._item, self._nextitem)
        new = [pid for pid in processes.children(os.getpid()) if pid not in self._children]
        if new:
            # Its root is about to vanish.
            _forget_tracker(processes.end(new))
        gate.plugin_states.before_leave(self._item)
        problem: BaseException | None = None
        if gate.manager.is_inside:
            problem = self._look_at_changes()
            gate.manager.leave()
        gate.inside = None
        if gate.keeper is None or (wider and self.stack.sandbox.layers is not None):
            self._let_go()
        os.umask(self._umask)
        pytest_internals.set_basetemp(self._item.config, self._basetemp)
        _restore(self._environment)
        gate.plugin_states.after_leave(self._item)
        if pytest_internals.wider_teardown_runs_code(self._item, self._nextitem):
            gate.drop_caches()
        if problem is not None:
            # Of a hook, or of what was written while fixtures ended: an error of the teardown.
            raise problem

    def _look_at_changes(self) -> BaseException | None:
        """For whoever wants to know what the test has changed; what is wrong with that."""
        report = self._item.config.stash[changes_key]
        if self._gate.spec(self._item).writes is not None:
            strays = report.strays(self._item, self.read_changes)
            if strays:
                return pytest.fail.Exception(strays, pytrace=False)
        _, failed = report.ended(self._item, self.read_changes, died=False)
        return failed.excinfo.value if failed is not None and failed.excinfo else None

    def _let_go(self) -> None:
        self._gate.inside = None
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        directory, self._directory = self._directory, None
        _remove(directory)

    def reset(self) -> None:
        """A fresh root for what follows. Raises :class:`SandboxError`."""
        self._gate.plugin_states.before_reset()
        self.stack.reset()

    def restack(self, find: Callable[[], Plan]) -> None:
        """Go on with what ``find``, called among the host's mounts, plans.

        Raises :class:`SandboxError`.
        """
        self.stack.restack(find)

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """:meth:`Sandbox.bind`. Raises :class:`SandboxError`."""
        self.stack.sandbox.bind(source, target, read_only=read_only)

    @contextlib.contextmanager
    def read_changes(self) -> Iterator[Changes]:
        """For the pytest process: what the test has changed, looked at from home."""
        changes = self.stack.sandbox.changes()
        with self._gate.manager.on_host():
            yield changes

    def end(self) -> None:
        """Its last report is there: let go of what was left for that."""
        self._let_go()

    def remains(self) -> list[Written]:
        """For the pytest process, at home: what can be saved, the test's own last.

        Raises :class:`SandboxError` if that is gone.
        """
        if self._stack is None:
            raise SandboxError(
                "look at what the test has written", cause="it failed when wider fixtures had ended"
            )
        scopes = self._gate.scopes.sandboxes(self._item)
        return [Written.of_sandbox(one) for one in (*scopes, self.stack.sandbox)]

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Drop, afterwards, what was written meanwhile. Raises :class:`SandboxError`."""
        with self.stack.checkpoint():
            try:
                yield
            finally:
                self._gate.plugin_states.before_reset()


@final
class HostHooks:
    """What is done at home in the middle of a visit. Registered with the first one."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._reporters = pytest_internals.Reporters(gate.config)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    @pytest_internals.unseen
    def pytest_runtest_logreport(self) -> Generator[None, object, object]:
        # Pytest's own ones write to what is open, and keep the rest to themselves.
        if self._gate.inside is None or self._reporters.are_builtin():
            return (yield)
        with self._gate.manager.on_host():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    @pytest_internals.unseen
    def pytest_fixture_setup(
        self, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        if self._gate.inside is None or (wider := pytest_internals.wider_scope(request)) is None:
            return (yield)
        item, scope, node = wider
        with self._gate.manager.on_host(), self._gate.scopes.within(item)(scope, node):
            return (yield)


def _remove(directory: str | None) -> None:
    if directory is not None:
        disk_uppers.remove(directory)


def _forget_tracker(killed: set[int]) -> None:
    """multiprocessing's tracker is started once for a process, by whichever test needs it first.

    It would warn, in a later test, that it has died.
    """
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker: Any = getattr(module, "_resource_tracker", None)
    if getattr(tracker, "_pid", None) in killed:
        os.close(tracker._fd)
        tracker._fd = tracker._pid = None


def _restore(environment: dict[bytes, bytes]) -> None:
    # As it is kept: to decode it all takes longer than to enter a sandbox.
    now = cast("dict[bytes, bytes]", cast(Any, os.environ)._data)
    kept = now.get(_OF_PYTEST)
    if kept is not None:
        environment[_OF_PYTEST] = kept
    if now == environment:
        return
    for name in [name for name in now if name not in environment]:
        del os.environb[name]
    for name, value in environment.items():
        if now.get(name) != value:
            os.environb[name] = value
