"""Sets apart the changes that say nothing about a test: pytest's and Python's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, final

from ..engine.changes.changes import Changes


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


def filter_changes(changes: Changes, temporary: Sequence[str]) -> FilteredChanges:
    """Leave out what lies in ``temporary``, directories that are pytest's, and bytecode."""
    prefixes = tuple(f"{place}/" for place in temporary)
    left, own, bytecode = [], 0, 0
    for change in changes:
        path = change.path
        if path in temporary or path.startswith(prefixes):
            own += 1
        elif "/__pycache__" in path and re.search(r"/__pycache__(/|$)", path):
            bytecode += 1
        else:
            left.append(change)
    return FilteredChanges(Changes(left), own, bytecode)
