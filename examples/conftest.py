"""The guard of the examples that destroy: no sandbox, no destruction.

Whoever copies one of them should copy this as well. A mark alone does nothing where the plugin is
not installed; a fixture that is missing ends the test before its first line, and the guard looks
again at what is about to go.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_mountns import OverlayRoot

from . import mounts


@dataclass(frozen=True)
class Outside:
    """What the pytest process sees, which runs on the host."""

    namespace: str
    devices: frozenset[str]


@pytest.fixture(scope="session")
def outside() -> Outside:
    devices = frozenset(mount.device for mount in mounts.read())
    return Outside(os.readlink("/proc/self/ns/mnt"), devices)


@pytest.fixture
def expendable(overlay_root: OverlayRoot, outside: Outside) -> Callable[[Path], Path]:
    """``expendable(path)`` is ``path``, if all that can be lost there is the sandbox's copy."""

    def check(path: Path) -> Path:
        place = path.resolve()
        if os.readlink("/proc/self/ns/mnt") == outside.namespace:
            pytest.fail(f"{path} is the host's own: this process is in no sandbox")
        there = next(p for p in (place, *place.parents) if p.exists())
        mount = mounts.mount_of(there)
        if mount.fstype != "overlay" or mount.device in outside.devices:
            pytest.fail(f"{path} is not on an overlay of the sandbox's own, but on {mount}")
        if inner := mounts.below(place):
            pytest.fail(f"{path} holds other mounts: {', '.join(inner)}")
        return path

    return check
