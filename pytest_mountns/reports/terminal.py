"""The line about sandboxes in pytest's header."""

from __future__ import annotations

import os
from typing import Final

import pytest

from ..session.session import Session

_WORDS: Final = {"auto": "inline where possible", "fork": "fork", "inline": "inline"}


def header(config: pytest.Config, session: Session) -> str | None:
    """The line of pytest's header; None where only tests that ask for it are isolated."""
    selection = session.selection
    if selection.everything is None:
        return None
    if not selection.everything:
        return "mountns: off, tests that ask for a sandbox are skipped"
    findings = session.sandboxes.planner.findings
    if findings.features is None:
        obstacle = findings.obstacle
        name = obstacle.name if obstacle else "everything"
        return f"mountns: not possible here ({name} failed), see pytest --mountns-doctor"
    how = "in a user namespace" if findings.features.user_namespace else "as root"
    process = _WORDS[str(selection.keys.get("process", "auto"))]
    if process != "fork" and findings.features.user_namespace and _has_threads(config):
        process = "forked, as this user's inline sandboxes need a process without other threads"
    return f"mountns: every test in a sandbox of its own ({process}, {how})"


def _has_threads(config: pytest.Config) -> bool:
    """Whether the processes that run tests have more than one thread; xdist's workers have."""
    return bool(config.getoption("tx", None)) or len(os.listdir("/proc/self/task")) > 1
