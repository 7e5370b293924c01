"""Resets and checkpoints: the sandbox that a test is in, and those that it returns to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import final

from ..linux.errors import Unavailable
from ..linux.namespaces import close_all, working_directory
from ..plan.model import Bind, OwnDirectory, Plan
from .create import make
from .sandbox import Layers, Sandbox


@final
class SandboxStack:
    """The sandboxes of one test: the first one, and one for each checkpoint that it is in.

    This thread is in the last of them. ``release`` closes sandboxes that nobody is in.
    """

    def __init__(self, sandbox: Sandbox, release: Callable[[Sequence[Sandbox]], None]) -> None:
        self._stack = [sandbox]
        self._release = release
        #: Whether this thread has left all of them, for good.
        self.is_left = False

    @property
    def sandbox(self) -> Sandbox:
        """The one this thread is in."""
        return self._stack[-1]

    @property
    def in_checkpoint(self) -> bool:
        """Whether this thread is in a checkpoint, whose sandbox is dropped before the test ends."""
        return len(self._stack) > 1

    def reset(self) -> None:
        """Drop everything written so far, in checkpoints what was written before them as well.

        A new root of the same plan is entered. The working directory stays if it still exists, and
        so do mounts of :meth:`.Sandbox.bind`. Processes that the test has started stay in the old
        root. When a checkpoint ends, what was written before it is there again. Raises
        :class:`SandboxError` if there can be no new root; the sandbox is then as it was.
        """
        first = self._stack[0]
        fresh = _make_like(first, first.layers, self.sandbox.bound)
        self.sandbox.replace_with(fresh, self._stack[:-1])

    def restack(self, find: Callable[[], Plan]) -> Plan:
        """Put what was written so far on the lowers of another plan, and go on there.

        ``find`` returns the plan; it is called with the host's mounts as root. Returns that plan.
        Raises :class:`SandboxError` if there can be no such root; the sandbox is then as it was.
        """
        sandbox = self.sandbox
        with sandbox.on_stage():
            plan = find()
        sandbox.replace_with(_make_with_uppers_of(sandbox, plan), self._stack[:-1])
        return plan

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Drop, at the end of the context, what was written in it. Checkpoints nest.

        The working directory is then that of before. Raises :class:`SandboxError` if there can be
        none; the sandbox is then as it was. If the process cannot return from it, it ends.
        """
        outer, cwd = self.sandbox, working_directory()
        inner = _make_like(outer, outer.as_layers(), outer.bound, outer.own)
        inner.reopened = outer.reopened
        depth = len(self._stack)
        self._stack.append(inner)
        try:
            # If that fails, it may have moved already, and then a thread could not.
            inner.enter(cwd, others=self._stack)
            yield
        finally:
            # Checkpoints may be left open, in generators that are finished later or never. They
            # have ended with the one around them, or with the test.
            if inner in self._stack and not self.is_left:
                try:
                    outer.reenter(cwd, self._stack)
                finally:
                    dropped = self._stack[depth:]
                    del self._stack[depth:]
                    self._release(dropped)

    def left(self) -> None:
        """Note that this thread leaves them. No checkpoint returns to one of them any more."""
        self.is_left = True

    def close(self) -> None:
        """Let go of all of them. Nobody is in there any more."""
        self.left()
        self._release(self._stack)


def close(sandboxes: Sequence[Sandbox]) -> None:
    """Close sandboxes, and wait until they are unmounted."""
    close_all(fd for sandbox in sandboxes for fd in sandbox.take_descriptors() if fd >= 0)


def _make_like(
    sandbox: Sandbox,
    layers: Layers | None,
    bound: Sequence[Bind],
    own: Sequence[OwnDirectory] = (),
) -> Sandbox:
    """Make a sandbox of the same plan on these layers, which ``own`` are among.

    Raises :class:`SandboxError`.
    """
    return make(
        sandbox.plan,
        sandbox.stage,
        directory=sandbox.directory,
        directory_is_used=True,
        layers=layers,
        bound=bound,
        own=own,
        template=sandbox.template_without_overlays,
        template_without_overlays=sandbox.template_without_overlays,
    )


def _make_with_uppers_of(old: Sandbox, plan: Plan) -> Sandbox:
    """Make a sandbox of ``plan`` with the uppers of another one, which nobody may use any more.

    Raises :class:`Unavailable` on kernels that refuse it, and :class:`SandboxError`.
    """
    if not plan.features.layered_uppers:
        raise Unavailable(
            "put a layer under what was written",
            cause="before Linux 6.15 an upper cannot move from one overlay to another",
            remedy="Linux 6.15 or later; before, name it before the test starts: layers=[...] of"
            " the marker",
        )
    below = old.layers.lowers if old.layers else {}
    made = make(
        plan,
        old.stage,
        directory=old.directory,
        layers=old.layers,
        bound=old.bound,
        own=[one for one in old.own if one.target in below],
        reused=old.reusable_uppers(),
    )
    try:
        made.take_own(old, [one for one in old.own if one.target not in below])
    except BaseException:
        made.close()
        raise
    made.created |= old.created
    made.other_scratches = frozenset(old.own_directories - {old.scratch})
    return made
