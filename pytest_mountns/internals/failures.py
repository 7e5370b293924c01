"""Exceptions that pytest could only note down: those of threads, and of ``__del__``.

A plugin each notes them as they happen and reports them at the end of the next phase of a test.
"""

from __future__ import annotations

from collections import deque
from typing import Any, cast

import pytest

try:
    from _pytest.threadexception import thread_exceptions
    from _pytest.unraisableexception import unraisable_exceptions

    _KEYS: tuple[Any, ...] = (thread_exceptions, unraisable_exceptions)
except ImportError:  # before pytest 8.4, which forgets them at the end of a phase
    _KEYS = ()


def noted_failures(config: pytest.Config) -> tuple[int, ...]:
    """How many are noted and not yet reported, of each kind."""
    return tuple(len(notes) for notes in _notes(config))


def forget_failures(config: pytest.Config, counts: tuple[int, ...]) -> None:
    """Forget the oldest of each kind, as many as ``counts`` says."""
    for notes, count in zip(_notes(config), counts, strict=True):
        for _ in range(min(count, len(notes))):
            notes.popleft()


def _notes(config: pytest.Config) -> list[deque[object]]:
    return [cast("deque[object]", config.stash.get(key, deque())) for key in _KEYS]
