"""The list of what a sandbox changed, and the globs that choose from it. :mod:`.upper` makes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, overload

Kind = Literal["added", "modified", "metadata", "replaced", "deleted", "renamed"]


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs from what lies below.

    `path` is absolute, as the sandbox sees it; bytes that are no UTF-8 are surrogate-escaped.
    `source` is the old absolute path of a "renamed" directory, None for every other kind.
    """

    path: str
    kind: Kind
    source: str | None = None


@final
class Changes(Sequence[Change]):
    """Immutable, ordered by path. Equal to a mapping of paths to kinds as well as to its like.

    - "added": nothing was there. The contents of an added directory are listed too.
    - "modified": content, symlink target or device number differ.
    - "metadata": only mode, owner, extended attributes or, except for directories, mtime differ.
    - "replaced": another type, or a directory that was removed and made anew. What such a directory
      holds is compared with what it held before.
    - "deleted": the topmost path only, whatever was beneath it.
    - "renamed": a directory that was moved, with everything in it that is not listed itself, over
      whatever stood at the path. Its source is not listed, unless something new stands there.
      Renamed files, and directories where the kernel refuses to rename them, are a "deleted" and
      an "added".
    """

    __slots__ = ("_changes",)

    def __init__(self, changes: Iterable[Change]) -> None:
        self._changes = tuple(sorted(changes, key=lambda change: change.path))

    @overload
    def __getitem__(self, index: int) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Changes: ...
    def __getitem__(self, index: int | slice) -> Change | Changes:
        if isinstance(index, slice):
            return Changes(self._changes[index])
        return self._changes[index]

    def __len__(self) -> int:
        return len(self._changes)

    def __iter__(self) -> Iterator[Change]:
        return iter(self._changes)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Changes):
            return self._changes == other._changes
        if isinstance(other, Mapping):
            return self.as_dict() == other
        return NotImplemented

    def __repr__(self) -> str:
        lines = [
            f"{change.path!r}: {change.kind}"
            + (f" from {change.source!r}" if change.source else "")
            for change in self._changes
        ]
        if len(lines) < 2:
            return f"Changes({''.join(lines)})"
        return "\n    ".join(["Changes(", *lines]) + "\n)"

    def paths(self, kind: Kind | None = None) -> list[str]:
        """The paths of one kind, or of all."""
        return [change.path for change in self._changes if kind in (None, change.kind)]

    def as_dict(self) -> dict[str, Kind]:
        return {change.path: change.kind for change in self._changes}

    def matching(self, *globs: str) -> Changes:
        """The changes whose path, or source, matches any of the globs; all if there are none.

        `*`, `?` and `[...]` stop at a slash, `**` does not and `**/` may stand for nothing. A
        pattern without any of them means that path and everything beneath it. Raises ValueError
        for a pattern that begins neither with `/` nor with `**`, or has a class such as `[z-a]`.
        """
        if not globs:
            return self
        wanted = re.compile("|".join(map(_translated, globs)), re.DOTALL)
        return Changes(
            change
            for change in self._changes
            if wanted.fullmatch(change.path) or (change.source and wanted.fullmatch(change.source))
        )


_GLOB = re.compile(
    r"(?<![^/])\*\*/|\*\*|\*|\?|\[(?P<negated>!|(?!!))(?P<members>\]?[^]]+|\])\]|.", re.DOTALL
)
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _translated(glob: str) -> str:
    if not glob.startswith(("/", "**")):
        raise ValueError(f"glob {glob!r} cannot match: paths are absolute, begin with / or **")
    glob = glob.rstrip("/")
    if not re.search(r"[*?[]", glob):
        return f"{re.escape(glob)}(?:/.*)?"
    parts = []
    for token in _GLOB.finditer(glob):
        text = token[0]
        if token["members"] is None:
            parts.append(_WILDCARDS.get(text) or re.escape(text))
            continue
        members = []
        for low, high, one in re.findall(r"(.)-(.)|(.)", token["members"], re.DOTALL):
            if low > high:
                raise ValueError(f"glob {glob!r}: {text} has a range that ends before it begins")
            members.append(f"{re.escape(low)}-{re.escape(high)}" if low else re.escape(one))
        parts.append(f"(?!/)[{'^' if token['negated'] else ''}{''.join(members)}]")
    return "".join(parts)
