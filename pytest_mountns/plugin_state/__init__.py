"""What other plugins keep in memory while a test runs, brought from its process to pytest's.

Reports and warnings cross by themselves. Some plugins keep more: lists and tables that they look
at when the session ends. A companion knows one such plugin. Nothing is imported for it: a plugin
that is not loaded has no companion.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import pytest

from .base import Failure, PluginState
from .benchmark import find_benchmark
from .flaky import find_flaky
from .junit import find_junit
from .measurement import find_coverage
from .parcel import pack, unpack
from .rerunfailures import find_rerunfailures
from .stopping import find_session
from .syrupy import find_syrupy

__all__ = ["PluginState", "PluginStates"]

_Find: TypeAlias = Callable[[pytest.Config], "PluginState | None"]

_FINDERS: tuple[_Find, ...] = (
    find_coverage,
    find_junit,
    find_flaky,
    find_benchmark,
    find_syrupy,
    find_session,
    find_rerunfailures,
)


class PluginStates:
    """The companions of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: dict[str, PluginState] | None = None

    def _all(self) -> dict[str, PluginState]:
        # At the first isolated test: every plugin is loaded and has begun its session.
        if self._found is None:
            found = (find(self._config) for find in _FINDERS)
            self._found = {one.name: one for one in found if one is not None}
        return self._found

    def look_up(self) -> None:
        """In the parent, before a fork: find them once, and not in each child."""
        self._all()

    def begin(self, item: pytest.Item) -> None:
        """In the test process, before the test."""
        for plugin_state in self._all().values():
            plugin_state.begin(item)

    def before_reset(self) -> None:
        """In the test process, before its root is dropped for a fresh one."""
        for plugin_state in self._all().values():
            plugin_state.before_reset()

    def pack(self, item: pytest.Item) -> Iterator[tuple[str, bytes | None]]:
        """In the test process, at its end: name and state of each that has some.

        None for what cannot be pickled.
        """
        for name, plugin_state in self._all().items():
            try:
                state = plugin_state.collect(item)
                packed = None if state is None else pack(state, plugin_state.shared(item))
            except Exception:  # noqa: BLE001 - objects of other plugins may raise anything
                yield name, None
                continue
            if packed is not None:
                yield name, packed

    def merge(self, item: pytest.Item, name: str, packed: bytes | None) -> None:
        """In the parent: what :meth:`pack` gave."""
        plugin_state = self._all()[name]
        with _told(name, item):
            if packed is None:
                plugin_state.lost()
                raise Failure("its objects cannot be pickled")
            plugin_state.merge(item, unpack(packed, plugin_state.shared(item)))

    def before_enter(self, item: pytest.Item) -> None:
        """At home, before this process enters a sandbox for ``item``."""
        for plugin_state in self._all().values():
            plugin_state.before_enter(item)

    def after_enter(self, item: pytest.Item) -> None:
        """In the sandbox, before the test."""
        for plugin_state in self._all().values():
            plugin_state.after_enter(item)

    def before_leave(self, item: pytest.Item) -> None:
        """In the sandbox, after the test."""
        for name, plugin_state in self._all().items():
            with _told(name, item):
                plugin_state.before_leave(item)

    def after_leave(self, item: pytest.Item) -> None:
        """At home again."""
        for name, plugin_state in self._all().items():
            with _told(name, item):
                plugin_state.after_leave(item)

    def repeated(self, item: pytest.Item) -> None:
        """In the parent: a report has said that the attempt will be repeated."""
        for plugin_state in self._all().values():
            plugin_state.repeated(item)

    def lost(self) -> None:
        """In the parent: a test process has died and sent nothing."""
        for plugin_state in self._all().values():
            plugin_state.lost()

    def finish(self) -> None:
        """In the parent, when the last test has run."""
        for plugin_state in (self._found or {}).values():
            plugin_state.finish()


@contextmanager
def _told(name: str, item: pytest.Item) -> Iterator[None]:
    """A companion that fails is said, and fails no test."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - objects of other plugins may raise anything
        text = f"mountns: what {name} noted in this test's process is lost: {error}"
        path, line, _ = item.location
        message = warnings.WarningMessage(
            pytest.PytestWarning(text), pytest.PytestWarning, path, (line or 0) + 1
        )
        # Not by way of the filters: turned to an error it would end the session.
        item.ihook.pytest_warning_recorded.call_historic(
            kwargs={
                "warning_message": message,
                "when": "runtest",
                "nodeid": item.nodeid,
                "location": None,
            }
        )
