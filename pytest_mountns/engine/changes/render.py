"""Changes as text, within limits: a tree of what has changed, then diffs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple, TypeAlias, cast, final, get_args

from ..linux.errors import SandboxError
from .changes import Change, Kind
from .diffs import printable
from .entries import Entry

#: The kind of a line, for its colour.
Style: TypeAlias = Literal["", "place", "removed", "inserted"] | Kind

#: The names of colours are those of pytest's terminal writer.
COLOURS: Final[Mapping[Style, str]] = {
    "place": "bold",
    "added": "green",
    "modified": "yellow",
    "metadata": "cyan",
    "replaced": "purple",
    "deleted": "red",
    "renamed": "blue",
    "removed": "red",
    "inserted": "green",
}

_KIND_WIDTH: Final = 10


@final
class Limits(NamedTuple):
    """How much is shown."""

    #: Paths in the tree.
    paths: int = 60
    #: Entries of one added directory.
    siblings: int = 12
    #: Files with a diff.
    files: int = 8
    #: Lines of one diff.
    lines: int = 40
    #: The largest file, in bytes, that has a diff.
    size: int = 64 << 10


#: What is shown if nobody wants more.
USUAL: Final = Limits()


def describe(change: Change) -> str:
    """A change in words, besides its kind: sizes, modes, owners."""
    before, after = change.before, change.after
    if change.kind == "renamed":
        return f"from {printable(change.source or '')}"
    if before is None or after is None:
        entry = after or before
        return "" if entry is None else _thing(entry)
    said = []
    if before.type != after.type:
        said.append(f"{_thing(before)} -> {_thing(after)}")
    elif change.kind == "replaced":
        said.append(f"{after.type}, made anew")
    elif change.kind == "modified":
        if after.type == "file":
            same = before.size == after.size
            said.append(f"{after.size} bytes" if same else f"{before.size} -> {after.size} bytes")
        else:
            said.append(after.type)
    if before.type == after.type and before.mode != after.mode:
        said.append(f"mode {before.mode:04o} -> {after.mode:04o}")
    if (before.uid, before.gid) != (after.uid, after.gid):
        said.append(f"owner {before.uid}:{before.gid} -> {after.uid}:{after.gid}")
    if change.kind == "metadata" and not said:
        same = before.mtime_ns == after.mtime_ns or after.type == "directory"
        said.append("extended attributes" if same else "mtime")
    return ", ".join(said)


def _thing(entry: Entry) -> str:
    return f"{entry.size} bytes" if entry.type == "file" else entry.type


def tree(changes: Sequence[Change], limits: Limits = USUAL) -> Iterator[str]:
    """One line for each change: the kind, the path as part of a tree, and the change in words.

    Directories that did not change themselves have a line if something below them did.
    """
    shown, omitted = _chosen(sorted(changes, key=lambda change: change.path.split("/")), limits)
    stack: list[str] = []
    for change, more in shown:
        path = change.path
        while stack and not path.startswith(f"{stack[-1].rstrip('/')}/"):
            stack.pop()
        parent = path.rpartition("/")[0] or "/"
        if path != "/" and (not stack or stack[-1] != parent):
            yield f"{'':{_KIND_WIDTH}}{'  ' * len(stack)}{_name(parent, stack)}/"
            stack.append(parent)
        is_directory = change.type == "directory"
        name = f"{_name(path, stack)}{'/' if is_directory else ''}"
        said = "" if is_directory and change.kind in ("added", "deleted") else describe(change)
        if change.kind == "deleted" and not is_directory:
            said = ""
        text = f"{change.kind:{_KIND_WIDTH}}{'  ' * len(stack)}{name}"
        yield f"{text}  ({said})" if said else text
        if is_directory:
            stack.append(path)
        for directory, number in more.items():
            yield f"{'':{_KIND_WIDTH}}... and {number} more in {printable(directory)}"
    if omitted:
        yield f"... and {omitted} more changes"


def _name(path: str, stack: Sequence[str]) -> str:
    """A path relative to the last directory of the stack, without a slash at its end."""
    if not stack:
        return printable(path.rstrip("/"))
    return printable(path[len(stack[-1].rstrip("/")) + 1 :])


def _chosen(
    changes: Sequence[Change], limits: Limits
) -> tuple[list[tuple[Change, dict[str, int]]], int]:
    """The changes within the limits, and how many more there are.

    With each change come the directories of which entries are left out after it, and how many.
    """
    chosen: list[tuple[Change, dict[str, int]]] = []
    shown: Counter[str] = Counter()
    added: set[str] = set()
    # Directories that are left out, and the one above each of them that has too many entries.
    hidden: dict[str, str] = {}
    # For each directory, where it is noted how many of its entries are left out.
    notes: dict[str, dict[str, int]] = {}
    for index, change in enumerate(changes):
        parent = change.path.rpartition("/")[0] or "/"
        top = hidden.get(parent)
        if top is None and parent in added and shown[parent] >= limits.siblings:
            top = parent
        if top is not None:
            if change.type == "directory":
                hidden[change.path] = top
            note = notes.setdefault(top, chosen[-1][1])
            note[top] = note.get(top, 0) + 1
            continue
        if len(chosen) >= limits.paths:
            return chosen, len(changes) - index
        if change.kind == "added" and change.type == "directory":
            added.add(change.path)
        shown[parent] += 1
        chosen.append((change, {}))
    return chosen, 0


def diffs(changes: Sequence[Change], limits: Limits = USUAL) -> Iterator[str]:
    """The diffs of small text files, each after an empty line; changed files before added ones.

    Binary files and those that cannot be read are left out.
    """
    shown = 0
    skipped = 0
    for change in sorted(changes, key=lambda change: change.kind == "added"):
        if not _may_have_diff(change, limits):
            continue
        if shown >= limits.files:
            skipped += 1
            continue
        try:
            text = change.diff()
        except SandboxError:
            continue
        lines = text.splitlines()
        if len(lines) < 2:
            continue
        shown += 1
        yield ""
        yield from lines[: limits.lines]
        if len(lines) > limits.lines:
            yield f"... and {len(lines) - limits.lines} more lines"
    if skipped:
        yield ""
        yield f"... and {skipped} more files, whose diffs are not shown"


def _may_have_diff(change: Change, limits: Limits) -> bool:
    if change.kind in ("metadata", "renamed", "deleted"):
        return False
    entry = change.after
    if entry is None or entry.type != "file" or (not entry.size and change.kind == "added"):
        return False
    return all(side is None or side.size <= limits.size for side in (change.before, change.after))


def text_of(changes: Sequence[Change], limits: Limits = USUAL, note: str = "") -> list[str]:
    """The lines of :func:`tree`, then ``note``, if there is one, then those of :func:`diffs`."""
    return [*tree(changes, limits), *[note] * bool(note), *diffs(changes, limits)]


def styled(text: str) -> Iterator[tuple[Style, str]]:
    """The lines of a text that :func:`text_of` has made, with the kind of each."""
    in_diffs = header = False
    for line in text.splitlines():
        style: Style = ""
        if not line:
            in_diffs = header = True
        elif in_diffs:
            if line.startswith("@@"):
                header, style = False, "place"
            elif not header:
                style = _DIFF_STYLES.get(line[0], "")
        elif (word := line[:_KIND_WIDTH].strip()) in get_args(Kind):
            style = cast(Kind, word)
        elif line.endswith("/"):
            style = "place"
        yield style, line


_DIFF_STYLES: Final[dict[str, Style]] = {"-": "removed", "+": "inserted"}
