import os

import pytest

TESTS = """
import pytest

def test_passes(): pass
def test_fails(): assert 0
def test_skips(): pytest.skip("x")
@pytest.fixture(scope="module")
def wide(): yield 1
def test_wide(wide, tmp_path): assert wide == 1
"""


@pytest.mark.parametrize("options", [(), ("--mountns",), ("-p", "no:mountns")])
def test_subprocess(pytester, options):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=2, failed=1, skipped=1)


@pytest.mark.parametrize("options", [(), ("--mountns",), ("-p", "no:mountns")])
def test_inprocess(pytester, options):
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess(*options)
    result.assert_outcomes(passed=2, failed=1, skipped=1)


def test_isolated_within(pytester):
    pytester.makepyfile(
        """
        import os

        def test_writes(overlay_root):
            with open(os.path.expanduser("~/of a nested test"), "w") as file:
                file.write("x")
            assert overlay_root.changes(os.path.expanduser("~/*"))
        """
    )
    result = pytester.runpytest_subprocess("--mountns-unavailable=error")
    result.assert_outcomes(passed=1)
    assert not os.path.exists(os.path.expanduser("~/of a nested test"))


def test_hooks(pytester):
    pytester.makepyfile(TESTS)
    reports = pytester.inline_run("-p", "no:terminal").getreports("pytest_runtest_logreport")
    assert [r.outcome for r in reports if r.when == "call"] == [
        "passed",
        "failed",
        "skipped",
        "passed",
    ]


def test_fails(pytester):
    pytester.makepyfile(TESTS)
    pytester.runpytest_subprocess().stdout.fnmatch_lines(["*5 passed*"])
