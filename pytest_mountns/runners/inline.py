"""A process that goes on after the test enters a sandbox for it, and returns.

With ``process="inline"`` that is the pytest process itself. Nothing is forked and nothing is sent:
the test runs in the process, and on the stack, that it would run on without the plugin. Only files
are isolated. With ``process="module"`` it is the process of the test's module. What is done on the
host in between:

* Reports are heard there, since reporters write files that are not the test's. pytest's own
  reporters write nothing while tests run, so they hear reports in the sandbox.
* Fixtures wider than a function that the test asks for while it runs are set up there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast, final

import pytest

from .. import pytest_internals
from ..engine.linux import processes
from ..engine.linux.errors import SandboxError
from ..engine.linux.namespaces import real_stderr
from ..engine.linux.threads import move_others_to_directory
from ..engine.linux.untouched import os
from ..engine.plan.model import Plan
from ..engine.sandbox import disk_uppers
from ..engine.sandbox.sandbox import Sandbox
from ..engine.sandbox.stack import SandboxStack
from ..session.observers import Observers, WrittenByTest
from .context import RunnerContext
from .in_sandbox import TestInSandbox
from .prepare import Preparation
from .process_state import ProcessState
from .shared_directory import SharedDirectory

if TYPE_CHECKING:
    from ..engine.changes.changes import Changes
    from ..engine.sandbox.written import Written

#: Set by pytest itself in each phase.
_OF_PYTEST = b"PYTEST_CURRENT_TEST"


class Listener(Protocol):
    """Hears of an inline test what the pytest process has to know."""

    def enter_phase(self, phase: pytest_internals.Phase) -> None:
        """The test begins this phase."""
        ...

    def entered(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """This process is in the sandbox: an attempt at the test begins.

        Raises :class:`SandboxError` if the pytest process cannot be told.
        """
        ...

    def replaced(self, sandbox: Sandbox, plan: Plan | None = None) -> None:
        """The test goes on in another root, maybe of another plan: see :meth:`entered`."""
        ...

    def mounted(self, sandbox: Sandbox) -> None:
        """A volume was mounted in the sandbox: see :meth:`entered`."""
        ...

    def leaving(self) -> None:
        """This process is about to return to the host."""
        ...

    def left_running(self, item: pytest.Item, children: Sequence[int]) -> str:
        """The test has left these children. Returns why it fails for that; "" if it does not."""
        ...

    def objection(self, item: pytest.Item, written: WrittenByTest) -> str:
        """Why the test fails for what it has written so far; "" if it does not."""
        ...

    def ended(self, item: pytest.Item, written: WrittenByTest) -> BaseException | None:
        """The test and its fixtures have ended. Returns what fails its teardown, if so."""
        ...

    def left(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """This process is on the host again."""
        ...

    def want_layers(self) -> bool:
        """Whether what was written is read until :meth:`InlineTest.end` is called."""
        ...


@final
class HostListener:
    """Tells the observers of this process: it is the pytest process."""

    def __init__(self, observers: Observers) -> None:
        self._observers = observers

    def enter_phase(self, phase: pytest_internals.Phase) -> None:
        """Nothing to note: if this process dies, there is nobody to report it."""

    def entered(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """See :meth:`.Observer.isolated`."""
        self._observers.isolated(item, inline=True)

    def replaced(self, sandbox: Sandbox, plan: Plan | None = None) -> None:
        """Nobody has to know."""

    def mounted(self, sandbox: Sandbox) -> None:
        """Nobody has to know."""

    def leaving(self) -> None:
        """Nobody has to know."""

    def left_running(self, item: pytest.Item, children: Sequence[int]) -> str:
        """See :meth:`.Observer.left_running`."""
        return self._observers.left_running(item, children)

    def objection(self, item: pytest.Item, written: WrittenByTest) -> str:
        """See :meth:`.Observer.objection`."""
        return self._observers.objection(item, written)

    def ended(self, item: pytest.Item, written: WrittenByTest) -> BaseException | None:
        """See :meth:`.Observer.ended`."""
        failed = self._observers.ended(item, written, died=False)
        return failed.excinfo.value if failed is not None and failed.excinfo else None

    def left(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """See :meth:`.Observer.left_behind`."""
        self._observers.left_behind(item, sandbox.scratch, sandbox.describe_uppers())

    def want_layers(self) -> bool:
        """See :meth:`.Observer.wants_layers`."""
        return self._observers.want_layers()


@final
class InlineTest(TestInSandbox):
    """Takes this process into the sandbox of one item and back, for each attempt at it.

    Implements :class:`.current.RunningTest`.
    """

    #: See :attr:`.current.RunningTest.forked`.
    forked = False
    #: See :attr:`.current.RunningTest.guard`. This process could not take it off again.
    guard = None

    def __init__(
        self,
        context: RunnerContext,
        item: pytest.Item,
        nextitem: pytest.Item | None,
        listener: Listener,
        *,
        shares_overlays: bool = True,
    ) -> None:
        self.item = item
        self._listener = listener
        #: Whether its sandbox may have overlays in common with others: see
        #: :meth:`.SandboxManager.make`.
        self._shares_overlays = shares_overlays
        #: What the test has written, for observers.
        self.written = _WrittenInline(self, context)
        self._context = context
        self._session = context.session
        self._nextitem = nextitem
        self._original_setup = item.setup
        self._preparation = Preparation(context, item)
        self._directory: str | None = None
        self._children: frozenset[int] = frozenset()
        self._environment: dict[bytes, bytes] = {}
        self._umask = 0
        self._is_outlived = False
        self._user = os.geteuid(), os.getegid()
        self._process_state: ProcessState | None = None
        self._basetemp: object = None

    @property
    def is_gone(self) -> bool:
        """Whether its sandbox is gone, or was never made."""
        return self._stack is None

    @property
    def has_left(self) -> bool:
        """Whether this process is on the host again."""
        return self._session.current.test is not self

    @pytest_internals.unseen
    def setup(self) -> None:
        """In place of the item's setup."""
        __tracebackhide__ = True
        try:
            problem = self._enter(self._preparation.prepare())
        except BaseException:
            if self._stack is None:
                pytest_internals.forget_setup(self.item)
            raise
        if problem is not None:
            pytest_internals.forget_setup(self.item)
            self._preparation.refuse(problem)
        return self._original_setup()

    def _enter(self, plan: Plan) -> SandboxError | None:
        """Enter the sandbox. Returns why it cannot be entered, if so."""
        session, sandboxes = self._session, self._session.sandboxes
        self._context.plugin_states.before_enter(self.item)
        directory = None
        try:
            directory = sandboxes.uppers.new() if plan.upper.medium == "disk" else None
            layers = self._preparation.layers()
            sandbox = sandboxes.manager.make(
                plan, directory=directory, layers=layers, shared=self._shares_overlays
            )
        except SandboxError as error:
            _remove(directory)
            return error
        if self._shares_overlays and self._preparation.goes_on_alike(self._nextitem):
            sandboxes.manager.make_ahead(sandbox, beside=True)
        if session.trace.enabled:
            session.trace("mounted", *(one.mountpoint for one in sandbox.overlays))
        self._children = frozenset(processes.own_children())
        self._process_state = ProcessState()
        self._environment = dict(_environment())
        self._umask, self._directory = _umask(), directory
        self._user = os.geteuid(), os.getegid()
        self._basetemp = pytest_internals.basetemp(self.item.config)
        # Noted before: a handler of a signal may raise when this process is in the sandbox and has
        # not yet come back from there.
        stack = self._stack = SandboxStack(sandbox, sandboxes.manager.release)
        session.current.test = self
        pytest_internals.finalize_last(self.item, self._finalize)
        try:
            cwd = self._preparation.working_directory()
            sandboxes.manager.enter(sandbox, cwd, lambda: stack.sandbox)
        except SandboxError as error:
            self._let_go()
            self._process_state.after_leave()
            return error
        session.trace("entered", self.item.nodeid)
        self._listener.entered(self.item, sandbox)
        self._context.plugin_states.after_enter(self.item)
        session.observers.entered(self.item, self)
        return None

    @contextlib.contextmanager
    def outlived(self) -> Iterator[None]:
        """What is done within the context, on the host, is kept when the test ends.

        It is not the test's: a wider fixture is set up there.
        """
        state = self._process_state
        if state is None or self._is_outlived:
            # A wider fixture has asked for another one.
            yield
            return
        config = self.item.config
        children = frozenset(processes.own_children())
        environment, umask = dict(_environment()), _umask()
        basetemp = pytest_internals.basetemp(config)
        self._is_outlived = True
        try:
            with state.outlived():
                yield
        finally:
            self._is_outlived = False
            # Where the working directory was changed, other threads have followed, and are there.
            with contextlib.suppress(SandboxError):
                move_others_to_directory()
            self._children |= frozenset(processes.own_children()) - children
            _follow(self._environment, environment, _environment())
            if (now := _umask()) != umask:
                self._umask = now
            if (chosen := pytest_internals.basetemp(config)) is not basetemp:
                self._basetemp = chosen

    def _finalize(self) -> None:
        """Leave, and fail the teardown for what an observer or the pytest process says."""
        problem = self.leave()
        if problem is not None:
            raise problem

    def leave(self) -> BaseException | None:
        """Return to the host, when all that ends with the item has ended, or has never begun.

        Returns what fails the teardown for what the test has left or written, if so.
        """
        session = self._session
        if session.current.test is not self:
            return None
        self._listener.leaving()
        self._restore_user()
        wider = pytest_internals.wider_teardown_is_due(self.item, self._nextitem)
        new = [pid for pid in processes.own_children() if pid not in self._children]
        state, self._process_state = self._process_state, None
        if state is not None:
            state.before_end(new)
        killed: set[int] = set()
        objection = self._listener.left_running(self.item, new)
        if new:
            # Their root is about to vanish.
            killed = processes.end(new)
        if state is not None:
            state.after_end(killed)
        self._context.plugin_states.before_leave(self.item)
        problem: BaseException | None = (
            pytest.fail.Exception(objection, pytrace=False) if objection else None
        )
        manager = session.sandboxes.manager
        if manager.is_inside:
            problem = self._tell_end() or problem
            self.stack.left()
            manager.leave()
            self._listener.left(self.item, self.stack.sandbox)
            session.trace("left", self.item.nodeid)
        session.current.test = None
        if not self._listener.want_layers() or (wider and self.stack.sandbox.layers is not None):
            self._let_go()
        os.umask(self._umask)
        pytest_internals.set_basetemp(self.item.config, self._basetemp)
        _restore(self._environment)
        if state is not None:
            state.after_leave()
        self._context.plugin_states.after_leave(self.item)
        if wider and pytest_internals.wider_teardown_runs_code(self.item, self._nextitem):
            session.sandboxes.drop_caches()
        return problem

    def _restore_user(self) -> None:
        """Undo a seteuid(2) that the test has left, without which no sandbox can be left."""
        user, group = self._user
        if (os.geteuid(), os.getegid()) != self._user:
            # If it is not allowed, the test has given its rights up for good.
            with contextlib.suppress(OSError):
                os.seteuid(user)
                os.setegid(group)

    def _tell_end(self) -> BaseException | None:
        """Tell the observers that the test has ended. Returns what fails its teardown, if so."""
        objection = self.objection()
        if objection:
            return pytest.fail.Exception(objection, pytrace=False)
        return self._listener.ended(self.item, self.written)

    def _let_go(self) -> None:
        self._session.current.test = None
        stack, self._stack = self._stack, None
        if stack is not None:
            stack.close()
        directory, self._directory = self._directory, None
        _remove(directory)

    def enter_phase(self, phase: pytest_internals.Phase) -> None:
        """See :meth:`Listener.enter_phase`."""
        self._listener.enter_phase(phase)

    def _tell_replaced(self, sandbox: Sandbox, plan: Plan | None) -> None:
        self._listener.replaced(sandbox, plan)

    def _tell_mounted(self, sandbox: Sandbox) -> None:
        self._listener.mounted(sandbox)

    def objection(self) -> str:
        """See :meth:`.current.RunningTest.objection`."""
        return self._listener.objection(self.item, self.written)

    def end(self) -> None:
        """The last report of the item is made: let go of what was left for it."""
        self._let_go()


@final
class _WrittenInline:
    """What an inline test has written, read by the same process from the host.

    Implements :class:`.observers.WrittenByTest`.
    """

    def __init__(self, test: InlineTest, context: RunnerContext) -> None:
        self._test = test
        self._context = context

    @property
    def left(self) -> bool:
        return self._test.has_left

    @contextlib.contextmanager
    def changes(self) -> Iterator[Changes]:
        changes = self._test.stack.sandbox.changes()
        with self._context.session.sandboxes.manager.on_host():
            yield changes

    @contextlib.contextmanager
    def layers(self) -> Iterator[Sequence[Written]]:
        if self._test.is_gone:
            raise SandboxError(
                "look at what the test has written", cause="it failed when wider fixtures had ended"
            )
        scopes = self._context.fixture_scopes.sandboxes(self._test.item)
        sandboxes = (*scopes, self._test.stack.sandbox)
        with self._context.session.sandboxes.manager.on_host():
            from ..engine.sandbox.written import Written

            yield [Written.of_sandbox(one) for one in sandboxes]


@final
class HostHooks:
    """Takes the process to the host for a moment while a test runs inline.

    Registered with the first inline test.
    """

    def __init__(self, context: RunnerContext) -> None:
        self._context = context
        self._session = context.session
        self._reporters = pytest_internals.Reporters(context.config)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    @pytest_internals.unseen
    def pytest_runtest_logreport(self) -> Generator[None, object, object]:
        """Have reporters of other plugins hear reports on the host."""
        # pytest's own write to files that are open already, and keep the rest in memory.
        if self._session.current.test is None or self._reporters.are_builtin():
            return (yield)
        with self._session.sandboxes.manager.on_host():
            return (yield)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    @pytest_internals.unseen
    def pytest_fixture_setup(
        self, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Have wider fixtures that a test asks for while it runs set up on the host."""
        if self._session.current.test is None:
            return (yield)
        if (wider := pytest_internals.wider_scope(request)) is None:
            return (yield)
        item, scope, node = wider
        within = self._context.fixture_scopes.within(item)
        manager = self._session.sandboxes.manager
        test = self._session.current.test
        outlived = test.outlived() if isinstance(test, InlineTest) else contextlib.nullcontext()
        with outlived, manager.on_host():
            if request.fixturename == "tmp_path_factory":
                # Its directory is on the host also if the first to use it is the test.
                pytest_internals.make_basetemp(item.config)
            with within(scope, node):
                result = yield
        # The fixture may have started a thread that stays on the host.
        manager.check_threads()
        return result


def begin_inline(context: RunnerContext) -> None:
    """Prepare this process for its first inline test; later it does nothing."""
    if context.shared_directory is None:
        real_stderr.set(pytest_internals.real_stderr(context.config))
        context.shared_directory = SharedDirectory()
        context.config.pluginmanager.register(HostHooks(context), "mountns-host-hooks")


def _remove(directory: str | None) -> None:
    if directory is not None:
        disk_uppers.remove(directory)


def _umask() -> int:
    os.umask(umask := os.umask(0o077))
    return umask


def _environment() -> dict[bytes, bytes]:
    # The bytes of os.environ are compared as they are stored: to decode all of them takes longer
    # than to enter a sandbox.
    return cast("dict[bytes, bytes]", cast(Any, os.environ)._data)


def _follow(
    environment: dict[bytes, bytes], before: dict[bytes, bytes], after: dict[bytes, bytes]
) -> None:
    """Change in ``environment`` what has changed from ``before`` to ``after``."""
    for name in before.keys() - after.keys():
        environment.pop(name, None)
    environment.update(one for one in after.items() if before.get(one[0]) != one[1])


def _restore(environment: dict[bytes, bytes]) -> None:
    now = _environment()
    current_test = now.get(_OF_PYTEST)
    if current_test is not None:
        environment[_OF_PYTEST] = current_test
    if now == environment:
        return
    for name in [name for name in now if name not in environment]:
        del os.environb[name]
    for name, value in environment.items():
        if now.get(name) != value:
            os.environb[name] = value
