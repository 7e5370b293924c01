"""A disk that is full, one that is out of inodes, one that is read-only: not mocked, but real.

The code under test is :func:`save`, which must never leave half a file behind, whatever happens.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot


def save(path: Path, content: bytes) -> None:
    """Write a file, all of it or nothing: into another one first, which then takes its place."""
    draft = path.with_name(path.name + ".new")
    try:
        with open(draft, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise


@pytest.mark.mountns(size="4m")
def test_the_disk_is_full(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    letter = tmp_path / "letter"
    save(letter, b"the first version")
    with pytest.raises(OSError, match="No space left on device"):
        save(letter, bytes(8 << 20))
    assert letter.read_bytes() == b"the first version"
    assert os.listdir(tmp_path) == ["letter"]
    # df(1) would say so, too.
    assert os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize == 4 << 20


@pytest.mark.mountns(inodes=400)
def test_there_are_too_many_files(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    def save_many() -> None:
        for number in range(500):
            save(tmp_path / str(number), b"")

    with pytest.raises(OSError, match="No space left on device"):
        save_many()
    # Bytes there are plenty.
    assert os.statvfs(tmp_path).f_bavail > 1000
    assert os.statvfs(tmp_path).f_ffree == 0
    # The one that did not fit has left nothing.
    assert not [name for name in os.listdir(tmp_path) if name.endswith(".new")]


@pytest.mark.mountns(read_only=True, tmpfs=["/tmp"])
def test_the_disk_is_read_only(overlay_root: OverlayRoot) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        save(Path.home() / "letter", b"")
    save(Path("/tmp/letter"), b"a tmpfs is not part of the root")
