"""From samples to figures: medians and spreads, costs against a base, claims. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

from .cases import Sample

Row: TypeAlias = dict[str, Any]
"""What is known of one case: ``failure``, or figures by name. A figure is a list, a round each."""

FIGURES: Final = {
    "wall": "seconds of the whole process",
    "cpu": "CPU seconds of it and of all processes that it has started",
    "added": "milliseconds a test beyond the base, of the whole process",
    "added_cpu": "the same of the CPU time",
    "steady": "milliseconds of the median test beyond the base's: without the session's start",
    "steady_p10": "the same of the tenth percentile of the tests, which others disturb less",
}
#: The name of a figure's CPU time, where that has another one.
CPU: Final = {"added": "added_cpu", "wall": "cpu"}
AGAIN: Final = 100
"""``COUNT`` of ``suites/test_again.py``."""


def row(samples: Sequence[Sample], base: Sequence[Sample] | None) -> Row:
    """The figures of one case that was measured in every round."""
    figures: Row = {
        "tests": samples[0].tests,
        "wall": [sample.wall for sample in samples],
        "cpu": [sample.cpu for sample in samples],
    }
    if said := samples[-1].said:
        figures["said"] = said
    if base:
        pairs = list(zip(samples, base, strict=True))
        figures["added"] = [
            (mine.wall / mine.tests - theirs.wall / theirs.tests) * 1000 for mine, theirs in pairs
        ]
        figures["added_cpu"] = [
            (mine.cpu / mine.tests - theirs.cpu / theirs.tests) * 1000 for mine, theirs in pairs
        ]
        if all(mine.times and theirs.times for mine, theirs in pairs):
            figures["steady"] = [
                (median(mine.times) - median(theirs.times)) * 1000 for mine, theirs in pairs
            ]
            figures["steady_p10"] = [
                (p10(mine.times.values()) - p10(theirs.times.values())) * 1000
                for mine, theirs in pairs
            ]
    names = samples[0].times
    if len(names) < 10:
        # A suite whose tests have names worth showing, or the floor.
        for name in names:
            key = name.removeprefix("test_")
            if not key.isdigit():
                figures[key] = [sample.times[name] * 1000 for sample in samples]
                if all(name in sample.cpus for sample in samples):
                    figures[f"{key}_cpu"] = [sample.cpus[name] * 1000 for sample in samples]
    for name in ("reset", "checkpoint"):
        if f"test_{name}" in names:
            figures[name] = [
                (sample.times[f"test_{name}"] - sample.times["test_nothing"]) / AGAIN * 1000
                for sample in samples
            ]
    return figures


def median(times: Mapping[str, float]) -> float:
    return statistics.median(times.values())


def p10(values: Iterable[float]) -> float:
    """The tenth percentile: a tenth of the values are below. Of less than ten, the least."""
    ordered = sorted(values)
    return ordered[len(ordered) // 10]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest."""
    return statistics.median(values), min(values), max(values)


def shown(values: Sequence[float], unit: str = "") -> str:
    """A figure as tables show it."""
    middle, least, greatest = (f"{value:.3g}" for value in spread(values))
    return f"{middle}{unit}" if len(values) == 1 else f"{middle}{unit} ({least} .. {greatest})"


@final
@dataclass(frozen=True)
class Claim:
    """The ratio of two figures, each a case and its name, and what it is to be."""

    text: str
    mine: tuple[str, str]
    theirs: tuple[str, str]
    limit: float
    at_most: bool = True
    """Else at least."""
    steady: tuple[str, str] | None = None
    """The names of the same two figures without the session's start."""

    @property
    def wanted(self) -> str:
        return f"{'at most' if self.at_most else 'at least'} {self.limit:g}"

    def judge(self, rows: Mapping[str, Row]) -> dict[str, Any]:
        """What was wanted and measured; ``ok`` is None if it was not measured."""
        judged: dict[str, Any] = {"claim": self.text, "wanted": self.wanted, "ok": None}
        ratios, why = ratio(rows, self.mine, self.theirs)
        if ratios is None:
            return judged | {"why": why}
        middle = statistics.median(ratios)
        judged["ratios"] = ratios
        judged["ok"] = middle <= self.limit if self.at_most else middle >= self.limit
        if self.steady:
            names = zip((self.mine[0], self.theirs[0]), self.steady, strict=True)
            judged["steady"], _ = ratio(rows, *names)
        judged["cpu"], _ = ratio(rows, *(_cpu(*one) for one in (self.mine, self.theirs)))
        judged["p10"] = self._p10(rows)
        return judged

    def _p10(self, rows: Mapping[str, Row]) -> list[float] | None:
        """The ratio of tenth percentiles: of the tests of each round, or of the rounds."""
        if self.steady:
            names = zip((self.mine[0], self.theirs[0]), map(_P10.get, self.steady), strict=True)
            return ratio(rows, *((case, name or "") for case, name in names))[0]
        mine, theirs = (rows[case][name] for case, name in (self.mine, self.theirs))
        return [p10(mine) / p10(theirs)] if p10(theirs) > 0 else None


_P10: Final = {"steady": "steady_p10", "median": "p10"}


def _cpu(case: str, name: str) -> tuple[str, str]:
    return case, CPU.get(name, f"{name}_cpu")


def ratio(
    rows: Mapping[str, Row], mine: tuple[str, str], theirs: tuple[str, str]
) -> tuple[list[float] | None, str]:
    """Round by round; or None, and why."""
    values: list[list[float]] = []
    for case, name in (mine, theirs):
        found = rows.get(case, {})
        if name not in found:
            why = f"{case} was not measured" if "wall" not in found else f"{case} has no {name}"
            return None, why
        values.append(found[name])
    if any(value <= 0 for value in values[1]):
        return None, f"{theirs[0]}: lost in noise"
    return [a / b for a, b in zip(*values, strict=True)], ""


_WITHOUT_START: Final = ("steady", "steady")
CLAIMS: Final = (
    Claim(
        "inline, an empty test: of pyfakefs",
        ("inline", "added"),
        ("pyfakefs", "added"),
        0.4,
        steady=_WITHOUT_START,
    ),
    Claim(
        "inline, an empty test: of the same system calls from bare Python",
        ("inline", "added"),
        ("floor-python", "mean"),
        2,
        steady=("steady", "median"),
    ),
    Claim(
        "inline, an ordinary user: of root with the same Python",
        ("user-inline", "added"),
        ("same-python-inline", "added"),
        3,
        steady=_WITHOUT_START,
    ),
    Claim(
        "fork with sandbox, an empty test: of pytest-forked",
        ("fork", "added"),
        ("forked", "added"),
        0.6,
        steady=_WITHOUT_START,
    ),
    Claim(
        "one process a module with sandboxes, CPU of an empty test: of pytest-forked",
        ("module", "added_cpu"),
        ("forked", "added_cpu"),
        0.5,
    ),
    Claim("a checkpoint: of an inline sandbox", ("again", "checkpoint"), ("inline", "steady"), 1.2),
    Claim(
        "10,000 small files, inline: of plain tmp_path on disk",
        ("io/inline", "small_files"),
        ("io/plain", "small_files"),
        1,
    ),
    Claim(
        "10,000 small files, fork: of plain tmp_path on disk",
        ("io/fork", "small_files"),
        ("io/plain", "small_files"),
        1,
    ),
    *(
        Claim(
            f'10,000 small files, {way}, tmp_path="own": of plain tmp_path on disk',
            (f"io/{way}-own", "small_files"),
            ("io/plain", "small_files"),
            0.8,
        )
        for way in ("inline", "fork")
    ),
    Claim(
        "10,000 small files, pyfakefs: of inline",
        ("io/pyfakefs", "small_files"),
        ("io/inline", "small_files"),
        5,
        at_most=False,
    ),
    Claim(
        "200 more mounts, inline: of none",
        ("mounts/200/inline", "added"),
        ("mounts/0/inline", "added"),
        3,
        steady=_WITHOUT_START,
    ),
    Claim(
        "200 more mounts, fork: of none",
        ("mounts/200/fork", "added"),
        ("mounts/0/fork", "added"),
        3,
        steady=_WITHOUT_START,
    ),
    *(
        Claim(
            f"fork with sandbox, {text}: of pytest-forked",
            (f"{name}/fork", "added"),
            (f"{name}/forked", "added"),
            1,
            steady=_WITHOUT_START,
        )
        for name, text in (
            ("modules", "200 MB of modules"),
            ("libraries", "numpy and django imported"),
        )
    ),
    Claim("click, auto: CPU time of plain", ("suite/auto", "cpu"), ("suite/plain", "cpu"), 2.5),
    Claim(
        "poetry-core, auto: CPU time of plain",
        ("poetry-core/auto", "cpu"),
        ("poetry-core/plain", "cpu"),
        1.2,
    ),
)
