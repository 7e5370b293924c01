"""What the tests of one pytest session share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, final

import pytest

from .current import Current, RunningTest
from .guards import Guards
from .observers import LateModules, Observers
from .other_plugins import OtherPlugins
from .sandboxes import Sandboxes
from .selection import Selection
from .trace import Trace

if TYPE_CHECKING:
    from .exploring import Exploring


@final
class Session:
    """The selection of tests, their sandboxes, the one that runs, and who observes them.

    Hangs on ``config.stash``, since pytest sessions nest. Raises :class:`pytest.UsageError` if an
    option or ini value is not valid.
    """

    def __init__(self, config: pytest.Config, late_modules: LateModules) -> None:
        #: What reads changes and explains failures.
        self.late_modules: Final = late_modules
        #: Which tests are isolated, and by which spec.
        self.selection: Final = Selection(config)
        #: Plans, and what sandboxes are made with.
        self.sandboxes: Final = Sandboxes(config)
        #: What is known of other plugins.
        self.other_plugins: Final = OtherPlugins(config)
        #: What protects the host where no sandbox can be made.
        self.guards: Final = Guards(config, self.selection, self.sandboxes)
        #: The test that runs in this process.
        self.current: Final = Current()
        #: Who hears of tests.
        self.observers: Final = Observers(late_modules)
        self.sandboxes.tell_unended = self.observers.unended
        #: What ``pytest --debug`` shows.
        self.trace: Final = Trace(config)

    def refuse(self, item: pytest.Item) -> None:
        """Raise :class:`pytest.UsageError` if it is known that this test would be wrong."""
        spec = self.selection.valid_spec(item)
        if spec is not None:
            problem = self.other_plugins.problem(item, spec, forked=spec.is_forked)
            if problem is not None:
                raise pytest.UsageError(f"{item.nodeid}: {problem}")

    def begin(self, items: Sequence[pytest.Item]) -> None:
        """After collection: unpack layers, and enter a user namespace if a test needs it.

        Both take time that is not to count as the first test's.
        """
        if self.selection.everything is False:
            return
        self.selection.make_volumes()
        self.sandboxes.planner.watch_mounts()
        specs = [spec for spec in map(self.selection.valid_spec, items) if spec is not None]
        self.sandboxes.unpack(specs)
        on_base_layers = self.sandboxes.base_layers is not None
        if any(on_base_layers or one.process != "fork" or one.scope != "function" for one in specs):
            self.sandboxes.move_to_user_namespace()

    def exploring(self, test: RunningTest, only: int | None) -> Exploring:
        """The crashes that ``test`` goes through; of their crash points ``only`` this one."""
        from .exploring import Exploring

        return Exploring(test, self.current, only)

    def close(self) -> None:
        """At the end of the session."""
        self.observers.close()
        self.guards.close()
        self.sandboxes.close()
