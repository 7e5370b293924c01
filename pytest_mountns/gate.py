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
* Timers, threads, the faulthandler's watchdog: fork(2) leaves them behind. The interval timer is
  handed over, the others are not.
"""

from __future__ import annotations

import faulthandler
import gc
import mmap
import os
import random
import signal
import sys
import time
import warnings
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias, final

import pytest

from . import config as settings
from . import internals, relay
from .child import Inheritance, TestProcess, take_terminal
from .engine import disk
from .engine.errors import SandboxError, Unavailable
from .engine.plan import Plan
from .engine.planner import Planner
from .engine.spec import SandboxSpec

_PHASES: Final[tuple[internals.Phase, ...]] = ("setup", "call", "teardown")
_TEMPORARY: Final = frozenset({"tmp_path", "tmp_path_factory", "tmpdir", "tmpdir_factory"})

gate_key: Final = pytest.StashKey["Gate"]()
spec_key: Final = pytest.StashKey[SandboxSpec]()


#: A hook of reporters and what it is called with.
_Event: TypeAlias = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class _Death:
    """How a test process ended that never said it was done."""

    how: str
    phase: internals.Phase
    out: str
    err: str
    stop: float


class InternalErrorInTestProcess(Exception):
    """What would have been an INTERNALERROR without a fork."""


@final
class Gate:
    """What the tests of a session share: options, plans, and the test that is on its way."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.everything = settings.sandbox_everything(config)
        self.policy = settings.unavailable_policy(config)
        self.keys = settings.session_keys(config)
        self.planner = Planner([str(config.rootpath), sys.prefix])
        self.uppers = disk.DiskUppers()
        # A byte that both processes see: how far a test got that can no longer say so.
        self.phase = mmap.mmap(-1, 1)
        self.process: TestProcess | None = None
        self.foreground = _in_foreground()
        self.finisher = Finisher()
        #: The plugin whose hooks forward what is reported in the test process.
        self.hooks: object = None
        self._frozen = False

    def wants(self, item: pytest.Item) -> bool:
        """Whether ``item`` is to run in a sandbox, if there are to be any."""
        for mark in item.iter_markers():
            if mark.name in ("mountns", "no_mountns"):
                return mark.name == "mountns"
        fixtures: list[str] = getattr(item, "fixturenames", [])
        return bool(self.everything) or not settings.FIXTURES.isdisjoint(fixtures)

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
        passage = Passage(self, item)
        item.setup = passage.setup  # type: ignore[method-assign]
        result: object = True
        try:
            result = yield
        except internals.Delegated:
            pass
        except BaseException as error:
            if self.process is not None:
                self.process.leave(error)
            if passage.delegated:
                internals.drop(item)
            raise
        finally:
            item.__dict__.pop("setup", None)
        if self.process is not None:
            self.process.leave(None)
        # Not in the handler above: an error in here would be shown as a consequence of that one.
        if passage.delegated:
            self._finish(passage, item, nextitem)
        return result

    def _finish(self, passage: Passage, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        internals.drop(item)
        if item.session.shouldfail or item.session.shouldstop:
            nextitem = None
        if not internals.wider_teardown_is_due(item, nextitem):
            passage.finish()
            return
        self.finisher.work = lambda: passage.finish(nextitem, wider=True)
        try:
            internals.run_in_protocol(item, nextitem, self.finisher)
        finally:
            self.finisher.work = None

    def enter_phase(self, phase: internals.Phase) -> None:
        """Note, in the test process, how far it got."""
        if self.process is not None:
            self.phase[0] = _PHASES.index(phase)

    def freeze(self) -> None:
        """Once, before the first fork: or each child's first collection copies the heap."""
        if not self._frozen:
            self._frozen = True
            gc.collect()
            gc.freeze()

    def close(self) -> None:
        """At the end of the session."""
        if self._frozen:
            gc.unfreeze()
        self.planner.close()
        self.uppers.close()
        self.phase.close()


@final
class Finisher:
    """A plugin that, in place of running an item, tears down what ends with it.

    So that it happens where it always does: within pytest's own wrappers of the protocol, which
    record warnings and explain assertions.
    """

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        if self.work is None:
            return None
        self.work()
        return True


@final
class Passage:
    """One test's way through the gate, as the parent sees it."""

    def __init__(self, gate: Gate, item: pytest.Item) -> None:
        self._gate = gate
        self._item = item
        self._original_setup = item.setup
        self.delegated = False
        self._held: list[_Event] = []
        self._refusal: SandboxError | None = None
        self._death: _Death | None = None
        self._internal_error: str | None = None

    def setup(self) -> None:
        """In place of the item's setup."""
        __tracebackhide__ = True
        process = self._gate.process
        if process is not None:
            # Another attempt, by a plugin that runs a failed test again: a fresh root for it.
            process.reset()
            return self._original_setup()
        try:
            # Before wider fixtures do work for nothing, and again: they may have mounted something.
            self._plan()
            internals.fill_wider_fixtures(self._item)
            self._delegate(self._plan())
        except internals.Delegated:
            raise
        except BaseException:
            internals.forget_setup(self._item)
            raise
        # Only the test process comes back.
        return self._original_setup()

    def _plan(self) -> Plan:
        __tracebackhide__ = True
        if self._gate.everything is False:
            internals.skip_item("--no-mountns: this test runs in a sandbox or not at all")
        try:
            return self._gate.planner.plan(self._gate.spec(self._item))
        except pytest.UsageError as error:
            problem: pytest.UsageError | SandboxError = error
        except SandboxError as error:
            problem = error
        # Not in the handler: the report would say it twice.
        self._refuse(problem)

    def _refuse(self, error: SandboxError | pytest.UsageError) -> NoReturn:
        """Skip where the machine cannot and that is allowed; fail otherwise. Never run bare."""
        __tracebackhide__ = True
        if isinstance(error, Unavailable) and self._gate.policy == "skip":
            internals.skip_item(str(error))
        pytest.fail(str(error), pytrace=False)

    def _delegate(self, plan: Plan) -> None:
        """Fork. Returns in the test process; in the parent ends by an exception when it is done."""
        __tracebackhide__ = True
        gate, item = self._gate, self._item
        if not _TEMPORARY.isdisjoint(getattr(item, "fixturenames", ())):
            # Chosen once, in the parent: each child would choose its own and clean up others'.
            item.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        gate.freeze()
        gate.phase[0] = relay.SETUP
        faulthandler.cancel_dump_traceback_later()
        sys.stdout.flush()
        sys.stderr.flush()
        directory = gate.uppers.new() if plan.upper.medium == "disk" else None
        timer = signal.setitimer(signal.ITIMER_REAL, 0)
        ours, theirs = relay.pair()
        status_reader, status_writer = os.pipe()
        inheritance = Inheritance(os.getpid(), theirs, status_writer, timer, random.getstate())
        held = relay.InterruptsHeld()
        try:
            with held as interrupts:
                child = _fork()
                if child == 0:
                    ours.close()
                    os.close(status_reader)
                    gate.process = TestProcess(item, plan, inheritance, gate.phase)
                    gate.process.begin(gate.hooks, directory)
                    # Only now: a Ctrl-C during the way in ends the test, not the way.
                    held.release()
                    return
                self.delegated = True
                theirs.close()
                receiver = relay.Receiver(ours, child, gate.phase, apart=plan.pid_namespace)
                try:
                    self._listen(receiver, interrupts, child, status_reader)
                finally:
                    receiver.close()
        finally:
            if gate.process is None:
                os.close(status_reader)
                os.close(status_writer)
                if timer[0]:
                    signal.setitimer(signal.ITIMER_REAL, *timer)
                if directory is not None:
                    disk.remove(directory)
        if self._refusal is not None:
            internals.forget_setup(item)
            self.delegated = False
            self._refuse(self._refusal)
        raise internals.Delegated("the test has run in a process of its own")

    def _listen(
        self, receiver: relay.Receiver, interrupts: int, child: int, status_reader: int
    ) -> None:
        """Relay until the child has left or died, and reap it."""
        __tracebackhide__ = True
        config = self._item.config
        last_words: tuple[str, ...] | None = None
        ended = False
        try:
            with internals.capture_suspended(config):
                for name, *content in receiver.frames(interrupts):
                    if name == "leave":
                        last_words = tuple(content)
                    else:
                        self._hear(name, *content)
            ended = True
        finally:
            if not ended:
                # A reporter failed here: without its parent the test has no business to go on.
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if self._gate.foreground:
                # A debugger in a test with pid=True has taken the terminal.
                take_terminal()
        if last_words is None and self._refusal is None:
            how = _describe(_test_status(status_reader, status))
            out, err = internals.captured_so_far(config)
            phase = _PHASES[min(self._gate.phase[0], relay.TEARDOWN)]
            self._death = _Death(how, phase, out, err, time.time())
        elif last_words is not None:
            self._answer(*last_words, interrupted=receiver.interrupted)

    def _hear(self, name: str, *content: Any) -> None:
        if name == "report":
            packed, failed_subtests = content
            internals.set_failed_subtests(self._item, failed_subtests)
            report = relay.unpack_report(packed, self._item.config)
            self._log_held()
            event = ("pytest_runtest_logreport", {"report": report})
            if report.when == "teardown":
                # What wider scopes say when they end belongs into this one.
                self._held.append(event)
            else:
                self._log(event)
        elif name == "warning":
            packed, when, nodeid = content
            message = relay.unpack_warning(packed)
            arguments = {"warning_message": message, "when": when, "nodeid": nodeid}
            self._item.ihook.pytest_warning_recorded.call_historic(
                kwargs={**arguments, "location": None}
            )
        elif name in ("logstart", "logfinish"):
            nodeid, location = content
            self._held.append((f"pytest_runtest_{name}", {"nodeid": nodeid, "location": location}))
        elif name == "refused":
            unavailable, *texts = content
            self._refusal = (Unavailable if unavailable else SandboxError)(*texts)

    def _log(self, event: _Event) -> None:
        name, arguments = event
        getattr(self._item.ihook, name)(**arguments)

    def _log_held(self) -> None:
        while self._held:
            self._log(self._held.pop(0))

    def _answer(self, name: str, *content: str, interrupted: bool) -> None:
        """End in the parent as the protocol has ended in the child."""
        __tracebackhide__ = True
        if not name and not interrupted:
            return
        self._log_held()
        if name == "Exit":
            reason, code = content
            raise pytest.exit.Exception(reason, int(code) if code else None)
        if name == "error":
            self._internal_error = content[0]
            return
        raise KeyboardInterrupt

    def finish(self, nextitem: pytest.Item | None = None, *, wider: bool = False) -> None:
        """In the parent, when the child is done: report what is left to report.

        ``wider``: tear down first what ends with the item.
        """
        if self._internal_error is not None:
            raise InternalErrorInTestProcess(self._internal_error)
        if self._death is not None:
            self._log_held()
            self._report_death(self._death)
        if wider:
            self._add_wider_teardown(*internals.tear_down_wider(self._item, nextitem))
        self._log_held()

    def _report_death(self, death: _Death) -> None:
        """The reports a dead process owes: the phase it died in failed, the teardown is ours."""
        item = self._item
        report = internals.failed_report(
            item, f"{death.how} during {death.phase}", death.phase, death.stop
        )
        for key, content in (("stdout", death.out), ("stderr", death.err)):
            if content:
                report.sections.append((f"Captured {key} {death.phase}", content))
        if death.phase != "teardown":
            self._log(("pytest_runtest_logreport", {"report": report}))
            report = internals.passed_report(item, "teardown")
        where = {"nodeid": item.nodeid, "location": item.location}
        self._held.append(("pytest_runtest_logreport", {"report": report}))
        self._held.append(("pytest_runtest_logfinish", where))

    def _add_wider_teardown(
        self, call: pytest.CallInfo[None], sections: list[tuple[str, str]]
    ) -> None:
        for _, arguments in self._held:
            if "report" in arguments:
                internals.merge_teardown(self._item, arguments["report"], call, sections)
                return


def _in_foreground() -> bool:
    """Whether this process may read from its terminal; False without one."""
    try:
        with open("/dev/tty", "rb", buffering=0) as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def _fork() -> int:
    """os.fork(), without the warning of Python 3.12 and later about threads.

    The child of this fork uses none of the parent's threads; a warning turned into an error
    would end the session. Raises :class:`SandboxError`.
    """
    try:
        if sys.version_info < (3, 12):
            return os.fork()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return os.fork()
    except OSError as error:
        raise SandboxError(
            "fork a test process",
            str(error),
            "too many processes, or not enough memory",
            "ulimit -u; free -m",
        ) from error


def _test_status(reader: int, status: int) -> int:
    """The wait status of the test process, which with ``pid=True`` only its init has seen."""
    os.set_blocking(reader, False)
    try:
        data = os.read(reader, 4)
    except BlockingIOError:
        return status
    return int.from_bytes(data, "little") if len(data) == 4 else status


def _describe(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = "a real-time signal"
        return f"the test process was ended by {name} (signal {-code})"
    return f"the test process exited with status {code}, before the test was done,"
