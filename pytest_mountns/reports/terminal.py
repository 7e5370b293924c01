"""What the terminal shows: header, doctor, and why a write failed that works outside."""

from __future__ import annotations

import errno
import os
import time
from typing import TYPE_CHECKING, Final, final

import pytest

from ..engine.linux.errors import errno_name
from ..engine.sandbox.sandbox import Sandbox
from .doctor import report as diagnose

if TYPE_CHECKING:
    from ..session.session import Gate

# Seconds after which one wonders what is going on.
_LONG: Final = 1.0


def header(gate: Gate) -> str | None:
    """The line of pytest's header; none where only marked tests are isolated."""
    if gate.everything is None:
        return None
    if not gate.everything:
        return "mountns: off, tests that ask for a sandbox are skipped"
    findings = gate.planner.findings
    if findings.features is None:
        obstacle = findings.obstacle
        name = obstacle.name if obstacle else "everything"
        return f"mountns: not possible here ({name} failed), see pytest --mountns-doctor"
    how = "in a user namespace" if findings.features.user_namespace else "as root"
    process = str(gate.keys["process"])
    if process == "inline" and findings.features.user_namespace and _has_threads(gate.config):
        process = "forked, as this user's inline sandboxes need a process without other threads"
    return f"mountns: every test in a sandbox of its own ({process}, {how})"


def _has_threads(config: pytest.Config) -> bool:
    """Whether the processes that run tests have further threads; every xdist worker has."""
    return bool(config.getoption("tx", None)) or len(os.listdir("/proc/self/task")) > 1


@final
class Unpacking:
    """Says that a layer is being unpacked, and how far that is, if it takes long."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._what = ""
        self._since = 0.0
        self._shown = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what != self._what:
            self.end()
            self._what, self._since = what, now
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if now - self._since < _LONG or reporter is None or self._config.get_verbosity() < 0:
            return
        share = f" {min(100, 100 * done // total)}%" if total and reporter.isatty else " ..."
        line = f"mountns: {what}{share}"
        if line == self._shown:
            return
        if reporter.isatty:
            reporter.rewrite(line, erase=True)
        else:
            reporter.write_line(line)
        self._shown = line

    def end(self) -> None:
        """It is done, or has failed."""
        if self._shown:
            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None and reporter.isatty:
                reporter.write_line("")
        self._what = self._shown = ""


def doctor(config: pytest.Config) -> int:
    """Print what works here, what does not, why, and what mends it. 0 if tests can be isolated."""
    # Asked for before anything is configured: no session, no gate.
    return diagnose([str(config.rootpath)])


def explain_failure(report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
    """A section for an OSError that the sandbox may be the reason of."""
    if not isinstance(error, OSError) or not sandbox.plan.user_namespace:
        return
    name = errno_name(error.errno or 0)
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    text = {
        errno.EROFS: f"{path or 'This place'} is shown read-only: an ordinary user's sandbox has"
        " writable layers only over directories the user can write.",
        errno.EXDEV: "An ordinary user's OverlayFS cannot rename a directory of the lower layer,"
        " nor anything from one layered directory to another.",
        errno.EOVERFLOW: _unmapped(path),
    }.get(error.errno or 0)
    if text:
        remedy = "Run as root, or give the directory as a volume."
        report.sections.append(("mountns", f"{name}: {text} {remedy} See docs/limits.md."))


def _unmapped(path: str) -> str:
    """Which owner or group keeps ``path`` from being copied up."""
    overflow = 65534
    place = os.path.abspath(path) if path else "/"
    found = []
    while place != "/":
        try:
            status = os.lstat(place)
        except OSError:
            pass
        else:
            kinds = [
                kind
                for kind, number in (("owner", status.st_uid), ("group", status.st_gid))
                if number == overflow
            ]
            if kinds:
                found.append(f"{place} ({' and '.join(kinds)})")
        place = os.path.dirname(place)
    what = f": {', '.join(found)}" if found else ""
    return (
        "a file or directory cannot be copied into the upper layer, because its owner or group"
        f" is not the user's own and a user namespace maps no other{what}."
    )
