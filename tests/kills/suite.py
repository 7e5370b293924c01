"""The suite of sessions that are killed.

`{marks}` are keys of a mark, and `{threads}` is the number of threads that are alive besides.
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
    for place in (HERE, Path.home(), Path("/dev/shm"), tmp_path, Path("/tmp")):
        (place / "{word}").write_text("x" * 100)
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
