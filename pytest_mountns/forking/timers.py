"""The clocks that run while a test is set up, and that fork(2) does not hand on.

Three can be set when the gate is reached: the interval timer (pytest-timeout's signal method), a
``threading.Timer`` (its thread method), and the faulthandler's watchdog. The first is cleared in
the child; the others are threads, which stay behind: there the one would end the whole session,
and the other keep a lock that the child waits for in vain. So they are stopped before the fork
and set again, with what is left of their time, in the test process alone.
"""

from __future__ import annotations

import faulthandler
import signal
import time
from typing import Any, Final, Protocol, cast, final

import pytest

from .. import pytest_internals

#: Nothing can be set to no time at all.
_SOON: Final = 0.001


class TimeoutSettings(Protocol):
    """pytest-timeout's, a named tuple."""

    @property
    def timeout(self) -> float: ...

    def _replace(self, *, timeout: float) -> TimeoutSettings: ...


@final
class Timers:
    """The clocks of one item, from the begin of its protocol on."""

    def __init__(self, item: pytest.Item) -> None:
        self._item = item
        self._began = time.monotonic()
        self._settings: TimeoutSettings | None = None
        self._set_at = 0.0
        self._interval = (0.0, 0.0)
        self._threaded: TimeoutSettings | None = None

    def timeout_is_set(self, settings: TimeoutSettings | None) -> None:
        """pytest-timeout has set its timer, or cancelled it (None)."""
        self._settings = settings
        if settings is not None:
            self._set_at = time.monotonic()

    def stop(self) -> None:
        """In the parent, before the fork."""
        faulthandler.cancel_dump_traceback_later()
        self._interval = signal.setitimer(signal.ITIMER_REAL, 0)
        settings = self._settings
        if settings is not None and not self._interval[0]:
            # The hook, and not its thread: other plugins may keep time in their own way.
            self._item.ihook.pytest_timeout_cancel_timer(item=self._item)
            self._threaded = settings

    def resume(self) -> None:
        """In the parent, if there is no test process after all, or it is done."""
        if self._interval[0]:
            signal.setitimer(signal.ITIMER_REAL, *self._interval)

    def hand_over(self) -> None:
        """In the test process."""
        if self._interval[0]:
            signal.setitimer(signal.ITIMER_REAL, *self._interval)
        if self._threaded is not None:
            left = self._threaded.timeout - (time.monotonic() - self._set_at)
            settings = self._threaded._replace(timeout=max(left, _SOON))
            self._item.ihook.pytest_timeout_set_timer(item=self._item, settings=settings)
        watchdog = pytest_internals.watchdog(self._item.config)
        if watchdog is not None:
            left = watchdog.timeout - (time.monotonic() - self._began)
            faulthandler.dump_traceback_later(
                max(left, _SOON), file=cast(Any, watchdog.stderr), exit=watchdog.exit
            )
