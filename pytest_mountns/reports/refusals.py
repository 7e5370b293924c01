"""Explains, in the report of a guarded test that has failed, which write the guard has refused."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import pytest

from ..engine.linux.errors import errno_name
from .explain import chain

if TYPE_CHECKING:
    from ..engine.sandbox.guard import Guard

#: What Landlock answers: EACCES, and EXDEV to what links or renames from one directory to another.
_REFUSALS: Final = (errno.EACCES, errno.EXDEV)
#: GNU programs put names into these where the locale has them.
_QUOTES: Final = "'\"\u2018\u2019"
#: How programs name the file that they were refused: "cannot create /x: Permission denied" and
#: "cannot touch '/x': Permission denied" (shells, coreutils), "[Errno 13] Permission denied: '/x'".
_NAMED: Final = (
    rf"[{_QUOTES}]([^{_QUOTES}\n]+)[{_QUOTES}]: Permission denied",
    rf"([^\s{_QUOTES}:]+): Permission denied",
    rf"Permission denied: b?[{_QUOTES}]([^{_QUOTES}\n]+)[{_QUOTES}]",
)
_MOST: Final = 5


def explain_refusal(report: pytest.TestReport, error: BaseException, guard: Guard) -> None:
    """Say in the report which path was refused, and what is allowed."""
    found = dict.fromkeys(_refused(report, error, guard))
    if not found and guard.plan.no_network and _is_of_network(error):
        text = (
            'network="none": a guard refuses every TCP connection, those of one process with'
            " itself as well. A sandbox has a network of its own."
        )
        report.sections.append(("mountns", text))
    elif found:
        report.sections.append(("mountns", _explanation(list(found), guard)))


def _refused(report: pytest.TestReport, error: BaseException, guard: Guard) -> Iterator[str]:
    """The paths that the guard has refused, as far as they are known."""
    for one in chain(error):
        if isinstance(one, OSError) and one.errno in _REFUSALS:
            for name in (one.filename, one.filename2):
                if isinstance(name, str | bytes):
                    yield from _if_refused(os.fsdecode(name), errno_name(one.errno), guard)
    texts = [report.longreprtext, *(text for _, text in report.sections)]
    for one in chain(error):
        # As subprocess.CalledProcessError has them.
        written = (getattr(one, name, None) for name in ("stdout", "stderr"))
        texts += [os.fsdecode(text) for text in written if isinstance(text, str | bytes)]
    for text in texts:
        for pattern in _NAMED:
            for name in re.findall(pattern, text):
                yield from _if_refused(name, "EACCES", guard)


def _if_refused(name: str, number: str, guard: Guard) -> Iterator[str]:
    try:
        path = os.path.abspath(name)
        if guard.refuses(path):
            why = guard.why(path)
            yield f"{number}: {path}" + (f" ({why})" if why else "")
    except (OSError, ValueError):
        # There is no working directory, or the name is no path.
        return


def _is_of_network(error: BaseException) -> bool:
    return any(
        isinstance(one, PermissionError) and one.errno == errno.EACCES and one.filename is None
        for one in chain(error)
    )


def _explanation(found: list[str], guard: Guard) -> str:
    more = f", and {len(found) - _MOST} more" if len(found) > _MOST else ""
    shown = "; ".join(found[:_MOST])
    places = [one for one in guard.allowed if not one.startswith("/dev/")]
    return (
        f"{shown}{more}: refused by the guard (--mountns-unavailable=guard). This machine cannot"
        " isolate tests, so what a test writes would stay. It can write to"
        f" {', '.join(places)}. To allow more, for good: --mountns-volume DIR, or"
        ' writes=["DIR/**"]. See docs/limits.md.'
    )
