"""The test that is running in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, final

if TYPE_CHECKING:
    from ..engine.faults.injector import Injector
    from ..engine.plan.model import Plan
    from ..engine.sandbox.guard import Guard
    from ..engine.sandbox.stack import SandboxStack
    from ..pytest_internals import Phase


class RunningTest(Protocol):
    """A test in its sandbox, forked or inline, as fixtures and observers see it."""

    @property
    def stack(self) -> SandboxStack:
        """The sandbox that the test is in, and those that it goes back to."""
        ...

    @property
    def guard(self) -> Guard | None:
        """What it runs under where no sandbox can be made; there is no :attr:`stack` then."""
        ...

    @property
    def forked(self) -> bool:
        """Whether it runs in a process of its own, which ends with it."""
        ...

    def enter_phase(self, phase: Phase) -> None:
        """Note how far the test has got, for the report of a process that dies."""
        ...

    def reset(self) -> None:
        """Drop what was written and go on in a fresh root.

        Raises :class:`SandboxError` if there is none; the sandbox is then as it was.
        """
        ...

    def restack(self, find: Callable[[], Plan]) -> None:
        """Go on, with what was written so far, on the root that ``find`` plans.

        ``find`` is called where the host's mounts are visible. Raises :class:`SandboxError` if
        there can be no such root; the sandbox is then as it was.
        """
        ...

    def bind(self, source: str, target: str, *, read_only: bool) -> None:
        """Bind-mount the host's ``source`` at ``target``: see :meth:`.Sandbox.bind`.

        Raises :class:`SandboxError` if it cannot be mounted.
        """
        ...

    def make_own(self, path: str) -> None:
        """Make a directory a mount of its own: see :meth:`.Sandbox.make_own`.

        Raises :class:`SandboxError` if it cannot be mounted.
        """
        ...

    def checkpoint(self) -> AbstractContextManager[None]:
        """A context that drops, when it ends, what was written in it.

        Raises :class:`SandboxError` if it cannot begin.
        """
        ...

    def objection(self) -> str:
        """Ask the observers why the test fails for what it has written; "" if it does not."""
        ...


@final
class Current:
    """What runs in this process just now."""

    def __init__(self) -> None:
        #: The test that is in a sandbox in this process, None if there is none.
        self.test: RunningTest | None = None
        #: Where a Ctrl-C has met a test process, as the terminal shows it at the end of the run.
        self.interrupt: object = None
        #: Makes system calls of this test process fail; None if that was not asked for.
        self.injector: Injector | None = None
        #: What was done to the test on purpose, for the report of a failure: each returns the title
        #: of a section and its text, or None if there is nothing to say.
        self.told: list[Callable[[], tuple[str, str] | None]] = []

    def enter_phase(self, phase: Phase) -> None:
        """The test that is in a sandbox in this process, if there is one, begins this phase."""
        if self.test is not None:
            self.test.enter_phase(phase)
