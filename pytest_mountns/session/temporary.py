"""Where pytest puts ``tmp_path``: what a test writes there says nothing about the test."""

from __future__ import annotations

import tempfile
from typing import Final

import pytest

from .. import pytest_internals
from ..engine.linux.untouched import os

#: The directory below the temporary directory that holds ``tmp_path`` of a test that root runs as
#: another user: root's own directory is closed to others.
USER_TEMPORARY: Final = "pytest-of-mountns-user"


def temporary_directories(config: pytest.Config) -> list[str]:
    """The directories whose trees are pytest's own.

    That is the directory of this run or, where pytest has put it into the one that holds all runs
    of the user, that one.
    """
    chosen = pytest_internals.base_temporary_directory(config)
    # As long as pytest has not chosen one, it is known by its name alone.
    root = os.environ.get("PYTEST_DEBUG_TEMPROOT") or tempfile.gettempdir()
    places = [os.path.join(os.path.realpath(root), f"pytest-of-{pytest_internals.user_name()}")]
    places.append(os.path.join(os.path.realpath(tempfile.gettempdir()), USER_TEMPORARY))
    if chosen is not None and not chosen.startswith(f"{places[0]}/"):
        places.append(chosen)
    return places
