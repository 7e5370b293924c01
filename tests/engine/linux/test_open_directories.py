"""Descriptors that are parked where nobody reaches them."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import compiled, open_directories
from pytest_mountns.engine.linux.open_directories import ParkedDescriptors


@pytest.mark.parametrize("room", range(4))
def test_all_of_them_come_back_or_none(tmp_path: Path, room: int) -> None:
    """They come with one message, of which the kernel cuts off what there is no room for."""
    parked = ParkedDescriptors()
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    parked.leave(opened)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    filled: list[int] = []
    try:
        while not filled or filled[-1] < highest:
            filled.append(os.open("/dev/null", os.O_RDONLY))
        resource.setrlimit(resource.RLIMIT_NOFILE, (filled[-1] + 1 + room, limits[1]))
        with pytest.raises(OSError, match="Too many open files") as raised:
            parked.collect()
        assert raised.value.errno == errno.EMFILE
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in (*filled, *opened):
            os.close(fd)
    here, *collected = parked.collect()
    assert os.path.samestat(os.stat(here), Path.cwd().stat())
    os.close(here)
    assert [os.stat(fd).st_ino for fd in collected] == [tmp_path.stat().st_ino] * 3
    for fd in collected:
        os.close(fd)
    parked.close()


@pytest.mark.parametrize("count", [0, 3, 600])
@pytest.mark.parametrize("is_compiled", [True, False])
def test_all_open_directories_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compiled: bool, count: int
) -> None:
    if is_compiled and compiled.library() is None:
        pytest.skip("installed without a C compiler")
    if not is_compiled:
        monkeypatch.setattr(open_directories, "library", lambda: None)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 2000:
        pytest.skip("this process may not open as many files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, limits[1]))
    paths = [tmp_path / name for name in ("one", "two words", "new\nline")]
    for path in paths:
        path.mkdir()
    opened = {
        os.open(paths[index % 3], os.O_PATH if index % 2 else os.O_RDONLY): str(paths[index % 3])
        for index in range(count)
    }
    more = [os.open(path, os.O_RDONLY) for path in (tmp_path, "/dev/null", "/proc/self/stat")]
    link = os.open("/proc/self", os.O_PATH | os.O_NOFOLLOW)
    try:
        found = dict(open_directories.open_directories([more[0]]))
        assert opened.items() <= found.items()
        assert not found.keys() & {*more, link}
    finally:
        for fd in (*opened, *more, link):
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
