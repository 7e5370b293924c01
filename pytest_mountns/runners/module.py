"""Runs the tests of one module in one forked process, as the pytest process sees it.

The first test is prepared as a forked test is: its fixtures of package and session scope are set up
here, then the process is forked in the middle of the test's setup, and goes on up the same stack.
The following tests are sent to it, one at a time; this process runs nothing of them. So a test of
the same module whose wider fixtures are not set up, or have another parameter, gets a new process.

A crash ends the process, and fails the test that was running. The next test begins a new one.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import pytest

from .. import pytest_internals
from ..engine.linux import processes
from ..engine.linux.errno_advice import explain
from ..engine.linux.errors import SandboxError, said
from ..engine.linux.threads import is_alone
from ..engine.linux.untouched import os, signal
from ..engine.plan.model import Plan
from ..engine.sandbox.sandbox import Layers
from ..engine.sandbox.written import Written
from ..forking import channel, messages
from ..forking.deadlock import DeadlockWatch
from ..forking.interrupts import Interrupts
from ..forking.receiver import Receiver
from ..forking.timers import Timers
from .context import RunnerContext
from .finish import Finish
from .forked import LEAVING, fork, prepare_fork
from .hearing import Hearing
from .inline import begin_inline
from .module_child import ModuleChild
from .prepare import Preparation
from .reporting import Inheritance

#: Seconds that the process of a module may take to end when its last test has ended.
END_LIMIT: float = 60.0


@final
@dataclass(slots=True)
class ModuleProcess:
    """The process of a module, while it lives."""

    #: The file that its tests are of.
    module: pytest.Item | pytest.Collector
    pid: int
    receiver: Receiver
    #: The test that it runs, or has run last.
    item: pytest.Item


@final
class ModuleProcesses:
    """The process of the module whose tests are running, one at a time."""

    def __init__(self, context: RunnerContext) -> None:
        self._context = context
        self._session = context.session
        #: None if there is none.
        self.now: ModuleProcess | None = None
        #: The number of each item of the session, by ``id()``, when the process was begun.
        self.numbers: Mapping[int, int] = {}
        #: Hears what it says about the test that it runs.
        self.hearing: Hearing | None = None

    def tell_waiting(self) -> None:
        """See :meth:`.Hearing.tell_waiting`."""
        if self.hearing is not None:
            self.hearing.tell_waiting()

    def can_run(self, item: pytest.Item) -> bool:
        """Whether there is a process that can run ``item`` next, if that is run in this way."""
        now = self.now
        if now is None or any(pytest_internals.stopping(item.session)):
            return False
        return self.can_follow(now.item, item)

    def number(self, session: pytest.Session) -> None:
        """Give each item its number, before a process is begun."""
        self.numbers = {id(item): number for number, item in enumerate(session.items)}

    def can_follow(self, before: pytest.Item, item: pytest.Item) -> bool:
        """Whether the process that runs ``before`` can run ``item`` next."""
        if pytest_internals.module_of(item) is not pytest_internals.module_of(before):
            return False
        if id(item) not in self.numbers:
            return False
        fixture = pytest_internals.shared_fixture_to_set_up(item)
        if fixture is not None:
            self._context.note_once(
                f"module fixture {fixture}",
                f"the process of a module was ended and a new one begun for the fixture {fixture},"
                " which is wider than the module and is not used by its first test, or has several"
                " parameters",
            )
        return fixture is None

    def end(self) -> None:
        """End the process that there is: no test comes that it could run."""
        now = self.now
        if now is None:
            return
        finish = Finish(self._context, now.item, None)
        hearing = Hearing(self._context, now.item, finish, of_module=True)
        problem = self.end_after_test(hearing, None)[1]
        if problem:
            finish.warn(f"mountns: {problem}")

    def end_after_test(
        self, hearing: Hearing, interrupts: Interrupts | None
    ) -> tuple[messages.Leave | None, str]:
        """Have the process end, and hear what it says meanwhile.

        Returns its last message, and in words what has gone wrong; "" if nothing has.
        """
        now = self.now
        assert now is not None
        self.now = None
        leave: messages.Leave | None = None
        status: int | None = 0
        try:
            now.receiver.answer(messages.EndProcess())
            for message in now.receiver.messages(interrupts, END_LIMIT):
                if isinstance(message, messages.Leave):
                    leave = message
                else:
                    hearing.hear(message, now.receiver)
        finally:
            late = leave is None and not processes.has_ended(now.pid)
            status = self.let_go(now, kill=late, has_left=leave is not None)
        if leave is not None:
            return leave, ""
        if late:
            return None, (
                f"the process of {now.module.nodeid} had not ended {END_LIMIT:.0f} s after its last"
                f" test, {now.item.nodeid}, and was ended by SIGKILL"
            )
        how = processes.describe_status(status)
        return None, f"the process of {now.module.nodeid} has ended ({how}) after its last test"

    def let_go(self, process: ModuleProcess, *, kill: bool, has_left: bool) -> int | None:
        """The process has ended, is about to end, or is to be killed.

        Returns its wait status; None if it has left, or does not end.
        """
        self.now = None
        process.receiver.close()
        if kill:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._session.trace("left" if has_left else "died", process.module.nodeid)
        status = None if has_left and not kill else processes.reap_soon(process.pid)
        if status is None:
            # It is about to end, or it does not end.
            self._session.sandboxes.leaving.append(process.pid)
        return status


@final
class ModuleTest:
    """Has the process of a module run one item, and reports what it sends.

    ``ends`` says whether the process has no test to run after this one.
    """

    def __init__(
        self,
        context: RunnerContext,
        module_processes: ModuleProcesses,
        item: pytest.Item,
        nextitem: pytest.Item | None,
        timers: Timers,
        ends: Callable[[], bool],
    ) -> None:
        self._context = context
        self._session = context.session
        self._module_processes = module_processes
        self._item = item
        self._nextitem = nextitem
        self._timers = timers
        self._find_whether_it_ends = ends
        self._ends = True
        #: The end of the test, as this process reports it.
        self.finish = Finish(context, item, nextitem)
        self._hearing = Hearing(context, item, self.finish, of_module=True)
        self._preparation = Preparation(context, item)
        #: Whether the module's process has run the item, or is to.
        self.delegated = False

    @pytest_internals.unseen
    def setup(self) -> None:
        """In place of the item's setup: begin the process of the module in the middle of it."""
        __tracebackhide__ = True
        if self._module_processes.now is not None:
            # Another plugin runs the item in this process; it shall not.
            self._run()
            how = "the test has run in the process of its module"
            raise self._context.delegate(self._item, how)
        try:
            self._prepare()
            problem = self._begin()
        except pytest_internals.Delegated:
            raise
        except BaseException:
            pytest_internals.forget_setup(self._item)
            raise
        if problem is not None:
            pytest_internals.forget_setup(self._item)
            self._preparation.refuse(problem)
        # Only the process of the module comes here.
        return self._run_first()

    def run(self) -> None:
        """In place of the item's protocol: send it to the process of the module."""
        item = self._item
        self.finish.log("pytest_runtest_logstart", nodeid=item.nodeid, location=item.location)
        self._run()
        self.finish.finish_here()

    def _prepare(self) -> None:
        __tracebackhide__ = True
        plan = self._preparation.prepare(of_module=False)
        module = pytest_internals.module_of(self._item)
        others = [
            one for one in self._item.session.items if pytest_internals.module_of(one) is module
        ]
        pytest_internals.set_up_own_session_fixtures(self._item, others)
        for other in others:
            pytest_internals.choose_basetemp(other)
            # Computed once, and the new process has it too.
            _ = other.location
        self._note_plan(plan)

    def _note_plan(self, plan: Plan | None) -> None:
        if plan is not None:
            layers = self._preparation.layers()
            self._hearing.find = lambda: self._find_written(plan, layers)
            self._hearing.find_scratch = self._scratch

    def _scratch(self) -> int:
        now = self._module_processes.now
        return now.receiver.descriptor if now is not None else -1

    def _find_written(self, plan: Plan, layers: Layers | None) -> Written:
        scratch, uppers = self._scratch(), self._hearing.uppers
        if scratch < 0 or uppers is None:
            raise SandboxError("read what the sandbox has written", cause="it was never entered")
        return Written.of(self._hearing.plan or plan, scratch, uppers, (), layers)

    def _begin(self) -> SandboxError | None:
        """Fork. Returns None in the new process; in this one, why the test cannot run.

        When the test is done, this ends by an exception in this process.
        """
        __tracebackhide__ = True
        context, session, item = self._context, self._session, self._item
        module_processes = self._module_processes
        module_processes.number(item.session)
        self._ends = self._find_whether_it_ends()
        prepare_fork(context, item, self._timers)
        try:
            bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            try:
                ours, theirs = channel.pair()
            except OSError:
                os.close(bell)
                raise
        except OSError as error:
            self._timers.resume()
            what = "open a channel to the process of a module"
            return SandboxError(what, said(error), *explain(error.errno or 0, False))
        alone = is_alone()
        forget_failures = pytest_internals.noted_failures(item.config)
        session.sandboxes.drop_ahead()
        pages = context.pages(of_module=True)
        inheritance = Inheritance(
            os.getpid(),
            theirs,
            -1,
            random.getstate(),
            pages.before_fork() if pages is not None else None,
            bell,
        )
        try:
            with Interrupts() as interrupts:
                try:
                    child = fork(interrupts)
                except BaseException as error:
                    ours.close()
                    theirs.close()
                    os.close(bell)
                    if not isinstance(error, SandboxError):
                        raise
                    return error
                if child == 0:
                    ours.close()
                    context.let_go_of_pages()
                    process = ModuleChild(context, item, inheritance, ends=self._ends)
                    context.process = context.module_child = process
                    process.begin(self._timers)
                    # Only now: a Ctrl-C on the way here is answered by the test.
                    interrupts.restore()
                    return None
                self.delegated = True
                theirs.close()
                session.sandboxes.reap(spare=LEAVING)
                receiver = Receiver(
                    ours,
                    child,
                    context.phase,
                    session.trace,
                    apart=False,
                    deadlock_watch=None if alone else DeadlockWatch(module_processes.tell_waiting),
                    bell=bell,
                )
                module = pytest_internals.module_of(item)
                module_processes.now = ModuleProcess(module, child, receiver, item)
                # Reporters write to the terminal. It takes a tenth of a millisecond, so once.
                with pytest_internals.capture_suspended(item.config):
                    self._listen(interrupts)
        finally:
            if context.process is None:
                self._timers.resume()
        if self._hearing.refusal is not None:
            self.delegated = False
            return self._hearing.refusal
        if self._hearing.last_report is not None:
            # The other process had them, too, and has reported them.
            forget_failures()
        session.observers.isolated(item, inline=False)
        raise context.delegate(item, "the test has run in the process of its module")

    @pytest_internals.unseen
    def _run_first(self) -> None:
        """In the process of the module: set up the item that it was forked for, in a sandbox."""
        __tracebackhide__ = True
        process, item = self._context.module_child, self._item
        assert process is not None
        begin_inline(self._context)
        # The test is to call the item's own.
        item.__dict__.pop("setup", None)
        test = process.new_test(item, self._nextitem)
        # For another attempt, too.
        item.setup = test.setup  # type: ignore[method-assign]
        return test.setup()

    def _run(self) -> None:
        """Send the item to the process that there is."""
        context, item = self._context, self._item
        now = self._module_processes.now
        assert now is not None
        self.delegated = True
        self._timers.stop()
        before, now.item = now.item, item
        self._note_plan(self._preparation.announce())
        notes = list(context.plugin_states.pack_early(before))
        context.plugin_states.before_fork(item)
        self._ends = self._find_whether_it_ends()
        numbers = self._module_processes.numbers
        following = numbers.get(id(self._nextitem)) if self._nextitem is not None else None
        cursor = context.screen.cursor
        now.receiver.begin_test()
        try:
            with Interrupts() as interrupts, pytest_internals.capture_suspended(item.config):
                number = numbers[id(item)]
                command = messages.RunTest(number, following, self._ends, cursor, notes)
                now.receiver.answer(command)
                self._listen(interrupts, before)
        finally:
            self._timers.resume()
        self._session.observers.isolated(item, inline=False)

    def _listen(self, interrupts: Interrupts, before: pytest.Item | None = None) -> None:
        """Report what the process sends until the test is done or the process has died.

        ``before``: the test that it has run before. The capture is suspended meanwhile.
        """
        __tracebackhide__ = True
        hearing, module_processes = self._hearing, self._module_processes
        now = module_processes.now
        assert now is not None
        leave: messages.Leave | None = None
        done: messages.TestDone | None = None
        problem = ""
        status: int | None = 0
        ended = garbled = False
        module_processes.hearing = hearing
        try:
            for message in now.receiver.messages(interrupts):
                if isinstance(message, messages.TestDone):
                    done = message
                    hearing.test_has_ended(died=False)
                    # From here on nothing can be read.
                    hearing.uppers = None
                    break
                if isinstance(message, messages.Leave):
                    leave = message
                    hearing.test_has_ended(died=False)
                else:
                    hearing.hear(message, now.receiver)
            if done is not None and (
                self._ends or any(pytest_internals.stopping(self._item.session))
            ):
                leave, problem = module_processes.end_after_test(hearing, interrupts)
            ended = True
        except pytest.exit.Exception:
            raise
        except channel.Garbled:
            garbled = True
            hearing.test_has_ended(died=True)
        except (Exception, pytest_internals.OutcomeException) as error:  # noqa: BLE001 - of reporters
            # Not raised here: it would count as an error of the test's setup.
            self.finish.internal_error = error
        finally:
            # A reporter failed here, or nobody can hear any more what the test does.
            if not ended and module_processes.now is not None:
                status = module_processes.let_go(now, kill=True, has_left=False)
        if self.finish.internal_error is not None:
            return
        interrupted = now.receiver.interrupted
        if done is None and leave is None and hearing.refusal is None:
            # The process has died.
            if not garbled:
                hearing.test_has_ended(died=True)
                status = module_processes.let_go(now, kill=False, has_left=False)
            how = hearing.how_ended(now.receiver, status, garbled=garbled)
            is_between = self._context.phase[0] == channel.LEAVING and hearing.last_report is None
            if before is not None and is_between:
                self._context.phase[0] = channel.SETUP
                how = (
                    f"the process of the module has ended ({processes.describe_status(status)})"
                    f" after {before.nodeid} and before this test began; noticed"
                )
            hearing.process_has_died(how)
        elif problem:
            hearing.process_has_died(f"{problem},")
        elif hearing.refusal is not None:
            module_processes.let_go(now, kill=False, has_left=False)
            if interrupted:
                raise KeyboardInterrupt
        else:
            if done is None and module_processes.now is not None:
                module_processes.let_go(now, kill=False, has_left=True)
            answer = leave or messages.Leave()
            if done is not None:
                # When the process leaves, it has torn down everything.
                answer = answer._replace(torn_down=done.torn_down)
            self.finish.answer(answer, interrupted=interrupted)
        hearing.uppers = None
        self.finish.conclude(refused=hearing.refusal is not None)
