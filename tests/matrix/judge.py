"""Two observations of one run, compared thing by thing. No files, no processes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tests.conformance.compare import Outcome, Recording, name_of, normal, where, wording_change

from .documents import Lines, plain
from .scenarios import Scenario

LONGEST = 12
"""Lines of a difference that are shown."""


@dataclass
class Observation:
    """What is known of a run of pytest after it has ended."""

    recording: Recording
    documents: Mapping[str, Lines] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """One thing that differs: a test, a document, the exit status."""

    about: str
    details: tuple[str, ...]


def compare(
    scenario: Scenario, plainly: Sequence[Observation], isolated: Sequence[Observation]
) -> list[Difference]:
    """Step by step: what differs between a plain scenario and an isolated one."""
    found = []
    several = len(scenario.steps) > 1
    for number, (before, after) in enumerate(zip(plainly, isolated, strict=True), 1):
        prefix = f"run {number}: " if several else ""
        found += [
            Difference(f"{prefix}{one.about}", one.details) for one in step(scenario, before, after)
        ]
    return found


def step(scenario: Scenario, before: Observation, after: Observation) -> list[Difference]:
    found = problems(scenario, before.recording, after.recording)
    if found:
        # After a run that broke off, later differences tell nothing new.
        return found
    found += tests(before.recording, after.recording)
    if scenario.ordered:
        found += lines("order", order(before.recording), order(after.recording))
    found += lines("warnings", warnings(before.recording), warnings(after.recording))
    bare = sorted(after.recording.ran - after.recording.isolated)
    if bare:
        found.append(Difference("not isolated", tuple(bare)))
    for name, content in before.documents.items():
        kept = [
            [line for line in document if not any(re.search(p, line) for p in scenario.drop)]
            for document in (content, after.documents.get(name, []))
        ]
        found += lines(name, *kept)
    if before.recording.exit_status != after.recording.exit_status:
        statuses = f"{before.recording.exit_status} became {after.recording.exit_status}"
        found.append(Difference("exit status", (statuses,)))
    return found


def problems(scenario: Scenario, before: Recording, after: Recording) -> list[Difference]:
    """What makes a run worthless. Without this check two broken runs would count as equal."""
    if not scenario.breaks_off and before.exit_status not in scenario.statuses:
        what = f"the plain run is broken, with status {before.exit_status}"
        return [Difference(what, before.last_words)]
    found = []
    for label, run in (("plain", before), ("isolated", after)):
        if run.exit_status is None:
            what = f"the {label} run did not end in time"
        elif run.finished == scenario.breaks_off:
            how = "to its end" if run.finished else "only a part of the way"
            what = f"the {label} run went {how}, with status {run.exit_status}"
        elif not run.outcomes:
            what = f"the {label} run reported no test"
        else:
            continue
        found.append(Difference(what, run.last_words))
    return found


def tests(before: Recording, after: Recording) -> list[Difference]:
    found = []
    for key in dict.fromkeys((*before.outcomes, *after.outcomes)):
        was, now = before.outcomes.get(key), after.outcomes.get(key)
        if name_of(was) != name_of(now):
            said = [one.message for one in (was, now) if one and one.message]
            details = (f"{name_of(was)} became {name_of(now)}", *said)
            found.append(Difference(where(key), details))
        elif was and now and (details := wording(was, now)):
            found.append(Difference(where(key), details))
    return found


def wording(was: Outcome, now: Outcome) -> tuple[str, ...]:
    """How two reports with the same outcome differ in what they say."""
    if was.wording() != now.wording():
        shown = wording_change(was, now)
        # `wording` normalises less than `plain` does.
        if [plain(t) for _, t in was.sections] != [plain(t) for _, t in now.sections] or (
            not shown.startswith("section")
        ):
            return (shown,)
    if plain(was.text) != plain(now.text):
        return changes(text_lines(was.text), text_lines(now.text))
    if was.properties != now.properties:
        return changes(*([f"{n} = {plain(v)}" for n, v in one.properties] for one in (was, now)))
    return ()


def text_lines(text: str) -> Lines:
    return [plain(line) for line in text.splitlines()]


def order(recording: Recording) -> Lines:
    return [where(key) for key in recording.outcomes]


def warnings(recording: Recording) -> Lines:
    return [
        f"{nodeid or 'session'} ({when}): {name}: {normal(message)}"
        for (name, message, when, nodeid), count in sorted(recording.warnings.items())
        for _ in range(count)
    ]


def lines(about: str, before: Lines, after: Lines) -> list[Difference]:
    return [] if before == after else [Difference(about, changes(before, after))]


def changes(before: Lines, after: Lines) -> tuple[str, ...]:
    marked = [
        line
        for line in difflib.unified_diff(before, after, "plain", "isolated", lineterm="", n=0)
        if not line.startswith(("---", "+++", "@@"))
    ]
    if len(marked) > LONGEST:
        more = len(marked) - LONGEST
        marked = [*marked[:LONGEST], f"... and {more} more lines"]
    return tuple(line if len(line) < 300 else f"{line[:297]}..." for line in marked)


@dataclass(frozen=True)
class Verdict:
    """What the matrix says of one scenario with one pytest."""

    differences: tuple[Difference, ...]
    limited: tuple[Difference, ...] = ()
    """Those that the scenario's limit explains."""
    needless: bool = False
    """There is a limit, but nothing differs: with this pytest, or no longer."""
    not_run: str = ""

    @property
    def unexpected(self) -> bool:
        return bool(self.differences)

    def summary(self, limit: str) -> str:
        """A cell of the table."""
        if self.not_run:
            return f"not run: {self.not_run}"
        if self.differences:
            about = list(dict.fromkeys(one.about for one in self.differences))
            more = f" and {len(about) - 3} more" if len(about) > 3 else ""
            return f"**differs**: {', '.join(about[:3])}{more}"
        return f"limit: {limit}" if self.limited else "same"


def verdict(scenario: Scenario, found: Sequence[Difference]) -> Verdict:
    explained = [
        one
        for one in found
        if scenario.limit and any(fnmatchcase(one.about, p) for p in scenario.limited)
    ]
    rest = tuple(one for one in found if one not in explained)
    return Verdict(rest, tuple(explained), needless=bool(scenario.limit) and not explained)
