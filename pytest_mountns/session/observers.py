"""Observers: what reports, audits and saves tests hears of them through this module alone.

The runners call an event here; they do not know who listens. An observer that needs an event
overrides its method. Each docstring says in which process the event is called, and when:

* the *pytest process* collects tests and reports them; with pytest-xdist that is a worker;
* the *test process* runs one test; with ``process="inline"`` it is the pytest process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Protocol, final

import pytest

if TYPE_CHECKING:
    from ..engine.changes.changes import Changes
    from ..engine.plan.model import Plan, UppersDescription
    from ..engine.plan.spec import SandboxSpec
    from ..engine.sandbox.guard import Guard
    from ..engine.sandbox.sandbox import Sandbox
    from ..engine.sandbox.written import Written
    from .current import RunningTest


class WrittenByTest(Protocol):
    """What a test has written, for the pytest process to read."""

    @property
    def left(self) -> bool:
        """Whether the test has left its sandbox, after :meth:`Observer.ended`."""
        ...

    def changes(self) -> AbstractContextManager[Changes]:
        """The changes; what they hold can be read within the context.

        Raises :class:`SandboxError` if they cannot be read.
        """
        ...

    def layers(self) -> AbstractContextManager[Sequence[Written]]:
        """What can be saved as layers, lowest first, the test's own last.

        Those below are of fixtures of wider scope, where ``scope=`` captures them. They can be
        read within the context. Raises :class:`SandboxError` if they are gone.
        """
        ...


class Observer:
    """Hears what happens to isolated tests. Every method does nothing unless overridden."""

    def before(self, item: pytest.Item, spec: SandboxSpec, plan: Plan) -> None:
        """Pytest process, on the host: the wider fixtures of ``item`` are set up next.

        Called again, with the plan of now, when some of them have been set up.
        """

    def isolated(self, item: pytest.Item, *, inline: bool) -> None:
        """Pytest process: ``item`` is or has been in a sandbox. Called for each attempt at it."""

    def guarded(self, item: pytest.Item) -> None:
        """Pytest process: ``item`` is run on the host, under a guard. Called for each attempt.

        Nothing of what it writes can be read, so :meth:`before`, :meth:`entered`, :meth:`objection`
        and :meth:`ended` are not called for it.
        """

    def not_inline(self, item: pytest.Item, why: str) -> None:
        """Pytest process: ``item`` is forked, as it cannot be run inline."""

    def beside(self, why: str) -> None:
        """Pytest process: threads or processes of wider fixtures may work for tests on the host.

        Called once in a session for threads, since forked tests lack them, and once for worker
        processes. ``why``: which ones they are, and what that means for tests, in words.
        """

    def unended(self, why: str) -> None:
        """Pytest process: a test process was killed or has left, and does not end.

        ``why``: which one, and what that means, in words.
        """

    def waits(self, item: pytest.Item, seconds: float, libraries: Sequence[str]) -> None:
        """Pytest process: ``item``, forked while threads were alive, has only waited for so long.

        ``libraries``: native libraries in this process that are known to start threads. Called
        while the test runs, and once for it.
        """

    def skipped(self, item: pytest.Item) -> None:
        """Pytest process: ``item`` is skipped because this machine cannot isolate it."""

    def entered(self, item: pytest.Item, test: RunningTest) -> None:
        """Test process, in the sandbox: the function-scoped fixtures of ``item`` come next.

        Called for each attempt at it.
        """

    def on_failure(self, report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
        """Test process, in the sandbox: a phase has failed by ``error``, and this is its report."""

    def on_failure_under_guard(
        self, report: pytest.TestReport, error: BaseException, guard: Guard
    ) -> None:
        """Test process, under a guard: a phase has failed by ``error``, and this is its report."""

    def wants_pause(self, report: pytest.TestReport) -> bool:
        """Test process: whether the test has to wait until :meth:`on_report` has returned.

        After a failure it waits in any case.
        """
        return False

    def on_report(
        self, item: pytest.Item, report: pytest.TestReport, written: WrittenByTest | None
    ) -> None:
        """Pytest process: a report of ``item``, before reporters hear it.

        ``written`` is None where nothing can be read any more, as after the test process has died.
        """

    def objection(self, item: pytest.Item, written: WrittenByTest) -> str:
        """Pytest process: why the test fails for what it has written so far; "" if it does not."""
        return ""

    def wants_end(self, *, died: bool) -> bool:
        """Whether :meth:`ended` is to be called. Reading what a test has written takes time."""
        return False

    def ended(self, item: pytest.Item, written: WrittenByTest, *, died: bool) -> None:
        """Pytest process: ``item`` and its function-scoped fixtures have ended.

        ``died``: its process has ended before that. What is raised fails the test's teardown.
        """

    def left_behind(self, item: pytest.Item, scratch: int, uppers: UppersDescription) -> None:
        """Pytest process, on the host: the uppers of ``item``, which has ended, may be looked at.

        ``scratch`` is a descriptor of the directory in which they lie. Every test pays for what is
        done here, and nothing may be raised.
        """

    def left_running(self, item: pytest.Item, children: Sequence[int]) -> str:
        """Pytest process, in the sandbox of an inline test that ends: it has left these children.

        If there are any, they are ended next. Returns why the test fails for that, "" if it does
        not.
        """
        return ""

    def ended_processes(self, item: pytest.Item, names: Sequence[str]) -> None:
        """Pytest process: these have still run when the forked test ended, and were ended."""

    def finished(self) -> None:
        """Pytest process: the last test has run."""

    def wants_layers(self) -> bool:
        """Pytest process: whether ``written.layers()`` is read until the last report is made."""
        return False

    def close(self) -> None:
        """Pytest process: the session ends."""


def register_for_one_test(config: pytest.Config, hooks: object, name: str) -> None:
    """Register hooks of an observer, which unregister themselves around the test's teardown.

    Where a wrapper of another plugin raises before that begins, they stay: until the next ones of
    this name take their place, they have to take no notice of other tests.
    """
    manager = config.pluginmanager
    if manager.has_plugin(name):
        manager.unregister(name=name)
    manager.register(hooks, name)


class LateModules(Protocol):
    """Modules that are loaded when a test fails or reads its changes."""

    def load(self) -> None:
        """Load them, on the host."""
        ...

    def importable(self) -> AbstractContextManager[None]:
        """Within the context they are loaded, whatever a test has replaced."""
        ...


@final
class Observers:
    """The observers of one session, called in the order in which they were added."""

    def __init__(self, late_modules: LateModules) -> None:
        self._late_modules = late_modules
        #: For each event, the methods of those that hear it, so that an event that nobody hears
        #: costs nothing.
        self._hearing: dict[str, list[Callable[..., Any]]] = {
            name: [] for name in vars(Observer) if not name.startswith("_")
        }
        self._hearing_end: list[Observer] = []

    def add(self, observer: Observer) -> None:
        """Have it called from now on, after the others."""
        for name, hearing in self._hearing.items():
            if getattr(type(observer), name) is not getattr(Observer, name):
                hearing.append(getattr(observer, name))
        if type(observer).ended is not Observer.ended:
            self._hearing_end.append(observer)

    def before(self, item: pytest.Item, spec: SandboxSpec, plan: Plan) -> None:
        """See :meth:`Observer.before`."""
        for hear in self._hearing["before"]:
            hear(item, spec, plan)

    def isolated(self, item: pytest.Item, *, inline: bool) -> None:
        """See :meth:`Observer.isolated`."""
        for hear in self._hearing["isolated"]:
            hear(item, inline=inline)

    def guarded(self, item: pytest.Item) -> None:
        """See :meth:`Observer.guarded`."""
        for hear in self._hearing["guarded"]:
            hear(item)

    def not_inline(self, item: pytest.Item, why: str) -> None:
        """See :meth:`Observer.not_inline`."""
        for hear in self._hearing["not_inline"]:
            hear(item, why)

    def beside(self, why: str) -> None:
        """See :meth:`Observer.beside`."""
        for hear in self._hearing["beside"]:
            hear(why)

    def unended(self, why: str) -> None:
        """See :meth:`Observer.unended`."""
        for hear in self._hearing["unended"]:
            hear(why)

    def waits(self, item: pytest.Item, seconds: float, libraries: Sequence[str]) -> None:
        """See :meth:`Observer.waits`."""
        for hear in self._hearing["waits"]:
            hear(item, seconds, libraries)

    def skipped(self, item: pytest.Item) -> None:
        """See :meth:`Observer.skipped`."""
        for hear in self._hearing["skipped"]:
            hear(item)

    def entered(self, item: pytest.Item, test: RunningTest) -> None:
        """See :meth:`Observer.entered`."""
        for hear in self._hearing["entered"]:
            hear(item, test)

    def on_failure(self, report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
        """See :meth:`Observer.on_failure`."""
        with self._late_modules.importable():
            for hear in self._hearing["on_failure"]:
                hear(report, error, sandbox)

    def on_failure_under_guard(
        self, report: pytest.TestReport, error: BaseException, guard: Guard
    ) -> None:
        """See :meth:`Observer.on_failure_under_guard`."""
        with self._late_modules.importable():
            for hear in self._hearing["on_failure_under_guard"]:
                hear(report, error, guard)

    def want_pause(self, report: pytest.TestReport) -> bool:
        """Whether any observer wants the test to wait; see :meth:`Observer.wants_pause`."""
        for wants in self._hearing["wants_pause"]:  # noqa: SIM110 - any() needs another function
            if wants(report):
                return True
        return False

    def on_report(
        self, item: pytest.Item, report: pytest.TestReport, written: WrittenByTest | None
    ) -> None:
        """See :meth:`Observer.on_report`."""
        if not report.failed:
            # What it has changed is hardly ever read.
            for hear in self._hearing["on_report"]:
                hear(item, report, written)
            return
        with self._late_modules.importable():
            for hear in self._hearing["on_report"]:
                hear(item, report, written)

    def objection(self, item: pytest.Item, written: WrittenByTest) -> str:
        """The first objection, "" if there is none; see :meth:`Observer.objection`."""
        said = (hear(item, written) for hear in self._hearing["objection"])
        return next(filter(None, said), "")

    def want_end(self, *, died: bool) -> bool:
        """Whether any observer wants to hear of the end; see :meth:`Observer.wants_end`."""
        return any(wants(died=died) for wants in self._hearing["wants_end"])

    def ended(
        self, item: pytest.Item, written: WrittenByTest, *, died: bool
    ) -> pytest.CallInfo[None] | None:
        """Tell those who want it; all are told, also when one fails.

        The changes are read once for all of them. Returns the first call that has failed, None if
        none has.
        """
        wanting = [one for one in self._hearing_end if one.wants_end(died=died)]
        if not wanting:
            return None
        failed: pytest.CallInfo[None] | None = None
        with self._late_modules.importable(), ExitStack() as stack:
            once = _ReadOnce(written, stack)
            for observer in wanting:

                def tell(observer: Observer = observer) -> None:
                    observer.ended(item, once, died=died)

                call = pytest.CallInfo.from_call(tell, when="teardown")
                if call.excinfo is not None and failed is None:
                    failed = call
        return failed

    def left_behind(self, item: pytest.Item, scratch: int, uppers: UppersDescription) -> None:
        """See :meth:`Observer.left_behind`."""
        for hear in self._hearing["left_behind"]:
            hear(item, scratch, uppers)

    def left_running(self, item: pytest.Item, children: Sequence[int]) -> str:
        """The first objection, "" if there is none; see :meth:`Observer.left_running`."""
        said = [hear(item, children) for hear in self._hearing["left_running"]]
        return next(filter(None, said), "")

    def ended_processes(self, item: pytest.Item, names: Sequence[str]) -> None:
        """See :meth:`Observer.ended_processes`."""
        for hear in self._hearing["ended_processes"]:
            hear(item, names)

    def finished(self) -> None:
        """See :meth:`Observer.finished`."""
        for hear in self._hearing["finished"]:
            hear()

    def want_layers(self) -> bool:
        """Whether any observer reads layers late; see :meth:`Observer.wants_layers`."""
        return any(wants() for wants in self._hearing["wants_layers"])

    def close(self) -> None:
        """See :meth:`Observer.close`."""
        for hear in self._hearing["close"]:
            hear()


@final
class _ReadOnce:
    """Hands out the same changes as often as they are asked for, until ``stack`` ends."""

    def __init__(self, written: WrittenByTest, stack: ExitStack) -> None:
        self._written = written
        self._stack = stack
        self._changes: Changes | None = None

    @property
    def left(self) -> bool:
        return self._written.left

    @contextmanager
    def changes(self) -> Iterator[Changes]:
        if self._changes is None:
            self._changes = self._stack.enter_context(self._written.changes())
        yield self._changes

    def layers(self) -> AbstractContextManager[Sequence[Written]]:
        return self._written.layers()
