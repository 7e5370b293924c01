"""Moves the timers of a test from the pytest process to the test process.

Three timers can be set when a test process is forked: the interval timer (used by pytest-timeout's
signal method), a ``threading.Timer`` (used by its thread method), and the watchdog of faulthandler.

fork(2) takes none of them along. The interval timer is cleared in the child. The other two are
threads, which go on in the pytest process only: the ``threading.Timer`` would end the whole session
there, and the watchdog holds a lock that the child would wait for. So all are stopped before the
fork, and started in the test process for the time that is left.
"""

from __future__ import annotations

import contextlib
import faulthandler
from collections.abc import Iterator
from typing import Any, Final, Protocol, cast, final

import pytest

from .. import pytest_internals
from ..engine.linux.untouched import signal, time

#: Seconds to set a timer to if its time is up: setting it to 0 would turn it off.
_SOON: Final = 0.001


class TimeoutSettings(Protocol):
    """The settings of pytest-timeout for one test, which are a named tuple."""

    @property
    def timeout(self) -> float:
        """The time that the test may take, in seconds."""
        ...

    def _replace(self, *, timeout: float) -> TimeoutSettings: ...


@final
class Timers:
    """The timers of one test. It is made when the protocol of the item begins."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._began = time.monotonic()
        #: What pytest-timeout's timer is set to, and the time at which it was set.
        self._settings: TimeoutSettings | None = None
        self._set_at = 0.0
        #: What it was last set to in this process.
        self._last: TimeoutSettings | None = None
        #: What was left of the interval timer, and its interval, in seconds.
        self._interval = (0.0, 0.0)
        #: What pytest-timeout's thread method was set to when it was stopped.
        self._threaded: TimeoutSettings | None = None

    def timeout_is_set(self, settings: TimeoutSettings | None) -> None:
        """Note that pytest-timeout has set its timer, or cancelled it (None)."""
        self._settings = settings
        if settings is not None:
            self._last = settings
            self._set_at = time.monotonic()

    def stop(self) -> None:
        """Stop the timers. Called in the pytest process before the fork."""
        faulthandler.cancel_dump_traceback_later()
        self._interval = signal.setitimer(signal.ITIMER_REAL, 0)
        settings = self._settings
        if settings is not None and not self._interval[0]:
            # The hook is called, because other plugins may implement it with something other than a
            # thread.
            self._item.ihook.pytest_timeout_cancel_timer(item=self._item)
            self._threaded = settings

    def resume(self) -> None:
        """Start the interval timer again in the pytest process.

        It is called when there is no test process after all, or when that has ended.
        """
        if self._interval[0]:
            signal.setitimer(signal.ITIMER_REAL, *self._interval)

    @contextlib.contextmanager
    def started_again(self) -> Iterator[None]:
        """Within the context, the timers run as from the begin of the test.

        For what the pytest process tears down after a test process: they were stopped for that, or
        pytest-timeout has cancelled its own already.
        """
        # For the whole time: with the rest, a test that has taken nearly all of it, or has died of
        # it, would fail or end the session here.
        self._start_watchdog(time.monotonic())
        settings, hook = self._last, self._item.ihook
        if settings is None:
            yield
            return
        hook.pytest_timeout_set_timer(item=self._item, settings=settings)
        try:
            yield
        finally:
            hook.pytest_timeout_cancel_timer(item=self._item)

    def start_in_child(self) -> None:
        """Start the timers, for the time that is left. Called in the test process."""
        if self._interval[0]:
            signal.setitimer(signal.ITIMER_REAL, *self._interval)
        if self._threaded is not None:
            left = self._threaded.timeout - (time.monotonic() - self._set_at)
            settings = self._threaded._replace(timeout=max(left, _SOON))
            self._item.ihook.pytest_timeout_set_timer(item=self._item, settings=settings)
        self._start_watchdog(self._began)

    def _start_watchdog(self, began: float) -> None:
        """Start the watchdog of faulthandler, which pytest cancels when the protocol ends."""
        watchdog = pytest_internals.watchdog(self._item.config)
        if watchdog is not None:
            left = watchdog.timeout - (time.monotonic() - began)
            faulthandler.dump_traceback_later(
                max(left, _SOON), file=cast(Any, watchdog.stderr), exit=watchdog.exit
            )
