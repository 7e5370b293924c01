"""The hooks that pytest-mountns calls, for plugins and ``conftest.py`` files to implement.

Their names and arguments are stable: arguments may be added, never removed. Where the plugin may
be missing, implement them with ``@pytest.hookimpl(optionalhook=True)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .engine.changes.changes import Changes
    from .engine.plan.spec import SandboxSpec


@pytest.hookspec(firstresult=True)
def pytest_mountns_spec(item: pytest.Item, spec: SandboxSpec) -> SandboxSpec | None:
    """Decide how a test is isolated.

    Called once for each test that is to be isolated, when it has been collected, in the process
    that collects it (with pytest-xdist: in each worker).

    :param item: the test.
    :param spec: what options, marks and fixtures add up to. It is frozen: make another with
        :func:`dataclasses.replace`.
    :return: the spec to use in its place, or None for no opinion. The first that is not None
        counts; to change what others return, write a wrapper (``wrapper=True``).

    To refuse a test's spec raise :class:`pytest.UsageError`: the run does not begin.
    """


def pytest_mountns_changes(item: pytest.Item, changes: Changes) -> None:
    """See what an isolated test has changed.

    Called for every test that ran in a sandbox, also for one that changed nothing or whose process
    died, when its function-scoped fixtures have been torn down. It runs in the pytest process, on
    the host (with pytest-xdist: in the worker), so what it notes in memory stays. Of a test that
    ran several times (pytest-rerunfailures) the changes are those of the last time.

    :param item: the test.
    :param changes: everything that differs below ``/``, pytest's own files below ``tmp_path``
        among it. What it holds (``diff()``, ``read_bytes()``, ...) can be read during the call.

    An exception fails the test in its teardown; ``pytest.fail("...", pytrace=False)`` gives the
    shortest message. Changes are only read when a plugin implements this hook.
    """
