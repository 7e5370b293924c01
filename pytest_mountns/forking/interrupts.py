"""SIGINT while a test process runs.

Functions are those of :mod:`_signal`: the standard library's make enumeration members of all that
they take and give, for each test.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import signal
import threading
from typing import Any, final

from ..engine.linux import syscalls


@final
class Interrupts:
    """SIGINT while a test process runs: noted, and interrupting nothing here.

    Entered before the fork, so that there is no moment in between; the child calls
    :meth:`release`. Blocked in this thread and read from ``descriptor`` (-1 where it is ignored or
    handled by others), which tells where it came from. Another thread may take it all the same:
    then Python runs the handler here, and ``noted`` is all that is known.
    """

    def __init__(self) -> None:
        self.descriptor = -1
        self.noted = False
        self._handler: Any = None
        self._mask: set[int] = set()

    def __enter__(self) -> Interrupts:
        handler = _signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if main and handler not in (signal.SIG_IGN, None):
            self._mask = _signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self._handler = handler
            _signal.signal(signal.SIGINT, self._note)
            try:
                self.descriptor = syscalls.signalfd(frozenset({signal.SIGINT}))
            except OSError:
                # As where another thread takes it: where it came from is not known.
                _signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.noted = True

    def let_in(self) -> None:
        """Before the fork: one that was held back already is not known to the child."""
        if self.descriptor >= 0 and signal.SIGINT in _signal.sigpending():
            self.release()

    def release(self) -> None:
        """SIGINT is as it was before; one that was held back interrupts here."""
        handler, self._handler = self._handler, None
        if handler is not None:
            if self.descriptor >= 0:
                os.close(self.descriptor)
            self.descriptor = -1
            _signal.signal(signal.SIGINT, handler)
            _signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def __exit__(self, *exception: object) -> None:
        self.release()
