"""What the runners of one session share with each other."""

from __future__ import annotations

import gc
import mmap
import os
from typing import TYPE_CHECKING, final

import pytest

from ..engine.linux.fork_pages import ForkPages
from ..plugin_state import PluginStates
from ..session.fixture_scopes import FixtureScopes
from ..session.session import Session

if TYPE_CHECKING:
    from ..forking.timers import Timers
    from .child import TestProcess
    from .finisher import Finisher


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
        #: A byte that a test process and this process share: how far the test has got. It is read
        #: when the test process has died.
        self.phase = mmap.mmap(-1, 1)
        #: This process, if it is a test process.
        self.process: TestProcess | None = None
        #: The clocks of the item whose protocol is running.
        self.timers: Timers | None = None
        self._fork_pages: ForkPages | None = None
        self._collected = False

    @property
    def fork_pages(self) -> ForkPages:
        """The pages of memory that the kernel copies for a test process within fork(2)."""
        if self._fork_pages is None:
            self._fork_pages = ForkPages(int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
        return self._fork_pages

    def collect_garbage(self) -> None:
        """Collect garbage once, before the first fork, so that test processes need not.

        ``gc.freeze()`` would also keep their collections off the pages that they share with this
        process. But frozen objects are missing in ``gc.get_objects()`` and ``gc.get_referrers()``,
        where tests look for leaks.
        """
        if not self._collected:
            self._collected = True
            gc.collect()

    def close(self) -> None:
        """At the end of the session."""
        if self._fork_pages is not None:
            self._fork_pages.close()
        self.phase.close()
