"""How pytest explains ``assert changes == {...}``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.changes.changes import Changes
from ..engine.changes.render import Limits, describe, diffs


def explain_comparison(left: object, right: object, verbose: int) -> list[str] | None:
    """Lines for ``pytest_assertrepr_compare``; None if neither side is a :class:`.Changes`.

    The other side is a mapping of paths to kinds, or other changes.
    """
    if isinstance(left, Changes):
        found, expected = left, right
    elif isinstance(right, Changes):
        found, expected = right, left
    else:
        return None
    if isinstance(expected, Changes):
        wanted: Mapping[Any, Any] = expected.as_dict()
    elif isinstance(expected, Mapping):
        wanted = expected
    else:
        return None
    kinds = found.as_dict()
    lines = [f"{len(kinds)} changes found, {len(wanted)} expected"]
    more = [change for change in found if change.path not in wanted]
    missing = [path for path in wanted if path not in kinds]
    other = [change for change in found if wanted.get(change.path, change.kind) != change.kind]
    if other:
        lines.append("Of another kind:")
        lines += [f"  {c.path!r}: {c.kind!r}, expected {wanted[c.path]!r}" for c in other]
    if missing:
        lines.append("Expected, but not found:")
        lines += [f"  {path!r}: {wanted[path]!r}" for path in missing]
    if more:
        lines.append("Found, but not expected:")
        for change in more:
            said = describe(change)
            lines.append(f"  {change.path!r}: {change.kind!r}" + (f"  ({said})" if said else ""))
    if not (other or missing or more):
        if not isinstance(expected, Changes):
            return None
        lines.append("The same paths and kinds, from other sources")
    if verbose > 0:
        limits = Limits(lines=400, files=100) if verbose > 1 else Limits()
        lines += diffs(Changes([*more, *other]), limits)
    return lines
