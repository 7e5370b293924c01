"""From what a run has left to a row of the table."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

#: The columns of the table of what a kernel gives, and the tests of ``suite.py`` that find it out.
_TESTS: Final = {
    '`process="fork"`': "test_forked",
    '`process="inline"`, threads moved': "test_inline",
    '`user="root"`': "test_writable_root",
    "`bind_volume`": "test_bind_volume",
    "`checkpoint()`": "test_checkpoint",
    "`crashes()`": "test_crashes",
    "`faults=`": "test_faults",
    "guard": "test_guard",
}
COLUMNS: Final = tuple(_TESTS)
#: How a refusal names the version that is needed.
_NEEDED: Final = re.compile(r"(?:before Linux|needs Linux) (\d+\.\d+)|Linux (\d+\.\d+) or later")


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
    #: What ``suite.py`` has found, by the names of its tests.
    suite: Mapping[str, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not (self.failed or self.lost or any("?" in cell for cell in self.gives()))

    def gives(self) -> Sequence[str]:
        """The row of the other table. A "?" is in it where no refusal names a version."""
        return self.kernel, self.who, *(self.suite.get(test, "?") for test in _TESTS.values())

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
        suite = _suite(results / f"{name}-suite.xml")
        if not junit.exists():
            yield Row(
                system, kernel, who, means, lost=f"not done, see {results}/{name}.txt", suite=suite
            )
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
        yield Row(system, kernel, who, means, passed, skipped, tuple(failed), suite=suite)


def _suite(file: Path) -> dict[str, str]:
    """What the tests of ``suite.py`` have found, by their names."""
    if not file.exists():
        return {}
    cases = ElementTree.parse(file).getroot().iter("testcase")
    return {case.get("name", ""): _found(case) for case in cases}


def _found(case: ElementTree.Element) -> str:
    bad = [child for child in case if child.tag in ("failure", "error", "skipped")]
    if not bad:
        properties = (one for one in case.iter("property") if one.get("name") == "result")
        return next((one.get("value", "") for one in properties), "yes")
    text = " ".join(f"{child.get('message')} {child.text}" for child in bad)
    needed = ["".join(found) for found in _NEEDED.findall(text)]
    # Of several the newest: the refusal of the last thing that is missing.
    return f"Linux {max(needed, key=_version)}" if needed else "no: ?"


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(".")))


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
