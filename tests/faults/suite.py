"""The suites that faults are injected into, copied as a test file.

`{marks}` are keys of a mark, `{threads}` is the number of threads that are alive besides, and
`{places}` are more directories that tests write to.
"""

from __future__ import annotations

from typing import Final

TEXT: Final = '''
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.errors import SandboxError

OUTSIDE = os.readlink("/proc/self/ns/mnt")
HERE = Path(__file__).parent
CASES = len(json.loads(Path(os.environ["MOUNTNS_FAULTS_CASES"]).read_text()))
pytestmark = pytest.mark.mountns({marks})


@pytest.fixture(scope="module", autouse=True)
def pool():
    if not {threads}:
        yield None
        return
    with ThreadPoolExecutor({threads}) as pool:
        together = threading.Barrier({threads})
        list(pool.map(lambda _: together.wait(), range({threads})))
        yield pool


@pytest.fixture(autouse=True)
def threads_write(pool):
    """What threads do for the test is isolated as well."""
    yield
    if pool is not None:
        list(pool.map(lambda _: write(), range(2 * {threads})))


def write_everywhere():
    """If any of this is seen outside, the test was not isolated."""
    assert os.readlink("/proc/self/ns/mnt") != OUTSIDE, "NOT ISOLATED"
    assert not (HERE / "left").exists(), "NOT FRESH"
    write()


def write():
    (HERE / "left").write_text("x")
    for place in (Path.home(), *map(Path, {places})):
        (place / ".mountns-faults-left").write_text("x")


def test_first():
    """Let the session find out what this machine can do, before anything fails."""
    write_everywhere()


@pytest.mark.parametrize("number", range(CASES))
def test_target(number, overlay_root, bind_volume):
    write_everywhere()
    errors = []
    for action in (
        lambda: overlay_root.changes(),
        lambda: bind_volume(HERE / "volume", HERE / "mounted"),
        lambda: overlay_root.reset(),
    ):
        try:
            action()
        except SandboxError as error:
            errors.append(str(error))
            # Wherever this process is after that, it must not be outside of a sandbox.
            (HERE / "left").write_text("x")
    if errors:
        pytest.fail("\\n".join(errors), pytrace=False)
    write_everywhere()


@pytest.mark.parametrize("number", range(CASES))
def test_after(number):
    write_everywhere()


def test_last():
    write_everywhere()
'''

#: For tests that run on the host, under a guard. Each of them has a guard of its own.
GUARDED: Final = '''
import json
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = len(json.loads(Path(os.environ["MOUNTNS_FAULTS_CASES"]).read_text()))
OUTSIDE = (HERE / "left", Path.home() / ".mountns-faults-left")


def each(number):
    return pytest.param(number, marks=pytest.mark.mountns(writes=[f"/srv/{number}/**"]))


@pytest.fixture(autouse=True)
def writes(tmp_path):
    """If any of this is seen outside, there was no guard."""
    for path in OUTSIDE:
        try:
            path.write_text("x")
        except PermissionError:
            continue
        pytest.fail("NOT ISOLATED")
    (tmp_path / "file").write_text("x")


def test_first():
    pass


@pytest.mark.parametrize("number", map(each, range(CASES)))
def test_target(number):
    pass


@pytest.mark.parametrize("number", range(CASES))
def test_after(number):
    pass


def test_last():
    pass
'''
