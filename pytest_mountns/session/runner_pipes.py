"""Pipes and sockets of the program that has started pytest, such as the test explorer of an editor.

The environment has the path of one, and a plugin of that program writes to it what it hears of
tests: also in a forked test, in ``pytest_exception_interact``. Through an overlay, a pipe has the
same name and is another one, fifo(7): to open it would wait for ever, since nobody opens its other
end. So each is bound to its place in every sandbox, as a volume is.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Final, final

from ..engine.linux.mountinfo import is_below
from ..engine.linux.namespaces import high
from ..engine.linux.untouched import os

#: Sockets of the login session. They are not for pytest, and a mountpoint cannot be removed.
_OF_LOGIN: Final = frozenset({"SSH_AUTH_SOCK", "SUDO_ASKPASS", "GPG_AGENT_INFO", "WAYLAND_DISPLAY"})
#: Where the sandbox has its own, or where a path means another file in each process.
_NOT_FILES: Final = ("/dev", "/proc", "/sys")


def pipes_in(environment: Mapping[str, str], mode_of: Callable[[str], int]) -> tuple[str, ...]:
    """The absolute paths of pipes and sockets that are values of the environment.

    ``mode_of`` returns the type of the file at a path as ``st_mode`` has it, 0 if there is none.
    """
    found = {
        os.path.normpath(value)
        for name, value in environment.items()
        if value.startswith("/") and "\0" not in value and name not in _OF_LOGIN
    }
    return tuple(
        path
        for path in sorted(found)
        if not any(is_below(path, place) for place in _NOT_FILES)
        and (stat.S_ISFIFO(mode := mode_of(path)) or stat.S_ISSOCK(mode))
    )


@final
class RunnerPipes:
    """The pipes and sockets that the environment names when this object is made."""

    def __init__(self) -> None:
        #: Their paths, sorted.
        self.paths: Final = pipes_in(os.environ, _mode)
        #: Descriptors of pipes that are kept open for writing, by path.
        self._held: dict[str, int] = {}

    def left_open(self) -> list[str]:
        """In a test process: the pipes that it has open and the pytest process does not hold.

        Without a fork they would stay open. When the last writer closes a pipe, its reader takes
        that for the end of the run.
        """
        waiting = [path for path in self.paths if path not in self._held]
        if not waiting:
            return []
        opened = {_identity(fd) for fd in map(int, os.listdir("/proc/self/fd"))} - {None}
        return [path for path in waiting if _identity(path) in opened]

    def hold(self, paths: Sequence[str]) -> None:
        """In the pytest process: keep pipes open for writing, until :meth:`close`."""
        for path in paths:
            try:
                # Not waiting for a reader: the process that has it open has found one.
                fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            except OSError:
                # The reader has gone.
                continue
            self._held[path] = high(fd)

    def close(self) -> None:
        """At the end of the session."""
        while self._held:
            os.close(self._held.popitem()[1])


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return 0


def _identity(file: int | str) -> object:
    """Device and inode of a pipe, None if ``file`` is none or is gone."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISFIFO(found.st_mode) else None
