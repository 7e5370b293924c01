"""What a sandbox changed: its uppers, read against what lies below them.

That a path is in an upper proves nothing: OverlayFS copies up on the first open for writing, on a
link, on a change of owner. Only the comparison with the tree below tells. The layout of an upper is
that of Documentation/filesystems/overlayfs.rst: "Whiteouts and opaque directories", "Renaming
directories", "Nested overlayfs mounts".

Directories are opened by their path from the two descriptors, one pair at a time, so neither the
depth of a tree nor its size is limited by descriptors or by the interpreter's stack.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, overload

Kind = Literal["added", "modified", "metadata", "replaced", "deleted", "renamed"]

# Below PATH_MAX (4096 bytes with the NUL); longer paths are opened in stretches.
_STRETCH = 4000
_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: what was a file when it was listed may be a FIFO when it is opened.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
# Written by overlays for their own use; the second prefix is that of `userxattr` mounts.
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")


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

    # Equal to a dict, which has no hash to agree with.
    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        lines = [
            f"{change.path!r}: {change.kind}" + (f" from {change.source!r}" if change.source else "")
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
        for a class such as `[z-a]`.
        """
        if not globs:
            return self
        wanted = re.compile("|".join(map(_translated, globs)), re.DOTALL)
        return Changes(
            change
            for change in self._changes
            if wanted.fullmatch(change.path) or (change.source and wanted.fullmatch(change.source))
        )


_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[(?P<negated>!?)(?P<members>\]?[^]]*)\]|.", re.DOTALL)


def _translated(glob: str) -> str:
    if not re.search(r"[*?[]", glob):
        return f"{re.escape(glob.rstrip('/'))}(?:/.*)?"
    simple = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = []
    for token in _GLOB.finditer(glob):
        text = token[0]
        if token["members"] is None:
            parts.append(simple.get(text) or re.escape(text))
            continue
        # Everything but "-" is escaped: re reserves "&&", "||", "~~" and "[" in a class.
        members = re.sub(r"[^-\w]", r"\\\g<0>", token["members"])
        part = f"(?!/)[{'^' if token['negated'] else ''}{members}]"
        try:
            re.compile(part)
        except re.error as error:
            raise ValueError(f"glob {glob!r}: {text!r} is not a class: {error}") from None
        parts.append(part)
    return "".join(parts)


@dataclass(frozen=True, slots=True)
class Layered:
    """One overlay of a sandbox: where it is mounted (absolute) and its upper directory.

    `upper` is relative to the descriptor that `read_changes` is given, e.g. "0/upper".
    """

    mountpoint: str
    upper: str


def read_changes(
    overlays: Sequence[Layered],
    *,
    upper_fd: int,
    lower_fd: int,
    xattr_prefix: str,
    ignore: Collection[str] = (),
) -> Changes:
    """Compare the uppers of a sandbox with what it showed before it was written to.

    `upper_fd` and `lower_fd` are descriptors of directories: of the one `Layered.upper` is relative
    to, and of the root of the tree below, whose mounts are crossed. `xattr_prefix` is what the
    overlays put before the names of their attributes, "trusted.overlay." or "user.overlay.". A path
    in `ignore` is not reported for merely being "added".

    Nothing is written, and no access time below is touched where the caller may avoid it. The
    sandbox may be running: what vanishes meanwhile is passed over. A file that the caller may not
    read is "modified" if its size or mtime differ; what an unreadable directory holds is not
    listed. Raises OSError if an upper cannot be opened or read.
    """
    quiet = frozenset(ignore)
    changes: list[Change] = []
    for overlay in overlays:
        covered = {other.mountpoint for other in overlays if other is not overlay}
        walk = _Walk(overlay, upper_fd, lower_fd, xattr_prefix, quiet, covered)
        changes += walk.run()
    return Changes(changes)


@dataclass(frozen=True, slots=True)
class _Directory:
    """A directory of an upper that is still to be read.

    Paths are absolute, but "" for the root. `lower` is where the tree below would show through,
    None if its parent has nothing below; `below` is what stands there. `remade` says that the
    directory is within one that was made anew, where nothing shows through.
    """

    path: str
    upper: str
    lower: str | None
    below: os.stat_result | None
    remade: bool = False


class _Walk:
    def __init__(
        self,
        overlay: Layered,
        upper_fd: int,
        lower_fd: int,
        xattr_prefix: str,
        ignore: Collection[str],
        covered: Collection[str],
    ) -> None:
        self._upper_fd = upper_fd
        self._lower_fd = lower_fd
        self._prefix = xattr_prefix
        self._ignore = ignore
        # A directory that another overlay is mounted on is that overlay's to report.
        self._covered = covered
        self._mountpoint = overlay.mountpoint.rstrip("/")
        below = self._stat_directory(self._mountpoint)
        self._root = _Directory(self._mountpoint, overlay.upper, self._mountpoint, below)
        self._pending = [self._root]
        self._changes: list[Change] = []
        # (path, lower): known to be deleted only when all the renamed directories are known.
        self._gone: list[tuple[str, str]] = []
        self._sources: set[str] = set()

    def run(self) -> Iterable[Change]:
        while self._pending:
            directory = self._pending.pop()
            try:
                fd = _open_directory(self._upper_fd, directory.upper)
            except (FileNotFoundError, NotADirectoryError):
                if directory is self._root:
                    raise
                continue  # it was listed, but the sandbox may still be running
            try:
                self._read(directory, fd)
            finally:
                os.close(fd)
        for path, lower in self._gone:
            if lower not in self._sources:
                self._report(path, "deleted")
        return self._changes

    def _report(self, path: str, kind: Kind, source: str | None = None) -> None:
        if kind == "added" and path in self._ignore:
            return
        self._changes.append(Change(path or "/", kind, source and (source or "/")))

    def _read(self, directory: _Directory, fd: int) -> None:
        path, lower, remade = directory.path, directory.lower, directory.remade
        below = directory.below
        shadows = below is not None and stat.S_ISDIR(below.st_mode)
        xattrs = _xattrs(fd)
        opaque = xattrs.get(f"{self._prefix}opaque") == b"y"
        source = None if opaque else self._source(directory, xattrs)
        kind: Kind | None = None
        if source is not None:
            # Moved away and back again is not renamed.
            kind = None if source == lower else "renamed"
            lower, remade = source, False
        elif not shadows:
            kind = "added" if below is None else "replaced"
            lower = None
        elif opaque and not remade:
            # Any new directory may be opaque; only one that hides another one was made anew.
            kind, remade = "replaced", True
        lower_fd = None
        if lower is not None:
            try:
                lower_fd = _open_directory(self._lower_fd, lower[1:])
            except (FileNotFoundError, NotADirectoryError):
                lower = None
        try:
            if kind is None and lower_fd is not None:
                same = _same_stat(os.fstat(fd), os.fstat(lower_fd))
                if not same or _visible(xattrs) != _visible(_xattrs(lower_fd)):
                    kind = "metadata"
            if kind == "renamed":
                self._sources.add(str(source))
            if kind is not None and (directory is self._root or path not in self._covered):
                self._report(path, kind, source if kind == "renamed" else None)
            self._read_entries(path, directory.upper, fd, lower, lower_fd, remade)
        finally:
            if lower_fd is not None:
                os.close(lower_fd)
