"""For every suite of the project: `pytester`, and what a machine must be able to do."""

from __future__ import annotations

import os

import pytest

from pytest_mountns.engine.capabilities import Findings, probe

pytest_plugins = ["pytester"]

findings_key = pytest.StashKey[Findings]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "sandboxes: needs a machine that can isolate tests")
    config.addinivalue_line("markers", "as_root: needs root that can isolate tests")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip by what was found out by trying, and say what failed."""
    if not any(item.iter_markers("sandboxes")) and not any(item.iter_markers("as_root")):
        return
    stash = item.session.stash
    if findings_key not in stash:
        stash[findings_key] = probe([os.getcwd()])
    findings = stash[findings_key]
    if findings.capabilities is None:
        obstacle = findings.obstacle
        pytest.skip(f"no sandboxes here: {obstacle.name if obstacle else 'unknown'} failed")
    if any(item.iter_markers("as_root")) and findings.capabilities.user_namespace:
        pytest.skip("an ordinary user's sandboxes are made otherwise")
