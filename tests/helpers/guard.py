"""A conftest for suites that destroy things: it refuses unless they are in a sandbox."""

from __future__ import annotations

from typing import Final

#: Put into a suite under test: whoever destroys takes the fixture `destroyer`. Without the plugin
#: there is no `overlay_root`, and the test cannot start; in a sandbox that is none, it fails.
GUARD: Final = """
import os
import pytest

HOME = os.readlink("/proc/self/ns/mnt")


@pytest.fixture
def destroyer(overlay_root):
    assert os.readlink("/proc/self/ns/mnt") != HOME, "not isolated"

    def check(path):
        path = os.path.realpath(path)
        with open("/proc/self/mountinfo") as file:
            mounts = [line.split(" ") for line in file]
        over = [m for m in mounts if path == m[4] or path.startswith(m[4].rstrip("/") + "/")]
        top = max(over, key=lambda m: len(m[4]))
        assert "overlay" in top[top.index("-") + 1], f"{path} is on no overlay: {top}"
        return path

    return check
"""
