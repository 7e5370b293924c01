"""coverage.py: the lines that ran in a test process are lines that ran.

The collector of the process goes on collecting after a fork. In the test process it hands its
data to a :class:`_Sink`, whose content crosses and is added to the parent's data when the tests
are over. Files that measured subprocesses wrote (``patch = subprocess``, ``parallel``) lie in the
upper; they are written again beside the parent's data file, where ``coverage combine`` looks.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias, cast

import pytest

from .base import PluginState

#: Context -> file -> lines or arcs.
_Measured: TypeAlias = dict["str | None", dict[str, set[Any]]]
_Traced: TypeAlias = Mapping[str, Collection[Any]]


@dataclass
class _Sink:
    """What a collector wants of ``CoverageData``, in plain sets: no database per test."""

    context: str | None
    lines: _Measured = field(default_factory=dict)
    arcs: _Measured = field(default_factory=dict)
    tracers: dict[str, str] = field(default_factory=dict)

    def set_context(self, context: str | None) -> str | None:
        before, self.context = self.context, context
        return before

    def add_lines(self, lines: _Traced) -> None:
        _add(self.lines, self.context, lines)

    def add_arcs(self, arcs: _Traced) -> None:
        _add(self.arcs, self.context, arcs)

    def add_file_tracers(self, tracers: Mapping[str, str]) -> None:
        self.tracers.update(tracers)

    def add(self, other: _Sink) -> None:
        for mine, others in ((self.lines, other.lines), (self.arcs, other.arcs)):
            for context, traced in others.items():
                _add(mine, context, traced)
        self.tracers.update(other.tracers)


def _add(measured: _Measured, context: str | None, traced: _Traced) -> None:
    files = measured.setdefault(context, {})
    for name, numbers in traced.items():
        files.setdefault(name, set()).update(numbers)


class Measurement(PluginState):
    name = "coverage"

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self._data = collector.covdata
        self._directory, self._prefix = os.path.split(self._data.base_filename() + ".")
        self._sink = _Sink(None)
        self._known: set[str] = set()
        self._files: dict[str, bytes] = {}
        #: What is measured in this process since it first entered a sandbox.
        self._visits: _Sink | None = None

    @property
    def _context(self) -> str | None:
        return (
            self._visits.context
            if self._visits
            else cast("str | None", self._data._current_context)
        )

    def begin(self, item: pytest.Item) -> None:
        # With `patch = fork` coverage has started afresh in this process.
        self._collector = getattr(_current(), "_collector", None) or self._collector
        # What was collected before the fork is still in the parent, and the parent's to save.
        self._collector.covdata = _Sink(None)
        self._collector.flush_data()
        self._sink = self._collector.covdata = _Sink(self._context)
        self._known = set(self._listing())
        self._files = {}

    def before_enter(self, item: pytest.Item) -> None:
        if self._visits is None:
            # For the rest of the session. The database of coverage.py is opened where it is first
            # written to, which is not to be a sandbox; and not every test is to wait for it.
            self._collector.flush_data()
            self._visits = self._collector.covdata = _Sink(self._data._current_context)
        self._known = set(self._listing())
        self._files = {}

    def before_leave(self, item: pytest.Item) -> None:
        self.before_reset()

    def after_leave(self, item: pytest.Item) -> None:
        for name, content in self._files.items():
            self._write(name, content)

    def before_reset(self) -> None:
        for name in self._listing():
            if name not in self._known:
                with open(os.path.join(self._directory, name), "rb") as file:
                    self._files[name] = file.read()

    def collect(self, item: pytest.Item) -> object:
        self._collector.flush_data()
        self.before_reset()
        return self._sink, self._files

    def merge(self, item: pytest.Item, state: object) -> None:
        sink, files = cast("tuple[_Sink, dict[str, bytes]]", state)
        self._sink.add(sink)
        if sink.context != self._context:
            # What runs here next, the teardown of wider scopes, belongs to the test's teardown.
            self._collector.flush_data()
            self._collector.covdata.set_context(sink.context)
        for name, content in files.items():
            self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        # What is there already was seen through the overlay: names are random, and another
        # process, as a worker of pytest-xdist, has begun its file meanwhile.
        with (
            contextlib.suppress(FileExistsError),
            open(os.path.join(self._directory, name), "xb") as file,
        ):
            file.write(content)

    def finish(self) -> None:
        # What is active now goes under its own context, not under the last of ours.
        context = self._context
        sink, self._sink = self._sink, _Sink(None)
        if self._visits is not None:
            self._collector.flush_data()
            sink.add(self._visits)
            self._collector.covdata, self._visits = self._data, None
        try:
            for name, lines in sink.lines.items():
                self._data.set_context(name)
                self._data.add_lines(lines)
            for name, arcs in sink.arcs.items():
                self._data.set_context(name)
                self._data.add_arcs(arcs)
            self._data.add_file_tracers(sink.tracers)
        finally:
            self._data.set_context(context)

    def _listing(self) -> list[str]:
        try:
            return [n for n in os.listdir(self._directory or ".") if n.startswith(self._prefix)]
        except OSError:
            return []


def _current() -> Any:
    coverage = sys.modules.get("coverage")
    return coverage.Coverage.current() if coverage else None


def find_coverage(config: pytest.Config) -> PluginState | None:
    current = _current()
    if current is None:
        return None
    collector = getattr(current, "_collector", None)
    if not all(hasattr(collector, name) for name in ("covdata", "flush_data")):
        text = "mountns: this version of coverage is not known; lines that run in test processes"
        warnings.warn(pytest.PytestWarning(f"{text} are not counted"), stacklevel=1)
        return None
    return Measurement(collector)
