"""Exceptions that pytest could only note down: those of threads, and of ``__del__``.

A plugin for each kind notes them as they happen and reports them when a phase of a test ends: from
pytest 8.4 on in a queue in the stash, before that the last one in a hook of that phase.
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
    """Those that are noted now. Call what it gives when another process has reported them."""
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
                # Too late for the phase that it would be reported in: to standard error.
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
