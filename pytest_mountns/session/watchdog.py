"""Gives the thread of faulthandler's watchdog a name, so that a sandbox can be entered beside it.

pytest starts the watchdog for each test if ``faulthandler_timeout`` is set. It is a thread that
blocks all signals, so it cannot be moved into a sandbox. It need not be: it writes to a descriptor
and opens no file. So it is known by its name, proc_pid_comm(5).
"""

from __future__ import annotations

import faulthandler
from typing import Any, Final, cast

import pytest

from .. import pytest_internals
from ..engine.linux.threads import WATCHDOG
from ..engine.linux.untouched import open, time

_NAME_OF_THIS_THREAD: Final = "/proc/thread-self/comm"
#: Seconds to set the watchdog to if its time is up.
_SOON: Final = 0.001


def name_watchdog(config: pytest.Config, began: float) -> None:
    """Start the watchdog of the running test again, in a thread that has the name.

    ``began``: when the test began, by :func:`time.monotonic`. Raises :class:`OSError` without
    ``/proc``.
    """
    watchdog = pytest_internals.watchdog(config)
    if watchdog is None:
        return
    left = max(watchdog.timeout - (time.monotonic() - began), _SOON)
    # A thread begins with the name of the one that starts it.
    with open(_NAME_OF_THIS_THREAD) as file:
        before = file.read().rstrip("\n")
    _rename(WATCHDOG)
    try:
        # The one of before is cancelled by this.
        faulthandler.dump_traceback_later(left, file=cast(Any, watchdog.stderr), exit=watchdog.exit)
    finally:
        _rename(before)


def _rename(name: str) -> None:
    with open(_NAME_OF_THIS_THREAD, "w") as file:
        file.write(name)
