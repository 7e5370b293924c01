"""The suites of sessions that are killed.

`{marks}` are keys of a mark, `{threads}` is the number of threads that are alive besides, and
`{places}` are more directories that tests write to.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = '''
import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

OUTSIDE = os.readlink("/proc/self/ns/mnt")
HERE = Path(__file__).parent
ROOT_OWN = os.geteuid() == 0
pytestmark = pytest.mark.mountns({marks})


@pytest.fixture(scope="module")
def wide():
    if not {threads}:
        yield None
        return
    with ThreadPoolExecutor({threads}) as pool:
        together = threading.Barrier({threads})
        list(pool.map(lambda _: together.wait(), range({threads})))
        yield pool


@pytest.mark.parametrize("number", range(15))
def test_it(number, wide, overlay_root, bind_volume, tmp_path):
    """Anything of this that is seen outside afterwards has leaked."""
    assert os.readlink("/proc/self/ns/mnt") != OUTSIDE, "NOT ISOLATED"
    for place in (HERE, Path.home(), "/dev/shm", tmp_path, "/tmp", *{places}):
        (Path(place) / "{word}").write_text("x" * 100)
    if wide is not None:
        list(wide.map((HERE / "{word}").write_text, ["from a thread"] * 16))
    if {processes}:
        # The process is left behind, in a session of its own.
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
    if number % 3 == 0:
        bind_volume(HERE / "volume", HERE / "mounted")
    if number % 4 == 0:
        overlay_root.reset()
        assert not (HERE / "{word}").exists()
'''

#: Under a guard. Most of what is written is refused, and what is left in `tmp_path` may stay.
GUARDED: Final = """
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.parametrize("number", range(15))
def test_it(number, tmp_path):
    for place in (HERE, Path.home(), Path("/tmp")):
        with pytest.raises(PermissionError):
            (place / "{word}").write_text("x" * 100)
    (tmp_path / "file").write_text("x" * 100)
"""

#: Explorations. Each process of the function writes, and leaves another one behind.
CRASHES: Final = """
import os
import subprocess
from pathlib import Path

import pytest

OUTSIDE = os.readlink("/proc/self/ns/mnt")
HERE = Path(__file__).parent
pytestmark = pytest.mark.mountns({marks})


def change():
    assert os.readlink("/proc/self/ns/mnt") != OUTSIDE, "NOT ISOLATED"
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    for place in (HERE, Path.home(), Path("/dev/shm"), Path("/tmp")):
        with open(place / "{word}", "w") as file:
            file.write("x" * 100)
            file.flush()
            os.fsync(file.fileno())
    subprocess.run(["sh", "-c", "echo x > {word}; mv {word} {word}-2"], cwd=HERE, check=True)


@pytest.mark.parametrize("number", range(4))
def test_it(number, overlay_root):
    power = [False, True, "strict", False][number]
    if number == 3:
        for fault in overlay_root.fault_points(change):
            assert fault.of
    else:
        for crash in overlay_root.crashes(change, power=power, torn=number == 0):
            (HERE / "{word}-3").write_text("x")
    assert not (HERE / "{word}-3").exists()
"""

#: System calls that fail, in the test and in what it starts.
FAULTS: Final = """
import contextlib
import os
import subprocess
from pathlib import Path

import pytest

OUTSIDE = os.readlink("/proc/self/ns/mnt")
HERE = Path(__file__).parent
ROOT_OWN = os.geteuid() == 0
RULES = ["write:**/{word}:ENOSPC:every=3", "fsync:**:EIO:probability=0.5:seed=1",
         "mkdir:**/{word}-d:EINTR:delay=0.01"]
pytestmark = pytest.mark.mountns({marks})


def change():
    for place in (HERE, Path.home(), Path("/dev/shm"), Path("/tmp")):
        with contextlib.suppress(OSError), open(place / "{word}", "w") as file:
            file.write("x" * 100)
            file.flush()
            os.fsync(file.fileno())
    with contextlib.suppress(OSError):
        os.mkdir(HERE / "{word}-d")
    subprocess.run(["sh", "-c", "echo x > {word}; mkdir {word}-d"], cwd=HERE)
    if {processes}:
        subprocess.Popen(["sleep", "1000"], start_new_session=True)


@pytest.mark.mountns(faults=RULES)
@pytest.mark.parametrize("number", range(6))
def test_mark(number, tmp_path):
    assert os.readlink("/proc/self/ns/mnt") != OUTSIDE, "NOT ISOLATED"
    change()


@pytest.mark.parametrize("number", range(6))
def test_context(number, overlay_root):
    assert os.readlink("/proc/self/ns/mnt") != OUTSIDE, "NOT ISOLATED"
    with overlay_root.faults(*RULES):
        change()
    with overlay_root.faults(*RULES[:1]):
        change()
"""
