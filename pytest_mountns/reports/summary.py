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
        self._inline: set[str] = set()
        #: Why tests were not run inline, and which.
        self._not_inline: dict[str, set[str]] = {}
        self._skipped: set[str] = set()
        self._guarded: set[str] = set()
        #: Further lines.
        self._notes: set[str] = set()
        #: The tests that have written into the project, and for each directory the files.
        self._writers: set[str] = set()
        self._files: dict[str, set[str]] = {}
        #: Processes that were left running, by name, and the tests: those that were ended, and
        #: those that go on.
        self._ended: dict[str, set[str]] = {}
        self._survivors: dict[str, set[str]] = {}
        self._others = [0, 0, 0, 0]
        self._others_not_inline: dict[str, int] = {}

    def isolated(self, nodeid: str, *, inline: bool) -> None:
        """Count a test that has been in a sandbox; several attempts at it are one test."""
        self._isolated.add(nodeid)
        if inline:
            self._inline.add(nodeid)

    def guarded(self, nodeid: str) -> None:
        """Count a test that was run on the host, under a guard."""
        self._guarded.add(nodeid)

    def not_inline(self, nodeid: str, why: str) -> None:
        """Count a test that was forked, as it could not be run inline."""
        self._not_inline.setdefault(why, set()).add(nodeid)

    def note(self, text: str) -> None:
        """Say this at the end, once."""
        self._notes.add(text)

    def wrote(self, nodeid: str, directory: str, path: str) -> None:
        """Count a file that a test has written into the project, and that is dropped."""
        self._writers.add(nodeid)
        self._files.setdefault(directory, set()).add(path)

    def left_running(self, name: str, nodeid: str, survives: bool) -> None:
        """Count a process that a test has left running."""
        known = self._survivors if survives else self._ended
        known.setdefault(name, set()).add(nodeid)

    def skipped(self, nodeid: str) -> None:
        """Count a test that did not run because this machine cannot isolate it."""
        self._skipped.add(nodeid)

    def send(self, config: pytest.Config) -> None:
        """In an xdist worker, at its end: send the numbers to the controller."""
        output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        if output is not None:
            sets = (self._isolated, self._skipped, self._inline, self._guarded)
            counts = [len(nodeids) for nodeids in sets]
            reasons = {why: len(nodeids) for why, nodeids in self._not_inline.items()}
            output[_OUTPUT] = [
                *(counts, reasons, sorted(self._notes), sorted(self._writers)),
                *map(_sendable, (self._files, self._ended, self._survivors)),
            ]

    def receive(self, output: Mapping[str, Any]) -> None:
        """In the xdist controller: add the numbers that a worker has sent."""
        sent = output.get(_OUTPUT, ((), {}, (), (), {}, {}, {}))
        counts, reasons, notes, writers, *rest = sent
        self._writers.update(writers)
        for known, added in zip((self._files, self._ended, self._survivors), rest, strict=True):
            for key, values in added.items():
                known.setdefault(key, set()).update(values)
        self._notes.update(notes)
        for place, number in enumerate(counts):
            self._others[place] += number
        for why, number in reasons.items():
            self._others_not_inline[why] = self._others_not_inline.get(why, 0) + number

    def show(self, terminalreporter: Any) -> None:
        """Write the lines, if there is something to count.

        With ``-q`` numbers are left out, but not what tests have left running, or have written in
        vain. With ``-qq`` nothing is said.
        """
        config: pytest.Config = terminalreporter.config
        sets = (self._isolated, self._skipped, self._inline, self._guarded)
        numbers = [len(own) + other for own, other in zip(sets, self._others, strict=True)]
        isolated, skipped, inline, guarded = numbers
        verbosity = config.get_verbosity()
        if not isolated + skipped + guarded or verbosity < -1:
            return
        if verbosity >= 0:
            self._show_numbers(terminalreporter, isolated, skipped, inline, guarded)
        for line in self._lines(config):
            terminalreporter.write_line(f"mountns: {line}", yellow=True)

    def _show_numbers(
        self, terminalreporter: Any, isolated: int, skipped: int, inline: int, guarded: int
    ) -> None:
        parts = [f"{isolated} {'test' if isolated == 1 else 'tests'} isolated"] * bool(isolated)
        if 0 < inline < isolated:
            parts.append(f"{inline} of them inline")
        if guarded:
            word = "test" if guarded == 1 else "tests"
            parts.append(f"{guarded} {word} guarded, not isolated")
        if skipped:
            parts.append(f"{skipped} skipped as this machine cannot isolate")
        text = f"mountns: {', '.join(parts)}"
        advice = " (pytest --mountns-doctor)"
        width = terminalreporter.config.get_terminal_writer().fullwidth
        if skipped and len(text + advice) < width:
            text += advice
        terminalreporter.write_line(text, yellow=bool(skipped + guarded))
        reasons = {why: len(nodeids) for why, nodeids in self._not_inline.items()}
        for why, number in self._others_not_inline.items():
            reasons[why] = reasons.get(why, 0) + number
        for why, number in reasons.items():
            terminalreporter.write_line(f"mountns: {number} not inline: {why}", yellow=True)

    def _lines(self, config: pytest.Config) -> list[str]:
        """What is said besides the numbers."""
        found = set(self._notes)
        if self._writers:
            from .project_files import line

            toml = config.inipath is not None and config.inipath.suffix == ".toml"
            found.add(line(len(self._writers), self._files, toml=toml))
        if self._ended or self._survivors:
            from . import left_processes

            if self._ended:
                found.add(left_processes.ended_line(self._ended))
            if self._survivors:
                found.add(left_processes.survivors_line(self._survivors))
        return sorted(found)


def _sendable(known: Mapping[str, set[str]]) -> dict[str, list[str]]:
    return {key: sorted(values) for key, values in known.items()}
