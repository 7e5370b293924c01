"""``--mountns-keep``: bundles of tests, written by the process that has forked them.

What a test has written is saved when it fails, while it stands still, or after its process died;
the bundle is put together when its last report is there. With pytest-xdist a worker writes it, and
says so to the process that shows the summary with the report of the teardown.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, final

import pytest

from ..config import options as settings
from ..reports.changes import sort_out, temporary_directories
from . import bundle
from .capture import Saved, save
from .seeds import Seeds, begin
from .store import Bundles, Content

if TYPE_CHECKING:
    from ..engine.changes.changes import Changes
    from ..engine.plan.model import Plan
    from ..engine.plan.spec import SandboxSpec
    from ..engine.sandbox.written import Written

_ATTRIBUTE: Final = "mountns_kept"
_SHOWN: Final = 3


@dataclass
class _Test:
    """The test that is on its way. ``reports``: of its last attempt."""

    nodeid: str
    spec: SandboxSpec
    plan: Plan
    seeds: Seeds
    saved: Saved | None = None
    reports: list[pytest.TestReport] = field(default_factory=list)

    def forget(self) -> None:
        """What was saved of an attempt that is repeated, or of a test that has passed."""
        if self.saved is not None:
            self.saved.close()
            self.saved = None


@final
class Keeper:
    """The hooks of one session, and what the pytest process does for the tests it has forked."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._when = settings.keep_policy(config)
        self._bundles = Bundles(str(settings.repro_directory(config)))
        self._worker: dict[str, Any] | None = getattr(config, "workerinput", None)
        # Before a test or a fixture changes it.
        self._environment = bundle.environment(os.environ)
        self._run = str((self._worker or {}).get("testrunuid", f"{os.getpid()}-{time.time_ns()}"))
        self._test: _Test | None = None
        self._conditions: dict[str, Any] | None = None
        self._kept: list[str] = []
        self._problems: list[str] = []

    # While a test runs ----------------------------------------------------------------------------

    def begin(self, item: pytest.Item, spec: SandboxSpec, plan: Plan) -> None:
        """It is about to have its wider fixtures set up or, the second time, enter its sandbox."""
        self.close()
        self._test = _Test(item.nodeid, spec, plan, begin(item))

    def waits_for(self, report: pytest.TestReport) -> bool:
        """Whether a test has to stand still at its report; it does so anyway when it fails."""
        return self._when == "all" and report.when == "call"

    def capture(
        self,
        item: pytest.Item,
        report: pytest.TestReport | None,
        read: Callable[[], Sequence[Written]],
    ) -> None:
        """Save what a test has written, if its report is one to keep it for.

        ``report``: None for a process that died. ``read`` gives what is to be saved, lowest first:
        of fixtures of wider scope, and last the test's own.
        """
        test = self._test
        if test is None or test.nodeid != item.nodeid:
            return
        if report is not None:
            if report.when == "setup":
                test.forget()
            if not (report.failed or self.waits_for(report)):
                return
        if test.saved is None:
            # Of a failure in the teardown after one in the call, the first state counts.
            test.saved = self._save(read)

    def _save(self, read: Callable[[], Sequence[Written]]) -> Saved:
        try:
            return save(read(), self._bundles.directory, self._choose)
        except Exception as error:  # noqa: BLE001 - without a fork: of what the test has replaced
            return Saved(notes=[f"what was written is not saved: {error}"])

    def _choose(self, changes: Changes) -> tuple[Changes, str]:
        found = sort_out(changes, temporary_directories(self._config))
        return found.changes, found.note()

    # First: a worker's own hook, which sends the report, comes later.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
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
                said = {"problem": f"{report.nodeid} is not kept: {error}"}
            setattr(report, _ATTRIBUTE, said)
        # Known still: there may be another attempt.
        test.forget()

    def _keep(self, test: _Test) -> str:
        saved = test.saved or Saved(
            notes=["nothing is saved of what was written: it did not fail in its sandbox"]
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
        argv = self._worker["mainargv"][1:] if self._worker else parameters.args
        return bundle.Repro(
            kind="test",
            name=test.nodeid,
            outcome="failed" if any(one.failed for one in test.reports) else "passed",
            written=bundle.now(),
            run=self._run,
            interpreter=bundle.interpreter(sys.orig_argv, sys.argv),
            argv=[os.fspath(one) for one in argv],
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
        """The session ends, or another test begins: one that never came to its end is not kept."""
        if self._test is not None:
            self._test.forget()

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
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
            terminalreporter.write_line(f"and {more} more repros that were not kept", red=True)

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
            # Of whichever plugin it is.
            if report.longreprtext:
                lines += ["", report.longreprtext, ""]
    # Each report has those of the ones before.
    for title, text in dict.fromkeys(part for report in reports for part in report.sections):
        lines += ["", f" {title} ".center(80, "-"), text.rstrip("\n")]
    return "\n".join(lines) + "\n"
