"""What the benchmarks need of the machine: environments, a disk, an ordinary user."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import pwd
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
SUITES = {"click": "click==8.1.8", "poetry-core": "poetry-core==2.5.0"}
"""The real suites: source distributions with a directory ``tests``."""
_OF_POETRY = ("build", "pytest-mock", "setuptools", "tomli-w", "trove-classifiers", "virtualenv")

_CHECKOUT = "the checkout"
PACKAGES: dict[str, tuple[str, ...]] = {
    "current": ("pytest", SUITES["click"], _CHECKOUT),
    "forked": ("pytest==8.4.2", "pytest-forked==1.7.5", SUITES["click"]),
    "pyfakefs": ("pytest", "pyfakefs"),
    "user": ("pytest", _CHECKOUT),
    "poetry": ("pytest", SUITES["poetry-core"], *_OF_POETRY, _CHECKOUT),
    "libraries": ("pytest", "numpy", "django", _CHECKOUT),
    "libraries-forked": ("pytest==8.4.2", "pytest-forked==1.7.5", "numpy", "django"),
}
"""Of each environment. ``user`` is the one that an ordinary user can read."""

# What would make one machine's run unlike another's.
_DROPPED = ("CI", "BUILD_NUMBER", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "VIRTUAL_ENV")
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
_IN_MEMORY = frozenset({"tmpfs", "ramfs", "overlay"})


class MachineError(Exception):
    """Something cannot be made ready here. The text says what."""


@dataclass(frozen=True)
class User:
    """An ordinary user of this machine."""

    name: str
    uid: int
    gid: int
    home: str

    @classmethod
    def named(cls, name: str) -> User:
        entry = pwd.getpwnam(name)
        return cls(name, entry.pw_uid, entry.pw_gid, entry.pw_dir)


@contextmanager
def ordinary_user(name: str) -> Iterator[User]:
    """This user; if there is none of that name, one that is removed again at the end."""
    try:
        user, made = User.named(name), False
    except KeyError:
        call("useradd", "-m", name)
        user, made = User.named(name), True
    if user.uid == 0:
        raise MachineError(f"--user {name}: that is root")
    try:
        yield user
    finally:
        if made:
            call("userdel", "-r", name)


def environ(user: User | None = None) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in _DROPPED and not name.startswith(("PYTEST_", "BENCHMARK_", "MOUNTNS_"))
    }
    if user is not None:
        kept |= {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
        kept.pop("TMPDIR", None)
    return kept


def adopt_orphans() -> None:
    """From now on, what a command leaves behind in the background becomes a child of this process.

    Its CPU time can be known then, and nothing of it is still running when the next command begins.
    See PR_SET_CHILD_SUBREAPER in prctl(2).
    """
    if ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, *[ctypes.c_ulong(n) for n in (1, 0, 0, 0)]):
        raise MachineError("prctl(PR_SET_CHILD_SUBREAPER) failed")


def wait_for_orphans(seconds: float = 10.0) -> float:
    """Wait until this process has no children any more, or for so long.

    Returns the CPU seconds of those that have ended.
    """
    deadline = time.monotonic() + seconds
    cpu = 0.0
    while time.monotonic() < deadline:
        try:
            pid, _, usage = os.wait4(-1, os.WNOHANG)
        except ChildProcessError:
            break
        if pid:
            cpu += usage.ru_utime + usage.ru_stime
        else:
            time.sleep(0.001)
    return cpu


def call(*command: str | Path) -> str:
    """What it has said. Raises :class:`MachineError` if it fails."""
    texts = [str(part) for part in command]
    try:
        done = subprocess.run(
            texts,
            env=environ(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    except OSError as error:
        raise MachineError(f"{texts[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise MachineError(f"{' '.join(texts)} failed:\n{done.stdout[-1500:]}")
    return done.stdout


def python_for(user: User) -> str:
    """A Python that this user may run: this one, or the system's."""
    for python in (getattr(sys, "_base_executable", "") or sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run(
                [python, "-c", "import venv, ensurepip"],
                user=user.uid,
                group=user.gid,
                extra_groups=[],
                cwd="/",
                env=environ(user),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    raise MachineError(f"{user.name} can run no Python that has venv")


def environment(directory: Path, name: str, python: str = sys.executable) -> Path:
    """The Python of this environment, made or brought up to date with the checkout."""
    packages = [str(CHECKOUT) if part == _CHECKOUT else part for part in PACKAGES[name]]
    state = hashlib.sha256(repr((packages, python, platform.python_version())).encode())
    if _CHECKOUT in PACKAGES[name]:
        for path in (CHECKOUT / "pyproject.toml", *sorted(CHECKOUT.glob("pytest_mountns/**/*.py"))):
            state.update(path.read_bytes())
    home = directory / f"{name}-py{sys.version_info.major}.{sys.version_info.minor}"
    stamp, inside = home / ".installed", home / "bin" / "python"
    if not stamp.exists() or stamp.read_text() != state.hexdigest():
        print(f"installing {' '.join(packages)} into {home}", flush=True)
        call(python, "-m", "venv", "--clear", home)
        call(inside, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *packages)
        stamp.write_text(state.hexdigest())
    return inside


def sources(suite: str, directory: Path, archives: Path, python: Path) -> Path:
    """The tree of a real suite, unpacked below ``directory``; ``archives`` keeps the download."""
    name = SUITES[suite].replace("==", "-").replace("poetry-core", "poetry_core")
    archive = archives / f"{name}.tar.gz"
    if not archive.exists():
        pip = (python, "-m", "pip", "--quiet", "--disable-pip-version-check")
        options = ("--no-deps", "--no-binary", ":all:", "--dest", archives)
        call(*pip, "download", *options, SUITES[suite])
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(directory, filter="data")
        else:
            file.extractall(directory)
    return directory / name


def filesystem(path: Path) -> str:
    """The type of the filesystem that ``path`` lies on, as in proc_pid_mountinfo(5)."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"


def disk(candidates: Sequence[Path]) -> Path:
    """The first of these directories that lies on a disk. Raises :class:`MachineError`."""
    for path in candidates:
        if path.is_dir() and os.access(path, os.W_OK) and filesystem(path) not in _IN_MEMORY:
            return path
    places = ", ".join(map(str, candidates))
    raise MachineError(f"not on a disk, or not writable: {places}; name another by --work DIR")


def missing(program: str) -> str:
    """Why this program cannot be used; empty if it can."""
    return "" if shutil.which(program) else f"{program} is not installed"
