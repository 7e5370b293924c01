"""Signals that come at a certain moment, and whose handler raises, as Ctrl-C and timeouts do."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from pytest_mountns.engine.linux import syscalls


class Interruption(Exception):
    """Raised by a handler."""


class Bell:
    """Sends this process a signal, once, in a function that is replaced for it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        self.is_armed = False
        signal.signal(signal.SIGUSR1, self._interrupt)

    def _interrupt(self, number: int, frame: object) -> None:
        raise Interruption

    def ring(self) -> None:
        if self.is_armed:
            self.is_armed = False
            signal.raise_signal(signal.SIGUSR1)

    def put_before(self, place: object, name: str) -> None:
        original = getattr(place, name)

        def replaced(*arguments: Any, **options: Any) -> Any:
            self.ring()
            return original(*arguments, **options)

        self._patch.setattr(place, name, replaced)

    def put_after(
        self, place: object, name: str, when: Callable[..., bool] = lambda *_, **__: True
    ) -> None:
        original = getattr(place, name)

        def replaced(*arguments: Any, **options: Any) -> Any:
            rings = when(*arguments, **options)
            result = original(*arguments, **options)
            if rings:
                self.ring()
            return result

        self._patch.setattr(place, name, replaced)

    def put_at_mask(self, at: str) -> None:
        """Have it ring just before signals are blocked, or while they are."""
        put = self.put_before if at == "before" else self.put_after
        put(syscalls, "block_all_signals")

    def armed_by(self, place: object, name: str) -> None:
        original = getattr(place, name)

        def replaced(*arguments: Any, **options: Any) -> Any:
            self._patch.setattr(place, name, original)
            self.is_armed = True
            return original(*arguments, **options)

        self._patch.setattr(place, name, replaced)
