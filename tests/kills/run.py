"""Sessions of pytest that are ended by SIGKILL at a random instant, and what they leave."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import pytest

from pytest_mountns.engine.linux import processes, syscalls

from . import suite

#: prctl(2): orphans become children of this process, so that none is overlooked.
_PR_SET_CHILD_SUBREAPER: Final = 36
#: The seconds that guards and init may take to clean up.
_PATIENCE: Final = 20.0


@dataclass(frozen=True)
class Way:
    """One way to run tests. ``processes``: each leaves one behind, which must end with it."""

    name: str
    marks: str
    processes: bool = False
    #: How many threads are alive besides.
    threads: int = 0


WAYS: Final = (
    Way("fork", ""),
    Way("inline", "process='inline'"),
    Way("inline, threads", "process='inline'", threads=8),
    Way("pid", "pid=True", processes=True),
    Way("pid, disk", "pid=True, upper='disk'", processes=True),
    # For an ordinary user: with the host's whole root writable. For root it is "fork".
    Way("shown as root", "user='root'"),
)


@dataclass
class Tally:
    """What came of a number of kills; lists are of what was left by which of them."""

    way: str
    kills: int = 0
    ended: int = 0
    left: dict[str, list[str]] = field(
        default_factory=lambda: {"mounts": [], "files": [], "processes": []}
    )

    @property
    def clean(self) -> bool:
        return not any(self.left.values())


class Range:
    """A project with a home and a temporary directory of its own, below ``place``."""

    def __init__(self, way: Way, place: Path, seed: int) -> None:
        self._way = way
        self._random = random.Random(f"{seed} {way.name}")
        self._word = f"mountns-kills-{os.getpid()}-{self._random.randrange(10**9)}"
        self._project = place / "project"
        self._home, self._tmp = place / "home", place / "tmp"
        for path in (self._project / "volume", self._project / "mounted", self._home, self._tmp):
            path.mkdir(parents=True)
        marks = {"marks": way.marks, "word": self._word, "processes": str(way.processes)}
        marks["threads"] = str(way.threads)
        text = suite.TEXT
        for key, value in marks.items():
            text = text.replace(f"{{{key}}}", value)
        (self._project / "test_it.py").write_text(text)
        (self._project / "pytest.ini").write_text("[pytest]\n")
        self._mounts = self._mount_table()
        syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def try_all(self, count: int) -> Tally:
        """Kill so many sessions. Raises :class:`RuntimeError` if the suite fails by itself."""
        tally = Tally(self._way.name)
        before = self._files()
        seconds = self._run_whole()
        while tally.kills < count:
            began = time.monotonic()
            session = self._start()
            # Also after the last test: in the last fixtures, the summary, the exit.
            time.sleep(self._random.uniform(0, seconds * 1.05))
            if self._kill(session):
                tally.kills += 1
            else:
                tally.ended += 1
            when = f"{time.monotonic() - began:.3f} s"
            if self._survivors():
                tally.left["processes"].append(when)
            if new := self._mount_table() - self._mounts:
                tally.left["mounts"].append(f"{when}: {sorted(new)[:5]}")
            if new := self._files() - before:
                tally.left["files"].append(f"{when}: {sorted(new)[:5]}")
                before |= new
                print(tally.left["files"][-1], file=sys.stderr, flush=True)
        return tally

    def _kill(self, session: int) -> bool:
        """Kill the session. Returns whether it had not ended yet."""
        os.kill(session, signal.SIGKILL)
        _, status = os.waitpid(session, 0)
        return os.WIFSIGNALED(status)

    def _run_whole(self) -> float:
        times = []
        for _ in range(2):
            began = time.monotonic()
            _, status = os.waitpid(self._start(), 0)
            times.append(time.monotonic() - began)
            if os.waitstatus_to_exitcode(status) != 0:
                output = (self._project.parent / "output").read_text()
                raise RuntimeError(f"{self._way.name}: the suite fails without a kill: {output}")
            self._survivors()
        # Not the first: modules that it imports are there for the later sessions.
        return times[1]

    def _start(self) -> int:
        child = processes.fork()
        if child == 0:
            self._become_session()
        return child

    def _become_session(self) -> NoReturn:
        try:
            # Only this process collects orphans, and not the session.
            syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 0)
            os.chdir(self._project)
            os.environ.update(TMPDIR=str(self._tmp), HOME=str(self._home))
            # Otherwise Python tries in each session, by writing a file, whether the place is good.
            tempfile.tempdir = str(self._tmp)
            output = os.open(
                self._project.parent / "output", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644
            )
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
            arguments = ["-q", "-p", "no:cacheprovider", "-p", "pytest_mountns.plugin"]
            arguments += ["--mountns-unavailable=error", "test_it.py"]
            sys.dont_write_bytecode = True
            status = pytest.main(arguments)
            os._exit(int(status))
        finally:
            os._exit(70)

    def _survivors(self) -> list[int]:
        """Processes that are left after guards have had their time. They are killed."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            left = processes.children(os.getpid())
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.002)
        processes.kill_all(left)
        return left

    def _mount_table(self) -> set[str]:
        return set(Path("/proc/self/mountinfo").read_text().splitlines())

    def _files(self) -> set[str]:
        found = {
            os.path.join(place, name)
            for top in (self._project, self._home, self._tmp)
            for place, directories, files in os.walk(top)
            for name in (*directories, *files)
            # pytest's own directories, which the session makes on the host before any test.
            if "pytest-of-" not in os.path.join(place, name) or self._word in name
        }
        for place in ("/dev/shm", "/tmp", os.path.expanduser("~")):
            found |= {os.path.join(place, n) for n in os.listdir(place) if self._word in n}
        return found
