"""Names of tests: each collection of this suite has the same ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_tests_have_the_same_names_in_each_collection(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Else xdist refuses to run the suite, and no test could be run alone by its name.

    The time or the order of a set in a value, say of what gzip has packed, would be in a name
    that pytest makes of that value.
    """
    config = request.config
    names = {item.nodeid for item in request.session.items}
    files = {str(item.path) for item in request.session.items}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"),
            *(f"--basetemp={tmp_path / 'collection'}", *files),
        ],
        cwd=config.rootpath,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTEST_ADDOPTS": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert sorted(names - set(done.stdout.splitlines())) == []
