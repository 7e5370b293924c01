"""One test's way through the gate, in the parent: fork, and listen."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any, Final, final

import pytest

from .. import pytest_internals
from ..engine.changes.changes import Changes
from ..engine.linux import processes
from ..engine.linux.errno_advice import explain
from ..engine.linux.errors import SandboxError, Unavailable, said
from ..engine.linux.job_control import take_terminal_back
from ..engine.linux.syscalls import put_stdout
from ..engine.plan.model import Plan
from ..engine.sandbox.forked import ForkedEntry
from ..engine.sandbox.written import Outline, Written, outline
from ..forking import channel, logging_locks
from ..forking.interrupts import Interrupts
from ..forking.receiver import Receiver
from ..reports.changes import Sorted, changes_key
from .child import Inheritance, TestProcess
from .finish import Death, Finish, describe
from .prepare import Preparation

if TYPE_CHECKING:
    from ..forking.timers import Timers
    from ..session.session import Gate

#: So many test processes may be on their way out while the next one runs.
_LEAVING: Final = 8
PHASES: Final[tuple[pytest_internals.Phase, ...]] = ("setup", "call", "teardown")

_GARBLED: Final = "the test has written to the socket of the plugin, and its process was ended"


@final
class ForkedTest:
    """One test's way through the gate, as the parent sees it."""

    def __init__(
        self, gate: Gate, item: pytest.Item, nextitem: pytest.Item | None, timers: Timers
    ) -> None:
        self._gate = gate
        self._item = item
        self.ending = Finish(gate, item, nextitem)
        self._timers = timers
        self._original_setup = item.setup
        self._preparation = Preparation(gate, item)
        self.delegated = False
        self._last_report: pytest.TestReport | None = None
        self._refusal: SandboxError | None = None
        self._changes = item.config.stash[changes_key]
        self._outline: Outline | None = None
        #: If it is another than in the beginning.
        self._plan: Plan | None = None
        #: What the sandbox has written, while that can be read.
        self._written: Callable[[], Written] | None = None

    @pytest_internals.unseen
    def setup(self) -> None:
        """In place of the item's setup."""
        __tracebackhide__ = True
        process = self._gate.process
        if process is not None:
            # Another attempt, by a plugin that runs a failed test again: a fresh root for it.
            process.reset()
            return self._original_setup()
        try:
            problem = self._delegate(self._preparation.prepare())
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

    def _delegate(self, plan: Plan) -> SandboxError | None:
        """Fork. Returns None in the test process; in the parent the reason if there is none.

        When the test process is done, it ends by an exception in the parent.
        """
        __tracebackhide__ = True
        gate, item = self._gate, self._item
        gate.settle()
        gate.phase[0] = channel.SETUP
        gate.plugin_states.look_up()
        self._timers.stop()
        with pytest_internals.capture_suspended(item.config):
            # Or whoever flushes next writes it once more.
            pytest_internals.flush_output(item.config)
        try:
            forked_entry = self._forked_entry(plan)
        except SandboxError as error:
            self._timers.resume()
            return error
        try:
            ours, theirs = channel.pair()
            try:
                status_reader, status_writer = os.pipe()
            except OSError:
                ours.close()
                theirs.close()
                raise
        except OSError as error:
            self._timers.resume()
            forked_entry.close()
            what = "open a channel to a test process"
            return SandboxError(what, said(error), *explain(error.errno or 0, False))
        forget_failures = pytest_internals.noted_failures(item.config)
        inheritance = Inheritance(
            os.getpid(), theirs, status_writer, random.getstate(), gate.fork_pages.before_fork()
        )
        try:
            with Interrupts() as interrupts:
                try:
                    with logging_locks.hold_locks():
                        interrupts.restore_if_pending()
                        child = processes.fork()
                except BaseException as error:
                    ours.close()
                    theirs.close()
                    if not isinstance(error, OSError):
                        raise
                    what = "too many processes, or not enough memory"
                    return SandboxError("fork a test process", said(error), what, "ulimit -u; free")
                if child == 0:
                    ours.close()
                    os.close(status_reader)
                    gate.fork_pages.in_child()
                    gate.scopes.closed = True
                    gate.process = gate.inside = TestProcess(
                        item, forked_entry, inheritance, gate.phase, gate.plugin_states, gate.keeper
                    )
                    gate.process.begin(gate.hooks, self._timers)
                    # Only now: a Ctrl-C during the way in ends the test, not the way.
                    interrupts.restore()
                    return None
                self.delegated = True
                theirs.close()
                gate.reap(spare=_LEAVING)
                receiver = Receiver(ours, child, gate.phase, apart=plan.pid_namespace)
                try:
                    self._written = partial(self._find_written, forked_entry, receiver)
                    if forked_entry.sandbox is not None:
                        self._outline = outline(forked_entry.sandbox)
                        with contextlib.suppress(OSError):
                            # Too many are open: then somebody waits.
                            forked_entry.sandbox.leave_to_child()
                    self._listen(receiver, interrupts, child, status_reader)
                finally:
                    receiver.close()
                    # From here on nothing can be read.
                    self._outline = None
        finally:
            if gate.process is None:
                os.close(status_reader)
                os.close(status_writer)
                self._timers.resume()
                forked_entry.close()
        if self._refusal is not None:
            self.delegated = False
            return self._refusal
        if self._last_report is not None:
            # The test process had them, too, and has reported them.
            forget_failures()
        gate.summary.isolated(item.nodeid)
        raise pytest_internals.Delegated("the test has run in a process of its own")

    def _forked_entry(self, plan: Plan) -> ForkedEntry:
        """The sandbox for the test process, made here where that is possible.

        Here what makes it is warm; in a new process each page that it touches costs a fault.
        Raises :class:`SandboxError`.
        """
        gate = self._gate
        directory = gate.uppers.new() if plan.upper.medium == "disk" else None
        layers, cwd = self._preparation.layers(), self._preparation.working_directory()
        outside = plan.user_namespace and (plan.fake_root or not gate.manager.in_user_namespace)
        if outside:
            return ForkedEntry(plan, cwd, directory, enter_user_namespace=True)
        alone = threading.active_count() == 1 or layers is not None
        if plan.pid_namespace and alone:
            # Its /proc can only be mounted from within.
            return ForkedEntry(plan, cwd, directory, gate.manager.stage, layers)
        if not alone:
            # To go anywhere, this thread would have to part with the others' working directory.
            return ForkedEntry(plan, cwd, directory)
        sandbox = gate.manager.make(plan, directory=directory, layers=layers)
        return ForkedEntry(plan, cwd, directory, gate.manager.stage, layers, sandbox)

    def _listen(
        self,
        receiver: Receiver,
        interrupts: Interrupts,
        child: int,
        status_reader: int,
    ) -> None:
        """Relay until the child has left or died, and reap it."""
        __tracebackhide__ = True
        config = self._item.config
        last_words: tuple[Any, ...] | None = None
        ended = garbled = False
        try:
            with pytest_internals.capture_suspended(config):
                for name, *content in receiver.frames(interrupts):
                    if name == "leave":
                        last_words = tuple(content)
                    elif name == "settle":
                        self.ending.log_teardown_early()
                        stopping = pytest_internals.stopping(self._item.session)
                        receiver.answer(*content, (pytest_internals.cursor(config), stopping))
                    elif name == "strays":
                        receiver.answer(self._changes.strays(self._item, self._read_changes))
                    else:
                        self._hear(name, *content)
            ended = True
        except pytest.exit.Exception:
            raise
        except channel.Garbled:
            garbled = True
        except Exception as error:  # noqa: BLE001 - of whichever reporter
            # Not raised here: it would count as an error of the test's setup.
            self.ending.internal_error = error
        finally:
            if not ended:
                # A reporter failed here, or nobody can hear any more what the test does.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            status = 0
            if last_words is not None and not receiver.apart:
                # It is on its way out, and nobody has to wait for that.
                self._gate.leaving.append(child)
            else:
                status = processes.reap(child)
            if receiver.apart:
                take_terminal_back()
        if self.ending.internal_error is not None:
            return
        died = last_words is None and self._refusal is None
        changed = self._look_at_changes(died=died)
        if died:
            if self._gate.keeper is not None:
                self._gate.keeper.capture(self._item, None, self._all_written)
            how = _GARBLED if garbled else describe(status_reader, status)
            out, err = pytest_internals.captured_so_far(config)
            phase = PHASES[min(self._gate.phase[0], channel.TEARDOWN)]
            self.ending.death = Death(
                how, phase, out, err, time.time(), self._read_changes, changed
            )
            self._gate.plugin_states.lost()
        elif last_words is not None:
            self.ending.answer(*last_words, interrupted=receiver.interrupted)
        elif receiver.interrupted:
            raise KeyboardInterrupt
        self.ending.conclude(refused=self._refusal is not None)

    def _find_written(self, forked_entry: ForkedEntry, receiver: Receiver) -> Written:
        made = forked_entry.sandbox
        # Of a fresh root the test process has sent another.
        scratch = made.scratch if made and receiver.descriptor < 0 else receiver.descriptor
        if scratch < 0 or self._outline is None:
            raise SandboxError("read what the sandbox has written", cause="it was never entered")
        more = made.touched() if made is not None else []
        view = forked_entry.layers.view if forked_entry.layers is not None else -1
        # It may have gone on to another root with the uppers that it had.
        there = {mountpoint for mountpoint, _ in self._outline[0]}
        more = [one for one in more if one.mountpoint not in there]
        return Written.of(self._plan or forked_entry.plan, scratch, self._outline, more, view)

    def _all_written(self) -> list[Written]:
        assert self._written is not None
        scopes = self._gate.scopes.sandboxes(self._item)
        return [*map(Written.of_sandbox, scopes), self._written()]

    def _read_changes(self) -> AbstractContextManager[Changes]:
        assert self._written is not None
        return self._written().changes()

    def _look_at_changes(self, *, died: bool) -> tuple[Sorted, str] | None:
        """For whoever wants to know what the test has changed, when it has ended."""
        entered = self._outline is not None and self._refusal is None
        if not entered or not self._changes.is_wanted(died=died):
            return None
        changed, self.ending.changes_failed = self._changes.ended(
            self._item, self._read_changes, died=died
        )
        return changed

    def _hear(self, name: str, *content: Any) -> None:
        if name == "report":
            packed, failed_subtests = content
            pytest_internals.set_failed_subtests(self._item, failed_subtests)
            report = self._last_report = channel.unpack_report(packed, self._item)
            self.ending.go_on()
            self._changes.complete(self._item, report, self._read_changes)
            if self._gate.keeper is not None:
                self._gate.keeper.capture(self._item, report, self._all_written)
            # What wider scopes say when they end belongs into this one.
            tell = self.ending.hold if report.when == "teardown" else self.ending.log
            tell("pytest_runtest_logreport", report=report)
        elif name == "warning":
            packed, when, nodeid = content
            message = channel.unpack_warning(packed)
            # With those of this process, which pytest hands over when the protocol has ended.
            if when != "runtest" or not pytest_internals.record_warnings([message]):
                arguments = {"warning_message": message, "when": when, "nodeid": nodeid}
                hook = self._item.ihook.pytest_warning_recorded
                hook.call_historic(kwargs={"location": None, **arguments})
        elif name in ("logstart", "logfinish"):
            nodeid, location = content
            self.ending.hold(f"pytest_runtest_{name}", nodeid=nodeid, location=location)
        elif name == "screen":
            cursor, live_log = content
            if cursor is not None:
                pytest_internals.set_cursor(self._item.config, *cursor)
            pytest_internals.set_live_log_state(self._item.config, live_log)
        elif name == "shown":
            if self._last_report is not None:
                pytest_internals.mark_as_shown(self._last_report)
        elif name == "printed":
            put_stdout(*content)
        elif name == "outline":
            (self._outline,) = content
        elif name == "planned":
            (self._plan,) = content
        elif name == "entered":
            (self._outline,) = content
            # A fresh root: what was said of the attempt before is complete.
            self.ending.log_held()
        elif name == "state":
            self._gate.plugin_states.merge(self._item, *content)
        elif name == "pages":
            self._gate.fork_pages.learn(*content)
        elif name == "refused":
            unavailable, *texts = content
            self._refusal = (Unavailable if unavailable else SandboxError)(*texts)
