"""Applies what is known of other plugins to the tests of one session."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

import pytest

from .. import pytest_internals
from ..engine.linux.errors import SandboxError
from ..engine.plan.spec import SandboxSpec
from . import known_plugins
from .known_plugins import Forked, Place, Update


@final
class OtherPlugins:
    """The plugins of one session that :mod:`.known_plugins` has something to say about."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._said: set[str] = set()

    @functools.cached_property
    def _updates(self) -> list[Update]:
        return known_plugins.updates(_is_loaded, self._option)

    @functools.cached_property
    def _forked(self) -> list[Forked]:
        return known_plugins.forked(_is_loaded, self._option)

    def _option(self, name: str) -> object:
        return getattr(self._config.option, name, None)

    def problem(self, item: pytest.Item, spec: SandboxSpec, *, forked: bool) -> SandboxError | None:
        """Why this test cannot be run without a wrong result; None if nothing is known."""
        for update in self._updates:
            if update.beside:
                continue
            if forked if update.forked else not self._is_in_volume(spec):
                return SandboxError(
                    f"run tests with {update.flag}",
                    cause=known_plugins.said_of_update(update),
                    remedy=known_plugins.remedy_of_update(update),
                )
        for one in self._concerned(item) if forked else ():
            if one.refused:
                return SandboxError(
                    "run this test in a process of its own",
                    cause=known_plugins.said_of_forked(one),
                    remedy='@pytest.mark.mountns(process="inline") or --mountns-process=inline; or'
                    " keep the test out with @pytest.mark.no_mountns",
                )
        return None

    def beside(self, item: pytest.Item) -> list[Path]:
        """Directories beside the test's file into which the options of now have it write."""
        file: Path | None = getattr(item, "path", None)
        if not self._updates or file is None:
            return []
        return [
            file.parent / update.beside.replace("{stem}", file.stem)
            for update in self._updates
            if update.beside
            and (not update.marker or item.get_closest_marker(update.marker) is not None)
        ]

    def _concerned(self, item: pytest.Item) -> list[Forked]:
        if not self._forked:
            return []
        fixtures = getattr(item, "fixturenames", ())
        return known_plugins.concerned(self._forked, fixtures, type(item).__module__)

    def _is_in_volume(self, spec: SandboxSpec) -> bool:
        """Whether a part of the project, or all of it, is a volume that tests can write to."""
        root = self._config.rootpath
        sources = (Path(one.source) for one in spec.volumes if not one.read_only)
        return any(source.is_relative_to(root) or root.is_relative_to(source) for source in sources)

    def notes(self, tests: Sequence[tuple[pytest.Item, SandboxSpec]]) -> list[str]:
        """What is or may be wrong where tests are forked, of those that are known to be."""
        forked = [item for item, spec in tests if spec.is_forked]
        found = [
            known_plugins.said_of_forked(one)
            for item, spec in tests
            for one in self._concerned(item)
            if spec.is_forked or one.everywhere
        ]
        if not forked:
            return list(dict.fromkeys(found))
        watched = pytest_internals.watched_plugins(self._config, forked)
        found += [
            f"{plugin} keeps {what} open ({name}), and has hooks that run in test processes: what"
            ' these do to it there may be lost; process="inline" has no such problem'
            for plugin, name, what in pytest_internals.kept_open(watched)
        ]
        return list(dict.fromkeys(found))

    def say(self, item: pytest.Item) -> None:
        """Warn once of what is wrong in forked tests: ``item`` is one."""
        for one in self._concerned(item):
            text = f"mountns: {known_plugins.said_of_forked(one)}"
            if text not in self._said:
                self._said.add(text)
                self._warn(text)

    def _warn(self, text: str) -> None:
        if getattr(self._config, "workerinput", {}).get("workerid", "gw0") != "gw0":
            # Another worker says it.
            return
        pytest_internals.warn_of_session(self._config, text)

    def places(self, environment: dict[str, str]) -> Iterator[tuple[Place, Path]]:
        """Where plugins write to while tests run."""
        start = self._config.invocation_params.dir
        for place, path in known_plugins.places(_is_loaded, self._option, environment):
            yield place, Path(self._config.rootpath if place.path else start, path)


def _is_loaded(module: str) -> bool:
    return module in sys.modules
