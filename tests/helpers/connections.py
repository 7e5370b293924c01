"""A connection to a database that a fixture opens on the host, for suites of tests."""

from __future__ import annotations

from typing import Final

#: In a sandbox it finds another file at its path.
CONNECTION: Final = """
import sqlite3
import pytest

@pytest.fixture(scope="session")
def connection(tmp_path_factory):
    connection = sqlite3.connect(tmp_path_factory.mktemp("db") / "file.sqlite")
    connection.execute("create table t (x)")
    connection.commit()
    yield connection
    connection.close()
"""
