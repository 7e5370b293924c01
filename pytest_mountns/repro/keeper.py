"""``--mountns-keep``: saves bundles of tests, in the pytest process.

What a test has written is saved when it fails, while it waits, or when its process has died. The
bundle is put together when the last report of the test is made. With pytest-xdist a worker writes
the bundle; the report of the teardown tells the process that writes the summary.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import pytest

from ..config import options
from ..reports.filter import filter_changes
from ..session.observers import Observer, WrittenByTest
from ..session.temporary import temporary_directories
from . import bundle
from .capture import Saved, save
from .seeds import Seeds, begin
from .store import Bundles, Content

if TYPE_CHECKING:
    from ..engine.changes.changes import Changes
    from ..engine.plan.model import Plan
    from ..engine.plan.spec import SandboxSpec

_ATTRIBUTE: Final = "mountns_kept"
#: Where a worker of pytest-xdist is told how pytest was started.
_INTERPRETER: Final = "mountns_interpreter"
_SHOWN: Final = 3


@dataclass
class _Test:
    """The test that is running."""

    nodeid: str
    spec: SandboxSpec
    plan: Plan
    seeds: Seeds
    #: What its last attempt has written, if that is saved.
    saved: Saved | None = None
    #: The reports of its last attempt.
    reports: list[pytest.TestReport] = field(default_factory=list)

    def forget(self) -> None:
        """Drop what was saved, since the test has passed or is tried once more."""
        if self.saved is not None:
            self.saved.close()
            self.saved = None


@final
class Keeper(Observer):
    """Saves the bundles of one session."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._when = options.keep_policy(config)
        self._bundles = Bundles(str(options.repro_directory(config)))
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        # Saved now, before a test or a fixture changes it.
        self._environment = bundle.environment(os.environ)
        # A worker itself was started by execnet, and not as pytest.
        told: str | None = (self._worker or {}).get(_INTERPRETER)
        self._interpreter: list[str] = (
            json.loads(told) if told else bundle.interpreter(sys.orig_argv, sys.argv)
        )
        self._run = str((self._worker or {}).get("testrunuid", f"{os.getpid()}-{time.time_ns()}"))
        self._test: _Test | None = None
        self._conditions: dict[str, Any] | None = None
        self._kept: list[str] = []
        self._problems: list[str] = []

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """In the xdist controller: tell a worker how pytest was started."""
        # As JSON, which is ASCII: execnet sends no text with bytes that are not UTF-8 (PEP 383).
        node.workerinput[_INTERPRETER] = json.dumps(bundle.of_worker(self._interpreter))

    # While a test runs ----------------------------------------------------------------------------

    def before(self, item: pytest.Item, spec: SandboxSpec, plan: Plan) -> None:
        """Note the conditions under which the test begins; when called again, note them anew."""
        self.close()
        self._test = _Test(item.nodeid, spec, plan, begin(item))

    def wants_pause(self, report: pytest.TestReport) -> bool:
        """A test that passes is saved while it waits after its call."""
        return self._when == "all" and report.when == "call"

    def wants_layers(self) -> bool:
        """A test that fails in its teardown is saved when that has been reported."""
        return True

    def on_report(
        self, item: pytest.Item, report: pytest.TestReport, written: WrittenByTest | None
    ) -> None:
        """Save what the test has written, if its report is one to save it for."""
        test = self._test
        if written is None or test is None or test.nodeid != item.nodeid:
            return
        if report.when == "setup":
            test.forget()
        if report.failed or self.wants_pause(report):
            self._save(test, written)

    def wants_end(self, *, died: bool) -> bool:
        """What a dead process has written can be saved now or never."""
        return died

    def ended(self, item: pytest.Item, written: WrittenByTest, *, died: bool) -> None:
        """Save what the test whose process has died had written."""
        test = self._test
        if test is not None and test.nodeid == item.nodeid:
            self._save(test, written)

    def _save(self, test: _Test, written: WrittenByTest) -> None:
        # If the teardown fails after the call has failed, the state of the first failure counts.
        if test.saved is None:
            test.saved = self._saved(written)

    def _saved(self, written: WrittenByTest) -> Saved:
        try:
            with written.layers() as layers:
                return save(layers, self._bundles.directory, self._choose)
        except Exception as error:  # noqa: BLE001 - an inline test may have replaced any function
            return Saved(notes=[f"what was written is not saved: {error}"])

    def _choose(self, changes: Changes) -> tuple[Changes, str]:
        found = filter_changes(changes, temporary_directories(self._config))
        return found.changes, found.note()

    # First, since a worker's own hook sends the report.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the reports of a test, and write the bundle when it is complete."""
        test = self._test
        if test is not None and test.nodeid == report.nodeid:
            if report.when == "setup":
                test.reports.clear()
            test.reports.append(report)
            if report.when == "teardown":
                self._conclude(report, test)
        said: dict[str, str] | None = getattr(report, _ATTRIBUTE, None)
        if said is not None and self._worker is None:
            delattr(report, _ATTRIBUTE)
            for key, value in said.items():
                known = self._kept if key == "kept" else self._problems
                if value not in known:
                    known.append(value)

    def _conclude(self, report: pytest.TestReport, test: _Test) -> None:
        if self._when == "all" or any(one.failed for one in test.reports):
            try:
                said = {"kept": self._keep(test)}
            except Exception as error:  # noqa: BLE001 - this is no reason for a run to end
                said = {"problem": f"{report.nodeid} is not saved: {error}"}
            setattr(report, _ATTRIBUTE, said)
        # The test itself stays known, since another attempt may follow.
        test.forget()

    def _keep(self, test: _Test) -> str:
        saved = test.saved or Saved(
            notes=["what was written is not saved: the test did not fail in its sandbox"]
        )
        seeds = {
            "random": test.seeds.random,
            "hypothesis": test.seeds.hypothesis,
            "randomly": test.seeds.randomly,
        }
        made = self._repro(test, saved, seeds)
        texts = {bundle.CHANGES: "", **saved.texts, bundle.REPORT: _text(test.nodeid, test.reports)}
        return self._bundles.add(_name(test.nodeid), made, Content(texts, saved.files))

    def _repro(self, test: _Test, saved: Saved, seeds: dict[str, Any]) -> bundle.Repro:
        if self._conditions is None:
            self._conditions = bundle.conditions()
        variables, left_out = self._environment
        parameters = self._config.invocation_params
        return bundle.Repro(
            kind="test",
            name=test.nodeid,
            outcome="failed" if any(one.failed for one in test.reports) else "passed",
            written=bundle.now(),
            run=self._run,
            interpreter=self._interpreter,
            # A worker has those of the whole run. sys.argv may be those of another program.
            argv=[os.fspath(one) for one in parameters.args],
            cwd=str(parameters.dir),
            root=str(self._config.rootpath),
            environment=variables,
            left_out=left_out,
            seeds=seeds,
            spec=bundle.spec_data(test.spec),
            plan=test.plan.describe().splitlines(),
            layers=[bundle.layer_data(one) for one in saved.layers],
            notes=saved.notes,
            **self._conditions,
        )

    def close(self) -> None:
        """Drop a test that has not come to its end, as the session or another test does."""
        if self._test is not None:
            self._test.forget()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """List the bundles, and what could not be saved."""
        where = self._shown(self._bundles.directory)
        if self._kept:
            count = len(self._kept)
            noun = "repro" if count == 1 else "repros"
            terminalreporter.write_line(f"kept: {count} {noun} in {where}")
            for path in self._kept if count <= _SHOWN else ():
                terminalreporter.write_line(f"  pytest-mountns replay {self._shown(path)}")
        for problem in self._problems[:_SHOWN]:
            terminalreporter.write_line(problem, red=True)
        if len(self._problems) > _SHOWN:
            more = len(self._problems) - _SHOWN
            terminalreporter.write_line(f"and {more} more tests that were not saved", red=True)

    def _shown(self, path: str) -> str:
        return os.path.relpath(path, self._config.invocation_params.dir)


def _name(nodeid: str) -> str:
    readable = re.sub(r"[^\w.\-]+", "-", nodeid.replace("::", "-"), flags=re.ASCII).strip("-.")
    digest = hashlib.sha256(nodeid.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{readable[:100]}-{digest[:8]}"


def _text(nodeid: str, reports: Sequence[pytest.TestReport]) -> str:
    lines = [nodeid, ""]
    for report in reports:
        lines.append(f"{report.when}: {report.outcome} ({report.duration:.3f} s)")
        with suppress(Exception):
            # The text may come from any plugin.
            if report.longreprtext:
                lines += ["", report.longreprtext, ""]
    # Each report has the sections of the ones before it.
    for title, text in dict.fromkeys(part for report in reports for part in report.sections):
        lines += ["", f" {title} ".center(80, "-"), text.rstrip("\n")]
    return "\n".join(lines) + "\n"
