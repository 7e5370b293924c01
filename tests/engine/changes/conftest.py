"""Overlays to read changes from, where this machine has any."""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from pytest_mountns.engine.changes.changes import Changes
from tests.helpers.overlays import (
    Box,
    Diff,
    Make,
    Run,
    build,
    run_in_box,
)

T = TypeVar("T")


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run a function in a child of its own, with a `Box`; its result or exception comes back."""
    scratch = tmp_path_factory.mktemp("scratch")

    def probe(box: Box) -> None:
        (box.lower / "d").mkdir()
        box.mount()
        (box.merged / "d").rmdir()
        (box.merged / "d").mkdir()

    try:
        run_in_box(scratch, probe)
    except OSError as error:
        pytest.skip(f"no overlay to be had here: {error}")

    def run(job: Callable[[Box], T]) -> T:
        return run_in_box(scratch, job)

    return run


@pytest.fixture(scope="session")
def diff(run: Run) -> Diff:
    """The changes that a function makes to the root it is given, which shows the tree."""

    def diff(
        tree: Mapping[str, Make],
        act: Callable[[Path], object],
        *,
        ignore: Collection[str] = (),
        mountpoints: Sequence[str] = ("/",),
    ) -> Changes:
        def job(box: Box) -> Changes:
            build(box.lower, tree)
            for mountpoint in mountpoints:
                box.mount(mountpoint)
            act(box.merged)
            return box.changes(ignore)

        return run(job)

    return diff


@pytest.fixture(scope="session")
def renames_directories(diff: Diff) -> None:
    try:
        diff({"a": None}, lambda root: (root / "a").rename(root / "b"))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        pytest.skip("this overlay refuses to rename lower directories (EXDEV)")
