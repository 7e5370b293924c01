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

from .base import Companion, Failure
from .benchmark import find_benchmark
from .flaky import find_flaky
from .junit import find_junit
from .measurement import find_coverage
from .parcel import pack, unpack
from .rerunfailures import find_rerunfailures
from .stopping import find_session
from .syrupy import find_syrupy

__all__ = ["Companion", "Companions"]

_Find: TypeAlias = Callable[[pytest.Config], "Companion | None"]

_FINDERS: tuple[_Find, ...] = (
    find_coverage,
    find_junit,
    find_flaky,
    find_benchmark,
    find_syrupy,
    find_session,
    find_rerunfailures,
)


class Companions:
    """The companions of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._found: dict[str, Companion] | None = None

    def _all(self) -> dict[str, Companion]:
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
        for companion in self._all().values():
            companion.begin(item)

    def before_reset(self) -> None:
        """In the test process, before its root is dropped for a fresh one."""
        for companion in self._all().values():
            companion.before_reset()

    def pack(self, item: pytest.Item) -> Iterator[tuple[str, bytes | None]]:
        """In the test process, at its end: name and state of each that has some.

        None for what cannot be pickled.
        """
        for name, companion in self._all().items():
            try:
                state = companion.collect(item)
                packed = None if state is None else pack(state, companion.shared(item))
            except Exception:  # noqa: BLE001 - objects of other plugins may raise anything
                yield name, None
                continue
            if packed is not None:
                yield name, packed

    def merge(self, item: pytest.Item, name: str, packed: bytes | None) -> None:
        """In the parent: what :meth:`pack` gave."""
        companion = self._all()[name]
        with _told(name, item):
            if packed is None:
                companion.lost()
                raise Failure("its objects cannot be pickled")
            companion.merge(item, unpack(packed, companion.shared(item)))

    def before_visit(self, item: pytest.Item) -> None:
        """At home, before this process enters a sandbox for ``item``."""
        for companion in self._all().values():
            companion.before_visit(item)

    def begin_visit(self, item: pytest.Item) -> None:
        """In the sandbox, before the test."""
        for companion in self._all().values():
            companion.begin_visit(item)

    def end_visit(self, item: pytest.Item) -> None:
        """In the sandbox, after the test."""
        for name, companion in self._all().items():
            with _told(name, item):
                companion.end_visit(item)

    def after_visit(self, item: pytest.Item) -> None:
        """At home again."""
        for name, companion in self._all().items():
            with _told(name, item):
                companion.after_visit(item)

    def repeated(self, item: pytest.Item) -> None:
        """In the parent: a report has said that the attempt will be repeated."""
        for companion in self._all().values():
            companion.repeated(item)

    def lost(self) -> None:
        """In the parent: a test process has died and sent nothing."""
        for companion in self._all().values():
            companion.lost()

    def finish(self) -> None:
        """In the parent, when the last test has run."""
        for companion in (self._found or {}).values():
            companion.finish()


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
