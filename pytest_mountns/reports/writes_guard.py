"""``writes=[globs]``: fails a test that changes anything else.

What the test runs may have replaced any function, so the pytest process does the reading.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Generator, Sequence
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError
from ..session.current import RunningTest
from ..session.observers import Observer, WrittenByTest, register_for_one_test
from ..session.selection import Selection
from ..session.temporary import temporary_directories

if TYPE_CHECKING:
    from ..engine.changes.changes import Change, Changes

#: How many paths the message of a failing test lists.
_MESSAGE_PATHS: Final = 20
#: Paths that the test was told of before, and those where renamed directories were.
_accused_key: Final = pytest.StashKey["set[tuple[str, str | None]]"]()


def outside(changes: Changes, globs: Sequence[str], left_out: Container[str]) -> list[Change]:
    """Those that no glob allows. Of a renamed directory both paths have to be allowed.

    ``left_out``: where it may come from in any case.
    """
    from ..engine.changes.changes import compile_globs

    allowed = compile_globs(globs)
    return [
        change
        for change in changes
        if not allowed.fullmatch(change.path)
        or (
            change.source is not None
            and not allowed.fullmatch(change.source)
            and change.source not in left_out
        )
    ]


@final
class WritesGuard(Observer):
    """Objects to changes outside of the ``writes`` of a test."""

    def __init__(self, config: pytest.Config, selection: Selection) -> None:
        self._config = config
        self._selection = selection

    def entered(self, item: pytest.Item, test: RunningTest) -> None:
        """Register the hooks that ask for objections when the call and the teardown have ended."""
        if self._selection.spec(item).writes is not None:
            # An inline test is asked for objections once more when it leaves its sandbox.
            hooks = _GuardHooks(item, test.objection, teardown=test.forked)
            register_for_one_test(self._config, hooks, "mountns-writes")

    def on_report(
        self, item: pytest.Item, report: pytest.TestReport, written: WrittenByTest | None
    ) -> None:
        """Another attempt at the test begins with nothing that it was told of."""
        if report.when == "setup" and written is not None and _accused_key in item.stash:
            del item.stash[_accused_key]

    def objection(self, item: pytest.Item, written: WrittenByTest) -> str:
        """What the test has changed where it may not, and was not told of before."""
        globs = self._selection.spec(item).writes
        if globs is None:
            return ""
        from .filter import LeftOut, filter_changes

        temporary = temporary_directories(self._config)
        try:
            with written.changes() as changes:
                found = filter_changes(changes, temporary)
        except SandboxError as error:
            return str(error)
        accused = item.stash.setdefault(_accused_key, set())
        new = [
            change
            for change in outside(found.changes, globs, LeftOut(temporary))
            if (change.path, change.source) not in accused
        ]
        accused.update((change.path, change.source) for change in new)
        return _message(new, globs) if new else ""


@final
class _GuardHooks:
    """Hooks that fail one test for what it has changed.

    They are a plugin of their own, registered for tests with ``writes`` only: wrappers show in the
    tracebacks that ``--tb=native`` prints.
    """

    def __init__(self, item: pytest.Item, ask: Callable[[], str], *, teardown: bool) -> None:
        self._item = item
        self._ask = ask
        self._teardown = teardown

    # Innermost of the wrappers: the failure is one of the test, and an xfail mark covers it.
    @pytest.hookimpl(wrapper=True, trylast=True)
    @pytest_internals.unseen
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Check when the test function has returned."""
        result = yield
        self._check(item)
        return result

    @pytest.hookimpl(wrapper=True, trylast=True)
    @pytest_internals.unseen
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Check when function-scoped fixtures have been torn down."""
        try:
            result = yield
        finally:
            # There may be another attempt in the same process, or another test.
            item.config.pluginmanager.unregister(self)
        if self._teardown:
            self._check(item)
        return result

    def _check(self, item: pytest.Item) -> None:
        if item is not self._item:
            # See register_for_one_test.
            return
        # This frame is not hidden: where all frames are, pytest says so below the message.
        message = self._ask()
        if message:
            pytest.fail(message, pytrace=False)


def _message(new: Sequence[Change], globs: Sequence[str]) -> str:
    from ..engine.changes.render import describe

    # pytest's short summary shows the first line only.
    more = f" and {len(new) - 1} more" if len(new) > 1 else ""
    first = f"{new[0].path}{more} changed, outside of writes=[{', '.join(map(repr, globs))}]"
    lines = [first]
    for change in new[:_MESSAGE_PATHS]:
        said = describe(change)
        lines.append(f"  {change.kind:9} {change.path}" + (f"  ({said})" if said else ""))
    if len(new) > _MESSAGE_PATHS:
        lines.append(f"  ... and {len(new) - _MESSAGE_PATHS} more")
    return "\n".join(lines)
