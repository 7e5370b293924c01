"""The list of suites, as `suites.toml` has it."""

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

LIST = Path(__file__).with_name("suites.toml")


@dataclass(frozen=True)
class Suite:
    """One source distribution whose tests are run plainly and isolated."""

    name: str
    version: str
    deps: tuple[str, ...] = ()
    paths: tuple[str, ...] = (".",)
    cases: int = 0
    seconds: float = 0
    allowed_fork: tuple[str, ...] = ()
    isolated: tuple[str, ...] = ()
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def load(path: Path = LIST) -> list[Suite]:
    """Read the list; a misspelt key is an error, not a silently ignored wish."""
    with path.open("rb") as file:
        tables: list[dict[str, Any]] = tomllib.load(file)["suite"]
    known = {field.name for field in fields(Suite)}
    suites = []
    for table in tables:
        unknown = sorted(table.keys() - known)
        if unknown:
            raise ValueError(
                f"{path.name}: {table.get('name')}: unknown {', '.join(unknown)}; "
                f"known are {', '.join(sorted(known))}"
            )
        for key, value in table.items():
            if isinstance(value, list):
                table[key] = tuple(value)
        suites.append(Suite(**table))
    return suites


def select(suites: Sequence[Suite], names: Sequence[str] | None) -> list[Suite]:
    """Those of these names, in the list's order; all of them when none is named."""
    if not names:
        return list(suites)
    unknown = sorted(set(names) - {suite.name for suite in suites})
    if unknown:
        raise ValueError(
            f"no suite named {', '.join(unknown)}; "
            f"there are {', '.join(suite.name for suite in suites)}"
        )
    return [suite for suite in suites if suite.name in names]
