"""The line about sandboxes in pytest's header."""

from __future__ import annotations

from typing import Final

from ..session.session import Session

_WORDS: Final = {"auto": "inline where possible", "fork": "fork", "inline": "inline"}


def header(session: Session) -> str | None:
    """The line of pytest's header; None where only tests that ask for it are isolated."""
    selection = session.selection
    if selection.everything is None:
        return None
    if not selection.everything:
        return "mountns: off, tests that ask for a sandbox are skipped"
    findings = session.sandboxes.planner.findings
    if findings.features is None:
        failed = findings.obstacle
        name = failed.name if failed else "everything"
        return f"mountns: not possible here ({name} failed), see pytest --mountns-doctor"
    how = "in a user namespace" if findings.features.user_namespace else "as root"
    process = _WORDS[str(selection.keys.get("process", "auto"))]
    if process != "fork" and (obstacle := session.sandboxes.obstacle):
        process = f"forked, as {obstacle}"
    return f"mountns: every test in a sandbox of its own ({process}, {how})"
