"""The generated parts of docs/compatibility.md, and the report on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conformance.fetch import CHECKOUT

from .run import Result
from .versions import Row

PAGE = CHECKOUT / "docs" / "compatibility.md"


def report(results: Sequence[Result]) -> Iterator[str]:
    """What to look at: every difference, with what is known of it."""
    for result in results:
        found = result.verdict
        if not (found.differences or found.limited or found.needless):
            continue
        name = f"{result.suite}/{result.scenario.name} (pytest {result.pytest})"
        yield f"{name}; outputs in {result.records}"
        if found.needless:
            yield "  a limit is listed, but nothing differs"
        for title, differences in (("", found.differences), ("limit: ", found.limited)):
            for one in differences:
                yield f"  {title}{one.about}"
                yield from (f"      {line}" for line in one.details)
        yield ""


def plugins_table(results: Sequence[Result]) -> list[str]:
    """One row for each scenario; results of several pytests share it where they are the same."""
    rows: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        rows.setdefault((result.suite, result.scenario.name), []).append(result)
    body = []
    for group in rows.values():
        outcomes: dict[tuple[str, str], list[str]] = {}
        for one in group:
            summary = one.verdict.summary(one.scenario.limit)
            outcomes.setdefault((one.plugin, summary), []).append(one.pytest)
        exercises = group[0].scenario.exercises
        for (plugin, summary), pytests in outcomes.items():
            body.append((plugin, exercises, ", ".join(pytests), summary))
    return table(("plugin", "what runs", "pytest", "result"), body)


def versions_table(rows: Sequence[Row]) -> list[str]:
    body = [(row.python, row.pytest, row.result, ", ".join(row.plugins) or "-") for row in rows]
    return table(("Python", "pytest", "result", "plugins that its tests use"), body)


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rows = [head, ["---"] * len(head), *body]
    return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]


def write(name: str, lines: Sequence[str], page: Path = PAGE) -> None:
    page.write_text(replaced(page.read_text(), name, lines))


def replaced(text: str, name: str, lines: Sequence[str]) -> str:
    """The page with other lines between the markers of this name."""
    begin, end = f"<!-- generated: {name} -->", "<!-- end -->"
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"no {begin} ... {end} in the page")
    return "\n".join([f"{before}{begin}", "", *lines, "", f"{end}{after}"])
