"""The line at the end of a run about files that tests have written into the project.

They are dropped with the sandboxes. Many plugins write such files on purpose, as recorded requests
or expected results, and say that they have done so. The line says which directories have to be
volumes to keep them.

Every test is looked at when it has ended. For one that has written nothing there, that takes about
10 us of the pytest process: see :mod:`..engine.changes.touched`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final, final

import pytest

from .. import pytest_internals
from ..config import options
from ..engine.changes.touched import TouchedBelow
from ..engine.linux.untouched import os
from ..session.observers import Observer
from ..session.temporary import temporary_directories

if TYPE_CHECKING:
    from ..engine.plan.model import UppersDescription

#: What nobody misses: caches, and files that are brought to the host by other ways.
_CACHES: Final = r"__pycache__|\.(pytest|mypy|ruff)_cache|\.hypothesis|\.coverage(\..*)?|.*\.pyc"
#: How many files of one test are counted, and how many directories the line names.
_MOST_FILES: Final = 1000
_MOST_DIRECTORIES: Final = 3


def line(tests: int, files: Mapping[str, Collection[str]], *, toml: bool) -> str:
    """The line for this number of tests and these files, by directory, relative to the rootdir.

    ``toml``: ini values are shown as the configuration file has them, as TOML.
    """
    from ..engine.changes.diffs import printable

    directories = sorted(files, key=lambda one: (-len(files[one]), one))
    # A volume has all that is below it.
    volumes = [one for one in directories if not _is_in_any(one, directories)]
    number = len(set().union(*files.values()))
    more = ", ..." if len(directories) > _MOST_DIRECTORIES else ""
    shown = ", ".join(map(printable, directories[:_MOST_DIRECTORIES]))
    return (
        f"{tests} {'test' if tests == 1 else 'tests'} wrote into the project ({shown}{more},"
        f" {number} {'file' if number == 1 else 'files'}), dropped: {_setting(volumes, toml)}"
    )


def _is_in_any(directory: str, others: Collection[str]) -> bool:
    return any(
        directory != other and (other == "." or directory.startswith(f"{other}/"))
        for other in others
    )


def _setting(directories: list[str], toml: bool) -> str:
    """The ini value that makes these directories volumes."""
    from ..engine.changes.diffs import printable

    # A colon separates source and target.
    shown = [printable(one).replace(":", "\\:") for one in directories[:_MOST_DIRECTORIES]]
    more = ", ..." if len(directories) > _MOST_DIRECTORIES else ""
    if toml:
        quoted = ", ".join(f'"{one}"' for one in shown)
        return f"mountns_volumes = [{quoted}{more}]"
    each = " (each on a line of its own)" if len(directories) > 1 else ""
    return f"mountns_volumes = {', '.join(shown)}{more}{each}"


@final
class ProjectFilesReport(Observer):
    """Looks at the end of each test for files that it has written into the project."""

    def __init__(self, config: pytest.Config, wrote: Callable[[str, str, str], None]) -> None:
        self._config = config
        #: Notes a test, a directory and a file in it, both relative to the rootdir.
        self._wrote = wrote
        self._root = os.path.realpath(config.rootpath)
        self._touched = TouchedBelow(self._root)
        # Asked for now: later, a test may have replaced what finds out the name of the user.
        self._temporary = temporary_directories(config)

    def left_behind(self, item: pytest.Item, scratch: int, uppers: UppersDescription) -> None:
        """Count the files of this test."""
        if not self._touched.has_entry(uppers.overlays, scratch):
            return
        chosen = pytest_internals.base_temporary_directory(self._config)

        def leave_out(path: str) -> bool:
            known = path in self._temporary or path == chosen or path in uppers.created
            return known or re.fullmatch(_CACHES, path.rpartition("/")[2]) is not None

        count = 0
        for path, directory, deleted in self._touched.find(uppers.overlays, scratch, leave_out):
            if deleted and options.asks_for_sandbox(item):
                # To delete things is what many tests with a mark are for.
                continue
            count += 1
            if count > _MOST_FILES:
                break
            place = os.path.relpath(directory, self._root)
            self._wrote(item.nodeid, place, os.path.relpath(path, self._root))
