"""For every suite of the project: `pytester`, and marks for what a machine must be able to do."""

from __future__ import annotations

import compileall
import os

import pytest

import pytest_mountns
from pytest_mountns.engine.probe.features import ProbeResult, probe

pytest_plugins = ["pytester"]

findings_key = pytest.StashKey[ProbeResult]()


def pytest_configure(config: pytest.Config) -> None:
    # Once here, because processes that tests start write no bytecode, and would compile each time.
    compileall.compile_dir(os.path.dirname(pytest_mountns.__file__), quiet=2)
    config.addinivalue_line("markers", "sandboxes: needs a machine that can isolate tests")
    config.addinivalue_line("markers", "layered: needs a kernel that takes uppers as lowers")
    config.addinivalue_line("markers", "binding: needs a kernel that binds into a sandbox")
    config.addinivalue_line("markers", "limiting: needs a kernel that takes uppers in memory")
    config.addinivalue_line("markers", "as_root: needs root that can isolate tests")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test if this machine cannot do what its marks ask for, found out by trying."""
    wanted = {mark.name for mark in item.iter_markers()} & {
        *("sandboxes", "as_root", "layered", "binding", "limiting"),
    }
    if not wanted:
        return
    stash = item.session.stash
    if findings_key not in stash:
        stash[findings_key] = probe([os.getcwd()])
    findings = stash[findings_key]
    if findings.features is None:
        obstacle = findings.obstacle
        pytest.skip(f"no sandboxes here: {obstacle.name if obstacle else 'unknown'} failed")
    if "layered" in wanted and not (
        findings.features.new_api and findings.features.detached_uppers
    ):
        pytest.skip("an upper cannot be a lower here")
    if "binding" in wanted and not findings.features.new_api:
        pytest.skip("bind_volume does not work here")
    if "limiting" in wanted and not findings.features.memory_upper:
        pytest.skip("size and inodes are refused here")
    if "as_root" in wanted and findings.features.user_namespace:
        pytest.skip("an ordinary user's sandboxes are made otherwise")
