"""The results as tables: for the terminal, and for the page of the docs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from .results import FIGURES, Row, p10, shown

KINDS: Final = {
    "small_files": "10,000 small files",
    "copy_up": "1,000 copy-ups",
    "big_file": "a 200 MB file",
    "git": "`git init`, 200 commits",
    "sqlite": "sqlite, 5,000 inserts",
}
BEGIN: Final = "<!-- generated: figures -->"
BEGIN_ABLATION: Final = "<!-- generated: ablation -->"
END: Final = "<!-- end -->"


def verdict(claim: Mapping[str, Any]) -> str:
    return "not measured" if claim["ok"] is None else "ok" if claim["ok"] else "NOT OK"


def claim_rows(claims: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            claim["claim"],
            claim["wanted"],
            shown(claim["ratios"]) if "ratios" in claim else claim["why"],
            *(shown(claim[name]) if claim.get(name) else "" for name in ("cpu", "steady", "p10")),
            verdict(claim),
        ]
        for claim in claims
    ]


_MEASURED: Final = ("measured", "CPU time", "without the session's start", "p10")
CLAIM_HEAD: Final = ["ratio", "wanted", *_MEASURED, ""]
#: The page is for users, who want to know what it costs and not what we aim at.
RATIO_HEAD: Final = ["ratio", *_MEASURED]


def ratio_rows(claims: Iterable[Mapping[str, Any]]) -> list[list[str]]:
    """The rows of the page: those of the terminal without what was wanted."""
    return [[text, *measured] for text, _, *measured, _ in claim_rows(claims)]


def case_rows(rows: Mapping[str, Row]) -> list[list[str]]:
    """Every case with all its figures."""
    table = []
    for name, row in rows.items():
        if "failure" in row:
            table.append([name, f"not measured: {row['failure']}", *[""] * len(FIGURES)])
            continue
        others = [
            f"{key} {_other(values, row.get(f'{key}_cpu'))}"
            for key, values in row.items()
            if isinstance(values, list) and key not in FIGURES and not key.endswith("_cpu")
        ]
        table.append(
            [
                name,
                *(shown(row[figure]) if figure in row else "" for figure in FIGURES),
                "; ".join([*others, row["said"]] if "said" in row else others),
            ]
        )
    return table


def _other(values: Sequence[float], cpu: Sequence[float] | None) -> str:
    """A figure in milliseconds that only some cases have: of several rounds with their p10."""
    more = [f"p10 {p10(values):.3g}"] if len(values) > 1 else []
    more += [f"CPU {statistics.median(cpu):.3g}"] if cpu else []
    return f"{statistics.median(values):.3g} ms" + (f" ({', '.join(more)})" if more else "")


CASE_HEAD: Final = [
    *("case", "wall s", "CPU s", "added ms/test", "added CPU ms/test"),
    *("without start", "without start, p10", "other"),
]


def columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a terminal. A row that runs over does not widen the columns."""
    widths = [
        max(len(row[index]) for row in (head, *rows) if len(row[index]) <= 66)
        for index in range(len(head))
    ]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *rows)
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, ["---"] * len(head))]
    cells += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in cells]


def machine(facts: Mapping[str, Any]) -> str:
    return (
        f"{facts['tests']} empty tests, {facts['rounds']} rounds in turns, medians (least .. "
        f"greatest); Python {facts['python']}, Linux {facts['kernel']}, {facts['cores']} cores, "
        f"{'root' if facts['root'] else 'ordinary user'}, {facts['filesystem']}"
    )


def page(text: str, results: Mapping[str, Any], shown: Mapping[str, str]) -> str:
    """The page with new figures between its marks. Raises :class:`ValueError` without marks.

    ``shown``: what to say of pictures that cannot be seen, by their places relative to the page.
    """
    rows: Mapping[str, Row] = results["cases"]
    lines = [machine(results["machine"]) + ".", ""]
    for place, title in shown.items():
        lines += [f"![{title}]({place})", ""]
    lines += ["### Ratios", "", *markdown(RATIO_HEAD, ratio_rows(results["claims"]))]
    lines += ["", "### Every figure", "", *markdown(CASE_HEAD, case_rows(rows))]
    if calls := results.get("calls"):
        total = f"{sum(calls.values()):g}"
        parts = ", ".join(f"{name} {number:g}" for name, number in calls.items())
        lines += [
            "",
            f"System calls of an inline sandbox that the floor repeats: {total} ({parts}).",
        ]
    return between(text, BEGIN, lines)


def between(text: str, begin: str, lines: Iterable[str]) -> str:
    """The page with these lines between a mark and its end.

    Raises :class:`ValueError` if the page has no such marks.
    """
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise ValueError(f"the page has no {begin} ... {END}")
    return "\n".join([f"{before}{begin}", "", *lines, "", f"{END}{after}"])
