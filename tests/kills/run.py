"""Sessions of pytest that are ended by SIGKILL at a random instant, and what they leave."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

import pytest

from pytest_mountns.engine.linux import processes, syscalls
from tests.helpers.environments import forbid_as_docker

from . import suite

#: prctl(2): orphans become children of this process, so that none is overlooked.
_PR_SET_CHILD_SUBREAPER: Final = 36
#: The seconds that guards and init may take to clean up.
_PATIENCE: Final = 20.0
#: The seconds that a session may take to end when one of its other processes was killed. A test
#: whose process is gone has failed, and the session goes on.
_SESSION_PATIENCE: Final = 90.0
#: How often a session finds nothing in the cache.
_COLD: Final = 0.3


@dataclass(frozen=True)
class Way:
    """One way to run tests. ``processes``: each leaves one behind, which must end with it."""

    name: str
    marks: str
    processes: bool = False
    #: How many threads are alive besides.
    threads: int = 0
    suite: str = suite.TEXT
    options: tuple[str, ...] = ("--mountns-unavailable=error",)
    #: Whether mounts and namespaces are forbidden, as in a default container.
    confined: bool = False
    #: More directories that tests write to.
    places: tuple[str, ...] = ()
    #: Whether any process of the session is killed, chosen by chance, and not only pytest's.
    any_process: bool = False


WAYS: Final = (
    Way("fork", ""),
    Way("inline", "process='inline'"),
    Way("inline, threads", "process='inline'", threads=8),
    Way("pid", "pid=True", processes=True),
    Way("pid, disk", "pid=True, upper='disk'", processes=True),
    # For an ordinary user: with the host's whole root writable. For root it is "fork".
    Way("shown as root", "user='root'", places=("/etc", "/usr/local")),
    Way("writable", "user='root', writable=['/etc']", places=("/etc",)),
    Way(
        "guard",
        "",
        suite=suite.GUARDED,
        options=("--mountns", "--mountns-unavailable=guard"),
        confined=True,
    ),
    Way("fork, any", "", any_process=True),
    Way("pid, any", "pid=True", processes=True, any_process=True),
    # In the midst of an exploration, and while system calls are made to fail.
    Way("crashes", "", suite=suite.CRASHES, any_process=True),
    Way("crashes, pid", "pid=True", suite=suite.CRASHES, any_process=True),
    Way("faults", "", suite=suite.FAULTS, any_process=True),
    Way("faults, pid", "pid=True", suite=suite.FAULTS, processes=True, any_process=True),
)


@dataclass
class Tally:
    """What came of a number of kills; lists are of what was left by which of them."""

    way: str
    kills: int = 0
    ended: int = 0
    left: dict[str, list[str]] = field(
        default_factory=lambda: {"mounts": [], "files": [], "processes": [], "hangs": []}
    )
    #: How many of the processes that were killed were how far from the one that counts. pytest is
    #: 1, and so is an orphan, as the supervisor of ``faults=``; a test process is 2.
    depths: Counter[int] = field(default_factory=Counter)

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
        #: Layers and copies of the host's directories are kept there, which is what it is for.
        self._cache = place / "cache"
        for path in (self._project / "volume", self._project / "mounted", self._home, self._tmp):
            path.mkdir(parents=True)
        marks = {"marks": way.marks, "word": self._word, "processes": str(way.processes)}
        marks.update(threads=str(way.threads), places=str(way.places))
        text = way.suite
        for key, value in marks.items():
            text = text.replace(f"{{{key}}}", value)
        (self._project / "test_it.py").write_text(text)
        (self._project / "pytest.ini").write_text("[pytest]\n")
        self._mounts = self._mount_table()
        syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)

    def try_all(self, count: int) -> Tally:
        """Kill so many sessions.

        Raises :class:`RuntimeError` if the suite fails by itself, before them or after them.
        """
        tally = Tally(self._way.name)
        before = self._files()
        seconds = self._run_whole()
        while tally.kills < count:
            began = time.monotonic()
            if self._random.random() < _COLD:
                shutil.rmtree(self._cache, ignore_errors=True)
            session = self._start()
            # Also after the last test: in the last fixtures, the summary, the exit.
            time.sleep(self._random.uniform(0, seconds * 1.05))
            when = f"{time.monotonic() - began:.3f} s"
            depth = self._kill_any(session) if self._way.any_process else self._kill(session)
            if depth:
                tally.kills += 1
                tally.depths[depth] += 1
                when += f" of a process at depth {depth}"
            else:
                tally.ended += 1
            if not self._ends(session):
                tally.left["hangs"].append(when)
                self._kill(session)
            if self._survivors():
                tally.left["processes"].append(when)
            if new := self._mount_table() - self._mounts:
                tally.left["mounts"].append(f"{when}: {sorted(new)[:5]}")
            if new := self._files() - before:
                tally.left["files"].append(f"{when}: {sorted(new)[:5]}")
                before |= new
                print(tally.left["files"][-1], file=sys.stderr, flush=True)
        # What the last one has left in the cache is there.
        self._run_whole()
        return tally

    def _kill(self, session: int) -> int:
        """Kill the session. Returns 1, or 0 if it had ended already."""
        if processes.has_ended(session):
            return 0
        os.kill(session, signal.SIGKILL)
        return 1

    def _kill_any(self, session: int) -> int:
        """Kill one process of the session. Returns how far it is from this one, 0 if all are gone.

        The distance is chosen first: else it would hardly ever be the session itself.
        """
        if processes.has_ended(session):
            return 0
        levels = list(_levels(os.getpid()))
        depth = self._random.randrange(len(levels))
        victim = self._random.choice(levels[depth])
        try:
            pidfd = os.pidfd_open(victim)
        except ProcessLookupError:
            return 0
        try:
            # Meanwhile its number may have become another process's, which must be ours as well.
            if not any(victim in level for level in _levels(os.getpid())):
                return 0
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        except ProcessLookupError:
            return 0
        finally:
            os.close(pidfd)
        return depth + 1

    def _ends(self, session: int) -> bool:
        """Whether the session ends, which is reaped then."""
        deadline = time.monotonic() + _SESSION_PATIENCE
        while time.monotonic() < deadline:
            if os.waitpid(session, os.WNOHANG)[0]:
                return True
            time.sleep(0.002)
        return False

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
            os.environ["XDG_CACHE_HOME"] = str(self._cache)
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
            arguments += [*self._way.options, "test_it.py"]
            if self._way.confined:
                forbid_as_docker()
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
            left = [pid for level in _levels(os.getpid()) for pid in level]
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
        for place in ("/dev/shm", "/tmp", os.path.expanduser("~"), *self._way.places):
            found |= {os.path.join(place, n) for n in os.listdir(place) if self._word in n}
        return found


def _levels(top: int) -> Iterator[list[int]]:
    """The descendants of a process: its children, then theirs, and so on."""
    level = processes.children(top)
    while level:
        yield level
        level = [child for pid in level for child in processes.children(pid)]
