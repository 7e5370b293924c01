import logging
import sys
import warnings

import pytest


@pytest.fixture(scope="session")
def session_value(worker_id):
    assert worker_id.startswith("gw")
    return "session"


@pytest.fixture(scope="module")
def wide(session_value):
    return [session_value]


@pytest.fixture
def narrow(wide):
    print("narrow begins")
    yield [*wide, "narrow"]
    print("narrow ends")


@pytest.mark.parametrize("number", range(10))
def test_numbers(narrow, number):
    assert narrow == ["session", "narrow"]
    assert number != 7


def test_output():
    print("to stdout")
    print("to stderr", file=sys.stderr)
    logging.getLogger("of.a.test").warning("to the log")
    assert 0


def test_warns():
    warnings.warn("from a test")


def test_skips():
    pytest.skip("no reason")


@pytest.mark.xfail(reason="known")
def test_xfails():
    assert 0


@pytest.mark.xfail(reason="known no more")
def test_xpasses():
    pass


@pytest.fixture
def broken():
    raise ValueError("in setup")


def test_setup_fails(broken):
    pass


@pytest.fixture
def breaks_later():
    yield
    raise ValueError("in teardown")


def test_teardown_fails(breaks_later):
    pass


def test_property(record_property, record_xml_attribute):
    record_property("colour", "green")


def test_group(testrun_uid, tmp_path):
    assert testrun_uid
    assert list(tmp_path.iterdir()) == []


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("letter", "abc")
def test_grouped(letter):
    pass
