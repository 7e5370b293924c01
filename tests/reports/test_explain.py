"""Failures that the sandbox has caused are explained in the report."""

from __future__ import annotations

import textwrap

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

#: The connection is opened on the host, and the test finds another file at its path.
SQLITE = """
import sqlite3
import pytest

class Wrapped(Exception): pass

@pytest.fixture(scope="session")
def connection(tmp_path_factory):
    connection = sqlite3.connect(tmp_path_factory.mktemp("db") / "file.sqlite")
    connection.execute("create table t (x)")
    connection.commit()
    yield connection
    connection.close()

def test_plain(connection):
    connection.execute("insert into t values (1)")

def test_wrapped(connection):
    try:
        connection.execute("insert into t values (1)")
    except sqlite3.Error as error:
        raise Wrapped("of a library") from error

def test_unrelated(connection):
    connection.execute("select nothing")
"""


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sqlite_that_was_opened_before(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(textwrap.dedent(SQLITE))
    recorded = record("-pno:rerunfailures", "--mountns")
    said = {
        one.nodeid.rpartition("::")[2]: [text for name, text in one.sections if name == "mountns"]
        for one in recorded.not_passed
    }
    assert set(said) == {"test_plain", "test_wrapped", "test_unrelated"}
    for name in ("test_plain", "test_wrapped"):
        (text,) = said[name]
        assert "opened before the test had its sandbox" in text
        assert "function scope" in text
    assert said["test_unrelated"] == []
