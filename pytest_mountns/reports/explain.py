"""Explains what fails in a sandbox and works outside."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import final

import pytest

from ..engine.linux.attributes import OVERFLOW_ID
from ..engine.linux.errors import errno_name
from ..engine.sandbox.sandbox import Sandbox
from ..session.observers import Observer


@final
class FailureExplanation(Observer):
    """Adds a section to reports of tests that may have failed because of the sandbox."""

    def on_failure(self, report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
        """Explain ``error`` in the report."""
        explain_failure(report, error, sandbox)


def explain_failure(report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
    """Add a section if ``error``, or what it comes from, may have been caused by the sandbox."""
    for one in _chain(error):
        if text := _explain(one, user_namespace=sandbox.plan.user_namespace):
            report.sections.append(("mountns", f"{text} See docs/limits.md."))
            return


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes: libraries for databases raise exceptions of their own."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _explain(error: BaseException, *, user_namespace: bool) -> str:
    kind = type(error)
    if kind.__module__ == "sqlite3" and "readonly database" in str(error):
        return (
            f"{kind.__name__}: {error}: SQLite refuses to write to a database file that it finds"
            " replaced (SQLITE_READONLY_DBMOVED). The connection was opened before the test had its"
            " sandbox. Open it in a fixture of function scope, or give the directory of the"
            " database as a volume."
        )
    if not isinstance(error, OSError) or not user_namespace:
        return ""
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    text = {
        errno.EROFS: f"{path or 'This place'} is shown read-only: an ordinary user's sandbox has"
        " writable layers only over directories the user can write.",
        errno.EXDEV: "An ordinary user's OverlayFS cannot rename a directory of the lower layer,"
        " nor anything from one layered directory to another.",
        errno.EOVERFLOW: _unmapped(path),
    }.get(error.errno or 0)
    if not text:
        return ""
    remedy = "Run as root, or give the directory as a volume."
    return f"{errno_name(error.errno or 0)}: {text} {remedy}"


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
