"""Finds what runs of pytest leave behind: processes, mounts and files.

Processes are found by a word in their environment.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

#: A variable in the environment of everything that a run starts.
VARIABLE: Final = "MOUNTNS_LEFTOVERS"
#: pytest, without the plugins that always make a directory.
COMMAND: Final = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark")
_PATIENCE: Final = 30.0


def marked(word: str) -> list[int]:
    """The living processes that have ``word`` in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            # It is empty for a zombie.
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
                if f"{VARIABLE}={word}".encode() in variables:
                    found.append(int(entry))
    return found


def state(pid: int) -> str:
    """The state of a process, one letter as in proc_pid_stat(5); "" if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _listed(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


def _own_shared_memory() -> list[str]:
    """What this user has in ``/dev/shm``, where tests of another user may run as well."""
    found = []
    with os.scandir("/dev/shm") as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                if entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                    found.append(entry.name)
    return sorted(found)


@dataclass
class Machine:
    """A home and a temporary directory for runs of pytest, and the state that must not change."""

    #: The directory that holds both.
    place: Path
    #: The value of :data:`VARIABLE`, by which the processes are found.
    word: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        for path in (self.home, self.tmp):
            path.mkdir()
        self._before = self._now()

    @property
    def home(self) -> Path:
        """The home directory of the runs."""
        return self.place / "home"

    @property
    def tmp(self) -> Path:
        """The directory for temporary files of the runs."""
        return self.place / "tmp"

    @property
    def environ(self) -> dict[str, str]:
        """The environment of the runs."""
        return {
            **os.environ,
            VARIABLE: self.word,
            "HOME": str(self.home),
            "TMPDIR": str(self.tmp),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def _now(self) -> tuple[object, ...]:
        files = [*_listed(self.home), *_listed(self.tmp)]
        return Path("/proc/self/mountinfo").read_bytes(), files, _own_shared_memory()

    @contextlib.contextmanager
    def running(self, arguments: Sequence[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
        """Start pytest with its output in a pipe. It is killed when the context ends."""
        process = subprocess.Popen(
            # pytest-rerunfailures keeps a thread; an ordinary user's inline tests would be forked.
            [*COMMAND, "-q", "-p", "no:rerunfailures", *arguments],
            cwd=cwd,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            if process.stdout is not None:
                process.stdout.close()

    def left(self) -> str:
        """Describe what was not there before; "" if nothing is left.

        What is left is given some time to go away. Processes that stay are killed.
        """
        deadline = time.monotonic() + _PATIENCE
        while (alive := marked(self.word)) or self._now() != self._before:
            if time.monotonic() > deadline:
                said = {
                    pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                    for pid in alive
                }
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
                files = {str(one) for one in self.place.rglob("*")}
                return f"processes {said}; {sorted(files)}; or mounts, or /dev/shm"
            time.sleep(0.02)
        return ""
