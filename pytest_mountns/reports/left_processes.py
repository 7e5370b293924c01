"""Processes that tests leave running: said at the end of the run, or failures (``leaks="error"``).

Those that are still children of the test when it ends are ended with it. One that has left its tree
by a double fork goes on, unless the test has a PID namespace.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from typing import Final, final

import pytest

from .. import pytest_internals
from ..engine.linux import left_processes, processes
from ..engine.linux.errors import SandboxError
from ..engine.linux.untouched import time
from ..session.current import RunningTest
from ..session.observers import Observer, register_for_one_test
from ..session.selection import Selection

#: Set by pytest to the test that is running.
_CURRENT_TEST: Final = "PYTEST_CURRENT_TEST"
#: How many processes a line names.
_MOST_NAMED: Final = 3
#: Seconds that processes may take to end, before a test fails.
_PATIENCE: Final = 1.0


def ended_line(left: Mapping[str, Collection[str]]) -> str:
    """The line about processes that were ended: for each name the tests that have left them."""
    tests = len(set().union(*left.values()))
    verb = "test left processes" if tests == 1 else "tests left processes"
    return f"{tests} {verb} running, which were ended: {_named(left)}"


def survivors_line(left: Mapping[str, Collection[str]]) -> str:
    """The line about processes that go on after the run."""
    return f"still running: {_named(left)}; pid=True ends them with the test"


def _named(left: Mapping[str, Collection[str]]) -> str:
    shown = []
    for name in sorted(left)[:_MOST_NAMED]:
        first, *others = sorted(left[name])
        shown.append(f"{name} ({first}{f' and {len(others)} more' if others else ''})")
    return ", ".join([*shown, *(["..."] if len(left) > _MOST_NAMED else [])])


@final
class LeftProcesses(Observer):
    """Notes the processes that tests leave, and fails those tests that have to end them."""

    def __init__(
        self,
        config: pytest.Config,
        selection: Selection,
        note: Callable[[str, str, bool], None],
    ) -> None:
        self._config = config
        self._selection = selection
        #: Notes a process by name, the test that has left it, and whether it goes on.
        self._note = note
        self._begin = time.clock_gettime(time.CLOCK_BOOTTIME)
        self._isolated: set[str] = set()

    def isolated(self, item: pytest.Item, *, inline: bool) -> None:
        """Only of these tests processes are looked for at the end."""
        self._isolated.add(item.nodeid)

    def entered(self, item: pytest.Item, test: RunningTest) -> None:
        """In a forked test, register the hook that looks for processes when all has ended."""
        # An inline test is asked for them when it leaves its sandbox.
        if test.forked and self._selection.spec(item).leaks == "error":
            # Those of an attempt before have failed that one.
            hook = _LeaksHook(frozenset(processes.own_children()))
            register_for_one_test(self._config, hook, "mountns-leaks")

    def left_running(self, item: pytest.Item, children: Sequence[int]) -> str:
        """Note them, or object to them."""
        leaks = self._selection.spec(item).leaks
        if leaks == "error":
            return objection(children)
        if children and leaks == "warn":
            self.ended_processes(item, left_processes.names_of_running(children))
        return ""

    def ended_processes(self, item: pytest.Item, names: Sequence[str]) -> None:
        """Note processes that the test process has ended."""
        if self._selection.spec(item).leaks == "warn":
            for name in names:
                self._note(name, item.nodeid, False)

    def finished(self) -> None:
        """Look for processes that have left the trees of their tests."""
        with contextlib.suppress(OSError, SandboxError):
            # Without /proc there is nothing to be known.
            for pid, value in left_processes.orphans_in_sandboxes(_CURRENT_TEST, self._begin):
                # "tests/test_it.py::test_it (call)"
                nodeid = value.rpartition(" (")[0]
                if not value or nodeid in self._isolated:
                    name = f"{left_processes.name_of(pid)}, process {pid}"
                    self._note(name, nodeid or "unknown test", True)


@final
class _LeaksHook:
    """Fails a forked test that has left processes running. It is registered for one test only.

    ``before``: the children that the test process had when the test began.
    """

    def __init__(self, before: frozenset[int]) -> None:
        self._before = before

    # Innermost of the wrappers: the failure is one of the test's teardown.
    @pytest.hookimpl(wrapper=True, trylast=True)
    @pytest_internals.unseen
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Look when function-scoped fixtures have been torn down."""
        try:
            result = yield
        finally:
            item.config.pluginmanager.unregister(self)
        children = processes.own_children()
        message = objection([pid for pid in children if pid not in self._before])
        if message:
            pytest.fail(message, pytrace=False)
        return result


def objection(children: Sequence[int]) -> str:
    """Why a test fails that has these children, in the test process and in the sandbox; "" if not.

    What has left the tree of the test is looked for as well.
    """
    names = left_processes.names_of_running(children, patience=_PATIENCE)
    with contextlib.suppress(OSError, SandboxError):
        names += map(left_processes.name_of, left_processes.in_same_mount_namespace())
    if not names:
        return ""
    return "\n".join([f'left running, with leaks="error": {names[0]}', *names[1:]])
