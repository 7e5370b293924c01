"""What a root from elsewhere needs of the host, and where in it that has its place.

Found out by looking at the root as a sandbox will show it: a process is forked that goes there.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from ..linux.errors import LayerError
from ..linux.namespaces import (
    enter_mount_namespace,
    enter_user_namespace,
    go,
    make_stage,
    take_user_capabilities,
)
from ..linux.processes import in_child
from ..mount.root import make_root_filesystem
from ..plan.model import Piece, Plan
from .python_runtime import (
    Runtime,
    Visible,
    is_in,
    links_on_the_way,
    merged_directories,
    resolved,
    visible_in_foreign,
    visible_in_minimal,
    without_inner,
)

_TRIED: Final = "look at the root"
#: What every root has, and modes.
_DIRECTORIES: Final = (("/proc", 0o755), ("/sys", 0o755), ("/dev", 0o755), ("/tmp", 0o1777))


@final
@dataclass(frozen=True, slots=True)
class Furniture:
    """What goes into a root: see :class:`.stacking.Foreign`.

    ``targets``: places that were asked for, and where they are without links. ``preload``:
    libraries to load before the root is entered.
    """

    pieces: tuple[Piece, ...]
    shown: tuple[tuple[str, str], ...]
    kept: tuple[tuple[str, str], ...]
    targets: tuple[tuple[str, str], ...]
    preload: tuple[str, ...]


def furnish(
    root_filesystem: Plan,
    runtime: Runtime,
    *,
    projects: Collection[str],
    kept: Collection[str],
    targets: Collection[str],
    minimal: bool,
    settled: bool,
) -> Furniture:
    """What the root that ``ground`` shows needs.

    ``projects``: directories to show read-only besides; ``kept``: to show as overlays.
    ``minimal``: it is empty but for layers. ``targets``: of volumes and the like. ``settled``: an
    ordinary user's process lives in a user namespace already. Raises :class:`SandboxError`.
    """
    links = {*runtime.links, *links_on_the_way([*projects, *kept])}
    runtime = replace(runtime, links=tuple(sorted(links)))
    minimally = None
    if minimal:
        minimally = visible_in_minimal(
            runtime,
            projects,
            os.path.exists,
            merged=merged_directories(),
            home=os.path.expanduser("~"),
        )

    def look() -> tuple[Furniture, list[int]]:
        host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stage = _stage(root_filesystem.user_namespace, settled=settled)
        go(make_root_filesystem(root_filesystem, stage))
        visible = minimally or visible_in_foreign(runtime, projects, os.path.lexists)
        return _Room(host, visible).arrange(kept, targets), []

    return in_child(look, _TRIED)[0]


def _stage(user_namespace: bool, *, settled: bool) -> int:
    if not user_namespace:
        return make_stage()
    if settled:
        take_user_capabilities()
    else:
        enter_user_namespace()
    return enter_mount_namespace(True)


@final
class _Room:
    """Finds places in the root, which this process is in. ``host``: a descriptor of the other."""

    def __init__(self, host: int, visible: Visible) -> None:
        self._host = host
        self._visible = visible
        self._pieces: dict[str, Piece] = {}

    def arrange(self, kept: Iterable[str], targets: Iterable[str]) -> Furniture:
        visible = self._visible
        temporary = (tempfile.gettempdir(), 0o1777)
        for path, mode in (*_DIRECTORIES, temporary, *visible.directories):
            self._place(path, directory=True, mode=mode)
        for path, link in visible.links:
            parent = self._resolve(os.path.dirname(path))
            place = os.path.join(parent, os.path.basename(path))
            if not os.path.lexists(place) and place not in self._pieces:
                self._make_way(place)
                self._pieces[place] = Piece(place, "link", link=link)
        own = without_inner(resolved(kept, visible.links))
        shown = [one.path for one in visible.shown if not is_in(one.path, own)]
        return Furniture(
            # Parents before what is in them.
            shown=tuple(self._mounted(shown)),
            kept=tuple(self._mounted(own)),
            targets=tuple((path, self._resolve(path)) for path in targets),
            pieces=tuple(piece for _, piece in sorted(self._pieces.items())),
            preload=visible.preload,
        )

    def _mounted(self, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Where these are mounted."""
        for path in paths:
            try:
                status = os.stat(path[1:], dir_fd=self._host)
            except OSError:
                continue
            yield path, self._place(path, directory=stat.S_ISDIR(status.st_mode))

    def _resolve(self, path: str) -> str:
        return os.path.realpath(resolved([path], self._visible.links)[0])

    def _place(self, path: str, *, directory: bool, mode: int = 0o755) -> str:
        """Where ``path`` leads in the root; it is there then."""
        place = self._resolve(path)
        if os.path.lexists(place):
            if os.path.isdir(place) != directory:
                word = "a directory" if directory else "a file"
                raise LayerError(
                    f"show {path} of the host in another root",
                    cause=f"that has something else than {word} at {place}",
                    remedy="use another root, or remove it there",
                )
        elif place not in self._pieces:
            self._make_way(place)
            kind: Literal["directory", "file"] = "directory" if directory else "file"
            self._pieces[place] = Piece(place, kind, mode)
        return place

    def _make_way(self, place: str) -> None:
        parts = place.split("/")[1:-1]
        for depth in range(1, len(parts) + 1):
            path = "/" + "/".join(parts[:depth])
            if path in self._pieces:
                continue
            if os.path.isdir(path):
                self._pieces[path] = Piece(path, "kept")
                continue
            try:
                mode = stat.S_IMODE(os.stat(path[1:], dir_fd=self._host).st_mode)
            except OSError:
                mode = 0o755
            self._pieces[path] = Piece(path, "directory", mode)
