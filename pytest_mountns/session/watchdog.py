"""Gives the thread of faulthandler's watchdog a name, so that sandboxes can be entered beside it.

``faulthandler.dump_traceback_later()`` starts a thread that blocks all signals, so it cannot be
moved into a sandbox. It need not be: it writes to a descriptor and opens no file. So it is known by
its name, proc_pid_comm(5). pytest starts it for each test if ``faulthandler_timeout`` is set, and
suites do so themselves.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
from collections.abc import Iterator
from typing import Any, Final, final

from ..engine.linux.threads import WATCHDOG
from ..engine.linux.untouched import open

_NAME_OF_THIS_THREAD: Final = "/proc/thread-self/comm"


@final
class NamedWatchdog:
    """Replaces the function that starts the watchdog, from now until :meth:`restore`."""

    def __init__(self) -> None:
        original = self._original = faulthandler.dump_traceback_later

        @functools.wraps(original)
        def dump_traceback_later(*arguments: Any, **named: Any) -> None:
            with _name_of_new_threads(WATCHDOG):
                original(*arguments, **named)

        self._replacement = dump_traceback_later
        faulthandler.dump_traceback_later = dump_traceback_later

    def restore(self) -> None:
        """Put the function back, unless somebody else has replaced it since."""
        if faulthandler.dump_traceback_later is self._replacement:
            faulthandler.dump_traceback_later = self._original


@contextlib.contextmanager
def _name_of_new_threads(name: str) -> Iterator[None]:
    """A thread begins with the name of the one that starts it, which is changed meanwhile."""
    try:
        with open(_NAME_OF_THIS_THREAD) as file:
            before = file.read().rstrip("\n")
        _rename(name)
    except OSError:
        # Without /proc nothing is run inline.
        yield
        return
    try:
        yield
    finally:
        _rename(before)


def _rename(name: str) -> None:
    with open(_NAME_OF_THIS_THREAD, "w") as file:
        file.write(name)
