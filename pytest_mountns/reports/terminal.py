"""The lines about sandboxes in pytest's header, and after it has collected the tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pytest

from ..session.session import Session

_WORDS: Final = {
    "auto": "inline where possible",
    "fork": "fork",
    "module": "one process for each module",
    "inline": "inline",
}


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
        if session.guards.are_made:
            uncovered = ", ".join(session.guards.probe.uncovered)
            return (
                f"mountns: guarded, not isolated ({name} failed): tests can write to tmp_path,"
                f" volumes and pytest's cache only, but {uncovered} are not covered"
            )
        if why := session.guards.why_none:
            return (
                f"mountns: not possible here ({name} failed), and no guard either"
                f" ({why}), see pytest --mountns-doctor"
            )
        return f"mountns: not possible here ({name} failed), see pytest --mountns-doctor"
    how = "in a user namespace" if findings.features.user_namespace else "as root"
    process = _WORDS[str(selection.keys.get("process", "auto"))]
    if process != "fork" and (obstacle := session.sandboxes.obstacle):
        process = f"forked, as {obstacle}"
    return f"mountns: every test in a sandbox of its own ({process}, {how})"


def how_tests_run(session: Session, items: Sequence[pytest.Item]) -> list[str]:
    """How many tests are run in which way, and why, if not all are run in the same.

    Besides, what will be wrong in forked ones because of other plugins. This is what is known after
    collection: a thread that cannot move may be started later.
    """
    if session.selection.everything is False:
        return []
    found = ((item, session.selection.valid_spec(item)) for item in items)
    tests = [(item, spec) for item, spec in found if spec is not None]
    lines = [f"mountns: {note}" for note in session.other_plugins.notes(tests)]
    if session.selection.everything is not True or session.sandboxes.obstacle:
        return lines
    specs = [spec for _, spec in tests]
    marked = sum(spec.process == "fork" for spec in specs)
    needing = sum(spec.process != "fork" and spec.needs_process for spec in specs)
    scoped = sum(spec.process == "module" and not spec.needs_process for spec in specs)
    shared = sum(spec.process == "module" and not spec.why_not_in_module for spec in specs)
    scoped -= shared
    forked = marked + needing + scoped
    inline = len(specs) - forked - shared
    if len(specs) in (forked, inline, shared):
        return lines
    reasons = [f"{marked} by mark, fixture or option"] * bool(marked)
    reasons += [f"{needing} for PID namespace, network, host name or user"] * bool(needing)
    reasons += [f"{scoped} for scope="] * bool(scoped)
    parts = [f"{inline} inline"] * bool(inline)
    parts += [f"{shared} in processes of their modules"] * bool(shared)
    parts += [f"{forked} forked ({', '.join(reasons)})"] * bool(forked)
    return [f"mountns: {', '.join(parts)}", *lines]
