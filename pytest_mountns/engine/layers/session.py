"""The roots and layers that a session uses: each resolved once, and kept until it ends."""

from __future__ import annotations

from typing import final

from ..linux.errors import LayerError, SandboxError, Unavailable
from ..linux.untouched import os
from .limits import Limits
from .resolve import Report, Stack, resolve
from .unpack import Form


@final
class Sources:
    """The directories of all sources so far. ``report`` is called while one is unpacked."""

    def __init__(self, limits: Limits | None = None, report: Report | None = None) -> None:
        self._limits = limits
        #: Called while something takes long.
        self.report = report
        self._known: dict[str, Stack | SandboxError] = {}

    def directories(self, source: str, *, user_namespace: bool) -> tuple[str, ...]:
        """Return the directories of a source, the topmost first.

        ``source``: a path, or ``PATH:NAME`` for one of several images in a file or layout. Raises
        :class:`SandboxError`, for one source always the same.
        """
        known = self._known.get(source)
        if known is None:
            try:
                known = self._resolve(source, "user" if user_namespace else "trusted")
            except SandboxError as error:
                known = error
            self._known[source] = known
        if isinstance(known, SandboxError):
            raise known
        return known.directories[::-1]

    def _resolve(self, source: str, form: Form) -> Stack:
        path, ref = _split(source)
        if os.path.isdir(path) and os.path.samefile(path, "/"):
            raise LayerError(
                f"use {path} as a layer",
                cause="it is the host's own root",
                remedy='write root="host"',
            )
        stack = resolve(path, form, ref=ref, limits=self._limits, report=self.report)
        if form == "user" and stack.directories == (os.path.abspath(path),):
            owner = os.stat(path).st_uid
            if owner != os.geteuid():
                stack.close()
                raise Unavailable(
                    f"use {path} as a layer",
                    cause=f"it belongs to user {owner}, whom this user's namespace does not map:"
                    " nothing in it could be changed",
                    remedy="run as root, or use an archive of it, whose files will be this user's:"
                    f" tar -C {path} -cf layer.tar .",
                )
        return stack

    def close(self) -> None:
        """Allow the cache to remove them."""
        for known in self._known.values():
            if isinstance(known, Stack):
                known.close()
        self._known.clear()


def _split(source: str) -> tuple[str, str | None]:
    """Split into a path and the name of an image in it, which a colon separates.

    Both may contain colons. It is the first colon before which there is a file.
    """
    if not os.path.lexists(source):
        for place in (number for number, letter in enumerate(source) if letter == ":"):
            if os.path.lexists(source[:place]):
                return source[:place], source[place + 1 :]
    return source, None
