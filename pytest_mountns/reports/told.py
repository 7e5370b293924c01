"""Says in the report of a failure what was done to the test on purpose: crashes and faults."""

from __future__ import annotations

from typing import final

import pytest

from ..engine.sandbox.sandbox import Sandbox
from ..session.current import Current
from ..session.observers import Observer


@final
class ToldInReport(Observer):
    """Adds the sections that :attr:`.Current.told` has."""

    def __init__(self, current: Current) -> None:
        self._current = current

    def on_failure(self, report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
        """Add them to the report."""
        for tell in self._current.told:
            if (section := tell()) is not None:
                report.sections.append(section)
