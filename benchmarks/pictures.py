"""The results as pictures: SVG, written by hand so that nothing has to be installed.

Every picture has a white ground of its own: the docs are read on dark pages, too.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Final

from .report import KINDS
from .results import Row, spread

INK, FAINT, GRID = "#24292f", "#6e7781", "#d8dee4"
OURS, OURS_LIGHT, PEER, PLAIN = "#1f6feb", "#79b0f5", "#d4813a", "#8c959f"
COLOURS: Final = {
    "inline": OURS,
    "inline-own": "#8250df",
    "inline-disk": "#0a3069",
    "fork": OURS_LIGHT,
    "fork-disk": "#2da44e",
    "pyfakefs": PEER,
}
WIDTH: Final = 760

EMPTY: Final = (
    ("loaded", "plugin loaded, no sandbox", OURS_LIGHT),
    ("inline", "inline", OURS),
    ("module-inline", 'inline, scope="module"', OURS),
    ("user-inline", "inline, ordinary user", OURS),
    ("fork", "fork", OURS_LIGHT),
    ("module-fork", 'fork, scope="module"', OURS_LIGHT),
    ("module", "one process a module", OURS),
    ("pid", "fork, pid=True", OURS_LIGHT),
    ("user-fork", "fork, ordinary user", OURS_LIGHT),
    ("pyfakefs", "pyfakefs (no sandbox)", PEER),
    ("forked", "pytest-forked (no sandbox)", PEER),
    ("bwrap", "bwrap and pytest for each test", PEER),
)
SUITE: Final = (
    ("suite/plain", "plain", PLAIN),
    ("suite/auto", "auto", OURS),
    ("suite/inline", "inline", OURS),
    ("suite/fork", "fork", OURS_LIGHT),
    ("suite/forked-plain", "plain, pytest 8.4", PLAIN),
    ("suite/forked", "pytest-forked, pytest 8.4", PEER),
)


class Canvas:
    """Collects the elements of one picture."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._parts: list[str] = []
        self.text(16, 28, title, size=15, weight=600)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: int = 12,
        anchor: str = "start",
        colour: str = INK,
        weight: int = 400,
    ) -> None:
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
            f' fill="{colour}" font-weight="{weight}">{escape(text)}</text>'
        )

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}"'
            f' rx="2" fill="{colour}"/>'
        )

    def line(self, points: Iterable[tuple[float, float]], colour: str, width: float = 1) -> None:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"/>'
        )

    def dot(self, x: float, y: float, colour: str, radius: float = 5) -> None:
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{colour}"'
            ' stroke="#ffffff" stroke-width="1"/>'
        )

    def legend(self, y: float, entries: Iterable[tuple[str, str]]) -> None:
        x = 16.0
        for text, colour in entries:
            self.dot(x + 5, y - 4, colour)
            self.text(x + 15, y, text, colour=FAINT)
            x += 32 + 6.6 * len(text)

    def svg(self, height: float) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}"'
            f' width="{WIDTH}" height="{height:.0f}" role="img"'
            ' font-family="system-ui, sans-serif">'
        )
        ground = (
            f'<rect width="{WIDTH}" height="{height:.0f}" rx="6" fill="#ffffff" stroke="{GRID}"/>'
        )
        title = f"<title>{escape(self._title)}</title>"
        return "\n".join([head, title, ground, *self._parts, "</svg>", ""])


def bars(
    title: str, entries: Iterable[tuple[str, Sequence[float], str]], unit: str, most: float = 0
) -> str:
    """Medians as bars, with a line from the least to the greatest. A bar over ``most`` is cut."""
    rows = list(entries)
    canvas = Canvas(title)
    left, room = 232, WIDTH - 232 - 150
    most = most or max((max(values) for _, values, _ in rows), default=1.0)
    y = 46.0
    for text, values, colour in rows:
        middle, least, greatest = spread(values)
        canvas.text(left - 10, y + 14, text, anchor="end")
        cut = middle > most
        canvas.bar(left, y + 2, room * min(max(middle, 0) / most, 1), 16, colour)
        end = middle if cut else max(middle, greatest)
        if not cut and len(values) > 1:
            ends = (max(least, 0), min(greatest, most))
            canvas.line([(left + room * end / most, y + 10) for end in ends], INK)
        x = left + room * min(max(end, 0) / most, 1) + 8
        mark = "… " if cut else ""
        canvas.text(x, y + 14, f"{mark}{middle:.3g} {unit}", colour=FAINT)
        y += 24
    return canvas.svg(y + 12)


def ratios(title: str, rows: Mapping[str, Row]) -> str:
    """How long each kind of reading and writing took, of plain: dots on a logarithmic scale."""
    canvas = Canvas(title)
    plain = rows["io/plain"]
    ways = [way for way in COLOURS if "wall" in rows.get(f"io/{way}", {})]
    canvas.legend(50, [(way, COLOURS[way]) for way in ways])
    points: list[tuple[int, str, float]] = []
    for number, kind in enumerate(KINDS):
        for way in ways:
            mine = rows[f"io/{way}"].get(kind)
            if mine and kind in plain:
                pairs = zip(mine, plain[kind], strict=True)
                points.append((number, way, statistics.median(a / b for a, b in pairs)))
    logs = [math.log10(value) for _, _, value in points] or [0.0]
    low, high = math.floor(min(*logs, 0) - 0.05), math.ceil(max(*logs, 0) + 0.05)
    left, room, top = 200, WIDTH - 200 - 40, 74
    bottom = top + 32 * len(KINDS)

    def place(value: float) -> float:
        return left + room * (math.log10(value) - low) / (high - low)

    for power in range(low, high + 1):
        x = place(10.0**power)
        canvas.line([(x, top), (x, bottom)], INK if power == 0 else GRID)
        label = "as plain" if power == 0 else f"{10.0**power:g} x"
        canvas.text(x, bottom + 16, label, anchor="middle", colour=FAINT)
    for number, text in enumerate(KINDS.values()):
        canvas.text(left - 10, top + 32 * number + 20, text.replace("`", ""), anchor="end")
    for number, way, value in points:
        # A little apart, so that equals do not hide each other.
        y = top + 32 * number + 16 + 4 * (ways.index(way) - (len(ways) - 1) / 2)
        canvas.dot(place(value), y, COLOURS[way])
    return canvas.svg(bottom + 30)


def growth(title: str, rows: Mapping[str, Row]) -> str:
    """Three panels: how the cost of a test grows with mounts, heap and layers."""
    canvas = Canvas(title)
    canvas.legend(50, [(way, COLOURS[way]) for way in ("inline", "fork")])
    panels = {"mounts": "more mounts", "heap": "MB of heap", "layers": "layers"}
    width, top, height = (WIDTH - 32) / 3, 84, 150
    for number, (panel, label) in enumerate(panels.items()):
        left = 16 + number * width + 40
        room = width - 60
        series = {way: _series(rows, panel, way) for way in ("inline", "fork")}
        counts = sorted({count for points in series.values() for count, _ in points})
        canvas.text(left, top - 12, label, weight=600)
        if not counts:
            canvas.text(left, top + 20, "not measured", colour=FAINT)
            continue
        most = max(value for points in series.values() for _, value in points) * 1.1 or 1.0
        for part in range(3):
            y = top + height * (1 - part / 2)
            canvas.line([(left, y), (left + room, y)], GRID)
            canvas.text(
                left - 6, y + 4, f"{most * part / 2:.2g}", anchor="end", colour=FAINT, size=11
            )
        span = max(math.log10(counts[-1] + 1) - math.log10(counts[0] + 1), 0.01)
        start = math.log10(counts[0] + 1)
        places = {n: left + room * (math.log10(n + 1) - start) / span for n in counts}
        last = -100.0
        for count, x in places.items():
            if x - last > 24:
                canvas.text(
                    x, top + height + 16, str(count), anchor="middle", colour=FAINT, size=11
                )
                last = x
        for way, values in series.items():
            points = [(places[n], top + height * (1 - max(v, 0) / most)) for n, v in values]
            canvas.line(points, COLOURS[way], 2)
            for x, y in points:
                canvas.dot(x, y, COLOURS[way], 4)
    return canvas.svg(top + height + 34)


def _series(rows: Mapping[str, Row], panel: str, way: str) -> list[tuple[int, float]]:
    found = []
    for name, row in rows.items():
        parts = name.split("/")
        if parts[0] == panel and parts[-1] == way and "steady" in row:
            found.append((int(parts[1]), statistics.median(row["steady"])))
    return sorted(found)


TITLES: Final = {
    "empty.svg": "Milliseconds added to an empty test",
    "io.svg": "Time in a sandbox, of plain tmp_path on disk",
    "growth.svg": "Milliseconds added to an empty test, where there is more",
    "suite.svg": "Seconds of a real suite (click)",
}


def pictures(rows: Mapping[str, Row]) -> dict[str, str]:
    """Every picture that there are figures for, by the name of its file."""
    made: dict[str, str] = {}
    if empty := [(t, rows[n]["added"], c) for n, t, c in EMPTY if "added" in rows.get(n, {})]:
        ours = [max(values) for text, values, _ in empty if not text.startswith("bwrap")]
        made["empty.svg"] = bars(TITLES["empty.svg"], empty, "ms", max(ours, default=0.0))
    if "wall" in rows.get("io/plain", {}):
        made["io.svg"] = ratios(TITLES["io.svg"], rows)
    if any(name.startswith(("mounts/", "heap/", "layers/")) for name in rows):
        made["growth.svg"] = growth(TITLES["growth.svg"], rows)
    if suite := [(t, rows[n]["wall"], c) for n, t, c in SUITE if "wall" in rows.get(n, {})]:
        made["suite.svg"] = bars(TITLES["suite.svg"], suite, "s")
    return made
