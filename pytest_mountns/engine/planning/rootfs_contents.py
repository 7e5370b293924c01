"""Finds out what a root other than the host's needs of the host, and at which paths.

A process is forked for that. It enters the root as a sandbox will show it, and looks at it there.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, final

from ..linux.errors import LayerError
from ..linux.helper_process import call_in_helper
from ..linux.namespaces import (
    enter_mount_namespace,
    enter_user_namespace,
    go,
    make_stage,
    take_user_capabilities,
)
from ..linux.untouched import os
from ..mount.root import mount_root_filesystem
from ..plan.model import Piece, Plan
from .python_runtime import (
    RootNeeds,
    Runtime,
    is_in_any,
    links_on_the_way,
    merged_directories,
    needs_of_foreign_root,
    needs_of_minimal_root,
    outermost,
    resolve_links,
)

#: What the forked process does, for error messages.
_STEP: Final = "look at the root"
#: Directories that every root has, and their modes.
_DIRECTORIES: Final = (("/proc", 0o755), ("/sys", 0o755), ("/dev", 0o755), ("/tmp", 0o1777))


@final
@dataclass(frozen=True, slots=True)
class RootContents:
    """What a root needs of the host. Pairs are a path and the path that it has without links."""

    #: What must be made in the root, because it is not there: mountpoints, and links to them.
    pieces: tuple[Piece, ...]
    #: Paths of the host that are shown read-only.
    shown: tuple[tuple[str, str], ...]
    #: Directories of the run, which tests may write to.
    run_directories: tuple[tuple[str, str], ...]
    #: The targets of volumes and tmpfs.
    targets: tuple[tuple[str, str], ...]
    #: Libraries to load before the root is entered: see :attr:`.RootNeeds.preload`.
    preload: tuple[str, ...]


def find_root_contents(
    root_filesystem: Plan,
    runtime: Runtime,
    *,
    projects: Collection[str],
    run_directories: Collection[str],
    targets: Collection[str],
    minimal: bool,
    in_user_namespace: bool,
) -> RootContents:
    """Find out what the root of the plan ``root_filesystem`` needs of the host.

    ``runtime`` is the Python that must run in it. ``projects`` are further directories that it
    shows read-only, ``run_directories`` those that tests may write to, and ``targets`` the places
    of volumes and tmpfs. ``minimal`` says that there is nothing in the root but layers.
    ``in_user_namespace`` says that this process, an ordinary user's, has entered a user namespace
    already. Raises :class:`SandboxError` if the root cannot be made, or has something else where
    these must be.
    """
    links = {*runtime.links, *links_on_the_way([*projects, *run_directories])}
    runtime = replace(runtime, links=tuple(sorted(links)))
    minimal_needs = None
    if minimal:
        minimal_needs = needs_of_minimal_root(
            runtime,
            projects,
            os.path.exists,
            merged=merged_directories(),
            home=os.path.expanduser("~"),
        )

    def inspect() -> tuple[RootContents, list[int]]:
        host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stage = _stage(root_filesystem.user_namespace, in_user_namespace=in_user_namespace)
        go(mount_root_filesystem(root_filesystem, stage))
        needs = minimal_needs or needs_of_foreign_root(runtime, projects, os.path.lexists)
        return _RootInspector(host, needs).contents(run_directories, targets), []

    return call_in_helper(inspect, _STEP)[0]


def _stage(user_namespace: bool, *, in_user_namespace: bool) -> int:
    """Make a mount namespace for the root, in a user namespace if sandboxes have one."""
    if not user_namespace:
        return make_stage()
    if in_user_namespace:
        take_user_capabilities()
    else:
        enter_user_namespace()
    return enter_mount_namespace(True)


@final
class _RootInspector:
    """Looks at the root, which this process is in. ``host`` is a descriptor of the host's root."""

    def __init__(self, host: int, needs: RootNeeds) -> None:
        self._host = host
        self._needs = needs
        #: By their paths, which have no links.
        self._pieces: dict[str, Piece] = {}

    def contents(self, run_directories: Iterable[str], targets: Iterable[str]) -> RootContents:
        """What the root needs. Raises :class:`LayerError` if something else is in its place."""
        needs = self._needs
        temporary = (tempfile.gettempdir(), 0o1777)
        for path, mode in (*_DIRECTORIES, temporary, *needs.directories):
            self._place(path, directory=True, mode=mode)
        for path, link in needs.links:
            parent = self._resolve(os.path.dirname(path))
            place = os.path.join(parent, os.path.basename(path))
            if not os.path.lexists(place) and place not in self._pieces:
                self._make_parents(place)
                self._pieces[place] = Piece(place, "link", link=link)
        writable = outermost(resolve_links(run_directories, needs.links))
        shown = [path for path in needs.shown if not is_in_any(path, writable)]
        return RootContents(
            shown=tuple(self._mountpoints(shown)),
            run_directories=tuple(self._mountpoints(writable)),
            targets=tuple((path, self._resolve(path)) for path in targets),
            # Sorted, so that parents come before what is in them.
            pieces=tuple(piece for _, piece in sorted(self._pieces.items())),
            preload=needs.preload,
        )

    def _mountpoints(self, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
        """The paths that the host has, and where in the root each is mounted."""
        for path in paths:
            try:
                status = os.stat(path[1:], dir_fd=self._host)
            except OSError:
                continue
            yield path, self._place(path, directory=stat.S_ISDIR(status.st_mode))

    def _resolve(self, path: str) -> str:
        """The path without links of the root, and without those that will be made in it."""
        return os.path.realpath(resolve_links([path], self._needs.links)[0])

    def _place(self, path: str, *, directory: bool, mode: int = 0o755) -> str:
        """Where ``path`` leads in the root. If nothing is there, it is noted to be made.

        Raises :class:`LayerError` if something of another kind is there.
        """
        place = self._resolve(path)
        if os.path.lexists(place):
            if os.path.isdir(place) != directory:
                word = "a directory" if directory else "a file"
                raise LayerError(
                    f"show {path} of the host in another root",
                    cause=f"that root has something other than {word} at {place}",
                    remedy=f"use another root, or remove {place} from it",
                )
        elif place not in self._pieces:
            self._make_parents(place)
            kind: Literal["directory", "file"] = "directory" if directory else "file"
            self._pieces[place] = Piece(place, kind, mode)
        return place

    def _make_parents(self, place: str) -> None:
        """Note the directories above ``place``, with the modes that they have on the host."""
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
