"""What a test can do with the sandbox that it is in, in whichever process it runs."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from ..engine.plan.model import Plan
from ..engine.sandbox.sandbox import Sandbox
from ..engine.sandbox.stack import SandboxStack
from .context import RunnerContext


class TestInSandbox(ABC):
    """Those methods of :class:`.current.RunningTest` that change the sandbox.

    Whoever reads what the test has written is told of each change, and again when a checkpoint ends
    in which there was one: what was told in it is gone then.
    """

    __test__ = False

    _context: RunnerContext
    #: None before the sandbox is entered, and for a test that has none.
    _stack: SandboxStack | None = None
    #: How often somebody was told of another sandbox or mount.
    _told = 0

    @property
    def stack(self) -> SandboxStack:
        """The sandbox that the test is in, and those that it goes back to."""
        assert self._stack is not None
        return self._stack

    @abstractmethod
    def _tell_replaced(self, sandbox: Sandbox, plan: Plan | None) -> None:
        """Say that the test goes on in ``sandbox``, with the plan if it is another one.

        Raises :class:`SandboxError` if nobody can be told.
        """

    @abstractmethod
    def _tell_mounted(self, sandbox: Sandbox) -> None:
        """Say that something was mounted in ``sandbox``: see :meth:`_tell_replaced`.

        Its target may have been made for it, which is no change of the test's.
        """

    def _has_replaced(self, plan: Plan | None = None) -> None:
        self._told += 1
        self._tell_replaced(self.stack.sandbox, plan)

    def reset(self) -> None:
        """See :meth:`.current.RunningTest.reset`."""
        self._context.plugin_states.before_reset()
        self.stack.reset()
        self._has_replaced()

    def restack(self, find: Callable[[], Plan]) -> None:
        """See :meth:`.current.RunningTest.restack`."""
        self._has_replaced(self.stack.restack(find))

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """See :meth:`.current.RunningTest.bind`."""
        sandbox = self.stack.sandbox
        sandbox.bind(source, target, read_only=read_only)
        self._told += 1
        self._tell_mounted(sandbox)

    def make_own(self, path: str) -> None:
        """See :meth:`.current.RunningTest.make_own`."""
        sandbox = self.stack.sandbox
        if sandbox.make_own(path) and not self.stack.in_checkpoint:
            self._tell_mounted(sandbox)

    @contextlib.contextmanager
    def checkpoint(self) -> Iterator[None]:
        """See :meth:`.current.RunningTest.checkpoint`."""
        told, stack = self._told, self.stack
        try:
            with stack.checkpoint():
                try:
                    yield
                finally:
                    # If it was left open, another test may be running by now.
                    if not stack.is_left:
                        self._context.plugin_states.before_reset()
        finally:
            if self._told != told and not stack.is_left:
                self._has_replaced(self.stack.sandbox.plan)
