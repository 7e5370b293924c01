"""What the matrix runs: a directory for each plugin, with its tests and a `matrix.toml`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SUITES = Path(__file__).with_name("suites")


@dataclass(frozen=True)
class Scenario:
    """One way to run a suite: one run of pytest, or several one after the other."""

    name: str
    exercises: str
    steps: tuple[tuple[str, ...], ...] = ((),)
    """The options of each run, after those of all of them."""
    options: tuple[str, ...] = ()
    command: tuple[str, ...] = ("pytest",)
    documents: tuple[tuple[str, str], ...] = ()
    """What a run writes, and how to read it: a path or a pattern, and a kind of `documents`."""
    terminal: bool = True
    """Whether what is printed is compared as well."""
    ordered: bool = True
    """Whether tests are reported in the same order."""
    statuses: tuple[int, ...] = (0, 1)
    """Exit statuses of a plain run that is sound."""
    isolated: tuple[str, ...] = ()
    """Options of the isolated runs alone: the way around that the documentation gives."""
    breaks_off: bool = False
    """Whether the run is meant to end before its end."""
    drop: tuple[str, ...] = ()
    """Lines of the terminal and of documents that are left out: regular expressions."""
    limit: str = ""
    """Why it cannot be the same, for the documentation; empty if it has to be."""
    limited: tuple[str, ...] = ()
    """What may differ for that reason: patterns of what differences are about."""


@dataclass(frozen=True)
class Suite:
    """The tests for one plugin, and the scenarios that use them."""

    name: str
    plugin: str
    requires: tuple[str, ...]
    """What pip installs besides pytest and this project; the first gives the version."""
    scenarios: tuple[Scenario, ...]
    directory: Path


def load(top: Path = SUITES) -> list[Suite]:
    return [read(path) for path in sorted(top.glob("*/matrix.toml"))]


def read(path: Path) -> Suite:
    """One suite; a misspelt key is an error, not a silently ignored wish."""
    with path.open("rb") as file:
        table: dict[str, Any] = tomllib.load(file)
    where = f"{path.parent.name}/{path.name}"
    scenarios = tuple(
        made(Scenario, one, f"{where}: {one.get('name')}") for one in table.pop("scenario")
    )
    found = made(
        Suite,
        {"plugin": path.parent.name, "requires": (), **table},
        where,
        name=path.parent.name,
        scenarios=scenarios,
        directory=path.parent,
    )
    assert isinstance(found, Suite)
    return found


def made(kind: type[Any], table: dict[str, Any], where: str, **more: object) -> Any:
    known = {field.name for field in fields(kind)} - more.keys()
    unknown = sorted(table.keys() - known)
    if unknown:
        raise ValueError(
            f"{where}: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    return kind(**{key: frozen(value) for key, value in table.items()}, **more)


def frozen(value: object) -> object:
    if isinstance(value, list):
        return tuple(map(frozen, value))
    if isinstance(value, dict):
        return tuple((key, frozen(content)) for key, content in value.items())
    return value


def select(suites: Sequence[Suite], names: Sequence[str] | None) -> list[Suite]:
    """Those of these names (SUITE or SUITE/SCENARIO); all of them when none is named."""
    if not names:
        return list(suites)
    known = {suite.name for suite in suites}
    known |= {f"{suite.name}/{one.name}" for suite in suites for one in suite.scenarios}
    unknown = sorted(set(names) - known)
    if unknown:
        raise ValueError(f"no suite named {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = []
    for suite in suites:
        scenarios = tuple(
            one
            for one in suite.scenarios
            if suite.name in names or f"{suite.name}/{one.name}" in names
        )
        if scenarios:
            chosen.append(
                Suite(suite.name, suite.plugin, suite.requires, scenarios, suite.directory)
            )
    return chosen
