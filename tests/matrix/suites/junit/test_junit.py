import logging
import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def of_the_session(record_testsuite_property):
    record_testsuite_property("from a wider fixture", 1)


def test_of_the_suite(record_testsuite_property):
    record_testsuite_property("from a test", "value")


def test_of_the_test(record_property):
    record_property("number", 7)
    record_property("number", "again")


def test_attribute(record_xml_attribute):
    record_xml_attribute("assertions", 3)


def test_output():
    print("out")
    print("err", file=sys.stderr)
    logging.getLogger().error("log")


def test_fails():
    print("before it fails \x1b[31m")
    raise ValueError("control characters: \x00 \x1b")


@pytest.fixture
def broken():
    yield
    raise ValueError("teardown")


def test_error(broken):
    pass


def test_fails_and_errors(broken):
    assert 0


def test_skips():
    pytest.skip("reason")


@pytest.mark.xfail(reason="known")
def test_xfails():
    assert 0
