"""The sandbox that a test is in, and those it goes back to: resets and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

from .enter import Sandbox
from .moving import working_directory


@final
class Rooms:
    """The sandboxes of one test, innermost last. This thread is in that one."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._stack = [sandbox]

    @property
    def sandbox(self) -> Sandbox:
        """The one this thread is in."""
        return self._stack[-1]

    def reset(self) -> None:
        """Drop everything written so far, before checkpoints as well, for as long as they last.

        Raises :class:`SandboxError`.
        """
        self.sandbox.become(self._stack[0].fresh(self.sandbox.bound))

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Drop, afterwards, what was written meanwhile. Nests.

        The working directory is then the one of before. Raises :class:`SandboxError`, the
        sandbox being as it was; a failure to go back ends the process.
        """
        outer, cwd = self.sandbox, working_directory()
        inner = outer.layer()
        try:
            inner.join(cwd)
        except BaseException:
            inner.close()
            raise
        self._stack.append(inner)
        depth = len(self._stack)
        try:
            yield
        finally:
            # Also out of a checkpoint in a generator that was never finished.
            dropped = self._stack[depth - 1 :]
            del self._stack[depth - 1 :]
            outer.join_again(cwd)
            for sandbox in dropped:
                sandbox.close()

    def close(self) -> None:
        """Let go of all; nobody is in there any more."""
        for sandbox in self._stack:
            sandbox.close()
