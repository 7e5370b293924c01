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
from typing import Any, TypeAlias, cast, final

import pytest

from .base import PluginState

#: Context -> file -> lines or arcs.
_Measured: TypeAlias = dict["str | None", dict[str, set[Any]]]
_Traced: TypeAlias = Mapping[str, Collection[Any]]


@dataclass(eq=False, repr=False)
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


@final
class _Measurement:
    """One ``coverage.Coverage`` that measures tests, and what is kept for it in this process.

    Its data gets what is kept when somebody asks for it (``get_data``), and at the end.
    """

    def __init__(self, coverage: Any) -> None:
        self.coverage = coverage
        #: What is kept for its data: what test processes have collected.
        self.collected = _Collected(None)
        #: What was collected in the pytest process since it first entered a sandbox.
        self.inline: _Collected | None = None
        #: Whether this process is in a sandbox, where no data can be written to a file.
        self.inside = False
        #: Whether this is a test process: then what is kept is sent to the pytest process as well.
        self.forked = False
        self._get_data, self._erase = coverage.get_data, coverage.erase
        coverage.get_data, coverage.erase = self._handed_over, self._erased

    @property
    def collector(self) -> Any:
        """The collector of now: there is a new one after ``erase``, and after a fork."""
        return self.coverage._collector

    @property
    def data(self) -> Any:
        """Its ``CoverageData``."""
        return self.coverage._data

    @property
    def is_in_memory(self) -> bool:
        """Whether its data is never written to a file (``data_file=None``)."""
        return getattr(self.data, "_no_disk", False) is True

    @property
    def context(self) -> str | None:
        """The context that is being measured."""
        collecting = self.collector.covdata if self.collector is not None else None
        if isinstance(collecting, _Collected):
            return collecting.context
        return cast("str | None", self.data._current_context)

    def collect_in_memory(self) -> None:
        """Collect into an object in memory from now on.

        coverage.py makes its database when data is first written; that takes its time, and must not
        happen in a sandbox.
        """
        if self.inline is None or self.collector.covdata is not self.inline:
            self.collector.flush_data()
            self.inline = self.collector.covdata = _Collected(self.context)

    def hand_over(self) -> None:
        """Add what is kept to its data, unless it was erased and has none."""
        if self.data is None:
            return
        # Afterwards the data has the context of before again, for what still runs.
        context = self.context
        collected = _Collected(None)
        collected.add(self.collected)
        if self.inline is not None:
            is_collecting = self.collector is not None and self.collector.covdata is self.inline
            if is_collecting:
                self.collector.flush_data()
            collected.add(self.inline)
            if is_collecting and not self.forked:
                self.collector.covdata = self.data
        if not self.forked:
            self.collected, self.inline = _Collected(None), None
        try:
            for name, lines in collected.lines.items():
                self.data.set_context(name)
                self.data.add_lines(lines)
            for name, arcs in collected.arcs.items():
                self.data.set_context(name)
                self.data.add_arcs(arcs)
            self.data.add_file_tracers(collected.tracers)
        finally:
            self.data.set_context(context)

    def let_go(self) -> None:
        """Leave it as it was found."""
        for name in ("get_data", "erase"):
            vars(self.coverage).pop(name, None)

    def _handed_over(self) -> Any:
        if not self.inside or self.is_in_memory:
            self.hand_over()
        return self._get_data()

    def _erased(self) -> None:
        if self.inline is not None and self.collector is not None:
            self.collector.covdata = self.data
        self.collected, self.inline = _Collected(None), None
        self._erase()


class Coverage(PluginState):
    """Brings the data of coverage.py to the pytest process.

    Mostly one ``coverage.Coverage`` measures the whole session: that of pytest-cov or of
    ``coverage run``. Other plugins have their own, as pytest-testmon, or one for each test.
    """

    name = "coverage"

    def __init__(self) -> None:
        #: Those that were met so far, by their ids.
        self._all: dict[int, _Measurement] = {}
        #: The one that measures the test.
        self._now: _Measurement | None = None
        self._collected = _Collected(None)
        #: The directory of its data files, and how their names begin; None if it has no files.
        self._place: tuple[str, str] | None = None
        #: Data files that were there when the test began.
        self._known: set[str] = set()
        #: Data files that lie in the sandbox, and what is in them.
        self._files: dict[str, bytes] = {}
        self._has_warned = False

    def _find(self) -> _Measurement | None:
        """Find the one that measures this test, and note which data files there are."""
        self._now = self._place = None
        self._files = {}
        current = _current()
        if current is None or getattr(current, "_data", self) is None:
            return None
        known = self._all.get(id(current))
        if known is None:
            if not _is_known(current):
                self._warn()
                return None
            known = self._all[id(current)] = _Measurement(current)
        self._now = known
        self._place = None
        if not known.is_in_memory:
            directory, prefix = os.path.split(known.data.base_filename() + ".")
            self._place = directory, prefix
        self._known = set(self._listing())
        return known

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            text = (
                "mountns: this version of coverage.py works in another way than the known ones;"
                " lines that run in test processes are not counted"
            )
            warnings.warn(pytest.PytestWarning(text), stacklevel=1)

    def before_fork(self, item: pytest.Item) -> None:
        """Find the one that measures this test."""
        self._find()

    def begin(self, item: pytest.Item) -> None:
        """Collect into an object of this process."""
        now = self._now
        if now is None:
            return
        now.inside = now.forked = True
        context = now.context
        # With `patch = fork` coverage.py has made a new collector in this process.
        collector = getattr(_current(), "_collector", None) or now.collector
        # What was collected before the fork is dropped here; the pytest process has it as well.
        collector.covdata = _Collected(None)
        collector.flush_data()
        self._collected = now.inline = collector.covdata = _Collected(context)

    def before_enter(self, item: pytest.Item) -> None:
        """Collect into an object in memory from now on."""
        if (now := self._find()) is not None:
            now.collect_in_memory()

    def after_enter(self, item: pytest.Item) -> None:
        """Note that files of this process are in the sandbox."""
        if self._now is not None:
            self._now.inside = True

    def before_leave(self, item: pytest.Item) -> None:
        """Read the data files that were written in the sandbox."""
        self.before_reset()

    def after_leave(self, item: pytest.Item) -> None:
        """Write these data files on the host."""
        if self._now is not None:
            self._now.inside = False
        for name, content in self._files.items():
            self._write(name, content)

    def before_reset(self) -> None:
        """Read the data files that were written in the sandbox."""
        for name in self._listing():
            if name not in self._known:
                with open(self._path(name), "rb") as file:
                    self._files[name] = file.read()

    def collect(self, item: pytest.Item) -> object:
        """Return what was collected, and the data files that were written in the sandbox."""
        if self._now is None:
            return None
        (getattr(_current(), "_collector", None) or self._now.collector).flush_data()
        self.before_reset()
        return self._collected, self._files

    def merge(self, item: pytest.Item, state: object) -> None:
        """Add what was collected, and write the data files on the host."""
        collected, files = cast("tuple[_Collected, dict[str, bytes]]", state)
        now = self._now
        if now is None:
            return
        now.collected.add(collected)
        if collected.context != now.context:
            # What runs here next is the teardown of wider fixtures. It belongs to this test, so it
            # must be collected under the context that the test has set.
            now.collector.flush_data()
            now.collector.covdata.set_context(collected.context)
        for name, content in files.items():
            self._write(name, content)

    def _write(self, name: str, content: bytes) -> None:
        # The names are random. A file that is there already belongs to another process, as a worker
        # of pytest-xdist, which has made it on the host since the test began; the test has seen it
        # through the overlay.
        with (
            contextlib.suppress(FileExistsError),
            open(self._path(name), "xb") as file,
        ):
            file.write(content)

    def finish(self) -> None:
        """Hand everything that was collected to coverage.py."""
        while self._all:
            _, one = self._all.popitem()
            one.hand_over()
            one.let_go()
        self._now = None

    def _path(self, name: str) -> str:
        return os.path.join(self._place[0] if self._place else "", name)

    def _listing(self) -> list[str]:
        if self._place is None:
            return []
        directory, prefix = self._place
        try:
            return [name for name in os.listdir(directory or ".") if name.startswith(prefix)]
        except OSError:
            return []


def _current() -> Any:
    coverage = sys.modules.get("coverage")
    return coverage.Coverage.current() if coverage else None


def _is_known(current: Any) -> bool:
    """Whether this version of coverage.py has the attributes that are used here."""
    collector = getattr(current, "_collector", None)
    return all(hasattr(collector, name) for name in ("covdata", "flush_data")) and (
        getattr(current, "_data", None) is not None
    )


def find_coverage(config: pytest.Config) -> PluginState | None:
    """The state; coverage.py may be started later."""
    return Coverage()
