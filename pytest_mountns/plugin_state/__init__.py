"""What other plugins keep in memory while a test runs, and how the pytest process gets it.

The channel between a test process and the pytest process carries reports and warnings. Some
plugins keep more than that: lists and tables in memory, which they print or write when the session
ends. What such a plugin keeps in a forked test process would be lost, and what it writes during a
test that runs inline would be written into the sandbox. For each of these plugins there is a module
here with a subclass of :class:`PluginState` that knows what to do.

To add the state of another plugin:

1. Add a module that is named after the plugin, with a subclass of :class:`PluginState`. Override
   the methods that are needed. For a plugin that keeps a list, these are ``begin`` (note the length
   of the list), ``collect`` (return what was added) and ``merge`` (add it to the list).
2. Add a function ``find_...`` to the module. It takes pytest's config and returns the object, or
   None if the plugin is not loaded. It must not import the plugin: it looks for it in the plugin
   manager, in attributes of the config, or in :data:`sys.modules`.
3. Add that function to :data:`.finders.FINDERS`; or, if inline tests concern it, too, to
   :data:`_OF_ALL_TESTS` below.
4. Add a test that compares a run with ``--mountns`` to a run without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import pytest

from .. import pytest_internals
from .base import PluginState, StateError
from .coverage import find_coverage
from .syrupy import find_syrupy

__all__ = ["PluginState", "PluginStates"]

_Find: TypeAlias = Callable[[pytest.Config], "PluginState | None"]

#: Of plugins that work with files, which are not those of the host while a test runs inline.
_OF_ALL_TESTS: tuple[_Find, ...] = (find_coverage, find_syrupy)


class PluginStates:
    """The states of all plugins that are loaded in one session.

    Its methods call the methods of the same names in each :class:`PluginState`, which say when and
    in which process that is.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._of_all_tests: dict[str, PluginState] | None = None
        self._of_forks: dict[str, PluginState] | None = None

    # The one is first called for the first isolated test, the other before the first fork. By then
    # every plugin is loaded and has set up what it keeps for the session.
    def _common(self) -> dict[str, PluginState]:
        if self._of_all_tests is None:
            self._of_all_tests = self._find(_OF_ALL_TESTS)
        return self._of_all_tests

    def _all(self) -> dict[str, PluginState]:
        if self._of_forks is None:
            from . import pickling
            from .finders import FINDERS

            self._pickling = pickling
            self._of_forks = {**self._common(), **self._find(FINDERS)}
        return self._of_forks

    def _find(self, finders: Sequence[_Find]) -> dict[str, PluginState]:
        found = (find(self._config) for find in finders)
        return {one.name: one for one in found if one is not None}

    def before_fork(self, item: pytest.Item) -> None:
        """Find the plugins, and what their states need to know once, in the pytest process."""
        for plugin_state in self._all().values():
            plugin_state.before_fork(item)

    def begin(self, item: pytest.Item) -> None:
        """Note in a forked test process what plugins have in memory already."""
        for plugin_state in self._all().values():
            plugin_state.begin(item)

    def before_reset(self) -> None:
        """Save what plugins have in files of the sandbox that are about to be dropped."""
        for plugin_state in self._common().values():
            plugin_state.before_reset()

    def pack(self, item: pytest.Item) -> Iterator[tuple[str, bytes | None]]:
        """Collect the states in a forked test process: the name of each plugin and its pickle.

        Plugins that have added nothing are left out. If a state cannot be pickled, None stands in
        the place of the pickle.
        """
        states = list(self._all().values())
        for plugin_state in states:
            plugin_state.report = None
        yield from self._pack(item, states)

    def pack_early(
        self, item: pytest.Item, report: pytest.TestReport | None = None
    ) -> Iterator[tuple[str, bytes | None]]:
        """In a test process, before a report is sent: what has to be known when it is logged.

        In the pytest process, after a report was heard: what they know now in addition.
        """
        early = [one for one in self._all().values() if one.goes_with(report)]
        for plugin_state in early:
            plugin_state.report = report
        if early:
            yield from self._pack(item, early)

    def _pack(
        self, item: pytest.Item, states: Sequence[PluginState]
    ) -> Iterator[tuple[str, bytes | None]]:
        for plugin_state in states:
            name = plugin_state.name
            try:
                state = plugin_state.collect(item)
                packed = (
                    None if state is None else self._pickling.pack(state, plugin_state.shared(item))
                )
            except Exception:  # noqa: BLE001 - objects of other plugins may raise anything
                yield name, None
                continue
            if packed is not None:
                yield name, packed

    def merge(
        self,
        item: pytest.Item,
        name: str,
        packed: bytes | None,
        report: pytest.TestReport | None = None,
    ) -> None:
        """Add in one process what :meth:`pack` or :meth:`pack_early` has yielded in the other."""
        plugin_state = self._all()[name]
        plugin_state.report = report
        with _failure_as_warning(name, item):
            if packed is None:
                plugin_state.lost()
                raise StateError("its objects cannot be pickled")
            plugin_state.merge(item, self._pickling.unpack(packed, plugin_state.shared(item)))

    def before_wrappers_end(self, item: pytest.Item) -> None:
        """Prepare plugins in the pytest process for the end of wrappers around a setup."""
        for name, plugin_state in self._all().items():
            if plugin_state.wrapped:
                with _failure_as_warning(name, item):
                    plugin_state.before_wrappers_end(item)

    def after_wrappers_end(self, item: pytest.Item) -> None:
        """Drop what these wrappers have noted, in the pytest process."""
        for name, plugin_state in self._all().items():
            if plugin_state.wrapped:
                with _failure_as_warning(name, item):
                    plugin_state.after_wrappers_end(item)

    def before_enter(self, item: pytest.Item) -> None:
        """Prepare plugins on the host for an inline test in a sandbox."""
        for plugin_state in self._common().values():
            plugin_state.before_enter(item)

    def after_enter(self, item: pytest.Item) -> None:
        """Prepare plugins in the sandbox for an inline test."""
        for plugin_state in self._common().values():
            plugin_state.after_enter(item)

    def before_leave(self, item: pytest.Item) -> None:
        """Save what plugins have in files of the sandbox, after an inline test."""
        for name, plugin_state in self._common().items():
            with _failure_as_warning(name, item):
                plugin_state.before_leave(item)

    def after_leave(self, item: pytest.Item) -> None:
        """Restore plugins on the host, after an inline test."""
        for name, plugin_state in self._common().items():
            with _failure_as_warning(name, item):
                plugin_state.after_leave(item)

    def before_another_attempt(self, item: pytest.Item) -> None:
        """Prepare plugins for another attempt at a test that this process sets up."""
        for name, plugin_state in self._all().items():
            with _failure_as_warning(name, item):
                plugin_state.before_another_attempt(item)

    def repeated(self, item: pytest.Item) -> None:
        """Tell plugins in the pytest process that a test will be run again."""
        for plugin_state in self._all().values():
            plugin_state.repeated(item)

    def lost(self) -> None:
        """Tell plugins in the pytest process that a test process has died without its states."""
        for plugin_state in self._all().values():
            plugin_state.lost()

    def finish(self) -> None:
        """Tell plugins in the pytest process that the last test has run."""
        for plugin_state in (self._of_forks or self._of_all_tests or {}).values():
            plugin_state.finish()


@contextmanager
def _failure_as_warning(name: str, item: pytest.Item) -> Iterator[None]:
    """Turn an exception into a warning: the loss of a plugin's state must fail no test."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - objects of other plugins may raise anything
        text = f"mountns: what {name} noted in this test's process is lost: {error}"
        pytest_internals.warn_of(item, text)
