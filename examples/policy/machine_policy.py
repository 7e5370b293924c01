"""A plugin for both hooks of pytest-mountns: what a whole project's tests may do to a machine.

Load it with ``-p examples.policy.machine_policy``, or copy it into a ``conftest.py``. It

* limits what a test may write to 64 MiB, unless its mark says otherwise;
* fails a test that leaves a file with the set-user-ID or set-group-ID bit, or one that everybody
  may write (inode(7));
* counts, for the end of the run, what was changed below /etc.
"""

from __future__ import annotations

import dataclasses
import stat
from collections import Counter
from typing import Final

import pytest

from pytest_mountns import Change, Changes, SandboxSpec

MOST_BYTES: Final = 64 << 20

settings_key: Final = pytest.StashKey[Counter[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[settings_key] = Counter()


def pytest_mountns_spec(item: pytest.Item, spec: SandboxSpec) -> SandboxSpec | None:
    if spec.size is None and spec.upper == "memory":
        return dataclasses.replace(spec, size=MOST_BYTES)
    return None


def pytest_mountns_changes(item: pytest.Item, changes: Changes) -> None:
    # In the pytest process, so this count outlives the test.
    item.config.stash[settings_key].update(changes.matching("/etc").paths())
    for change in changes:
        if why := danger(change):
            pytest.fail(f"{change.path} is left {why}", pytrace=False)


def danger(change: Change) -> str:
    """Why nobody wants such a file; "" if there is nothing wrong with it."""
    entry = change.after
    if entry is None or entry.type != "file":
        return ""
    if entry.mode & (stat.S_ISUID | stat.S_ISGID):
        return "with a set-ID bit"
    return "writable by everybody" if entry.mode & stat.S_IWOTH else ""


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    settings = config.stash[settings_key]
    for path, tests in settings.most_common(10):
        terminalreporter.write_line(f"{path}: changed by {tests} tests")
