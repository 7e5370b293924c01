"""From a name and a version to a source tree and an environment that can run its tests.

Everything is kept in the work directory and made once for each suite, version and Python:

    sdists/NAME-VERSION/       the archive as downloaded
    envs/PYTHON/tools/         a pip that downloads and builds
    envs/PYTHON/NAME-VERSION/  the suite installed, its dependencies, pytest, the plugin
    wheels/                    the plugin as built from the checkout
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .suites import Suite

CHECKOUT = Path(__file__).resolve().parents[2]

# What a wheel is made from. Copied before it is built: the checkout may belong to someone else.
SOURCES = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", "pytest_mountns")

RECORDER = Path(__file__).with_name("recorder.py")
RECORDER_MODULE = "mountns_conformance_recorder"
RECORD = "MOUNTNS_CONFORMANCE_RECORD"
"""The same in recorder.py."""

# Variables of the caller's environment that would make runs differ between machines.
DROPPED = ("CI", "BUILD_NUMBER", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONHOME")
DROPPED_PREFIXES = ("PYTEST_", "COV_", "COVERAGE_", "GITHUB_", "VIRTUAL_ENV", "PYENV_", "XDG_")


class PreparationError(Exception):
    """A suite could not be made ready to run."""


@dataclass(frozen=True)
class Environment:
    """A virtual environment."""

    path: Path

    @property
    def bin(self) -> Path:
        return self.path / "bin"

    @property
    def python(self) -> Path:
        return self.bin / "python"

    def pip(self, *arguments: str | Path) -> None:
        checked([self.python, "-m", "pip", "--quiet", *arguments])


def clean_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without what belongs to the caller's CI, coverage or virtualenv."""
    return {
        name: value
        for name, value in environ.items()
        if name not in DROPPED and not name.startswith(DROPPED_PREFIXES)
    }


def checked(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_environ(os.environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise PreparationError(
            f"{' '.join(map(str, command))}: exit status {done.returncode}\n{tail}"
        )
    return done.stdout


def digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:12]


class Workshop:
    """The work directory, for one Python."""

    def __init__(self, work: Path, python: str, checkout: Path = CHECKOUT) -> None:
        self.work = work
        self.checkout = checkout
        self.python, version = json.loads(
            checked(
                [
                    python,
                    "-c",
                    "import json, platform, sys; "
                    "print(json.dumps([getattr(sys, '_base_executable', '') or sys.executable,"
                    " platform.python_implementation().lower() + platform.python_version()]))",
                ]
            )
        )
        self.key = f"{version}-{digest(self.python.encode())[:6]}"
        self._wheel: Path | None = None

    def environment(self, name: str) -> Environment:
        """A virtual environment of this name, made if it is not there whole."""
        made = Environment(self.work / "envs" / self.key / name)
        done = made.path / ".complete"
        if not done.exists():
            shutil.rmtree(made.path, ignore_errors=True)
            made.path.parent.mkdir(parents=True, exist_ok=True)
            checked([self.python, "-m", "venv", made.path])
            done.touch()
        return made

    def wheel(self) -> Path:
        """The plugin, built from the checkout as it is now."""
        if self._wheel is None:
            tops = [self.checkout / name for name in SOURCES]
            files = sorted(
                path
                for path in (*tops, *(path for top in tops for path in top.rglob("*")))
                if path.is_file() and "__pycache__" not in path.parts
            )
            state = digest(
                *(
                    part
                    for path in files
                    for part in (bytes(path.relative_to(self.checkout)), path.read_bytes())
                )
            )
            target = self.work / "wheels" / state
            if not list(target.glob("*.whl")):
                copy = self.work / "wheels" / f"{state}.{os.getpid()}.source"
                shutil.rmtree(copy, ignore_errors=True)
                for path in files:
                    to = copy / path.relative_to(self.checkout)
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, to)
                tools = self.environment("tools")
                tools.pip("wheel", "--no-deps", "--wheel-dir", target, copy)
                shutil.rmtree(copy)
            self._wheel = next(iter(target.glob("*.whl")))
        return self._wheel

    def sdist(self, suite: Suite) -> Path:
        """The suite's source distribution, downloaded once."""
        directory = self.work / "sdists" / f"{suite.name}-{suite.version}"
        if not directory.exists():
            partial = directory.with_name(f"{directory.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            # Only the suite itself as source; its build requirements may be wheels.
            self.environment("tools").pip(
                "download",
                "--no-deps",
                "--no-binary",
                suite.name,
                "--dest",
                partial,
                f"{suite.name}=={suite.version}",
            )
            partial.rename(directory)
        archives = list(directory.iterdir())
        if len(archives) != 1:
            raise PreparationError(f"{directory}: expected one archive, found {archives}")
        return archives[0]

    def installed(self, suite: Suite, *, plugin: bool) -> Environment:
        """The suite's own environment, brought up to date with the checkout."""
        wanted = [str(self.sdist(suite)), "pytest>=8", *suite.deps]
        return self.equipped(f"{suite.name}-{suite.version}", wanted, plugin=plugin)

    def equipped(self, name: str, wanted: Sequence[str], *, plugin: bool = True) -> Environment:
        """An environment of this name with what is wanted in it, and the plugin as it is now."""
        wanted = list(wanted)
        environment = self.environment(name)
        stamp = environment.path / ".installed.json"
        state: dict[str, object] = json.loads(stamp.read_text()) if stamp.exists() else {}
        if state.get("suite") != wanted:
            environment.pip("install", *wanted)
            state = {"suite": wanted}
            stamp.write_text(json.dumps(state))
        if plugin and state.get("plugin") != str(self.wheel()):
            # Twice: the first for a new build of the same version, the second for what it needs.
            environment.pip("install", "--force-reinstall", "--no-deps", self.wheel())
            environment.pip("install", self.wheel())
            state["plugin"] = str(self.wheel())
            stamp.write_text(json.dumps(state))
        if not plugin and state.pop("plugin", None):
            environment.pip("uninstall", "--yes", "pytest-mountns")
            stamp.write_text(json.dumps(state))
        add_recorder(environment)
        return environment


def add_recorder(environment: Environment) -> None:
    # Into the environment rather than on PYTHONPATH, which a suite's own subprocesses would see.
    packages = next(environment.path.glob("lib/python*/site-packages"))
    shutil.copyfile(RECORDER, packages / f"{RECORDER_MODULE}.py")


def unpack(archive: Path, directory: Path) -> Path:
    """Unpack a source distribution; the one directory that it holds."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(directory, filter="data")
        else:  # early 3.10 and 3.11
            tar.extractall(directory)
    tops = list(directory.iterdir())
    if len(tops) != 1:
        raise PreparationError(f"{archive}: expected one directory, found {tops}")
    return tops[0]
