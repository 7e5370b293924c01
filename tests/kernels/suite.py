"""What a kernel gives its tests: each test here is a column of a table in docs/kernels.md.

Run by its path, in a guest and on this machine. What a kernel does not give is refused by the
plugin, and its test fails. Nothing here is skipped for the version of a kernel.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pytest_mountns.engine.probe.guard import probe_guard
from pytest_mountns.fixtures import BindVolume, OverlayRoot

HOST = os.readlink("/proc/self/ns/mnt")


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        together = threading.Barrier(2)
        list(pool.map(lambda _: together.wait(60), range(2)))
        yield pool


@pytest.mark.mountns(process="fork")
def test_forked(tmp_path: Path) -> None:
    assert os.readlink("/proc/self/ns/mnt") != HOST
    (tmp_path / "file").touch()


@pytest.mark.mountns(process="inline")
def test_inline(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    here = os.readlink("/proc/self/ns/mnt")
    assert here != HOST
    assert set(pool.map(lambda _: os.readlink("/proc/thread-self/ns/mnt"), range(20))) == {here}
    pool.submit((tmp_path / "file").touch).result()
    assert (tmp_path / "file").exists()


def test_bind_volume(bind_volume: BindVolume) -> None:
    bind_volume("/usr", "/mnt")
    assert os.path.isdir("/mnt/lib")


def test_checkpoint(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    with overlay_root.checkpoint():
        (tmp_path / "file").touch()
    assert not (tmp_path / "file").exists()


def test_crashes(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    found = [
        (crash.ended, (tmp_path / "file").exists())
        for crash in overlay_root.crashes((tmp_path / "file").touch, power="strict")
    ]
    assert found[0] == (False, False)
    assert (True, True) in found


@pytest.mark.mountns(faults=["mkdir:**/refused:EIO"])
def test_faults(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        (tmp_path / "refused").mkdir()


@pytest.mark.mountns(user="root")
def test_writable_root(overlay_root: OverlayRoot) -> None:
    assert os.readlink("/proc/self/ns/mnt") != HOST
    with open("/etc/hosts", "a") as file:
        file.write("# a test\n")
    Path("/usr/local/bin/mountns-trial").touch()
    paths = overlay_root.changes().paths()
    assert {"/etc/hosts", "/usr/local/bin/mountns-trial"} <= set(paths)


@pytest.mark.no_mountns(reason="what a process is kept from, without a sandbox")
def test_guard(record_property: Callable[[str, object], None]) -> None:
    found = probe_guard()
    assert found.trial.works, f"{found.trial.kernel}; {found.trial.remedy}"
    record_property("result", f"Landlock ABI {found.abi}")
