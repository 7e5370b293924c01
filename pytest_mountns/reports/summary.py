"""The line at the end of a run: how many tests were isolated, and how many could not be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The summary is there from the beginning of a session: xdist workers send theirs at the end.
summary_key: Final = pytest.StashKey["Summary"]()
_OUTPUT: Final = "mountns"


@final
class Summary:
    """Counts the tests of one session; with pytest-xdist those of all workers."""

    def __init__(self) -> None:
        self._isolated: set[str] = set()
        self._skipped: set[str] = set()
        self._others = [0, 0]

    def isolated(self, nodeid: str) -> None:
        """Count a test that has been in a sandbox; several attempts at it are one test."""
        self._isolated.add(nodeid)

    def skipped(self, nodeid: str) -> None:
        """Count a test that did not run because this machine cannot isolate it."""
        self._skipped.add(nodeid)

    def send(self, config: pytest.Config) -> None:
        """In an xdist worker, at its end: send the numbers to the controller."""
        output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        if output is not None:
            output[_OUTPUT] = [len(self._isolated), len(self._skipped)]

    def receive(self, output: Mapping[str, Any]) -> None:
        """In the xdist controller: add the numbers that a worker has sent."""
        for place, number in enumerate(output.get(_OUTPUT, ())):
            self._others[place] += number

    def show(self, terminalreporter: Any) -> None:
        """Write the line, if there is something to count and ``-q`` is not given."""
        config: pytest.Config = terminalreporter.config
        isolated, skipped = len(self._isolated), len(self._skipped)
        isolated, skipped = isolated + self._others[0], skipped + self._others[1]
        if not isolated + skipped or config.get_verbosity() < 0:
            return
        parts = [f"{isolated} {'test' if isolated == 1 else 'tests'} isolated"] * bool(isolated)
        if skipped:
            parts.append(f"{skipped} skipped as this machine cannot isolate")
        line = f"mountns: {', '.join(parts)}"
        advice = " (pytest --mountns-doctor)"
        if skipped and len(line + advice) < config.get_terminal_writer().fullwidth:
            line += advice
        terminalreporter.write_line(line, yellow=bool(skipped))
