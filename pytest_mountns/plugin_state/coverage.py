"""coverage.py: which lines have run in test processes and in sandboxes.

The collector of coverage.py goes on collecting in a forked process. In a test process it hands its
data to a :class:`_Collected`, whose content is sent to the pytest process and is added to the data
of coverage.py when the last test has run.

Data files that measured subprocesses write (``patch = subprocess``, ``parallel``) lie in the upper.
They are written once more on the host, beside the data file of the pytest process, where
``coverage combine`` looks for them.
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
class _Collected:
    """Has the methods of ``CoverageData`` that a collector calls, and keeps the data in sets.

    ``CoverageData`` would make an SQLite database in each test process.
    """

    #: The context that data is added to: see "dynamic contexts" in the manual of coverage.py.
    context: str | None
    lines: _Measured = field(default_factory=dict)
    arcs: _Measured = field(default_factory=dict)
    #: The names of the plugins of coverage.py that trace files, by file.
    tracers: dict[str, str] = field(default_factory=dict)

    def set_context(self, context: str | None) -> str | None:
        """Set the context of data that is added from now on, and return the one before."""
        before, self.context = self.context, context
        return before

    def add_lines(self, lines: _Traced) -> None:
        """Add the lines that have run, by file."""
        _add(self.lines, self.context, lines)

    def add_arcs(self, arcs: _Traced) -> None:
        """Add the branches that were taken, by file."""
        _add(self.arcs, self.context, arcs)

    def add_file_tracers(self, tracers: Mapping[str, str]) -> None:
        """Add the plugins of coverage.py that have traced files."""
        self.tracers.update(tracers)

    def add(self, other: _Collected) -> None:
        """Add what another process has collected."""
        for mine, others in ((self.lines, other.lines), (self.arcs, other.arcs)):
            for context, traced in others.items():
                _add(mine, context, traced)
        self.tracers.update(other.tracers)


def _add(measured: _Measured, context: str | None, traced: _Traced) -> None:
    files = measured.setdefault(context, {})
    for name, numbers in traced.items():
        files.setdefault(name, set()).update(numbers)


class Coverage(PluginState):
    """Brings the data of coverage.py to the pytest process."""

    name = "coverage"

    def __init__(self, collector: Any) -> None:
        self._collector = collector
        self._data = collector.covdata
        self._directory, self._prefix = os.path.split(self._data.base_filename() + ".")
        self._collected = _Collected(None)
        #: Data files that were there when the test began.
        self._known: set[str] = set()
        #: Data files that lie in the sandbox, and what is in them.
        self._files: dict[str, bytes] = {}
        #: What was collected in the pytest process since it first entered a sandbox.
        self._inline: _Collected | None = None

    @property
    def _context(self) -> str | None:
        return (
            self._inline.context
            if self._inline
            else cast("str | None", self._data._current_context)
        )

    def begin(self, item: pytest.Item) -> None:
        """Collect into an object of this process, and note which data files there are."""
        # With `patch = fork` coverage.py has made a new collector in this process.
        self._collector = getattr(_current(), "_collector", None) or self._collector
        # What was collected before the fork is dropped here; the pytest process has it as well.
        self._collector.covdata = _Collected(None)
        self._collector.flush_data()
        self._collected = self._collector.covdata = _Collected(self._context)
        self._known = set(self._listing())
        self._files = {}

    def before_enter(self, item: pytest.Item) -> None:
        """Collect into an object in memory from now on, and note which data files there are."""
        if self._inline is None:
            # This stays so for the rest of the session. coverage.py makes its database when data is
            # first written; that takes its time, and must not happen in a sandbox.
            self._collector.flush_data()
            self._inline = self._collector.covdata = _Collected(self._data._current_context)
        self._known = set(self._listing())
        self._files = {}

    def before_leave(self, item: pytest.Item) -> None:
        """Read the data files that were written in the sandbox."""
        self.before_reset()

    def after_leave(self, item: pytest.Item) -> None:
        """Write these data files on the host."""
        for name, content in self._files.items():
            self._write(name, content)

    def before_reset(self) -> None:
        """Read the data files that were written in the sandbox."""
        for name in self._listing():
            if name not in self._known:
                with open(os.path.join(self._directory, name), "rb") as file:
                    self._files[name] = file.read()

    def collect(self, item: pytest.Item) -> object:
        """Return what was collected, and the data files that were written in the sandbox."""
        self._collector.flush_data()
        self.before_reset()
        return self._collected, self._files

    def merge(self, item: pytest.Item, state: object) -> None:
        """Add what was collected, and write the data files on the host."""
        collected, files = cast("tuple[_Collected, dict[str, bytes]]", state)
        self._collected.add(collected)
        if collected.context != self._context:
            # What runs here next is the teardown of wider fixtures. It belongs to this test, so it
            # must be collected under the context that the test has set.
            self._collector.flush_data()
            self._collector.covdata.set_context(collected.context)
        for name, content in files.items():
            self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        # The names are random. A file that is there already belongs to another process, as a worker
        # of pytest-xdist, which has made it on the host since the test began; the test has seen it
        # through the overlay.
        with (
            contextlib.suppress(FileExistsError),
            open(os.path.join(self._directory, name), "xb") as file,
        ):
            file.write(content)

    def finish(self) -> None:
        """Hand everything that was collected to coverage.py."""
        # Afterwards the data has the context of before again, for what still runs.
        context = self._context
        collected, self._collected = self._collected, _Collected(None)
        if self._inline is not None:
            self._collector.flush_data()
            collected.add(self._inline)
            self._collector.covdata, self._inline = self._data, None
        try:
            for name, lines in collected.lines.items():
                self._data.set_context(name)
                self._data.add_lines(lines)
            for name, arcs in collected.arcs.items():
                self._data.set_context(name)
                self._data.add_arcs(arcs)
            self._data.add_file_tracers(collected.tracers)
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
    """The state if coverage.py measures this process."""
    current = _current()
    if current is None:
        return None
    collector = getattr(current, "_collector", None)
    if not all(hasattr(collector, name) for name in ("covdata", "flush_data")):
        text = (
            "mountns: this version of coverage.py works in another way than the known ones; lines"
            " that run in test processes are not counted"
        )
        warnings.warn(pytest.PytestWarning(text), stacklevel=1)
        return None
    return Coverage(collector)
