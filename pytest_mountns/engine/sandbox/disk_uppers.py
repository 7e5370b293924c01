"""Uppers on disk: directories that must not outlive the session, even if it is killed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, final

from ..linux.errors import Unavailable
from ..linux.namespaces import explained
from ..linux.untouched import os

if TYPE_CHECKING:
    from .disk_guard import Guard


@final
class DiskUppers:
    """The directories on disk for the uppers of one session, below one directory with a guard."""

    def __init__(self) -> None:
        self._base: str | None = None
        self._guard: Guard | None = None

    def new(self) -> str:
        """Make an empty directory, and return its path.

        Raises :class:`Unavailable` if no place on disk can be written to, or if there can be no
        guard.
        """
        if self._base is None:
            from .disk_guard import Guard, find_place

            with _explained("look for a place for uppers on disk"):
                place = find_place()
            base = os.path.join(place, f"mountns-uppers-{os.urandom(8).hex()}")
            with _explained(f"start a process that removes {base} in the end"):
                # It is started first, so that the directory never exists without it.
                self._guard = Guard(base)
            self._base = base
            try:
                with _explained(f"make the directory {base} for uppers on disk"):
                    os.mkdir(base, 0o700)
            except Unavailable:
                self.close()
                raise
        with _explained(f"make a directory for an upper in {self._base}"):
            upper = f"{self._base}/{os.urandom(8).hex()}"
            os.mkdir(upper, 0o700)
            return upper

    def close(self) -> None:
        """Remove all of them, and end the guard."""
        if self._base is not None:
            remove(self._base)
            self._base = None
        if self._guard is not None:
            self._guard.end()
            self._guard = None


def remove(directory: str) -> None:
    """Remove a directory of uppers: see :func:`.disk_guard.remove`."""
    from . import disk_guard

    disk_guard.remove(directory)


def _explained(what: str) -> contextlib.AbstractContextManager[None]:
    return explained(what, False, "disk", Unavailable)
