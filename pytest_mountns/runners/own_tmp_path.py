"""``tmp_path="own"``: makes a test's ``tmp_path`` a mount of its own.

pytest makes the directory when the fixture is set up, under a name that nobody knows before. So it
is mounted then, by the process that is in the sandbox, and a test that never asks for ``tmp_path``
pays nothing.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Final, final

import pytest

from .. import pytest_internals
from ..session.session import Session

_NAME: Final = "mountns-own-tmp-path"


def watch(config: pytest.Config, session: Session) -> None:
    """Have ``tmp_path`` mounted from now on, for tests whose spec says so."""
    if not config.pluginmanager.has_plugin(_NAME):
        config.pluginmanager.register(_OwnTmpPath(session), _NAME)


@final
class _OwnTmpPath:
    """Hears of each fixture. It is registered with the first test that wants it."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @pytest.hookimpl(wrapper=True)
    @pytest_internals.unseen
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Mount the directory that ``tmp_path`` has made."""
        result = yield
        test = self._session.current.test
        if (
            isinstance(result, Path)
            and pytest_internals.is_tmp_path(fixturedef, request)
            and test is not None
            and test.guard is None
            and isinstance(item := request.node, pytest.Item)
            and self._session.selection.spec(item).tmp_path == "own"
        ):
            test.make_own(str(result))
        return result
