"""Which tests run in a sandbox, and what each one's sandbox is to be.

This module is loaded in every pytest run where the plugin is installed, so it imports next to
nothing. What else the plugin consists of is loaded by :mod:`pytest_mountns.activation`, at the
first option or test that asks for it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast, final

import pytest

from ..config import options
from .made_directories import made_directories

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..engine.plan.spec import SandboxSpec, Volume

_spec_key: Final = pytest.StashKey["SandboxSpec"]()


def is_asked_for(config: pytest.Config) -> bool:
    """Whether an option or ini value of the plugin is set.

    Then all of them are validated at the start of the run, even if no test is isolated.
    """
    if options.sandbox_everything(config) is not None:
        return True
    given = (value for name, value in vars(config.option).items() if name.startswith("mountns"))
    return (
        any(given)
        or any(map(config.getini, options.INI))
        or bool(options.profiles_of(config).settings)
    )


def is_wanted(item: pytest.Item, everything: bool | None) -> bool:
    """Whether ``item`` asks for a sandbox, by a mark, a fixture or an option.

    ``everything`` is what :func:`.options.sandbox_everything` has returned. The nearest mark
    decides; without one, a fixture of the plugin or ``--mountns`` does.
    """
    # As iter_markers() of the item, which takes 25 calls of functions, and this is asked often.
    node: Any = item
    while node is not None:
        for mark in node.own_markers:
            if mark.name in ("mountns", "no_mountns"):
                return bool(mark.name == "mountns")
        node = node.parent
    return bool(everything) or options.uses_fixture(item)


@final
class Selection:
    """Decides, for the tests of one session, which are isolated and by which spec.

    Raises :class:`pytest.UsageError` if an option or ini value is not valid.
    """

    def __init__(self, config: pytest.Config) -> None:
        #: True: every test is isolated. False: none is. None: those that ask for it.
        self.everything: Final = options.sandbox_everything(config)
        #: Whether a test is skipped or fails where this machine cannot isolate it.
        self.policy: Final = options.unavailable_policy(config)
        self._rootpath: Final = config.rootpath
        self._made: Final = made_directories(config)
        #: The marker keys that every spec starts from: those of options, profile and ini.
        self.keys: Final = options.session_keys(config)
        # The test that is asked about again and again while it runs.
        self._latest: tuple[pytest.Item, SandboxSpec] | None = None

    def make_volumes(self) -> None:
        """Make the directories of the project that are volumes of every test and are not there yet.

        These are those of options, of ini values and of profiles, below the root directory: what
        tests write there may be all that there will be in it. What is empty at the end is removed.
        """
        volumes = cast("Sequence[Volume]", self.keys.get("volumes", ()))
        for volume in volumes:
            place = Path(volume.source)
            if self._rootpath in place.parents and not place.exists():
                with contextlib.suppress(OSError):
                    # The planner says what is missing.
                    self._made.make(place)

    def wants(self, item: pytest.Item) -> bool:
        """Whether ``item`` is to run in a sandbox, if sandboxes are made at all."""
        return is_wanted(item, self.everything)

    def spec(self, item: pytest.Item) -> SandboxSpec:
        """The spec of ``item``, computed once.

        Raises :class:`pytest.UsageError` if its marks are not valid.
        """
        if self._latest is not None and self._latest[0] is item:
            return self._latest[1]
        spec = item.stash.get(_spec_key, None)
        if spec is None:
            spec = item.stash[_spec_key] = options.item_spec(item, self.keys)
        self._latest = item, spec
        return spec

    def may_read_changes(self, item: pytest.Item) -> bool:
        """Whether changes of ``item`` may be read though it passes: in it, or for ``writes``."""
        spec = self.valid_spec(item)
        return spec is not None and (options.uses_fixture(item) or spec.writes is not None)

    def valid_spec(self, item: pytest.Item) -> SandboxSpec | None:
        """The spec of ``item`` if it is to be isolated and its marks are valid, else None.

        For what looks ahead at all tests: a test whose marks are not valid reports that itself.
        """
        if not self.wants(item):
            return None
        try:
            return self.spec(item)
        except pytest.UsageError:
            return None
