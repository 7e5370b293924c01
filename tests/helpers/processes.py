"""How the tests start processes: forks without a warning, and signals at their defaults."""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

#: A shell that is not interactive starts its background jobs with the first two ignored (POSIX,
#: "Asynchronous AND Lists"), and nohup(1) ignores the third.
_IGNORED_IN_THE_BACKGROUND: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)


def fork() -> int:
    """Fork as os.fork() does, without the warning of Python 3.12 and later about threads.

    A plugin may run a thread in the process that runs the tests, and this suite makes errors of
    warnings. The forked process uses none of the locks that such a thread may hold.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        return os.fork()


@contextmanager
def default_signals() -> Iterator[None]:
    """Start the processes of this block with signals that the background ignores at their default.

    An ignored signal stays ignored across execve(2), and a caught one is set to its default: a
    handler that does nothing ignores the signal in this process and not in those that it starts.
    """
    ignored = [
        number
        for number in _IGNORED_IN_THE_BACKGROUND
        if signal.getsignal(number) is signal.SIG_IGN
    ]
    for number in ignored:
        signal.signal(number, lambda number, frame: None)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
