"""Explains a write that fails in a sandbox and works outside."""

from __future__ import annotations

import errno
import os
from typing import final

import pytest

from ..engine.linux.attributes import OVERFLOW_ID
from ..engine.linux.errors import errno_name
from ..engine.sandbox.sandbox import Sandbox
from ..session.observers import Observer


@final
class FailureExplanation(Observer):
    """Adds a section to reports of tests that failed by an OSError the sandbox may have caused."""

    def on_failure(self, report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
        """Explain ``error`` in the report."""
        explain_failure(report, error, sandbox)


def explain_failure(report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
    """Add a section if ``error`` is an OSError that the sandbox may have caused."""
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
    """Says which owner or group keeps ``path`` from being copied up."""
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
                if number == OVERFLOW_ID
            ]
            if kinds:
                found.append(f"{place} ({' and '.join(kinds)})")
        place = os.path.dirname(place)
    what = f": {', '.join(found)}" if found else ""
    return (
        "a file or directory cannot be copied into the upper layer, because its owner or group"
        f" is not the user's own and a user namespace maps no other{what}."
    )
