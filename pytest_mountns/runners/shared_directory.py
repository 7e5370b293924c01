"""Has all threads of the pytest process share the working directory, as threads do.

setns(2) refuses a thread that shares root and working directory with others (``CLONE_FS``), so from
the first inline test on each thread has its own. Then a chdir(2) of the test would not be seen by
the threads of a pool, which opens a relative path for the test. So ``os.chdir`` and ``os.fchdir``
are replaced by functions that have the other threads follow.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from typing import Any, final

from ..engine.linux import threads
from ..engine.linux.errors import SandboxError


@final
class SharedDirectory:
    """Replaces the functions, from now until :meth:`restore`."""

    def __init__(self) -> None:
        self._replaced = [
            (name, getattr(os, name), _followed(getattr(os, name))) for name in ("chdir", "fchdir")
        ]
        for name, _, replacement in self._replaced:
            setattr(os, name, replacement)

    def restore(self) -> None:
        """Put the functions back, unless somebody else has replaced them since."""
        for name, original, replacement in self._replaced:
            if getattr(os, name) is replacement:
                setattr(os, name, original)


def _followed(change: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(change)
    def change_for_all(*arguments: Any, **named: Any) -> Any:
        __tracebackhide__ = True
        result = change(*arguments, **named)
        # A thread that cannot follow is named when the next test is to be run inline.
        with contextlib.suppress(SandboxError):
            threads.move_others_to_directory()
        return result

    return change_for_all
