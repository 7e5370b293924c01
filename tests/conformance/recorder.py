"""A pytest plugin that writes down what a run reports, one JSON object a line.

It is copied into each suite's environment and loaded there with `-p`, so it imports nothing of
this package; nothing of this package imports it either, because the command runs where there is
no pytest. `RECORD` in the environment names the file.

The file is opened once and written to by descriptor: a sandboxed test process inherits it, and its
lines reach the host although the sandbox shows another filesystem. Only "ran" lines come from
there, and from xdist's workers; reports are taken from the process that was started, because that
is what the user sees.
"""

from __future__ import annotations

import json

# Bound here, because suites patch `os` while their tests run.
from os import O_APPEND, O_CREAT, O_TRUNC, O_WRONLY, environ, getpid, readlink, write
from os import open as os_open
from typing import Any

import pytest

RECORD = "MOUNTNS_CONFORMANCE_RECORD"
LONGEST = 20_000


class Recorder:
    def __init__(self, path: str, *, worker: bool) -> None:
        flags = O_WRONLY | O_CREAT | O_APPEND | (0 if worker else O_TRUNC)
        self.path = path
        self.descriptor = os_open(path, flags, 0o644)
        # No process has this id: a worker's reports are those of the process that started it.
        self.pid = 0 if worker else getpid()
        self.namespace = mount_namespace()

    def write(self, kind: str, **what: object) -> None:
        line = json.dumps({"kind": kind, **what}, ensure_ascii=True, default=repr)
        write(self.descriptor, line.encode() + b"\n")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.write("ran", nodeid=item.nodeid, isolated=mount_namespace() != self.namespace)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if getpid() == self.pid:
            self.write(
                "report",
                nodeid=report.nodeid,
                when=report.when,
                outcome=report.outcome,
                wasxfail=getattr(report, "wasxfail", None),
                context=context(report),
                sections=[[name, text[:LONGEST]] for name, text in report.sections],
                properties=[[str(name), repr(value)] for name, value in report.user_properties],
                **explanation(report),
            )

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        node.workerinput[RECORD] = self.path

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if getpid() == self.pid and not report.passed:
            self.write(
                "report",
                nodeid=report.nodeid,
                when="collect",
                outcome=report.outcome,
                wasxfail=None,
                context=None,
                sections=[],
                **explanation(report),
            )

    def pytest_warning_recorded(self, warning_message: Any, when: str, nodeid: str) -> None:
        if getpid() == self.pid:
            self.write(
                "warning",
                category=warning_message.category.__name__,
                message=str(warning_message.message),
                when=when,
                nodeid=nodeid,
            )

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if getpid() == self.pid:
            self.write("finish", collected=session.testscollected, pytest=pytest.__version__)


def mount_namespace() -> str:
    try:
        return readlink("/proc/self/ns/mnt")
    except OSError as error:  # the test took /proc away: then it surely is not the host's
        return str(error)


def context(report: pytest.TestReport) -> list[object] | None:
    """What tells a subtest's report from the others of its test."""
    found = getattr(report, "context", None)
    if found is None:
        return None
    return [found.msg, {key: str(value) for key, value in dict(found.kwargs).items()}]


def explanation(report: pytest.TestReport | pytest.CollectReport) -> dict[str, object]:
    """Why it failed or was skipped: one line, the whole text, and the type that carried it."""
    longrepr = report.longrepr
    if longrepr is None:
        return {"shape": None, "message": "", "text": ""}
    text = report.longreprtext
    if isinstance(longrepr, tuple):
        message = str(longrepr[-1])
    elif crash := getattr(longrepr, "reprcrash", None):
        message = str(crash.message)
    else:
        message = text.strip().rpartition("\n")[2]
    return {
        "shape": type(longrepr).__name__,
        "message": message[:LONGEST],
        "text": text[-LONGEST:],
    }


def pytest_configure(config: pytest.Config) -> None:
    # Taken away at once: a test that starts a pytest of its own must not overwrite the file.
    path = environ.pop(RECORD, None)
    given = getattr(config, "workerinput", {}).get(RECORD)
    used = given or path
    if used:
        recorder = Recorder(used, worker=bool(given))
        config.pluginmanager.register(recorder, "mountns-conformance")
