"""Counts isolated and skipped tests for the summary."""

from __future__ import annotations

from typing import final

import pytest

from ..session.observers import Observer
from .summary import Summary


@final
class CountTests(Observer):
    """Tells the summary of each test."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def isolated(self, item: pytest.Item, *, inline: bool) -> None:
        """Count a test that was isolated; several attempts at it are one test."""
        self._summary.isolated(item.nodeid, inline=inline)

    def guarded(self, item: pytest.Item) -> None:
        """Count a test that was run under a guard."""
        self._summary.guarded(item.nodeid)

    def not_inline(self, item: pytest.Item, why: str) -> None:
        """Count a test that was forked for this reason."""
        self._summary.not_inline(item.nodeid, why)

    def beside(self, why: str) -> None:
        """Note what works for tests outside of their sandboxes, or is missing there."""
        self._summary.note(why)

    def unended(self, why: str) -> None:
        """Note a process that does not end."""
        self._summary.note(why)

    def skipped(self, item: pytest.Item) -> None:
        """Count a test that was skipped because this machine cannot isolate it."""
        self._summary.skipped(item.nodeid)
