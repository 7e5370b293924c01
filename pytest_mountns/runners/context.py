"""What the runners of one session share with each other."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, final

import pytest

from .. import pytest_internals
from ..engine.linux.untouched import os
from ..plugin_state import PluginStates
from ..session.fixture_scopes import FixtureScopes
from ..session.session import Session

if TYPE_CHECKING:
    import mmap

    from ..engine.linux.fork_pages import ForkPages
    from ..forking.timers import Timers
    from .finisher import Finisher
    from .shared_directory import SharedDirectory


#: What fails no test.
ENDS_SESSION: Final = (KeyboardInterrupt, pytest.exit.Exception)


class ProcessOfTest(Protocol):
    """This process, if it is a test process, as the plugin's hooks use it: they forward to it."""

    def log_start(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logstart`` was called in this process."""
        ...

    def log_finish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """``pytest_runtest_logfinish`` was called in this process."""
        ...

    def report(self, report: pytest.TestReport) -> None:
        """``pytest_runtest_logreport`` was called in this process."""
        ...

    def warning(self, message: warnings.WarningMessage, when: str, nodeid: str) -> None:
        """``pytest_warning_recorded`` was called in this process."""
        ...

    def interacts(self, report: pytest.CollectReport | pytest.TestReport) -> Callable[[], None]:
        """``pytest_exception_interact`` begins in this process. Returns what to call at its end."""
        ...

    def explains(
        self, error: PermissionError, report: pytest.CollectReport | pytest.TestReport
    ) -> bool:
        """Whether the report says why a plugin cannot open its pipe as the user of this test."""
        ...

    def note(self, kind: str, why: str) -> None:
        """Have observers in the pytest process hear this: see :meth:`RunnerContext.note_once`."""
        ...

    def skipped(self) -> None:
        """Have them hear that the test is skipped since this machine cannot isolate it."""
        ...

    def begin_again(self) -> None:
        """Begin another attempt at the test, in a fresh root.

        Raises :class:`SandboxError` if there is none.
        """
        ...

    def hand_over_warnings(self) -> None:
        """Report what was warned of, as pytest does at the end of the protocol."""
        ...

    def leave(self, error: BaseException | None) -> NoReturn:
        """End this process: the protocol of its item has ended, by ``error`` if there is one."""
        ...


class TestInside(Protocol):
    """A test that a process enters a sandbox for, and returns: see :class:`.inline.InlineTest`."""

    #: The test.
    item: pytest.Item

    def setup(self) -> None:
        """In place of the item's setup: enter the sandbox first."""
        ...

    def leave(self) -> BaseException | None:
        """Return to the host, if this process is in the sandbox.

        Returns what the test fails for: see :meth:`RunnerContext.objected_too_late`.
        """
        ...

    def end(self) -> None:
        """Let go of the sandbox."""
        ...


class ProcessOfModule(Protocol):
    """This process, if it is the process of a module, as the runner uses it."""

    def new_test(self, item: pytest.Item, nextitem: pytest.Item | None) -> TestInside:
        """The inline test that ``item`` is run as."""
        ...

    def serve(self) -> NoReturn:
        """The protocol of the first item has ended: run others, and end this process."""
        ...

    def interrupted(self, error: BaseException) -> NoReturn:
        """The protocol of the first item was ended by ``error``: end this process."""
        ...


@final
class RunnerContext:
    """The session, and what running its tests takes besides."""

    def __init__(
        self, config: pytest.Config, session: Session, hooks: object, finisher: Finisher
    ) -> None:
        self.config = config
        self.session = session
        #: The plugin whose hooks forward what is reported in a test process.
        self.hooks = hooks
        #: The plugin that tears down in place of an item.
        self.finisher = finisher
        #: What other plugins keep in memory while tests run.
        self.plugin_states = PluginStates(config)
        #: Sandboxes of wider fixtures.
        self.fixture_scopes = FixtureScopes(session.selection, session.sandboxes)
        #: This process, if it is a test process.
        self.process: ProcessOfTest | None = None
        #: The same if it is the process of a module.
        self.module_child: ProcessOfModule | None = None
        #: What has ended the setup of the running item in the pytest process, if a test process has
        #: gone on from there; None before that, and in a test process.
        self.delegated: pytest_internals.Delegated | None = None
        #: The clocks of the item whose protocol is running.
        self.timers: Timers | None = None
        #: What inline tests have in common with this process; None before the first of them.
        self.shared_directory: SharedDirectory | None = None
        self._pages: tuple[bool, ForkPages] | None = None
        self._phase: mmap.mmap | None = None
        self._screen: pytest_internals.Screen | None = None
        self._collected = False
        self._noted: set[str] = set()

    def delegate(self, item: pytest.Item, how: str) -> pytest_internals.Delegated:
        """In the pytest process, in the setup of ``item``, which a test process has run.

        Returns what is to be raised there, to leave it.
        """
        self.plugin_states.before_wrappers_end(item)
        self.delegated = pytest_internals.Delegated(how)
        return self.delegated

    def note_once(self, kind: str, why: str) -> None:
        """Tell observers what is :meth:`.Observer.beside` the tests, once for each kind."""
        if kind in self._noted:
            return
        self._noted.add(kind)
        if self.process is not None:
            self.process.note(kind, why)
        else:
            self.session.observers.beside(why)

    def objected_too_late(self, item: pytest.Item, problem: BaseException | None) -> None:
        """The teardown of ``item`` would have failed by ``problem``, but it is reported already.

        It was kept from ending in the sandbox by a hook of another plugin, which has raised.
        """
        if problem is None:
            return
        if isinstance(problem, ENDS_SESSION):
            raise problem
        text = "".join(traceback.format_exception_only(problem)).rstrip()
        pytest_internals.warn_of(item, f"mountns: noticed after the teardown was reported: {text}")

    @property
    def screen(self) -> pytest_internals.Screen:
        """The terminal, to which test processes write, too."""
        # Looked up before the first of them is forked, when every plugin is loaded.
        if self._screen is None:
            self._screen = pytest_internals.Screen(self.config)
        return self._screen

    @property
    def phase(self) -> mmap.mmap:
        """A byte that a test process and this process share: how far the test has got.

        It is read when the test process has died. This process writes to it before it forks.
        """
        if self._phase is None:
            from mmap import mmap

            self._phase = mmap(-1, 1)
        return self._phase

    def pages(self, *, of_module: bool) -> ForkPages | None:
        """The pages of memory that the kernel copies for a forked process within fork(2).

        ``of_module``: for the process of a module, else for one of a test. In a run that has both
        it is None for those that come second: the two kinds write to different pages. First called
        before a fork, as :attr:`phase`: what only forks need is loaded then.
        """
        if self._pages is None:
            from ..engine.linux.fork_pages import ForkPages

            workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
            # The first process of a module runs many tests, so what it writes to is typical.
            learning = (1, (1, 16, 256)) if of_module else ()
            self._pages = of_module, ForkPages(workers, *learning)
        is_of_module, pages = self._pages
        return pages if is_of_module == of_module else None

    def collect_garbage(self) -> None:
        """Collect garbage once, before the first fork, so that test processes need not.

        ``gc.freeze()`` would also keep their collections off the pages that they share with this
        process. But frozen objects are missing in ``gc.get_objects()`` and ``gc.get_referrers()``,
        where tests look for leaks.
        """
        if not self._collected:
            self._collected = True
            gc.collect()

    def let_go_of_pages(self) -> None:
        """In a forked process, whose pages they are not; and at the end."""
        if self._pages is not None:
            self._pages[1].close()

    def close(self) -> None:
        """At the end of the session."""
        self.let_go_of_pages()
        if self._phase is not None:
            self._phase.close()
