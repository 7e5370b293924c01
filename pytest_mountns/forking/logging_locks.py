"""Holds the locks of logging during a fork, so that no log record is half written then.

fork(2) copies a lock that another thread holds, but not the thread that would release it. In the
child Python makes new locks for log handlers and for the buffers of its standard streams. The
buffer of any other file that a handler was writing to stays locked, and the child waits for ever
when it logs its next record. pytest itself has such a handler, for ``log_file``, in every run.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator
from sys import _current_frames
from typing import Any, Final

from ..engine.linux.untouched import time

#: Seconds to wait for handlers that are writing a record. A handler that takes longer, for example
#: on a network, is not waited for.
_PATIENCE: Final = 1.0

_RLock: Final = type(threading.RLock())


@contextlib.contextmanager
def hold_locks() -> Iterator[None]:
    """A context in which no other thread writes a log record, to fork in.

    If there is no other thread, it holds no locks. It holds none either if they are not free in
    time.
    """
    held: list[Any] = []
    if len(_current_frames()) > 1:
        held = _acquire(_locks(), time.monotonic() + _PATIENCE)
    try:
        yield
    finally:
        for lock in held:
            # In the child these are new locks, which it does not hold.
            with contextlib.suppress(RuntimeError):
                lock.release()


def _locks() -> list[Any]:
    """The locks of logging and of all its handlers."""
    # The lock of logging itself comes first, since a thread that holds it may wait for the lock of
    # a handler.
    module: Any = logging
    handlers = (reference() for reference in list(module._handlerList))
    locks = [module._lock, *(handler.lock for handler in handlers if handler is not None)]
    # Libraries such as gevent put locks of other kinds there; to wait for one could block for ever.
    return list(dict.fromkeys(lock for lock in locks if isinstance(lock, _RLock)))


def _acquire(locks: list[Any], deadline: float) -> list[Any]:
    """Acquire all of ``locks``, or none if that takes until ``deadline``. Returns those it holds.

    It never waits for a lock while it holds another one. A thread may hold the lock of a handler
    that passes records on, and wait for that of the handler that gets them.
    """
    while locks:
        first, *others = locks
        if not first.acquire(timeout=max(0, deadline - time.monotonic())):
            return []
        busy = None
        held = [first]
        for lock in others:
            if not lock.acquire(blocking=False):
                busy = lock
                break
            held.append(lock)
        if busy is None:
            return held
        for lock in held:
            lock.release()
        locks = [busy, *(lock for lock in locks if lock is not busy)]
    return []
