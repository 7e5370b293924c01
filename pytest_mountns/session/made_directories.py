"""Directories that are made on the host so that they can be volumes.

What is still empty at the end of the run is removed: without this plugin it would not be there.
Workers of pytest-xdist share these directories. So a worker removes none, but tells the controller
what it has made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_made_key: Final = pytest.StashKey["MadeDirectories"]()
_OUTPUT: Final = "mountns_made_directories"


@final
class MadeDirectories:
    """The directories that one session has made; with pytest-xdist those of all workers."""

    def __init__(self) -> None:
        self._made: dict[Path, None] = {}

    def make(self, directory: Path) -> None:
        """Make a directory, with those that it is in. Raises :class:`OSError`."""
        missing = list(_missing(directory))
        directory.mkdir(parents=True, exist_ok=True)
        self.add(missing)

    def add(self, directories: Iterable[Path]) -> None:
        """Note directories that were made; the inner ones come first."""
        self._made.update(dict.fromkeys(directories))

    def send(self, config: pytest.Config) -> None:
        """In an xdist worker, at its end: tell the controller."""
        output: dict[str, Any] | None = getattr(config, "workeroutput", None)
        if output is not None:
            output[_OUTPUT] = [str(directory) for directory in self._made]

    def receive(self, output: Mapping[str, Any]) -> None:
        """In the xdist controller: what a worker has sent."""
        self.add(map(Path, output.get(_OUTPUT, ())))

    def remove_empty(self, config: pytest.Config) -> None:
        """Remove the directories that nothing was written to, unless this is an xdist worker."""
        if hasattr(config, "workerinput"):
            return
        for directory in sorted(self._made, key=lambda one: len(one.parts), reverse=True):
            with contextlib.suppress(OSError):
                # Hypothesis puts this file into a directory of its own.
                if [one.name for one in directory.iterdir()] == [".gitignore"]:
                    (directory / ".gitignore").unlink()
                directory.rmdir()
        self._made.clear()


def made_directories(config: pytest.Config) -> MadeDirectories:
    """Those of the session of ``config``."""
    return config.stash.setdefault(_made_key, MadeDirectories())


def _missing(directory: Path) -> Iterator[Path]:
    for one in (directory, *directory.parents):
        if one.exists():
            return
        yield one
