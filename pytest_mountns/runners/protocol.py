"""Runs isolated items: chooses between the two runners, and answers the hooks of the plugin."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError
from ..engine.linux.threads import other_threads, python_threads
from ..engine.plan.spec import SandboxSpec
from ..session.early import name_watchdogs
from ..session.session import Session
from .choice import Choice, choose, lost_threads
from .context import ProcessOfTest, RunnerContext, TestInside
from .inline import HostListener, InlineTest, Listener, begin_inline

if TYPE_CHECKING:
    from ..forking.timers import TimeoutSettings
    from .finisher import Finisher
    from .forked import ForkedTest
    from .module import ModuleProcesses, ModuleTest

__all__ = ["Runner", "TimeoutSettings"]

#: What is not loaded for suites that run inline: that saves them 15 ms.
_FOR_FORKS: Final = (
    ".forked",
    "..engine.linux.fork_pages",
    "..forking.timers",
    "..plugin_state.finders",
    "mmap",
)
_GUARDED: Final = "a guarded test has a process of its own, since a guard cannot be taken off"


@final
class Runner:
    """Runs the isolated items of one session.

    ``hooks`` is the plugin that forwards, in a test process, what is reported there.
    """

    def __init__(
        self, config: pytest.Config, session: Session, hooks: object, finisher: Finisher
    ) -> None:
        self._config = config
        self._session = session
        self._context = RunnerContext(config, session, hooks, finisher)
        #: The test that was the last to run inline in this process.
        self._last_inline: InlineTest | None = None
        self._inline_listener: Listener = HostListener(session.observers)
        #: Made with the first test of ``process="module"``.
        self._module_processes: ModuleProcesses | None = None
        #: How the test is run that comes next, if that was asked for already.
        self._next_choice: tuple[pytest.Item, Choice] | None = None
        #: The threads of plugins and of what was imported: those that were there before any test.
        self._threads_before: frozenset[int] = frozenset()
        #: Those that were there when it was last looked at them.
        self._threads_looked_at: frozenset[int] = frozenset()
        self._has_loaded_for_forks = False

    @property
    def process(self) -> ProcessOfTest | None:
        """This process, if it is a test process."""
        return self._context.process

    def begin(self, items: Sequence[pytest.Item]) -> None:
        """After collection, before the first test."""
        self._session.begin(items)
        with contextlib.suppress(SandboxError):
            self._threads_before = other_threads()
        specs = [self._session.selection.valid_spec(item) for item in items]
        forks = any(spec.is_forked for spec in specs if spec is not None)
        if forks or self._session.guards.are_made:
            self._load_for_forks()
        if forks or any(map(self._session.selection.may_read_changes, items)):
            self._session.late_modules.load()
        if any(spec.process == "module" for spec in specs if spec is not None):
            importlib.import_module(".module", __package__)

    def _load_for_forks(self) -> None:
        """Load what only forks need.

        It is loaded at the start or, where one test is forked by ``process="auto"``, later: then a
        test or fixture may have replaced what an import needs.
        """
        if self._has_loaded_for_forks:
            return
        with self._session.late_modules.importable():
            for name in _FOR_FORKS:
                importlib.import_module(name, __package__)
            for name in pytest_internals.__all__:
                getattr(pytest_internals, name)
        self._has_loaded_for_forks = True

    def _note_threads(self) -> None:
        """Tell observers once which threads a test process will lack."""
        others = other_threads()
        if others == self._threads_looked_at:
            return
        self._threads_looked_at = others
        lost, libraries = self._session.sandboxes.lost_by_fork()
        for kind, why in lost_threads(python_threads(self._threads_before), lost, libraries):
            self._context.note_once(kind, why)

    def _choose(self, item: pytest.Item) -> Choice:
        try:
            spec = self._session.selection.spec(item)
            choice = self._choose_by(spec, guarded=self._session.guards.guards(item))
            other_plugins = self._session.other_plugins
            forked = choice.process != "inline"
            if choice.error is None and (
                problem := other_plugins.problem(item, spec, forked=forked)
            ):
                return choice._replace(process="fork", error=problem)
            if forked:
                other_plugins.say(item)
            return choice
        except (pytest.UsageError, SandboxError):
            # The preparation of the test says it.
            return Choice("fork")

    def _choose_by(self, spec: SandboxSpec, *, guarded: bool) -> Choice:
        """Raises :class:`SandboxError` without ``/proc``."""
        sandboxes = self._session.sandboxes
        if spec.is_forked:
            self._note_threads()
            obstacle = sandboxes.obstacle if spec.process == "module" and not guarded else _GUARDED
            choice = choose(spec, obstacle=obstacle, stuck=(), lost=(), libraries=())
            return choice._replace(guarded=True) if guarded else choice
        stuck = sandboxes.stuck_threads
        obstacle = _GUARDED if guarded else sandboxes.obstacle
        lost, libraries = sandboxes.lost_by_fork() if stuck or obstacle else ([], [])
        choice = choose(spec, obstacle=obstacle, stuck=stuck, lost=lost, libraries=libraries)
        return choice._replace(guarded=True) if guarded else choice

    def protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Around ``pytest_runtest_protocol`` of an isolated item."""
        if self._context.module_child is not None:
            # The process of a module has been told to run the item.
            return (yield from self._protocol_inline(item, nextitem))
        name_watchdogs(self._config)
        known, self._next_choice = self._next_choice, None
        choice = known[1] if known is not None and known[0] is item else self._choose(item)
        if choice.process == "module":
            return (yield from self._protocol_module(item, nextitem))
        self._end_module()
        if choice.process == "inline":
            return (yield from self._protocol_inline(item, nextitem))
        if choice.why_not_module and not choice.guarded:
            self._context.note_once(
                f"not module: {choice.why_not_module}",
                "tests were forked one by one, not run in a process of their module:"
                f" {choice.why_not_module}",
            )
        if choice.why_not_inline and choice.error is None and not choice.guarded:
            self._session.observers.not_inline(item, choice.why_not_inline)
        self._load_for_forks()
        from ..forking.timers import Timers
        from .forked import ForkedTest

        context = self._context
        timers = context.timers = Timers(item)
        test = ForkedTest(context, item, nextitem, timers, choice.error, guarded=choice.guarded)
        return (yield from self._protocol_elsewhere(item, test))

    def _protocol_elsewhere(
        self, item: pytest.Item, test: ForkedTest | ModuleTest
    ) -> Generator[None, object, object]:
        """Around the protocol of an item that a forked process runs."""
        context = self._context
        item.setup = test.setup  # type: ignore[method-assign]
        result: object = True
        try:
            result = yield
        except pytest_internals.Delegated:
            pass
        except BaseException as error:
            self._end_in_child(error)
            if test.delegated:
                pytest_internals.drop(item, torn_down=test.finish.torn_down)
            raise
        finally:
            context.finisher.work = None
            item.__dict__.pop("setup", None)
            context.timers = context.delegated = None
        self._end_in_child(None)
        # Not in the handler above: an error in here would be shown as a consequence of that one.
        if test.delegated:
            pytest_internals.drop(item, torn_down=test.finish.torn_down)
            test.finish.finish_in_protocol()
        return result

    def _end_in_child(self, error: BaseException | None) -> None:
        """In a forked process, the protocol of its first item has ended: do not return from here.

        ``error``: by what it has ended. In the pytest process this does nothing.
        """
        child = self._context.module_child
        if child is not None:
            if error is None:
                child.serve()
            child.interrupted(error)
        if self._context.process is not None:
            self._context.process.leave(error)

    def within_wrappers(self, item: pytest.Item) -> Generator[None, object, object]:
        """Around ``pytest_runtest_protocol``, within the wrappers that other plugins put there.

        They have begun before the fork, and so in the pytest process. There, too, they end, as if
        the test had run in it: what they do at the end is done once. The process of a module runs
        them for each of its tests, since it goes on after them.
        """
        context = self._context
        ended_by: BaseException | None = None
        result: object = True
        try:
            result = yield
        except pytest_internals.Delegated:
            pass
        except BaseException as error:
            if context.process is None or context.module_child is not None:
                raise
            ended_by = error
        finally:
            if context.delegated is not None:
                context.plugin_states.after_wrappers_end(item)
        if context.process is not None and context.module_child is None:
            context.process.hand_over_warnings()
            context.process.leave(ended_by)
        return result

    def _protocol_inline(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        begin_inline(self._context)
        process = self._context.module_child
        test: TestInside
        if process is not None:
            test = process.new_test(item, nextitem)
        else:
            test = self._last_inline = InlineTest(
                self._context, item, nextitem, self._inline_listener
            )
        item.setup = test.setup  # type: ignore[method-assign]
        try:
            try:
                result = yield
            except BaseException:
                _tear_down_inside(test)
                # Ctrl-C counts more than what the test would fail for.
                test.leave()
                raise
            self._context.objected_too_late(item, test.leave())
            return result
        finally:
            if process is None:
                test.end()
            item.__dict__.pop("setup", None)

    def _protocol_module(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        self._load_for_forks()
        from ..forking.timers import Timers
        from .module import ModuleProcesses, ModuleTest

        context, module_processes = self._context, self._module_processes
        if module_processes is None:
            module_processes = self._module_processes = ModuleProcesses(context)
        if not module_processes.can_run(item):
            module_processes.end()
        timers = context.timers = Timers(item)

        def ends() -> bool:
            return not self._goes_on_with(item, nextitem)

        test = ModuleTest(context, module_processes, item, nextitem, timers, ends)
        if module_processes.now is not None:
            # Otherwise, and where another plugin runs the item itself, its setup does it.
            context.finisher.work = test.run
        return (yield from self._protocol_elsewhere(item, test))

    def _goes_on_with(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool:
        """Whether the process of a module that runs ``item`` can run ``nextitem`` as well."""
        processes = self._module_processes
        if processes is None or nextitem is None or not processes.can_follow(item, nextitem):
            return False
        if not self._session.selection.wants(nextitem):
            return False
        choice = self._choose(nextitem)
        self._next_choice = nextitem, choice
        return choice.process == "module"

    def _end_module(self) -> None:
        """The next test is of another module or is run in another way, or there is none."""
        if self._module_processes is not None:
            self._module_processes.end()

    def outside(self) -> None:
        """An item that is not isolated is about to run."""
        self._end_module()
        self._session.sandboxes.before_host_changes()

    def before_report(self, call: pytest.CallInfo[None]) -> None:
        """Before other plugins make a report in ``pytest_runtest_makereport``."""
        if self._context.delegated is not None:
            # A wrapper around the setup has failed at its end, or let the setup seem to pass. Its
            # other half in the test process has been reported already.
            raise self._context.delegated
        if call.excinfo is not None:
            pytest_internals.drop_unseen(call.excinfo.value)
            pytest_internals.fill_in_lines(call.excinfo.value)

    def complete_report(
        self, item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport
    ) -> pytest.TestReport:
        """Have observers complete a report of any item, when other plugins have made it."""
        test = self._session.current.test
        if call.excinfo is not None and test is not None:
            observers, error = self._session.observers, call.excinfo.value
            if test.guard is not None:
                observers.on_failure_under_guard(report, error, test.guard)
            else:
                observers.on_failure(report, error, test.stack.sandbox)
        if self._context.process is not None:
            # The pytest process tells observers when it hears the report.
            return report
        if isinstance(test, InlineTest):
            self._session.observers.on_report(item, report, test.written)
        elif test is None and self._last_inline is not None and report.when == "teardown":
            if self._last_inline.item is item:
                self._session.observers.on_report(item, report, self._last_inline.written)
            self._last_inline.end()
        return report

    def show_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Have the terminal show where a Ctrl-C has met a test process, if it has met one."""
        pytest_internals.fill_in_lines(excinfo.value)
        if self._session.current.interrupt is not None:
            pytest_internals.show_interrupt(excinfo, self._session.current.interrupt)

    def timeout_is_set(self, settings: TimeoutSettings | None) -> None:
        """pytest-timeout has set a timer for the running item, or cancelled it (None)."""
        if self._context.timers is not None:
            self._context.timers.timeout_is_set(settings)

    def finish(self) -> None:
        """The last test has run."""
        self._end_module()
        # Before the summary says which of them do not end.
        self._session.sandboxes.reap()
        self._context.plugin_states.finish()
        self._session.observers.finished()

    def close(self) -> None:
        """At the end of the session."""
        if self._context.shared_directory is not None:
            self._context.shared_directory.restore()
        self._session.close()
        self._context.close()


def _tear_down_inside(test: TestInside) -> None:
    """The session ends in the middle of the test.

    What would be torn down with the session is torn down here, in the sandbox that it belongs to.
    """
    with contextlib.suppress(BaseException):
        pytest_internals.tear_down_function_scope(test.item)
