"""The list of what a sandbox changed, and the globs that choose from it.

:mod:`.compare` makes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, final, overload

from .diffs import LARGEST, printable, unified
from .entries import Entry, FileType

Kind = Literal["added", "modified", "metadata", "replaced", "deleted", "renamed"]

#: The format of :meth:`Changes.to_json`. It grows when older readers could not read a new one.
JSON_FORMAT: Final = 1


@final
@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs from what lies below."""

    #: Absolute, as the sandbox sees it. Bytes that are not UTF-8 are surrogate escapes (PEP 383).
    path: str
    kind: Kind
    #: The old absolute path of a "renamed" directory; None for every other kind.
    source: str | None = None
    #: What was at the path, and what is there now; None for nothing. They do not count when changes
    #: are compared.
    before: Entry | None = field(default=None, compare=False, repr=False)
    after: Entry | None = field(default=None, compare=False, repr=False)

    @property
    def type(self) -> FileType:
        """The type of what is there now or, for a "deleted" path, of what was there."""
        entry = self.after or self.before
        return "unknown" if entry is None else entry.type

    def diff(self, *, context: int = 3) -> str:
        """The unified diff of a file's content, or of a symlink's target.

        "" if neither side has any, or both have the same. `context` is the number of lines around a
        change. For what is not UTF-8 text or is larger than 256 KiB, one line says so. Raises
        :class:`SandboxError` if it cannot be read (any more).
        """
        if self.kind in ("metadata", "renamed"):
            return ""
        for entry in (self.before, self.after):
            if entry is not None and entry.type == "file" and entry.size > LARGEST:
                return f"File {printable(self.path)} is too large for a diff\n"
        before, after = (_content(entry) for entry in (self.before, self.after))
        return unified(self.path, before, after, context=context)

    def as_dict(self) -> dict[str, Any]:
        """The change as plain types, for JSON: path, kind, source, before, after."""
        return {
            "path": self.path,
            "kind": self.kind,
            "source": self.source,
            "before": None if self.before is None else self.before.as_dict(),
            "after": None if self.after is None else self.after.as_dict(),
        }


def _content(entry: Entry | None) -> bytes | None:
    """The content that a diff is made of."""
    if entry is None:
        return None
    if entry.type == "file":
        # One byte more than is shown, since it may have grown.
        return entry.read_bytes(LARGEST + 1)
    if entry.type == "symlink":
        return entry.target().encode("utf-8", "surrogateescape")
    return None


@final
class Changes(Sequence[Change]):
    """An immutable sequence of changes, ordered by path.

    It is equal to other changes, and to a mapping of paths to kinds.

    - "added": nothing was there. The contents of an added directory are listed too.
    - "modified": content, symlink target or device number differ.
    - "metadata": only mode, owner, extended attributes or, except for directories, mtime differ.
    - "replaced": another type, or a directory that was removed and made anew. The content of such a
      directory is compared with what it contained before.
    - "deleted": only the topmost path is listed.
    - "renamed": a directory that was moved, with everything in it that is not listed itself, over
      whatever stood at the path. Its source is not listed, unless something new stands there.
      Renamed files, and directories where the kernel refuses to rename them, are a "deleted" and
      an "added".
    """

    __slots__ = ("_changes",)

    def __init__(self, changes: Iterable[Change]) -> None:
        self._changes = tuple(sorted(changes, key=lambda change: change.path))

    @overload
    def __getitem__(self, index: int | str) -> Change: ...
    @overload
    def __getitem__(self, index: slice) -> Changes: ...
    def __getitem__(self, index: int | str | slice) -> Change | Changes:
        """By number, or by path: KeyError for one that did not change."""
        if isinstance(index, slice):
            return Changes(self._changes[index])
        if isinstance(index, str):
            for change in self._changes:
                if change.path == index:
                    return change
            raise KeyError(index)
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
        """The kind of each path."""
        return {change.path: change.kind for change in self._changes}

    def to_json(self, *, indent: int | None = None) -> str:
        """A JSON object: "format" is 1, "changes" a list in the order of the paths.

        Each has "path", "kind", "source" (a string or null), "before" and "after" (null or an
        object of "type", "mode" as octal digits, "uid", "gid", "size" in bytes, "mtime_ns"). The
        text is ASCII; a byte of a path that is not UTF-8 is a lone surrogate, U+DC80 to U+DCFF.
        """
        changes = [change.as_dict() for change in self._changes]
        return json.dumps({"format": JSON_FORMAT, "changes": changes}, indent=indent)

    def matching(self, *globs: str) -> Changes:
        """The changes whose path, or source, matches any of the globs; all if there are none.

        `*`, `?` and `[...]` stop at a slash, `**` does not and `**/` may stand for nothing. A
        pattern without any of them means that path and everything beneath it. Raises ValueError
        for a pattern that begins neither with `/` nor with `**`, or has a class such as `[z-a]`.
        """
        if not globs:
            return self
        wanted = compile_globs(globs)
        return Changes(
            change
            for change in self._changes
            if wanted.fullmatch(change.path) or (change.source and wanted.fullmatch(change.source))
        )


def compile_globs(globs: Iterable[str]) -> re.Pattern[str]:
    """A pattern that matches a whole path if any of the globs does; without globs, none.

    Globs are those of :meth:`Changes.matching`. Raises ValueError if one is not valid.
    """
    return re.compile("|".join(map(_translated, globs)) or "(?!)", re.DOTALL)


_GLOB = r"(?<![^/])\*\*/|\*\*|\*|\?|\[(?P<negated>!|(?!!))(?P<members>\]?[^]]+|\])\]|."
_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _translated(glob: str) -> str:
    if not glob.startswith(("/", "**")):
        raise ValueError(f"glob {glob!r} cannot match: paths are absolute, begin with / or **")
    glob = glob.rstrip("/")
    if not re.search(r"[*?[]", glob):
        return f"{re.escape(glob)}(?:/.*)?"
    parts = []
    for token in re.finditer(_GLOB, glob, re.DOTALL):
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
