"""What a companion is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest


class Failure(Exception):
    """State that did not get through."""


class PluginState:
    """Knows what one plugin keeps in memory. Made in the parent; each fork has its copy."""

    name = ""

    def begin(self, item: pytest.Item) -> None:
        """In the test process: what is there already is the parent's."""

    def before_reset(self) -> None:
        """In the test process: the files written so far are about to go."""

    def collect(self, item: pytest.Item) -> object:
        """In the test process, at its end: what was added; None if nothing was."""
        return None

    def shared(self, item: pytest.Item) -> Mapping[str, object]:
        """Objects that are the same in both processes: named, not copied."""
        return {"item": item, "config": item.config, "session": item.session}

    def merge(self, item: pytest.Item, state: object) -> None:
        """In the parent: add what :meth:`collect` gave."""

    def before_enter(self, item: pytest.Item) -> None:
        """At home, before this process enters a sandbox for the item."""

    def after_enter(self, item: pytest.Item) -> None:
        """In the sandbox, before the test."""

    def before_leave(self, item: pytest.Item) -> None:
        """In the sandbox, after the test: its files are about to go."""

    def after_leave(self, item: pytest.Item) -> None:
        """At home again."""

    def repeated(self, item: pytest.Item) -> None:
        """In the parent: the attempt that was reported so far will be repeated."""

    def lost(self) -> None:
        """In the parent: what a test process had to say will never come."""

    def finish(self) -> None:
        """In the parent: no more tests."""
