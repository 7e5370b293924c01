"""The process of a module: a fork of the pytest process that runs tests of one module.

Each test runs as inline tests do, see :mod:`.inline`: the process enters a sandbox for it and
returns. Fixtures of class and module scope are set up and torn down here, on the host. What lies
wider has been set up by the pytest process, which also tears it down.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Sequence
from typing import NoReturn, final

import pytest

from .. import pytest_internals
from ..engine.linux import syscalls
from ..engine.linux.errors import SandboxError
from ..engine.linux.left_processes import names_of_running
from ..engine.linux.pid_namespace import die_with_parent
from ..engine.linux.untouched import signal
from ..engine.plan.model import Plan
from ..engine.sandbox.sandbox import Sandbox
from ..forking import messages
from ..forking.channel import LEAVING, SETUP
from ..forking.timers import Timers
from ..session.observers import WrittenByTest
from .context import RunnerContext
from .inline import InlineTest
from .reporting import Inheritance, ReportingProcess, leave_message

_SIGINT = frozenset({signal.SIGINT})


@final
class ModuleChild(ReportingProcess):
    """This process, from the fork to its end. Implements :class:`.inline.Listener`.

    It is a :class:`.context.ProcessOfTest` and :class:`.context.ProcessOfModule` as well. ``ends``
    says whether there is no other test for it than ``item``.
    """

    def __init__(
        self,
        context: RunnerContext,
        item: pytest.Item,
        inheritance: Inheritance,
        *,
        ends: bool,
    ) -> None:
        super().__init__(context, item, inheritance)
        self._ends = ends
        #: The last test, until the pytest process has read what it has written.
        self._test: InlineTest | None = None
        #: Whether the pytest process has called the hook that says that the test starts.
        self._start_is_logged = False

    def begin(self, timers: Timers) -> None:
        """Become the process of a module. Where that fails, say why and end this process."""
        try:
            die_with_parent(self._inheritance.parent)
            self._inherit()
            pytest_internals.keep_own_finalizers(self._item, lambda: self._ends)
            self._session.sandboxes.begin_in_fork()
        except SandboxError as error:
            self._refuse(error)
        except BaseException as error:  # noqa: BLE001 - as in a test process
            self._refuse(SandboxError("begin the process of a module", leave_message(error).text))
        self._context.plugin_states.begin(self._item)
        timers.start_in_child()

    def new_test(self, item: pytest.Item, nextitem: pytest.Item | None) -> InlineTest:
        """The test that ``item`` is run as."""
        # The pytest process could not read overlays that are shared with other tests.
        test = self._test = InlineTest(
            self._context, item, None if self._ends else nextitem, self, shares_overlays=False
        )
        return test

    def interrupted(self, error: BaseException) -> NoReturn:
        """The protocol of the first item was ended by ``error``: end this process."""
        if self._test is not None:
            with contextlib.suppress(BaseException):
                pytest_internals.tear_down_function_scope(self._item)
            self._test.leave()
        self.leave(error)

    def serve(self) -> NoReturn:
        """The first test has ended: run what the pytest process sends until there is no more."""
        try:
            if self._test is not None:
                self._context.objected_too_late(self._item, self._test.leave())
            self._test_has_ended()
            while isinstance(command := self.sender.next_command(), messages.RunTest):
                self._run(command)
                self._test_has_ended()
            if command is None:
                # The pytest process is gone.
                syscalls.exit_now(1)
        except OSError:
            # The test has closed the channel: this process ends as if it had crashed.
            syscalls.exit_now(1)
        except BaseException as error:  # noqa: BLE001 - the session ends
            self.leave(error)
        self._end()

    def _test_has_ended(self) -> None:
        if self.sender.is_copy:
            # The test has forked and let the copy return up the stack: nobody waits for it.
            syscalls.exit_now(0)
        # While it waits, a Ctrl-C is the pytest process's.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGINT)
        self._context.phase[0] = LEAVING
        self._screen.flush()
        self._send_notes()
        self.sender.send(messages.TestDone(pytest_internals.is_torn_down(self._item)))

    def _run(self, command: messages.RunTest) -> None:
        plugin_states = self._context.plugin_states
        for name, packed in command.notes:
            plugin_states.merge(self._item, name, packed)
        self._let_go()
        items = self._item.session.items
        item = self._item = items[command.number]
        nextitem = None if command.next_number is None else items[command.next_number]
        self._ends = command.ends
        self._start_is_logged = True
        # A test may have changed its user, which clears it.
        die_with_parent(self._inheritance.parent)
        self._screen.set_cursor(*command.cursor)
        plugin_states.before_fork(item)
        plugin_states.begin(item)
        self._context.phase[0] = SETUP
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGINT)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=nextitem)

    def _end(self) -> NoReturn:
        """End this process, and tear down what is still set up: the session has ended early."""
        self._let_go()
        # What was noted up to now was sent.
        self._context.plugin_states.before_fork(self._item)
        self._context.plugin_states.begin(self._item)
        while signal.sigtimedwait(_SIGINT, 0) is not None:
            # Of the Ctrl-C that has ended the session.
            pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGINT)
        try:
            pytest_internals.tear_down_item(self._item)
        except KeyboardInterrupt:
            pass
        except BaseException as error:  # noqa: BLE001 - of fixtures
            text = "".join(traceback.format_exception_only(error)).rstrip()
            self.sender.send(messages.TeardownFailed(text))
        self.leave(None)

    def _let_go(self) -> None:
        test, self._test = self._test, None
        if test is not None:
            test.end()

    def log_start(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logstart`` in this process."""
        if self._start_is_logged:
            self._start_is_logged = False
            return
        super().log_start(nodeid, location)

    def begin_again(self) -> None:
        """Nothing to do: each attempt at a test enters a sandbox of its own."""

    def entered(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """See :meth:`.inline.Listener.entered`."""
        self._tell(messages.Entered(sandbox.describe_uppers()), descriptor=sandbox.scratch)

    def replaced(self, sandbox: Sandbox, plan: Plan | None = None) -> None:
        """See :meth:`.inline.Listener.replaced`."""
        if plan is not None:
            self._tell(messages.Planned(plan))
        self._tell(messages.Entered(sandbox.describe_uppers()), descriptor=sandbox.scratch)

    def mounted(self, sandbox: Sandbox) -> None:
        """See :meth:`.inline.Listener.mounted`."""
        self._tell(messages.Mounted(sandbox.describe_uppers()))

    def leaving(self) -> None:
        """End this process if it is a copy that the test has forked: the way back is not its."""
        if self.sender.is_copy:
            syscalls.exit_now(0)

    def left_running(self, item: pytest.Item, children: Sequence[int]) -> str:
        """See :meth:`.inline.Listener.left_running`."""
        objection = self._session.observers.left_running(item, children)
        if children and not objection and (names := names_of_running(children)):
            self.sender.send(messages.EndedProcesses(names))
        return objection

    def objection(self, item: pytest.Item, written: WrittenByTest) -> str:
        """See :meth:`.inline.Listener.objection`."""
        # To ask for nothing would cost each test a moment of waiting.
        if self._session.selection.spec(item).writes is None:
            return ""
        return self.sender.ask_objection()

    def ended(self, item: pytest.Item, written: WrittenByTest) -> BaseException | None:
        """The pytest process does it when the test is done."""
        return None

    def left(self, item: pytest.Item, sandbox: Sandbox) -> None:
        """The pytest process does it when the test is done."""

    def want_layers(self) -> bool:
        """The pytest process reads what was written when the test is done."""
        return True
