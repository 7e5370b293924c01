"""How many tests were isolated, and how many could not be: the one line at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import pytest

if TYPE_CHECKING:
    from collections.abc import Mapping

summary_key: Final = pytest.StashKey["Summary"]()
_OUTPUT: Final = "mountns"


@final
class Summary:
    """Of one session, with pytest-xdist of all workers together."""

    def __init__(self) -> None:
        self._isolated: set[str] = set()
        self._skipped: set[str] = set()
        self._others = [0, 0]

    def isolated(self, nodeid: str) -> None:
        """This test has been in a sandbox; several attempts are one."""
        self._isolated.add(nodeid)

    def skipped(self, nodeid: str) -> None:
        """This one was not run, as the machine cannot isolate."""
        self._skipped.add(nodeid)

    def send(self, config: pytest.Config) -> None:
        """In a worker, at its end."""
        output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        if output is not None:
            output[_OUTPUT] = [len(self._isolated), len(self._skipped)]

    def receive(self, output: Mapping[str, Any]) -> None:
        """What a worker has sent."""
        for place, number in enumerate(output.get(_OUTPUT, ())):
            self._others[place] += number

    def show(self, terminalreporter: Any) -> None:
        """Write the line, if there is something to say and nobody wants it quiet."""
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
