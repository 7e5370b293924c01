"""No log record is half written when a test process is forked.

fork(2) copies a lock that another thread holds, but not the thread that would release it. Python
gives the log handlers of the child new locks, and those buffers that are its standard streams; the
buffer of any other file that a handler writes to stays locked, and the child's next record waits
for ever. pytest itself has such a handler, for ``log_file``, in every run.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

#: Seconds to wait for handlers that are in the middle of a record. One that hangs longer, say on
#: a network, is not waited for.
_PATIENCE: Final = 1.0

_RLock: Final = type(threading.RLock())


@contextlib.contextmanager
def handlers_at_rest() -> Iterator[None]:
    """Fork in here. Leaves at once if there is no other thread."""
    held: list[Any] = []
    if len(sys._current_frames()) > 1:
        held = _acquire(_locks(), time.monotonic() + _PATIENCE)
    try:
        yield
    finally:
        for lock in held:
            # In the child they are new.
            with contextlib.suppress(RuntimeError):
                lock.release()


def _locks() -> list[Any]:
    # That of logging itself first, as in logging.config: who holds it may want a handler's.
    module: Any = logging
    handlers = (reference() for reference in list(module._handlerList))
    locks = [module._lock, *(handler.lock for handler in handlers if handler is not None)]
    # Those that something like gevent has put there are not for us to wait for.
    return list(dict.fromkeys(lock for lock in locks if isinstance(lock, _RLock)))


def _acquire(locks: list[Any], deadline: float) -> list[Any]:
    """All of ``locks``, or none if that takes too long.

    Waits only while it holds none: a handler that passes records on to another holds two.
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
