"""Names a forked test in the terminal that does nothing but wait, and may do so for ever."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import pytest

from ..session.observers import Observer


def words(nodeid: str, seconds: float, libraries: Sequence[str]) -> str:
    """The line. ``libraries``: see :meth:`.Observer.waits`."""
    of = f" (libraries that start threads here: {', '.join(libraries)})" if libraries else ""
    return (
        f"mountns: {nodeid} has only waited for {seconds:.0f} s. It was forked beside threads that"
        f" its process lacks{of}. If it waits for one of them, it never ends;"
        ' process="inline" has no such problem'
    )


@final
class WaitingTests(Observer):
    """Writes a line while such a test runs. Without it nobody would know which one it is."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def waits(self, item: pytest.Item, seconds: float, libraries: Sequence[str]) -> None:
        """Write the line."""
        reporter: Any = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.ensure_newline()
            reporter.write_line(words(item.nodeid, seconds, libraries), yellow=True)
