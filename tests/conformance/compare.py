"""Two recordings of one suite, compared outcome by outcome. No files, no processes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple

Kind = Literal["unexpected", "allowed", "exdev"]

# Less than the recorder keeps, because it cuts before `normal` shortens the text.
COMPARED = 18_000

EXDEV = ("Invalid cross-device link", "[Errno 18]")


class Key(NamedTuple):
    """One report of a run. A re-run test has several alike: `nth` counts them."""

    nodeid: str
    when: str
    context: str
    nth: int


@dataclass(frozen=True)
class Outcome:
    """What one report said: `name` is what pytest counts it as."""

    name: str
    message: str = ""
    text: str = ""
    shape: str | None = None
    sections: tuple[tuple[str, str], ...] = ()
    wasxfail: str | None = None
    properties: tuple[tuple[str, str], ...] = ()

    def wording(self) -> tuple[object, ...]:
        """All that a reader sees besides the outcome, without what no two runs share."""
        return (
            normal(self.message),
            self.wasxfail,
            self.shape,
            tuple((name, normal(text)[:COMPARED]) for name, text in self.sections),
        )


@dataclass
class Recording:
    """What one run reported."""

    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    warnings: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    ran: set[str] = field(default_factory=set)
    isolated: set[str] = field(default_factory=set)
    finished: bool = False
    pytest: str = "?"
    last_words: tuple[str, ...] = ()
    """The end of what it printed."""
    exit_status: int | None = None
    """None: it was still running when its time was up."""

    def tests(self) -> set[str]:
        """All that was reported: tests, and modules that were skipped or broken as a whole."""
        return {key.nodeid for key in self.outcomes}

    def counts(self) -> dict[str, int]:
        """How often each outcome was reported, as in pytest's last line."""
        counts = Counter(
            outcome.name
            for key, outcome in self.outcomes.items()
            if outcome.name != "passed" or key.when == "call"
        )
        return dict(sorted(counts.items()))

    def of_test(self, nodeid: str) -> dict[Key, Outcome]:
        return {key: outcome for key, outcome in self.outcomes.items() if key.nodeid == nodeid}


@dataclass(frozen=True)
class Difference:
    """One report that is not the same isolated as plain; None where there is no such report."""

    key: Key
    plain: Outcome | None
    isolated: Outcome | None
    kind: Kind


@dataclass
class Comparison:
    cases: int
    unstable: list[str]
    """Tests that two plain runs do not agree on: left out, they say nothing about the plugin."""
    differences: list[Difference]
    bare: list[str]
    """Tests that ran, but not in another mount namespace."""
    problems: list[str]
    """What is wrong with a run as a whole."""
    notes: list[str]
    """Same outcome, but other words, captured output or warnings. Listed, decides nothing."""

    def tests(self, kind: Kind | None = None) -> list[str]:
        """Tests with a difference (of this kind), each once."""
        return list(
            dict.fromkeys(
                difference.key.nodeid
                for difference in self.differences
                if kind in (None, difference.kind)
            )
        )

    @property
    def unexpected(self) -> bool:
        return bool(self.tests("unexpected") or self.bare or self.problems)


def parse(lines: Iterable[str], exit_status: int | None) -> Recording:
    """Read what the recorder wrote. A last line cut short by a crash ends it."""
    recording = Recording(exit_status=exit_status)
    seen: Counter[tuple[str, str, str]] = Counter()
    for line in lines:
        try:
            entry: dict[str, Any] = json.loads(line)
        except ValueError:
            break
        kind = entry["kind"]
        if kind == "report":
            context = entry["context"]
            where = (
                entry["nodeid"],
                entry["when"],
                "" if context is None else json.dumps(context, sort_keys=True),
            )
            recording.outcomes[Key(*where, seen[where])] = Outcome(
                category(entry["when"], entry["outcome"], entry["wasxfail"]),
                entry["message"],
                entry["text"],
                entry["shape"],
                tuple((name, text) for name, text in entry["sections"]),
                entry["wasxfail"],
                tuple((name, value) for name, value in entry.get("properties", ())),
            )
            seen[where] += 1
        elif kind == "ran":
            recording.ran.add(entry["nodeid"])
            if entry["isolated"]:
                recording.isolated.add(entry["nodeid"])
        elif kind == "warning":
            recording.warnings[
                entry["category"], normal(entry["message"]), entry["when"], entry["nodeid"]
            ] += 1
        elif kind == "finish":
            recording.finished = True
            recording.pytest = entry["pytest"]
    return recording


def category(when: str, outcome: str, wasxfail: str | None) -> str:
    """The name under which pytest's last line counts a report."""
    if wasxfail is not None:
        return {"skipped": "xfailed", "passed": "xpassed"}.get(outcome, outcome)
    if outcome == "failed" and when != "call":
        return "error"
    return outcome


def normal(text: str) -> str:
    """Without addresses, durations, process ids, numbered temporary directories and rulers."""
    text = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
    text = re.sub(r"pytest-of-[^/]+/pytest-\d+", "pytest", text)
    # The number of a test's own directory counts earlier ones of the same (shortened) name, and
    # those an isolated test does not see.
    text = re.sub(r"(/pytest/[^/\s]*?)\d+(?=[/\s'\")]|$)", r"\1", text)
    text = re.sub(r"(<Dir [^\s>]*?)\d+>", r"\1>", text)
    # pytest's rulers fill the line.
    text = re.sub(r"([-=_])\1*", r"\1", text)
    text = re.sub(r"\d+\.\d+ ?s\b", "0s", text)
    return re.sub(r"\d{4,}", "0", text)


def unstable(first: Recording, second: Recording) -> list[str]:
    """Tests that two runs of the same thing do not agree on."""
    keys = first.outcomes.keys() | second.outcomes.keys()
    return sorted(
        {
            key.nodeid
            for key in keys
            if name_of(first.outcomes.get(key)) != name_of(second.outcomes.get(key))
        }
    )


def compare(
    plain: Recording,
    again: Recording,
    isolated: Recording,
    *,
    allowed: Sequence[str] = (),
    exdev: bool = False,
    expect_isolation: bool = True,
) -> Comparison:
    """`plain` and `again` are two plain runs, `isolated` the one in question.

    `allowed` are patterns of node ids that may differ; with `exdev`, a test that fails with that
    error only when isolated is counted on its own.
    """
    shaky = unstable(plain, again)
    left_out = set(shaky)
    order = dict.fromkeys((*plain.outcomes, *isolated.outcomes))
    differences = []
    for key in order if isolated.outcomes else ():  # else one problem, not hundreds
        before, after = plain.outcomes.get(key), isolated.outcomes.get(key)
        if key.nodeid not in left_out and name_of(before) != name_of(after):
            kind = classify(key.nodeid, plain, isolated, allowed, exdev)
            differences.append(Difference(key, before, after, kind))

    problems = []
    for label, run in (("plain", plain), ("second plain", again), ("isolated", isolated)):
        if run.exit_status is None:
            problems.append(f"the {label} run did not end in time")
        elif not run.finished:
            problems.append(f"the {label} run ended early, with status {run.exit_status}")
        elif not run.outcomes:
            problems.append(f"the {label} run reported no test")
        else:
            continue
        problems += [f"    {line}" for line in run.last_words]
    if not (problems or differences or shaky) and isolated.exit_status != plain.exit_status:
        problems.append(
            f"same outcomes, but exit status {plain.exit_status} became {isolated.exit_status}"
        )
    return Comparison(
        cases=len(plain.tests()),
        unstable=shaky,
        differences=differences,
        bare=sorted(isolated.ran - isolated.isolated) if expect_isolation else [],
        problems=problems,
        notes=notes(plain, again, isolated, left_out),
    )


def classify(
    nodeid: str, plain: Recording, isolated: Recording, allowed: Sequence[str], exdev: bool
) -> Kind:
    if any(fnmatchcase(nodeid, pattern) for pattern in allowed):
        return "allowed"
    # In any report of the test, because the following reports differ for the same reason.
    if exdev and says_exdev(isolated, nodeid) and not says_exdev(plain, nodeid):
        return "exdev"
    return "unexpected"


def says_exdev(recording: Recording, nodeid: str) -> bool:
    return any(
        sign in outcome.text
        for outcome in recording.of_test(nodeid).values()
        if outcome.name in ("failed", "error")
        for sign in EXDEV
    )


def notes(plain: Recording, again: Recording, isolated: Recording, left_out: set[str]) -> list[str]:
    """Where the words differ though the outcome does not, unless plain runs differ there too."""
    found = []
    seen: set[tuple[str, str]] = set()
    for key, before in plain.outcomes.items():
        second, after = again.outcomes.get(key), isolated.outcomes.get(key)
        if key.nodeid in left_out or second is None or after is None or before.name != after.name:
            continue
        if before.wording() == second.wording() != after.wording():
            said = wording_change(before, after)
            # A test's teardown report repeats the sections of its call.
            if (key.nodeid, said) not in seen:
                seen.add((key.nodeid, said))
                found.append(f"{where(key)}: {said}")
    for warning in sorted(plain.warnings.keys() | isolated.warnings.keys()):
        counts = [run.warnings[warning] for run in (plain, again, isolated)]
        if counts[0] == counts[1] != counts[2]:
            name, message, when, nodeid = warning
            found.append(
                f"{nodeid or 'session'} ({when}): {name} {counts[0]} times plain, "
                f"{counts[2]} isolated: {shorten(message)}"
            )
    return found


def wording_change(before: Outcome, after: Outcome) -> str:
    if normal(before.message) != normal(after.message):
        return f"message {change(before.message, after.message)}"
    if before.wasxfail != after.wasxfail:
        return f"xfail reason {before.wasxfail!r} became {after.wasxfail!r}"
    if before.shape != after.shape:
        return f"longrepr was {before.shape}, is {after.shape}"
    old, new = dict(before.sections), dict(after.sections)
    for name in old.keys() | new.keys():
        was, now = old.get(name, ""), new.get(name, "")
        if normal(was)[:COMPARED] != normal(now)[:COMPARED]:
            return f"section {name!r}: {change(was, now)}"
    return "sections in another order"


def change(old: str, new: str) -> str:
    """Both texts, from a little before the place where they part."""
    was, now = " ".join(normal(old).split()), " ".join(normal(new).split())
    same = next(
        (at for at, pair in enumerate(zip(was, now, strict=False)) if pair[0] != pair[1]), None
    )
    begin = max(0, (min(len(was), len(now)) if same is None else same) - 40)
    lead = "..." if begin else ""
    return f"{lead + shorten(was[begin:])!r} became {lead + shorten(now[begin:])!r}"


def name_of(outcome: Outcome | None) -> str:
    return outcome.name if outcome else "not reported"


def where(key: Key) -> str:
    """The report in words: test, phase, subtest, attempt."""
    text = f"{key.nodeid} ({key.when})"
    if key.context:
        message, values = json.loads(key.context)
        inner = [f"[{message}]"] if message is not None else []
        inner += [f"{name}={value}" for name, value in values.items()]
        text += f" subtest {' '.join(inner)}"
    return f"{text}, report {key.nth + 1}" if key.nth else text


def shorten(text: str, width: int = 160) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."
