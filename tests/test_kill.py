"""SIGKILL of pytest at any moment leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandboxes

#: Without the plugins that always make a directory.
COMMAND = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark")

SUITE = """
import os, subprocess, pytest
from pathlib import Path

@pytest.mark.parametrize("number", range(200))
def test_it(overlay_root, number):
    (Path.home() / "a file of a killed test").write_text("x")
    sleeper = subprocess.Popen(["sleep", "{seconds}"])
    if number % 3 == 0:
        sleeper.kill()
        sleeper.wait()
"""


def _processes(word: str) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                arguments = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if word.encode() in arguments:
                    found.append(int(entry))
    return found


def _gone(word: str) -> bool:
    deadline = time.monotonic() + 20
    while _processes(word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("mark", ["pid=True", "pid=True, upper='disk'"])
def test_nothing_survives(
    pytester: pytest.Pytester,
    host_mounts: Callable[[], bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mark: str,
) -> None:
    # An argument that only the sleepers of this test have.
    seconds = f"{random.randrange(10**6, 10**7)}.{os.getpid()}"
    uppers = tmp_path / "uppers"
    uppers.mkdir()
    monkeypatch.setenv("TMPDIR", str(uppers))
    suite = SUITE.format(seconds=seconds)
    pytester.makepyfile(f"import pytest\npytestmark = pytest.mark.mountns({mark})\n{suite}")
    home, mounts = sorted(os.listdir(Path.home())), host_mounts()
    for _ in range(5):
        process = subprocess.Popen(
            [*COMMAND, "-q", "--basetemp=base"],
            cwd=pytester.path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(random.uniform(0.3, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert _gone(seconds), _processes(seconds)
    assert host_mounts() == mounts
    assert sorted(os.listdir(Path.home())) == home
    deadline = time.monotonic() + 20
    while os.listdir(uppers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert os.listdir(uppers) == []


def test_the_test_process_ends_with_its_parent(
    pytester: pytest.Pytester, host_mounts: Callable[[], bytes]
) -> None:
    """Without pid=True what a test has started may go on, but not the test itself."""
    pytester.makepyfile(
        """
        import os, time
        def test_it(overlay_root):
            print("PID", os.getpid(), flush=True)
            time.sleep(600)
        """
    )
    mounts = host_mounts()
    process = subprocess.Popen(
        [*COMMAND, "-s"],
        cwd=pytester.path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    pid = next(int(line.split()[-1]) for line in process.stdout if b"PID" in line)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert host_mounts() == mounts
