"""The test process: a fork of the pytest process that enters the sandbox and runs one item.

It never returns to the loop over items.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError
from ..engine.linux.untouched import os
from ..engine.plan.model import Plan, User
from ..engine.sandbox.forked import ForkedEntry
from ..engine.sandbox.sandbox import Sandbox
from ..engine.sandbox.stack import SandboxStack, close
from ..forking import messages
from ..forking.timers import Timers
from ..session.exploring import start_faults
from ..session.temporary import USER_TEMPORARY
from .context import RunnerContext
from .in_sandbox import TestInSandbox
from .reporting import Inheritance, ReportingProcess, leave_message

if TYPE_CHECKING:
    from ..engine.sandbox.guard import Guard


@final
class TestProcess(ReportingProcess, TestInSandbox):
    """This process, from the fork to its end. Implements :class:`.current.RunningTest`."""

    #: See :attr:`.current.RunningTest.forked`.
    forked = True

    def __init__(
        self,
        context: RunnerContext,
        item: pytest.Item,
        entry: ForkedEntry | Guard,
        inheritance: Inheritance,
    ) -> None:
        super().__init__(context, item, inheritance)
        self._entry = entry
        #: See :attr:`.current.RunningTest.guard`.
        self.guard = None if isinstance(entry, ForkedEntry) else entry

    def begin(self, timers: Timers) -> None:
        """Enter the sandbox. Where that is not possible, say why and end this process."""
        try:
            pytest_internals.stop_at_item(self._item)
            self._inherit()
            if not isinstance(self._entry, ForkedEntry):
                self._enter_guard(self._entry)
            else:
                self._stack = SandboxStack(self._enter(self._entry), close)
                if self._entry.sandbox is None:
                    self._has_replaced()
        except SandboxError as error:
            self._refuse(error)
        except BaseException as error:  # noqa: BLE001 - going on would be going on un-isolated
            self._refuse(SandboxError("enter the sandbox", leave_message(error).text))
        trace = self._session.trace
        if self._stack is None:
            trace("guarded", self._item.nodeid)
        else:
            if trace.enabled and isinstance(self._entry, ForkedEntry) and not self._entry.sandbox:
                trace("mounted", *(one.mountpoint for one in self.stack.sandbox.overlays))
            trace("entered", self._item.nodeid)
            if faults := self._session.selection.spec(self._item).faults:
                self._start_faults(faults)
        # In the process that runs the test: with a PID namespace there was another fork.
        self._context.plugin_states.begin(self._item)
        if self._stack is not None:
            self._session.observers.entered(self._item, self)
        timers.start_in_child()

    def _start_faults(self, faults: tuple[str, ...]) -> None:
        """Have system calls fail from here on, as the marks of the item ask for it."""
        dropped = self.stack.sandbox.plan.drops_capabilities
        # More may be asked for in the test, and the filter cannot be changed then.
        everything = "overlay_root" in getattr(self._item, "fixturenames", ())
        current = self._session.current
        try:
            start_faults(current, faults, dropped=dropped, everything=everything)
        except SandboxError as error:
            self._refuse(error)

    def _enter_guard(self, guard: Guard) -> None:
        try:
            guard.enter(self._inheritance.parent)
        finally:
            self.sender.adopt()

    def _enter(self, entry: ForkedEntry) -> Sandbox:
        parent, status = self._inheritance.parent, self._inheritance.status
        user = entry.plan.user
        try:
            sandbox = entry.enter(parent, status)
        finally:
            # With a PID namespace this is another process than before.
            self.sender.adopt()
        if status >= 0:
            os.close(status)
        if user is not None:
            self._make_temporary_directory(user)
        entry.drop_privileges(parent)
        if user is not None:
            for name, value in user.variables().items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        return sandbox

    def _make_temporary_directory(self, user: User) -> None:
        if pytest_internals.basetemp(self._item.config) is None:
            return
        # Root's own directory is closed to other users.
        base = os.path.join(tempfile.gettempdir(), USER_TEMPORARY)
        with contextlib.suppress(OSError):
            # It cannot be made in a read-only root.
            os.makedirs(base, mode=0o700, exist_ok=True)
            os.chown(base, user.uid, user.gid)
        pytest_internals.set_basetemp(self._item.config, Path(base))

    def objection(self) -> str:
        """See :meth:`.current.RunningTest.objection`."""
        return self.sender.ask_objection()

    def reset(self) -> None:
        """See :meth:`.current.RunningTest.reset`."""
        super().reset()
        user = self.stack.sandbox.plan.user
        if user is not None:
            # It was there when the test began.
            self._make_temporary_directory(user)

    def begin_again(self) -> None:
        """See :meth:`.context.ProcessOfTest.begin_again`."""
        if self._stack is None:
            # A guard has nothing to drop.
            return
        injector = self._session.current.injector
        with injector.begin_again() if injector is not None else contextlib.nullcontext():
            self.reset()
        self._session.observers.entered(self._item, self)

    def _tell_replaced(self, sandbox: Sandbox, plan: Plan | None) -> None:
        if plan is not None:
            self._tell(messages.Planned(plan))
        self._tell(messages.Entered(sandbox.describe_uppers()), descriptor=sandbox.scratch)

    def _tell_mounted(self, sandbox: Sandbox) -> None:
        self._tell(messages.Mounted(sandbox.describe_uppers()))

    def explains(
        self, error: PermissionError, report: pytest.CollectReport | pytest.TestReport
    ) -> bool:
        """Whether a plugin has met this error since the test runs as another user than pytest.

        It is one of a pipe of :mod:`..session.runner_pipes`, which belongs to the user of the
        pytest process. A section of the report says it then. As an error of a hook it would end
        the whole run.
        """
        user = self._entry.plan.user if isinstance(self._entry, ForkedEntry) else None
        if user is None or error.filename not in self._session.sandboxes.pipes.paths:
            return False
        text = (
            f"{error.filename} cannot be opened as {user.name}, the user of this test, so the"
            " program that has started pytest does not hear of this failure by that pipe. Likely"
            " cause: the pipe is open to its owner only. Remedy: chmod a+w, where that program"
            " makes the pipe."
        )
        report.sections.append(("mountns", text))
        return True
