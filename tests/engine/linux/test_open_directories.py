"""Descriptors that are parked where nobody reaches them."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.open_directories import ParkedDescriptors


@pytest.mark.parametrize("room", range(3))
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
    collected = parked.collect()
    assert [os.stat(fd).st_ino for fd in collected] == [tmp_path.stat().st_ino] * 3
    for fd in collected:
        os.close(fd)
    parked.close()
