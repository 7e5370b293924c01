"""Sets apart the changes that say nothing about a test: pytest's and Python's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, final

from ..engine.changes.changes import Change, Changes


@final
class FilteredChanges(NamedTuple):
    """The changes of a test without pytest's and Python's own, and how many those are."""

    changes: Changes
    #: How many are in pytest's temporary directory, where ``tmp_path`` lies.
    temporary: int
    #: How many are in ``__pycache__``.
    bytecode: int

    def note(self) -> str:
        """A line that says what was left out; "" if nothing was."""
        parts = []
        if self.temporary:
            parts.append(f"{self.temporary} in pytest's temporary directory (tmp_path)")
        if self.bytecode:
            parts.append(f"{self.bytecode} in __pycache__")
        return f"not shown: {', '.join(parts)}" if parts else ""


@final
class LeftOut:
    """The paths of which changes are left out: below ``temporary``, and those of bytecode."""

    def __init__(self, temporary: Sequence[str]) -> None:
        self._temporary = temporary
        self._prefixes = tuple(f"{place}/" for place in temporary)

    def is_temporary(self, path: str) -> bool:
        """Whether it is in pytest's temporary directory."""
        return path in self._temporary or path.startswith(self._prefixes)

    def is_bytecode(self, path: str) -> bool:
        """Whether it is a ``__pycache__``, or in one."""
        return "/__pycache__" in path and bool(re.search(r"/__pycache__(/|$)", path))

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (self.is_temporary(path) or self.is_bytecode(path))


def filter_changes(changes: Changes, temporary: Sequence[str]) -> FilteredChanges:
    """Leave out what lies in ``temporary``, directories that are pytest's, and bytecode.

    A directory that was moved there from elsewhere is "deleted" where it was.
    """
    left_out = LeftOut(temporary)
    left, own, bytecode = [], 0, 0
    moved: list[Change] = []
    for change in changes:
        path = change.path
        if left_out.is_temporary(path):
            own += 1
        elif left_out.is_bytecode(path):
            bytecode += 1
        else:
            left.append(change)
            continue
        source = change.source
        if source is not None and source not in left_out:
            moved.append(replace(change, path=source, kind="deleted", source=None, after=None))
    if moved:
        # Something new may stand where it was, and is listed already.
        listed = {change.path for change in left}
        left += [change for change in moved if change.path not in listed]
    return FilteredChanges(Changes(left), own, bytecode)
