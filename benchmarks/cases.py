"""One way to run one suite, and how it is measured.

The time is that of the whole process as seen from outside. Besides, the suites' ``conftest.py``
notes how long each test took from its setup to its teardown, as seen in the pytest process: the way
into a sandbox and out of it is in that, what is paid once a session is not.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from . import floor
from .machine import CHECKOUT, SUITES, User, environ, missing, wait_for_orphans

FILES = 10
TEMPLATES = CHECKOUT / "benchmarks" / "suites"
NAMESPACE = CHECKOUT / "benchmarks" / "namespace.py"
CALLS = "floor.calls"
"""Written below the top: how many system calls of each kind a sandbox takes."""
WRITTEN: Mapping[str, str] = {
    "empty": "pass",
    "fake-empty": "pass",
    "writing": "for number in range(200): open(f'new{number}', 'w').close()",
}
"""Suites that are written with as many tests as are asked for, and the body of each test."""
COPIED = 1000
"""Files for ``test_copy_up``."""


class NotMeasured(Exception):
    """This way does not work here. The text says why."""


@dataclass(frozen=True)
class Sample:
    """What one round has given: seconds of the process, and of each test by its name.

    ``cpus``: CPU seconds of each test, where they are known. ``tests``: how many there were.
    ``said``: what pytest has counted, of a real suite.
    """

    wall: float
    cpu: float = 0.0
    tests: int = 1
    times: Mapping[str, float] = field(default_factory=dict)
    cpus: Mapping[str, float] = field(default_factory=dict)
    said: str = ""


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share. ``scale``: of the amounts of reading and writing."""

    top: Path
    pythons: Mapping[str, Path]
    failures: Mapping[str, str]
    """Why an environment is not among ``pythons``."""
    user: User | None
    tests: int
    scale: float = 1.0
    trees: Mapping[str, Path] = field(default_factory=dict)
    """The sources of real suites."""

    def python(self, name: str) -> Path:
        if name not in self.pythons:
            raise NotMeasured(self.failures.get(name, f"there is no environment {name}"))
        return self.pythons[name]


class Case(Protocol):
    """Something that is measured once a round."""

    @property
    def name(self) -> str: ...
    @property
    def base(self) -> str | None: ...
    def measure(self, setting: Setting) -> Sample:
        """Raises :class:`NotMeasured`."""


@dataclass(frozen=True)
class Run:
    """A pytest process (``each``: one for each test) on a suite of its own directory.

    ``suite``: one of :data:`WRITTEN`, of ``suites``, or of :data:`.machine.SUITES`. ``keys`` are
    those of the marker ``mountns``, on every test. ``part`` of the number of tests is run.
    ``base``: the case that this one is measured against. ``heap``, ``modules``: megabytes that the
    pytest process holds in lists, and in modules; ``imports``: what it has imported.
    ``left_out``: a part of the plugin that exists for speed alone and is left out.
    """

    name: str
    venv: str = "current"
    suite: str = "empty"
    options: tuple[str, ...] = ()
    keys: Mapping[str, object] = field(default_factory=dict)
    base: str | None = None
    isolated: bool = False
    as_user: bool = False
    before: tuple[str, ...] = ()
    each: bool = False
    part: float = 1.0
    heap: int = 0
    modules: int = 0
    imports: tuple[str, ...] = ()
    mounts: int = 0
    layers: int = 0
    left_out: str = ""
    traced: str = ""
    needs: str = ""
    """A program without which this does not work."""

    def measure(self, setting: Setting) -> Sample:
        if self.needs and (why := missing(self.needs)):
            raise NotMeasured(why)
        if self.mounts and os.geteuid() != 0:
            raise NotMeasured("to add mounts takes root")
        if self.as_user and setting.user is None:
            raise NotMeasured("needs --user")
        python = setting.python(self.venv)
        home = setting.top / self.name.replace("/", "-")
        tests = max(FILES, int(setting.tests * self.part))
        if not home.exists():
            home.mkdir()
            self._write(home, tests, setting)
            if self.as_user and setting.user:
                _give(home, setting.user)
        if self.each:
            files = [f"test_{n % FILES}.py::test_{n // FILES}" for n in range(tests)]
            samples = [self._run(home, python, setting, [name], 1) for name in files]
            wall, cpu = sum(s.wall for s in samples), sum(s.cpu for s in samples)
            return Sample(wall, cpu, tests)
        # Not "error", which is what pytest-forked gives cause for.
        arguments = ["tests", "-o", "filterwarnings=ignore"] if self.is_real else []
        expected = tests if self.suite in WRITTEN else 0
        return self._run(home, python, setting, arguments, expected)

    @property
    def is_forked(self) -> bool:
        """Whether each test has a process of its own."""
        return any(option in ("--forked", "--mountns-process=fork") for option in self.options)

    @property
    def is_real(self) -> bool:
        """Whether the suite is another project's."""
        return self.suite in SUITES

    def _write(self, home: Path, tests: int, setting: Setting) -> None:
        if self.is_real:
            if self.suite not in setting.trees:
                raise NotMeasured(f"the sources of {self.suite} are missing")
            shutil.copytree(setting.trees[self.suite], home, dirs_exist_ok=True)
            return
        # Its presence makes this the root directory, whatever lies above.
        (home / "pytest.ini").write_text("[pytest]\n")
        shutil.copy(TEMPLATES / "conftest.py", home)
        for number in range(self.layers):
            (home / "layers" / str(number)).mkdir(parents=True)
        if self.suite not in WRITTEN:
            shutil.copy(TEMPLATES / f"test_{self.suite}.py", home)
            (home / "lower").mkdir()
            for number in range(COPIED):
                (home / "lower" / str(number)).write_bytes(b"x" * 4096)
            return
        argument = "fs" if self.suite == "fake-empty" else ""
        body = WRITTEN[self.suite]
        for number in range(FILES):
            count = tests // FILES + (number < tests % FILES)
            first = "witness" if number == 0 else argument
            functions = [
                f"def test_{index}({argument if index else first}):\n    {body}\n"
                for index in range(count)
            ]
            (home / f"test_{number}.py").write_text("\n\n".join(functions))

    def _run(
        self, home: Path, python: Path, setting: Setting, arguments: Sequence[str], expected: int
    ) -> Sample:
        """Raises :class:`NotMeasured` unless ``expected`` tests have passed (0: all there were)."""
        times = home / "times.json"
        times.unlink(missing_ok=True)
        user = setting.user if self.as_user else None
        keys = dict(self.keys)
        if self.layers:
            keys["layers"] = [str(home / "layers" / str(n)) for n in range(self.layers)]
        variables = environ(user) | {
            "BENCHMARK_ISOLATED": "yes" if self.isolated else "no",
            "BENCHMARK_HEAP_MB": str(self.heap),
            "BENCHMARK_MODULES_MB": str(self.modules),
            "BENCHMARK_IMPORTS": ",".join(self.imports),
            "BENCHMARK_KEYS": json.dumps(keys),
            "BENCHMARK_SCALE": str(setting.scale),
        }
        if self.left_out:
            variables["MOUNTNS_ABLATE"] = self.left_out
        if not self.each:
            variables["BENCHMARK_TIMES"] = str(times)
        before = list(self.before)
        if self.traced:
            variables["BENCHMARK_TRACED"] = "yes"
            before += [*floor.STRACE, "-o", self.traced]
        if self.mounts:
            where = home / "mounts"
            before += [str(python), str(NAMESPACE), "--mounts", str(self.mounts), str(where)]
        command = [*before, str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        if not self.each:
            # Beside the suite, and so on the same disk.
            command.append(f"--basetemp={home / 'tmp'}")
        wall, cpu, status, text = timed(
            [*command, *self.options, *arguments], home, variables, user
        )
        lines = text.strip().splitlines() or [""]
        passed = re.search(r"(\d+) passed", lines[-1])
        wrong = status != 0 or (expected and f"{expected} passed" not in text)
        if wrong and not (self.is_real and status == 1):
            raise NotMeasured(f"exit status {status}: {_reason(lines)}")
        noted = json.loads(times.read_text()) if times.exists() else {}
        return Sample(
            wall,
            cpu,
            expected or int(passed[1] if passed and self.is_real else 1),
            {name: seconds for name, (seconds, _) in noted.items()},
            # Of test processes it becomes known too late, when they are waited for.
            {} if self.is_forked else {name: seconds for name, (_, seconds) in noted.items()},
            lines[-1].partition(" in ")[0] if self.is_real else "",
        )


@dataclass(frozen=True)
class Floor:
    """The system calls of ``Run`` ``traced``, without it. ``language``: "c" or "python"."""

    name: str
    language: str
    traced: Run
    base: str | None = None

    def measure(self, setting: Setting) -> Sample:
        if os.geteuid() != 0:
            raise NotMeasured("to replay mounts takes root")
        program = self._program(setting)
        if self.language == "c":
            command = [str(self._compiled(setting.top))]
        else:
            command = [str(setting.python("current")), str(CHECKOUT / "benchmarks" / "floor.py")]
        rounds = max(1, setting.tests // floor.LOOPED)
        launcher = [str(setting.python("current")), str(NAMESPACE), "--read-only"]
        wall, cpu, status, text = timed(
            [*launcher, *command, str(program), str(rounds)], setting.top, environ(), None
        )
        if status != 0:
            raise NotMeasured(f"exit status {status}: {_reason(text.splitlines() or [''])}")
        milliseconds = json.loads(text)
        times = {key: milliseconds[key] / 1000 / floor.LOOPED for key in milliseconds}
        return Sample(wall, cpu, rounds * floor.LOOPED, times)

    def _program(self, setting: Setting) -> Path:
        """Written when it is first asked for."""
        path = setting.top / "floor.program"
        if path.exists():
            return path
        if why := missing("strace"):
            raise NotMeasured(why)
        record = setting.top / "floor.record"
        record.mkdir()
        try:
            self._trace(setting, record)
            traced = [file.read_text() for file in record.iterdir()]
            # Of all the processes, the one that the tests are in.
            texts = [text for text in traced if any(map(floor.is_mark, text.splitlines()))]
            if len(texts) != 1:
                raise NotMeasured(f"{len(texts)} processes have run tests, not one")
            program = floor.translate(texts[0])
        except floor.FloorError as error:
            raise NotMeasured(str(error)) from None
        finally:
            shutil.rmtree(record)
        (setting.top / CALLS).write_text(json.dumps(program.calls()))
        path.write_text(str(program))
        return path

    def _trace(self, setting: Setting, record: Path) -> None:
        run = self.traced
        part = floor.TESTS / setting.tests
        Run(
            f"{self.name}-traced",
            options=run.options,
            keys=run.keys,
            isolated=True,
            # All calls are to be this process's.
            left_out="made_ahead",
            part=part,
            traced=str(record / "of"),
        ).measure(setting)

    @staticmethod
    def _compiled(top: Path) -> Path:
        binary = top / "floor"
        if not binary.exists():
            if why := missing("cc"):
                raise NotMeasured(why)
            source = CHECKOUT / "benchmarks" / "floor.c"
            subprocess.run(["cc", "-O2", "-o", binary, source], check=True)
        return binary


def timed(
    command: Sequence[str], cwd: Path, variables: Mapping[str, str], user: User | None
) -> tuple[float, float, int, str]:
    """Wall and CPU seconds, exit status and output of one command.

    The CPU time is that of all processes that the command has started. The wall time ends with the
    command's own process.
    """
    with tempfile.TemporaryFile() as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user.uid if user else None,
            group=user.gid if user else None,
            extra_groups=[] if user else None,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read().decode(errors="replace")
    cpu = usage.ru_utime + usage.ru_stime + wait_for_orphans()
    return wall, cpu, process.returncode, text


def _give(home: Path, user: User) -> None:
    for directory, _, files in os.walk(home):
        for name in (directory, *(os.path.join(directory, file) for file in files)):
            os.chown(name, user.uid, user.gid)


def _reason(lines: Sequence[str]) -> str:
    """The lines that say most about a failure, on one line."""
    telling = [line for line in lines if line.startswith(("E  ", "ERROR", "pytest: error"))]
    return " ".join(" ".join(telling or lines[-4:]).split())[:300]
