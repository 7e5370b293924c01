"""From what a run has left to a row of the table."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One kernel and one of the two users. ``failed``: the tests' names."""

    system: str
    kernel: str
    who: str
    means: str
    passed: int = 0
    skipped: int = 0
    failed: tuple[str, ...] = ()
    lost: str = ""

    @property
    def good(self) -> bool:
        return not self.failed and not self.lost

    def cells(self) -> Sequence[str]:
        tests = f"{self.passed} passed, {self.skipped} skipped"
        if self.failed:
            tests = f"**{len(self.failed)} failed**, {tests}"
        return self.system, self.kernel, self.who, self.means, self.lost or tests


def rows(system: str, results: Path) -> Iterator[Row]:
    """Those of one machine."""
    for name, who in (("root", "root"), ("user", "ordinary user")):
        facts = _facts(results / f"{name}.json")
        kernel = facts.get("here", {}).get("kernel", "?")
        junit = results / f"{name}.xml"
        means = how(facts)
        if not junit.exists():
            yield Row(system, kernel, who, means, lost=f"not done, see {results}/{name}.txt")
            continue
        passed = skipped = 0
        failed = []
        for case in ElementTree.parse(junit).getroot().iter("testcase"):
            kinds = {child.tag for child in case}
            if kinds & {"failure", "error"}:
                failed.append(f"{case.get('classname')}::{case.get('name')}")
            elif "skipped" in kinds:
                skipped += 1
            else:
                passed += 1
        yield Row(system, kernel, who, means, passed, skipped, tuple(failed))


def _facts(file: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found


def how(facts: dict[str, Any]) -> str:
    """How sandboxes are made there, by the doctor's facts."""
    features = facts.get("capabilities")
    if features is None:
        failed = [t for t in facts.get("trials", ()) if t["needed"] and not t["works"]]
        if not failed:
            return "?"
        return f"none: {failed[0]['name']} failed with {failed[0]['errno']}: {failed[0]['cause']}"
    if not features["new_api"]:
        api = "`mount(2)`"
    elif features["detached_uppers"]:
        api = "new mount API, detached uppers"
    else:
        api = "new mount API, attached uppers"
    place = "in memory" if features["memory_upper"] else "on disk"
    pid = "" if features["pid_namespace"] else ", no `pid=True`"
    return f"{api} {place}{pid}"
