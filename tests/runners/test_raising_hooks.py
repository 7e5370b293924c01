"""Hooks of other plugins that raise: the tests, and those that follow, end as without a sandbox."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record, Recorded, Report

pytestmark = pytest.mark.sandboxes

SUITE = """
import pytest

@pytest.fixture
def own():
    yield 1

@pytest.fixture(scope="module")
def wide():
    yield 1

def test_zero(wide): pass

def test_raises(own, wide): assert WORKS

def test_next(own, wide): pass

class TestLast:
    def test_it(self, own): pass
"""

#: What a hook is called with, and what says which test it is called for.
ARGUMENTS = {
    "pytest_runtest_protocol": ("item", "item"),
    "pytest_runtest_logstart": ("nodeid", "nodeid"),
    "pytest_runtest_setup": ("item", "item"),
    "pytest_fixture_setup": ("request", "request.node"),
    "pytest_pyfunc_call": ("pyfuncitem", "pyfuncitem"),
    "pytest_runtest_makereport": ("item, call", "item"),
    "pytest_exception_interact": ("node", "node"),
    "pytest_runtest_logreport": ("report", "report.nodeid"),
    "pytest_runtest_teardown": ("item", "item"),
    "pytest_fixture_post_finalizer": ("request", "request.node"),
    "pytest_runtest_logfinish": ("nodeid", "nodeid"),
}
RAISES = {
    "error": "raise RuntimeError('a hook')",
    "skip": "pytest.skip('a hook')",
    "exit": "pytest.exit('a hook', 7)",
}


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _conftest(hook: str, order: str, what: str) -> str:
    arguments, about = ARGUMENTS[hook]
    check = f"if 'test_raises' in str({about}): {RAISES[what]}"
    if order == "after":
        return f"""
import pytest
@pytest.hookimpl(wrapper=True)
def {hook}({arguments}):
    result = yield
    {check}
    return result
"""
    return f"""
import pytest
@pytest.hookimpl(tryfirst=True)
def {hook}({arguments}):
    {check}
"""


def _outcomes(recorded: Recorded) -> tuple[int, list[tuple[str, str, str]]]:
    reports = [one for one in recorded.events if isinstance(one, Report)]
    return recorded.status, [(one.nodeid, one.when, one.outcome) for one in reports]


@pytest.mark.parametrize(
    ("hook", "order", "what"),
    [
        ("pytest_runtest_protocol", "first", "error"),
        ("pytest_runtest_logstart", "first", "exit"),
        ("pytest_runtest_setup", "first", "error"),
        ("pytest_fixture_setup", "after", "error"),
        ("pytest_pyfunc_call", "after", "skip"),
        ("pytest_runtest_makereport", "after", "error"),
        ("pytest_exception_interact", "first", "error"),
        ("pytest_runtest_logreport", "after", "skip"),
        ("pytest_runtest_teardown", "first", "error"),
        ("pytest_runtest_teardown", "first", "skip"),
        ("pytest_runtest_teardown", "after", "error"),
        ("pytest_fixture_post_finalizer", "first", "error"),
        ("pytest_runtest_logfinish", "first", "skip"),
        ("pytest_runtest_logfinish", "after", "exit"),
    ],
)
def test_all_ends_as_without(
    pytester: pytest.Pytester, record: Record, hook: str, order: str, what: str
) -> None:
    works = str(hook != "pytest_exception_interact")
    pytester.makepyfile(test_it=SUITE.replace("WORKS", works))
    pytester.makeconftest(_conftest(hook, order, what))
    more = ["-pno:rerunfailures", "-pno:cacheprovider"]
    plain = record("-pno:mountns", *more)
    isolated = record("--mountns", *more)
    assert _outcomes(isolated) == _outcomes(plain)


def test_an_item_that_no_hook_has_torn_down(pytester: pytest.Pytester, record: Record) -> None:
    """The next test fails, also where it is in another module, and the one after that does not."""
    pytester.makeconftest(_conftest("pytest_runtest_teardown", "first", "skip"))
    pytester.makepyfile(test_a="def test_before(): pass")
    pytester.makepyfile(test_it="def test_raises(): pass")
    pytester.makepyfile(test_z="def test_next(): pass\ndef test_last(): pass")
    recorded = record("--mountns", "-pno:rerunfailures")
    assert recorded.status == 1
    assert [one.name for one in recorded.not_passed if one.outcome == "failed"] == ["test_next"]


OBJECTED = """
import subprocess, pytest
from pathlib import Path

@pytest.fixture
def own():
    process = subprocess.Popen(["sleep", "1007"])
    yield
    Path.home().joinpath("late").touch()
    END
    process.kill()
    process.wait()

@pytest.mark.mountns(KEYS)
def test_it(own): pass

def test_next(): pass
"""
#: Keys of the marker, and a hook, by each of which the test fails for what it leaves.
OBJECTIONS = {
    "leaks": ("leaks='error'", ""),
    "writes": ("writes=[]", ""),
    "hook": ("", "def pytest_mountns_changes(item, changes): assert not changes"),
}


@pytest.mark.no_mountns
@pytest.mark.parametrize("objection", OBJECTIONS)
def test_an_interrupt_counts_more_than_what_the_test_leaves(
    pytester: pytest.Pytester, record: Record, objection: str
) -> None:
    keys, hook = OBJECTIONS[objection]
    pytester.makeconftest(hook)
    suite = OBJECTED.replace("KEYS", keys).replace("END", "raise KeyboardInterrupt")
    pytester.makepyfile(test_it=suite)
    recorded = record("--mountns", "-pno:rerunfailures")
    assert recorded.status == pytest.ExitCode.INTERRUPTED
    assert "KeyboardInterrupt" in recorded.out
    assert "INTERNALERROR" not in recorded.out + recorded.err


@pytest.mark.no_mountns
@pytest.mark.parametrize("objection", OBJECTIONS)
def test_what_a_test_leaves_when_a_hook_has_kept_it_from_its_teardown(
    pytester: pytest.Pytester, record: Record, process: str, objection: str
) -> None:
    keys, hook = OBJECTIONS[objection]
    raises = _conftest("pytest_runtest_teardown", "first", "error").replace("_raises", "_it")
    pytester.makeconftest(raises + hook)
    # A hook that is told of changes is called for each test.
    suite = OBJECTED.replace("KEYS", keys).replace("END", "")
    before = 'Path.home().joinpath("early").touch()\n'
    pytester.makepyfile(test_it=suite.replace("    yield\n", f"    {before}    yield\n"))
    recorded = record("--mountns", "-pno:rerunfailures")
    assert recorded.status == pytest.ExitCode.TESTS_FAILED
    assert "INTERNALERROR" not in recorded.out + recorded.err
    assert ("test_it", "teardown") in [(one.name, one.when) for one in recorded.failed]
    assert [one.name for one in recorded.reports if one.when == "setup"] == ["test_it", "test_next"]
    told = [one.message for one in recorded.warnings if "mountns: noticed after" in one.message]
    # A test process ends with its test, and what the other one hears is in the report.
    is_late = {"leaks": ("module", "inline"), "writes": (), "hook": ("inline",)}
    assert len(told) == (process in is_late[objection])


@pytest.mark.no_mountns
@pytest.mark.parametrize(
    ("ends", "status"), [("pytest.exit('enough', 7)", 7), ("raise KeyboardInterrupt", 2)]
)
def test_a_hook_that_is_told_of_changes_ends_the_session(
    pytester: pytest.Pytester, record: Record, ends: str, status: int
) -> None:
    pytester.makeconftest(f"import pytest\ndef pytest_mountns_changes(item, changes): {ends}")
    pytester.makepyfile("def test_one(): pass\ndef test_two(): pass")
    recorded = record("--mountns", "-pno:rerunfailures")
    assert recorded.status == status
    assert "INTERNALERROR" not in recorded.out + recorded.err
    assert {one.name for one in recorded.reports} == {"test_one"}
