"""What each part gains that exists for speed alone: the empty tests with it and without it.

The switch is :mod:`pytest_mountns.engine.linux.ablation`. In each round every way runs once with
all parts, and then once without each part that it uses.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, final

from .cases import Case, Run
from .parts import FORK, INLINE, PLAIN
from .results import Row

Figure: TypeAlias = tuple[float, float]
"""The least of the rounds, and their median."""


@final
@dataclass(frozen=True)
class Way:
    """One way to run the empty tests, and the parts that it uses."""

    text: str
    run: Run
    plain: Run
    parts: tuple[str, ...]

    def without(self, part: str) -> Run:
        """The same tests without this part."""
        return replace(self.run, name=f"{self.run.name}-without-{part}", left_out=part)


def _ways() -> tuple[Way, ...]:
    plain = Run("plain", options=PLAIN)
    user = Run("user-plain", "user", options=PLAIN, as_user=True)
    mounts = Run("mounts-plain", options=PLAIN, mounts=100)
    inline, fork = ("background_close", "templates"), ("fork_pages", "templates")
    return (
        _way("inline", plain, INLINE, inline),
        _way("fork", plain, FORK, fork),
        _way("inline, an ordinary user", user, INLINE, inline),
        _way("fork, an ordinary user", user, FORK, fork),
        _way("inline, 100 more mounts", mounts, INLINE, ("templates",)),
        _way("fork, 100 more mounts", mounts, FORK, ("templates",)),
    )


def _way(text: str, plain: Run, options: tuple[str, ...], parts: tuple[str, ...]) -> Way:
    name = plain.name.replace("plain", text.partition(",")[0])
    run = replace(plain, name=name, options=options, base=plain.name, isolated=True)
    return Way(text, run, plain, parts)


WAYS: Final = _ways()


def cases() -> list[Case]:
    """All cases in the order in which they take turns."""
    found: dict[str, Case] = {}
    for way in WAYS:
        for run in (way.plain, way.run, *map(way.without, way.parts)):
            found.setdefault(run.name, run)
    return list(found.values())


HEAD: Final = (
    "tests",
    "part",
    *("CPU ms/test with", "without", "ratio"),
    *("wall ms/test with", "without", "ratio"),
)


def table(rows: Mapping[str, Row]) -> list[list[str]]:
    """A line for each part of each way: what a test costs with it and without it.

    A figure is the least of the rounds and their median, in milliseconds a test beyond the plain
    run; a ratio is what the tests cost without the part, divided by what they cost with it.
    """
    return [
        [way.text, part, *_cells(rows, way, part, "cpu"), *_cells(rows, way, part, "wall")]
        for way in WAYS
        for part in way.parts
    ]


def _cells(rows: Mapping[str, Row], way: Way, part: str, figure: str) -> list[str]:
    found = {name: rows.get(name, {}) for name in (way.plain.name, way.run.name)}
    without = rows.get(way.without(part).name, {})
    missing = [row for row in (*found.values(), without) if figure not in row]
    if missing:
        why = missing[0].get("failure", "not in these results")
        return [f"not measured: {why}" if figure == "cpu" else "", "", ""]
    plain, whole = found.values()
    mine, others = cost(whole, plain, figure), cost(without, plain, figure)
    return [_shown(mine), _shown(others), _shown(ratio(mine, others))]


def cost(row: Row, plain: Row, figure: str) -> Figure:
    """Milliseconds a test beyond those of the plain run: the least, and the median.

    The least of the one is compared with the least of the other, which need not be of the same
    round: both are the rounds that the rest of the machine disturbed least.
    """

    def beyond(choose: Callable[[Sequence[float]], float]) -> float:
        mine, theirs = choose(row[figure]) / row["tests"], choose(plain[figure]) / plain["tests"]
        return float(mine - theirs) * 1000

    return beyond(min), beyond(statistics.median)


def ratio(whole: Figure, without: Figure) -> Figure | None:
    """What the tests cost without a part, of what they cost with it; None if that is not known."""
    if min(whole) <= 0:
        return None
    return without[0] / whole[0], without[1] / whole[1]


def _shown(figure: Figure | None) -> str:
    return "lost in noise" if figure is None else " / ".join(f"{value:.3g}" for value in figure)
