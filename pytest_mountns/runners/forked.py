"""Runs one test in a forked process, as the pytest process sees it: fork, and listen.

In place of the item's ``setup``, the pytest process instantiates the wider fixtures, forks, and
reports what the test process sends. Then it leaves the item's protocol by an exception,
:class:`~.pytest_internals.Delegated`, which nothing in pytest catches;
``Runner.within_wrappers`` and ``Runner._protocol_elsewhere`` do.
The test process enters the sandbox and lets pytest go on up the same stack: function-scoped
fixtures, call and teardown run there, through every plugin's hooks.

Things that do not work with fork, and so are done otherwise:

* Tearing down a wider scope in the test process. Its teardown ends at the item. The pytest
  process tears down the rest, and adds what that took and printed to the report of the teardown.
* Running the pytest process's ``pytest_runtest_makereport`` hooks on a report that is complete:
  plugins re-interpret it. Reports arrive whole and go to ``pytest_runtest_logreport``.
* Timers and threads: fork(2) leaves them behind. See :mod:`pytest_mountns.forking`.
* What plugins note in memory for the end of the session: see :mod:`pytest_mountns.plugin_state`.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux import processes
from ..engine.linux.errno_advice import explain
from ..engine.linux.errors import SandboxError, said
from ..engine.linux.job_control import take_terminal_back
from ..engine.linux.pid_namespace import read_status
from ..engine.linux.threads import is_alone
from ..engine.linux.untouched import os, signal
from ..engine.plan.model import Plan
from ..engine.sandbox.forked import ForkedEntry
from ..engine.sandbox.written import Written
from ..forking import channel, logging_locks, messages
from ..forking.deadlock import DeadlockWatch
from ..forking.interrupts import Interrupts
from ..forking.receiver import Receiver
from ..forking.timers import Timers
from .child import TestProcess
from .context import RunnerContext
from .finish import Finish
from .hearing import Hearing
from .prepare import Preparation
from .reporting import Inheritance

if TYPE_CHECKING:
    from ..engine.sandbox.guard import Guard
    from ..engine.sandbox.sandbox import Sandbox

#: How many test processes may be on their way out while the next one runs.
LEAVING: Final = 8


@final
class ForkedTest:
    """Forks the test process of one item, and reports what it sends."""

    def __init__(
        self,
        context: RunnerContext,
        item: pytest.Item,
        nextitem: pytest.Item | None,
        timers: Timers,
        refusal: SandboxError | None = None,
        *,
        guarded: bool = False,
    ) -> None:
        #: Why it is not to be forked.
        self._refused = refusal
        #: Whether it runs on the host, under a guard.
        self._guarded = guarded
        self._context = context
        self._session = context.session
        self._item = item
        self._nextitem = nextitem
        #: The end of the test, as this process reports it.
        self.finish = Finish(context, item, nextitem)
        self._timers = timers
        self._original_setup = item.setup
        self._preparation = Preparation(context, item)
        #: Whether a test process has run the item, or is to.
        self.delegated = False
        self._hearing = Hearing(context, item, self.finish, guarded=guarded)

    @pytest_internals.unseen
    def setup(self) -> None:
        """In place of the item's setup."""
        __tracebackhide__ = True
        process = self._context.process
        if process is not None:
            # A plugin runs a failed test once more.
            process.begin_again()
            return self._original_setup()
        if self._refused is not None:
            self._preparation.refuse(self._refused)
        try:
            if self._guarded:
                guard = self._preparation.prepare_guarded()
                problem = self._delegate(lambda: guard, apart=False)
            else:
                plan = self._preparation.prepare()
                problem = self._delegate(lambda: self._forked_entry(plan), apart=plan.pid_namespace)
        except pytest_internals.Delegated:
            raise
        except BaseException:
            pytest_internals.forget_setup(self._item)
            raise
        if problem is not None:
            pytest_internals.forget_setup(self._item)
            self._preparation.refuse(problem)
        # Only the test process comes here.
        return self._original_setup()

    def _delegate(
        self, make_entry: Callable[[], ForkedEntry | Guard], *, apart: bool
    ) -> SandboxError | None:
        """Fork. Returns None in the test process; in the pytest process, why the test cannot run.

        ``make_entry`` returns what the test process enters; ``apart`` says that it does so in a PID
        namespace. When the test process is done, this ends by an exception in the pytest process.
        """
        __tracebackhide__ = True
        context, session, item = self._context, self._session, self._item
        prepare_fork(context, item, self._timers)
        try:
            entry = make_entry()
        except SandboxError as error:
            self._timers.resume()
            return error
        # One that was made for another kind of sandbox.
        session.sandboxes.drop_ahead()
        forked_entry = entry if isinstance(entry, ForkedEntry) else None
        sandbox = forked_entry.sandbox if forked_entry is not None else None
        status_reader = status_writer = -1
        try:
            ours, theirs = channel.pair()
            try:
                if apart:
                    status_reader, status_writer = os.pipe()
            except OSError:
                ours.close()
                theirs.close()
                raise
        except OSError as error:
            self._timers.resume()
            if forked_entry is not None:
                forked_entry.close()
            what = "open a channel to a test process"
            return SandboxError(what, said(error), *explain(error.errno or 0, False))
        alone = is_alone()
        forget_failures = pytest_internals.noted_failures(item.config)
        pages = context.pages(of_module=False)
        inheritance = Inheritance(
            os.getpid(),
            theirs,
            status_writer,
            random.getstate(),
            pages.before_fork() if pages is not None else None,
        )
        try:
            with Interrupts() as interrupts:
                try:
                    child = fork(interrupts)
                except BaseException as error:
                    ours.close()
                    theirs.close()
                    if not isinstance(error, SandboxError):
                        raise
                    return error
                if child == 0:
                    ours.close()
                    if apart:
                        os.close(status_reader)
                    context.let_go_of_pages()
                    context.fixture_scopes.closed = True
                    process = TestProcess(context, item, entry, inheritance)
                    context.process = session.current.test = process
                    process.begin(self._timers)
                    # Only now: a Ctrl-C on the way into the sandbox is answered by the test.
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
                    apart=apart,
                    deadlock_watch=None if alone else DeadlockWatch(self._hearing.tell_waiting),
                )
                try:
                    if forked_entry is not None:
                        self._hearing.find = partial(self._find_written, forked_entry, receiver)
                        self._hearing.find_scratch = partial(_scratch, forked_entry, receiver)
                    if sandbox is not None:
                        self._hearing.uppers = sandbox.describe_uppers()
                        with contextlib.suppress(OSError):
                            # Too many files are open: then this process waits for the unmounting.
                            sandbox.leave_to_child()
                    # Reporters write to the terminal. It takes a tenth of a millisecond, so once.
                    with pytest_internals.capture_suspended(item.config):
                        self._listen(receiver, interrupts, child, status_reader, sandbox)
                finally:
                    receiver.close()
                    # From here on nothing can be read.
                    self._hearing.uppers = None
        finally:
            if context.process is None:
                if apart:
                    os.close(status_reader)
                    os.close(status_writer)
                self._timers.resume()
                if forked_entry is not None:
                    forked_entry.close()
        if self._hearing.refusal is not None:
            self.delegated = False
            return self._hearing.refusal
        if self._hearing.last_report is not None:
            # The test process had them, too, and has reported them.
            forget_failures()
        if self._guarded:
            session.observers.guarded(item)
        else:
            session.observers.isolated(item, inline=False)
        raise context.delegate(item, "the test has run in a process of its own")

    def _forked_entry(self, plan: Plan) -> ForkedEntry:
        """The sandbox for the test process, made in this process where that is possible.

        Making it before the fork is faster: a new process pays a page fault for each page of
        memory that it touches. Raises :class:`SandboxError` if it cannot be made.
        """
        sandboxes = self._session.sandboxes
        manager = sandboxes.manager
        directory = sandboxes.uppers.new() if plan.upper.medium == "disk" else None
        layers, cwd = self._preparation.layers(), self._preparation.working_directory()
        outside = plan.user_namespace and (plan.fake_root or not manager.in_user_namespace)
        if outside:
            return ForkedEntry(plan, cwd, directory, makes_user_namespace=True)
        alone = is_alone() or layers is not None
        if plan.pid_namespace and alone:
            # Its /proc can only be mounted by a process in that PID namespace.
            return ForkedEntry(plan, cwd, directory, manager.stage, layers)
        if not alone:
            # This thread would have to stop sharing its working directory with the others
            # (CLONE_FS), as setns(2) demands.
            return ForkedEntry(plan, cwd, directory)
        sandbox = manager.make(plan, directory=directory, layers=layers)
        if self._session.trace.enabled:
            self._session.trace("mounted", *(one.mountpoint for one in sandbox.overlays))
        return ForkedEntry(plan, cwd, directory, manager.stage, layers, sandbox)

    def _listen(
        self,
        receiver: Receiver,
        interrupts: Interrupts,
        child: int,
        status_reader: int,
        sandbox: Sandbox | None,
    ) -> None:
        """Report what the test process sends until it has left or died, and reap it.

        The capture is suspended meanwhile.
        """
        __tracebackhide__ = True
        session = self._session
        leave: messages.Leave | None = None
        ended = garbled = False
        try:
            if sandbox is not None and self._preparation.goes_on_alike(self._nextitem):
                # There is time: the test runs now.
                session.sandboxes.manager.make_ahead(sandbox)
            for message in receiver.messages(interrupts):
                if isinstance(message, messages.Leave):
                    leave = message
                else:
                    self._hearing.hear(message, receiver)
            ended = True
        except pytest.exit.Exception:
            raise
        except channel.Garbled:
            garbled = True
        except (Exception, pytest_internals.OutcomeException) as error:  # noqa: BLE001 - of reporters
            # Not raised here: it would count as an error of the test's setup.
            self.finish.internal_error = error
        finally:
            if not ended:
                # A reporter failed here, or nobody can hear any more what the test does.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            status: int | None = None
            if leave is None or receiver.apart:
                status = processes.reap_soon(child)
            if status is None:
                # It is about to end, or it does not end.
                session.sandboxes.leaving.append(child)
            if receiver.apart:
                take_terminal_back()
        session.trace("left" if leave is not None else "died", self._item.nodeid)
        if self.finish.internal_error is not None:
            return
        died = leave is None and self._hearing.refusal is None
        self._hearing.test_has_ended(died=died)
        if died:
            if receiver.apart:
                status = read_status(status_reader, status)
            how = self._hearing.how_ended(receiver, status, garbled=garbled)
            self._hearing.process_has_died(how)
        elif leave is not None:
            self.finish.answer(leave, interrupted=receiver.interrupted)
        elif receiver.interrupted:
            raise KeyboardInterrupt
        self.finish.conclude(refused=self._hearing.refusal is not None)

    def _find_written(self, forked_entry: ForkedEntry, receiver: Receiver) -> Written:
        """What the sandbox has written. Raises :class:`SandboxError` if it was never entered."""
        made = forked_entry.sandbox
        scratch = _scratch(forked_entry, receiver)
        if scratch < 0 or self._hearing.uppers is None:
            raise SandboxError("read what the sandbox has written", cause="it was never entered")
        more = made.written_template_overlays() if made is not None else []
        # The test may have gone on to another root with the uppers that it had.
        there = {mountpoint for mountpoint, _ in self._hearing.uppers.overlays}
        more = [one for one in more if one.mountpoint not in there]
        plan = self._hearing.plan or forked_entry.plan
        return Written.of(plan, scratch, self._hearing.uppers, more, forked_entry.layers)


def prepare_fork(context: RunnerContext, item: pytest.Item, timers: Timers) -> None:
    """Before the pytest process forks one that runs ``item``: what both are to find done.

    The clocks in ``timers`` stand still from here on.
    """
    context.collect_garbage()
    context.phase[0] = channel.SETUP
    context.plugin_states.before_fork(item)
    timers.stop()
    with pytest_internals.capture_suspended(item.config):
        # Or both processes would write what is buffered.
        context.screen.flush()
    context.session.trace.flush()


def fork(interrupts: Interrupts) -> int:
    """Fork a process that runs tests. Returns its process id, 0 in that process.

    Raises :class:`SandboxError` if the kernel refuses it, and KeyboardInterrupt if a SIGINT has
    come that the process would not get.
    """
    try:
        with logging_locks.hold_locks():
            interrupts.restore_if_pending()
            return processes.fork()
    except OSError as error:
        what = "too many processes, or not enough memory"
        problem = SandboxError("fork a test process", said(error), what, "ulimit -u; free")
        raise problem from error


def _scratch(forked_entry: ForkedEntry, receiver: Receiver) -> int:
    """A descriptor of the directory in which the uppers lie; -1 if there is none."""
    made = forked_entry.sandbox
    # Of a fresh root the test process has sent another descriptor.
    return made.scratch if made and receiver.descriptor < 0 else receiver.descriptor
