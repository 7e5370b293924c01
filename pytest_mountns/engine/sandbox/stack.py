"""The sandbox that a test is in, and those it goes back to: resets and checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from ..linux.errors import Unavailable
from ..linux.namespaces import working_directory
from ..plan.model import Bind, Plan
from .create import make
from .sandbox import Layers, Sandbox


@final
class SandboxStack:
    """The sandboxes of one test, innermost last. This thread is in that one.

    ``release`` lets go of sandboxes.
    """

    def __init__(self, sandbox: Sandbox, release: Callable[[Sequence[Sandbox]], None]) -> None:
        self._stack = [sandbox]
        self._release = release

    @property
    def sandbox(self) -> Sandbox:
        """The one this thread is in."""
        return self._stack[-1]

    def reset(self) -> None:
        """Drop everything written so far, before checkpoints as well, for as long as they last.

        A new root of the same plan is entered now. The working directory is kept where it still
        exists, and so is what :meth:`.Sandbox.bind` has mounted. Processes the test has started
        stay in the old root. Raises :class:`SandboxError`; the sandbox is then as it was.
        """
        first = self._stack[0]
        fresh = _another(first, first.layers, self.sandbox.bound)
        self.sandbox.become(fresh, self._stack[:-1])

    def restack(self, find: Callable[[], Plan]) -> Plan:
        """Go on, with what was written so far, as ``find`` plans, and return that.

        It is called among the host's mounts. Raises :class:`SandboxError`.
        """
        sandbox = self.sandbox
        with sandbox.on_stage():
            plan = find()
        sandbox.become(_on(plan, sandbox), self._stack[:-1])
        return plan

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Drop, afterwards, what was written meanwhile. Nests.

        The working directory is then the one of before. Raises :class:`SandboxError`, the
        sandbox being as it was; a failure to go back ends the process.
        """
        outer, cwd = self.sandbox, working_directory()
        inner = _another(outer, outer.as_layers(), outer.bound)
        try:
            inner.join(cwd, kin=self._stack)
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
            outer.join_again(cwd, self._stack)
            self._release(dropped)

    def close(self) -> None:
        """Let go of all; nobody is in there any more."""
        self._release(self._stack)


def close(sandboxes: Sequence[Sandbox]) -> None:
    """Let go of sandboxes, and wait for that."""
    for sandbox in sandboxes:
        sandbox.close()


def _another(of: Sandbox, layers: Layers | None, bound: Sequence[Bind]) -> Sandbox:
    """A sandbox of the same plan on these layers. Nobody is in it. Raises :class:`SandboxError`."""
    return make(
        of.plan,
        of.stage,
        directory=of.directory,
        layers=layers,
        bound=bound,
        template=of.base,
        base=of.base,
        directory_is_used=True,
    )


def _on(plan: Plan, old: Sandbox) -> Sandbox:
    """A sandbox of another plan with the uppers of the old one, which is to be left alone then."""
    if not plan.features.layered_uppers:
        raise Unavailable(
            "put a layer under what was written",
            cause="before Linux 6.15 an upper cannot move from one overlay to another",
            remedy="name it before the test starts: layers=[...] of the marker",
        )
    made = make(
        plan,
        old.stage,
        directory=old.directory,
        layers=old.layers,
        bound=old.bound,
        reused=old.reusable_uppers(),
    )
    made.created |= old.created
    made.borrowed = frozenset(old.own_directories - {old.scratch})
    return made
