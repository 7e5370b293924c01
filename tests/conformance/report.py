"""Results for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .compare import Difference, Outcome, name_of, shorten, where
from .run import Failure, Result

TITLES = {
    "unexpected": "unexpected",
    "allowed": "allowed: the list says that these carry state from test to test",
    "exdev": "EXDEV (renames of lower directories)",
}


def lines(results: Sequence[Result | Failure]) -> Iterator[str]:
    """The whole report: what to look at, then the table."""
    for result in results:
        yield from details(result)
    yield from table(results)
    ran = [result for result in results if isinstance(result, Result)]
    differing = sum(len(result.comparison.tests()) for result in ran)
    unexpected = sum(len(result.comparison.tests("unexpected")) for result in ran)
    yield ""
    yield f"{counted(differing, 'outcome differs', 'outcomes differ')}, {unexpected} unexpected"
    incomplete = sum(isinstance(r, Failure) or bool(r.comparison.problems) for r in results)
    if incomplete:
        yield f"{counted(incomplete, 'suite', 'suites')} did not run as a whole"
    broken = [str(result.suite) for result in results if failed(result)]
    if broken:
        yield f"to look at: {', '.join(broken)}"


def failed(result: Result | Failure) -> bool:
    return isinstance(result, Failure) or result.unexpected


def table(results: Sequence[Result | Failure]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        (
            *("suite", "cases", "listed", "plain s", "mountns s", "plain CPU s", "mountns CPU s"),
            *("differ", "unexpected", "unstable"),
        )
    ]
    for result in results:
        if isinstance(result, Failure):
            rows.append((str(result.suite), *["-"] * 7, "not run", "-"))
            continue
        found = result.comparison
        plain, isolated = result.plain_cost, result.isolated_cost
        rows.append(
            (
                str(result.suite),
                str(found.cases),
                str(result.suite.cases),
                f"{plain.wall:.1f}",
                "-" if isolated is None else f"{isolated.wall:.1f}",
                f"{plain.cpu:.1f}",
                "-" if isolated is None else f"{isolated.cpu:.1f}",
                str(len(found.tests())),
                "see above" if found.problems else str(len(found.tests("unexpected"))),
                str(len(found.unstable)),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first, *(cell.strip().rjust(len(cell)) for cell in rest)]).rstrip()


def details(result: Result | Failure) -> Iterator[str]:
    """Nothing for a suite about which there is nothing to say."""
    if isinstance(result, Failure):
        yield f"{result.suite}: not run"
        yield from (f"    {line}" for line in result.reason.splitlines())
        yield ""
        return
    found = result.comparison
    body: list[str] = []
    body += section("as a whole", found.problems)
    for kind, title in TITLES.items():
        differences = [d for d in found.differences if d.kind == kind]
        body += section(title, [line for d in differences for line in difference(d)])
    body += section("ran, but not isolated", found.bare)
    body += section("trace on the host", result.trace.certain)
    body += section("unstable: two plain runs differ, left out", found.unstable)
    body += section("same outcome, other words", found.notes)
    body += section("new meanwhile, perhaps by others", result.trace.possible)
    if body:
        yield f"{result.suite} (pytest {result.pytest}; outputs in {result.outputs})"
        yield from body
        yield ""


def section(title: str, content: Sequence[str]) -> list[str]:
    return [f"  {title}:", *(f"    {line}" for line in content)] if content else []


def difference(found: Difference) -> Iterator[str]:
    yield f"{where(found.key)}: {name_of(found.plain)} -> {name_of(found.isolated)}"
    for label, outcome in (("plain", found.plain), ("mountns", found.isolated)):
        if outcome and outcome.message:
            yield f"    {label}: {shorten(outcome.message, 300)}"


def counted(number: int, singular: str, plural: str) -> str:
    return f"{number} {singular if number == 1 else plural}"


def as_json(results: Sequence[Result | Failure]) -> list[dict[str, Any]]:
    return [one_as_json(result) for result in results]


def one_as_json(result: Result | Failure) -> dict[str, Any]:
    suite: dict[str, Any] = {"suite": result.suite.name, "version": result.suite.version}
    if isinstance(result, Failure):
        return {**suite, "error": result.reason}
    found = result.comparison
    return {
        **suite,
        "pytest": result.pytest,
        "cases": found.cases,
        "plain_counts": result.plain_counts,
        "plain_seconds": result.plain_cost._asdict(),
        "mountns_seconds": result.isolated_cost and result.isolated_cost._asdict(),
        "unexpected": result.unexpected,
        "differences": [
            {
                **d.key._asdict(),
                "kind": d.kind,
                "plain": outcome_as_json(d.plain),
                "mountns": outcome_as_json(d.isolated),
            }
            for d in found.differences
        ],
        "not_isolated": found.bare,
        "problems": found.problems,
        "unstable": found.unstable,
        "notes": found.notes,
        "trace": {"certain": result.trace.certain, "possible": result.trace.possible},
    }


def outcome_as_json(outcome: Outcome | None) -> dict[str, str] | None:
    if outcome is None:
        return None
    return {
        "outcome": outcome.name,
        "message": outcome.message,
        "text": outcome.text,
    }
