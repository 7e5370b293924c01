"""The base class of what knows one plugin's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pytest


class StateError(Exception):
    """The state of a plugin could not be brought to the pytest process."""


class PluginState:
    """Knows what one plugin keeps in memory.

    An object of it is made in the pytest process, before the first isolated test. Each forked test
    process has a copy of that object, as it was when the process was forked.
    """

    #: The name of the plugin, for messages.
    name: ClassVar[str] = ""

    #: The report that goes with the state. It is set before :meth:`collect` and :meth:`merge`.
    report: pytest.TestReport | None = None

    def goes_with(self, report: pytest.TestReport | None) -> bool:
        """Whether :meth:`collect` is called before this report is sent, too, and :meth:`merge`.

        Needed for what the pytest process uses when it logs a report: that of the teardown may be
        logged before the test process has ended. None: reports were heard in the pytest process,
        which calls :meth:`collect` for the test process.
        """
        return False

    @property
    def wrapped(self) -> bool:
        """Whether :meth:`before_wrappers_end` and :meth:`after_wrappers_end` are to be called."""
        return False

    def before_fork(self, item: pytest.Item) -> None:
        """Called in the pytest process before it forks a test process.

        What is computed here for all tests need not be computed in each test process. A process
        that runs several tests calls it before each but the first, and so does the pytest process.
        """

    def begin(self, item: pytest.Item) -> None:
        """Called in a forked test process, in the sandbox, before the function-scoped fixtures.

        Notes what the plugin has in memory already, since the pytest process has that as well.
        """

    def collect(self, item: pytest.Item) -> object:
        """Called in a forked test process, in the sandbox, when the test has been torn down.

        Returns what the plugin has added to its memory since :meth:`begin`, or the last time, as an
        object that can be pickled, or None if it has added nothing.
        """
        return None

    def shared(self, item: pytest.Item) -> Mapping[str, object]:
        """Called in both processes, before the state is pickled or unpickled.

        Returns objects that both processes have, by a name for each. If the state refers to one of
        them, only its name is pickled, and the other process uses its own object.
        """
        return {"item": item, "config": item.config, "session": item.session}

    def merge(self, item: pytest.Item, state: object) -> None:
        """Called in the pytest process when a forked test process has sent its state.

        Adds to the plugin's memory what :meth:`collect` has returned there.
        """

    def before_wrappers_end(self, item: pytest.Item) -> None:
        """Called in the pytest process when a test process, forked in a setup, has sent its state.

        Wrappers of other plugins around ``pytest_runtest_setup`` have begun before the fork. In the
        test process they have ended. In the pytest process they are about to end, too, since they
        may restore something there, but what they note then is there already.
        """

    def after_wrappers_end(self, item: pytest.Item) -> None:
        """Called in the pytest process when these wrappers have ended there."""

    def lost(self) -> None:
        """Called in the pytest process when the state of a forked test process will never come.

        That process has died, or the state could not be pickled.
        """

    def before_enter(self, item: pytest.Item) -> None:
        """Called in the pytest process, on the host, before it enters a sandbox for an inline test.

        Fixtures of wider scope have been set up already.
        """

    def after_enter(self, item: pytest.Item) -> None:
        """Called in the pytest process, in the sandbox, before an inline test's own fixtures."""

    def before_leave(self, item: pytest.Item) -> None:
        """Called in the pytest process, in the sandbox, when an inline test has been torn down.

        What was written in the sandbox can be read for the last time.
        """

    def after_leave(self, item: pytest.Item) -> None:
        """Called in the pytest process when it is on the host again after an inline test."""

    def before_reset(self) -> None:
        """Called in the process that is in the sandbox, before files written there are dropped.

        This happens when the test resets its root or a checkpoint ends, and before a test that is
        run again by another plugin.
        """

    def before_another_attempt(self, item: pytest.Item) -> None:
        """Called in the process that sets up the wider fixtures of a test, before it does so again.

        That is the pytest process if the attempt before has failed there.
        """

    def repeated(self, item: pytest.Item) -> None:
        """Called in the pytest process when a report says that the test will be run again.

        The outcome of the attempt that has been reported so far does not count then.
        """

    def finish(self) -> None:
        """Called in the pytest process, once, when the last test of the session has run."""
