"""A typed test suite: mypy and pyright report no errors, and infer the right types."""

# pyright: strict

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path

import pytest
from typing_extensions import assert_type

from pytest_mountns import (
    BindVolume,
    Change,
    Changes,
    Crash,
    Entry,
    Fault,
    IsolatedNet,
    IsolatedProc,
    OverlayRoot,
    SandboxError,
    SandboxSpec,
    Tmpfs,
    Volume,
)


@pytest.mark.mountns(
    process="inline",
    volumes=[Volume("/srv", "/data", read_only=True)],
    tmpfs=[Tmpfs("/scratch")],
    size="64m",
)
def test_changes(overlay_root: OverlayRoot) -> None:
    with overlay_root.checkpoint():
        Path("/etc/x").touch()
    changes = overlay_root.changes("/etc", "**/*.conf")
    assert_type(changes, Changes)
    assert_type(changes.paths("added"), list[str])
    assert_type(changes[0], Change)
    assert_type(changes[1:], Changes)
    assert changes == {"/etc/x": "added"}
    for change in changes:
        assert_type(change.after, "Entry | None")
        if change.after is not None:
            assert_type(change.after.mode, int)
            assert_type(change.after.read_text(), str)
        assert re.search("x", change.diff())
    overlay_root.reset()


def test_crashes(overlay_root: OverlayRoot, tmp_path: Path) -> None:
    for crash in overlay_root.crashes((tmp_path / "f").touch, power="strict", watch=["/srv"]):
        assert_type(crash, Crash)
        assert_type(crash.calls, tuple[str, ...])
    for fault in overlay_root.fault_points((tmp_path / "f").touch):
        assert_type(fault, Fault)
        assert_type(fault.raised, "BaseException | None")
    with overlay_root.faults("fsync:/srv/**:EIO"):
        pass


def test_volume(bind_volume: BindVolume, tmp_path: Path) -> None:
    assert_type(bind_volume(tmp_path, "/data", read_only=True), Path)
    assert_type(bind_volume(os.fspath(tmp_path)), Path)


def test_processes(isolated_proc: IsolatedProc, isolated_net: IsolatedNet) -> None:
    assert_type(isolated_proc.children(), list[int])
    assert_type(isolated_proc.kill_all(timeout=1.0), int)
    assert isolated_net is not None


def pytest_mountns_spec(item: pytest.Item, spec: SandboxSpec) -> SandboxSpec | None:
    if "slow" in item.keywords:
        return dataclasses.replace(spec, upper="disk")
    return None


def pytest_mountns_changes(item: pytest.Item, changes: Changes) -> None:
    for change in changes:
        print(item.nodeid, change.path, change.kind)


def largest(entries: list[Entry]) -> int:
    try:
        return max(entry.size for entry in entries)
    except SandboxError as error:
        print(error.tried, error.remedy)
        raise
