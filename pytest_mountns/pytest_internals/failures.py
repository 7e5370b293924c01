"""Exceptions that are raised where nobody can catch them: in threads and in ``__del__``.

A plugin of pytest notes each of them when it happens, and reports it when a phase of a test ends.
From pytest 8.4 on the notes are in a queue in ``config.stash``; before that, an object that is
active during the phase holds the last one.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import pytest

try:
    from _pytest.threadexception import thread_exceptions
    from _pytest.unraisableexception import unraisable_exceptions

    _KEYS: tuple[Any, ...] = (thread_exceptions, unraisable_exceptions)
except ImportError:  # before pytest 8.4
    _KEYS = ()


def noted_failures(config: pytest.Config) -> Callable[[], None]:
    """Remember the exceptions that are noted now.

    Returns a function that removes these notes, to be called when another process has reported
    them.
    """
    notes = [cast("deque[object]", config.stash.get(key, deque())) for key in _KEYS]
    counts = [len(queue) for queue in notes]
    hooks = [] if _KEYS else _catching_hooks()
    caught = [getattr(catcher, name) for catcher, name in hooks]

    def forget() -> None:
        for queue, count in zip(notes, counts, strict=True):
            for _ in range(min(count, len(queue))):
                queue.popleft()
        for (catcher, name), known in zip(hooks, caught, strict=True):
            found = getattr(catcher, name)
            if found is not None and found is not known:
                # The phase that would report it is over, so it goes to standard error.
                catcher._old_hook(found)
            setattr(catcher, name, None)

    return forget


def _catching_hooks() -> list[tuple[Any, str]]:
    hooks: tuple[tuple[Any, str], ...] = (
        (threading.excepthook, "args"),
        (sys.unraisablehook, "unraisable"),
    )
    catchers = ((getattr(hook, "__self__", None), name) for hook, name in hooks)
    return [(catcher, name) for catcher, name in catchers if hasattr(catcher, name)]
