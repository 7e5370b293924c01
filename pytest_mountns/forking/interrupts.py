"""Keeps SIGINT from interrupting the pytest process while a test process runs.

A Ctrl-C reaches both processes. The test process answers it as pytest does, and the pytest process
reports what comes of that.

The functions of :mod:`_signal` are called, not those of :mod:`signal`. The latter make enumeration
members of all their arguments and results, which takes time for each test.
"""

from __future__ import annotations

import threading
from typing import Any, final

from ..engine.linux import syscalls
from ..engine.linux.untouched import _signal, os, signal


@final
class Interrupts:
    """A context in which SIGINT is noted in this process and interrupts nothing.

    It is entered before the fork, so that no SIGINT can come between the fork and the context. The
    test process then calls :meth:`restore`. SIGINT is blocked in this thread, and read from a
    signalfd(2), which tells who has sent it.
    """

    def __init__(self) -> None:
        #: A signalfd(2) for SIGINT; -1 if SIGINT is ignored, or handled by something other than
        #: Python, or if there is no more descriptor.
        self.descriptor = -1
        #: Whether Python's handler has run. That happens if the kernel has delivered the signal to
        #: another thread, which does not block it. It is not known then who has sent it.
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
                # The signal is left to the handler, as if another thread had got it.
                _signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return self

    def _note(self, number: int, frame: object) -> None:
        self.noted = True

    def restore_if_pending(self) -> None:
        """Let a SIGINT that came in this context interrupt this process.

        It is called before the fork. A child does not inherit pending signals, fork(2), so the test
        process would not get this one.
        """
        if self.descriptor >= 0 and signal.SIGINT in _signal.sigpending():
            self.restore()

    def restore(self) -> None:
        """Handle SIGINT as before the context. One that has come meanwhile interrupts now."""
        handler, self._handler = self._handler, None
        if handler is not None:
            if self.descriptor >= 0:
                os.close(self.descriptor)
            self.descriptor = -1
            _signal.signal(signal.SIGINT, handler)
            _signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def __exit__(self, *exception: object) -> None:
        self.restore()
