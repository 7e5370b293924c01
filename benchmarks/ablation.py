"""What each part gains that exists for speed alone: the empty tests with it and without it.

The switch is :mod:`pytest_mountns.engine.linux.ablation`. In each round every way runs once with
all parts, and then once without each part that it uses.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, final

from .cases import Case, Run
from .parts import FORK, INLINE, PLAIN
from .results import Row, shown


@final
@dataclass(frozen=True)
class Way:
    """One way to run the empty tests, and the parts that it uses."""

    text: str
    run: Run
    plain: Run | None
    """What its costs are beyond; None: they are those of the whole run."""
    parts: tuple[str, ...]

    def without(self, part: str) -> Run:
        """The same tests without this part."""
        return replace(self.run, name=f"{self.run.name}-without-{part}", left_out=part)


def _ways() -> tuple[Way, ...]:
    plain = Run("plain", options=PLAIN)
    user = Run("user-plain", "user", options=PLAIN, as_user=True)
    mounts = Run("mounts-plain", options=PLAIN, mounts=100)
    # Plain, they would write to the disk, and that is no measure for a sandbox in memory.
    writing = Run("writing-inline", suite="writing", options=INLINE, isolated=True)
    inline, fork = (
        ("background_close", "templates", "root_calls", "made_ahead"),
        ("fork_pages", "templates", "root_calls", "made_ahead"),
    )
    return (
        _way("inline", plain, INLINE, inline),
        _way("fork", plain, FORK, fork),
        _way("inline, an ordinary user", user, INLINE, inline),
        _way("fork, an ordinary user", user, FORK, fork),
        Way("inline, 200 new files in each test", writing, None, inline),
        _way("inline, 100 more mounts", mounts, INLINE, ("templates",)),
        _way("fork, 100 more mounts", mounts, FORK, ("templates",)),
    )


def _way(text: str, plain: Run, options: tuple[str, ...], parts: tuple[str, ...]) -> Way:
    name = plain.name.replace("plain", text.partition(",")[0])
    run = replace(plain, name=name, options=options, base=plain.name, isolated=True)
    return Way(text, run, plain, parts)


WAYS: Final = _ways()


def cases(only: Sequence[str] = ()) -> list[Case]:
    """The cases in the order in which they take turns; ``only``: of these ways, by their names."""
    found: dict[str, Case] = {}
    for way in WAYS:
        if not only or way.run.name in only:
            for run in (way.plain, way.run, *map(way.without, way.parts)):
                if run is not None:
                    found.setdefault(run.name, run)
    return list(found.values())


HEAD: Final = (
    "tests",
    "part",
    *("CPU ms/test with", "without", "ratio"),
    *("wall ms/test with", "without", "ratio"),
)


def table(rows: Mapping[str, Row]) -> list[list[str]]:
    """A line for each part of each way that is in the results.

    A cost is shown as the least of the rounds and their median. A ratio is what the tests cost
    without the part, divided by what they cost with it: the median of the rounds, with the least
    and the greatest.
    """
    return [
        [way.text, part, *_cells(rows, way, part, "cpu"), *_cells(rows, way, part, "wall")]
        for way in WAYS
        for part in way.parts
        if way.run.name in rows
    ]


def _cells(rows: Mapping[str, Row], way: Way, part: str, figure: str) -> list[str]:
    unknown: Row = {"failure": "not in these results"}
    mine = rows.get(way.run.name, unknown)
    other = rows.get(way.without(part).name, unknown)
    plain = rows.get(way.plain.name, unknown) if way.plain else None
    for row in (plain or {}, mine, other):
        if "failure" in row:
            return [f"not measured: {row['failure']}" if figure == "cpu" else "", "", ""]
    whole, without = costs(mine, plain, figure), costs(other, plain, figure)
    if min(whole) <= 0:
        return [_cost(whole), _cost(without), "lost in noise"]
    ratios = [b / a for a, b in zip(whole, without, strict=True)]
    return [_cost(whole), _cost(without), shown(ratios)]


def costs(row: Row, plain: Row | None, figure: str) -> list[float]:
    """Milliseconds a test beyond those of the plain run, if there is one, round by round."""
    if plain is None:
        return [value / row["tests"] * 1000 for value in row[figure]]
    return [
        (mine / row["tests"] - theirs / plain["tests"]) * 1000
        for mine, theirs in zip(row[figure], plain[figure], strict=True)
    ]


def _cost(values: Sequence[float]) -> str:
    return f"{min(values):.3g} / {statistics.median(values):.3g}"
