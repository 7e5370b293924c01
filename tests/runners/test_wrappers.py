"""Wrappers of other plugins around the protocol of a forked test begin and end once."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record

pytestmark = [pytest.mark.sandboxes, pytest.mark.no_mountns]


@pytest.mark.parametrize("hookimpl", ["hookwrapper=True", "wrapper=True"])
def test_they_end_in_the_pytest_process(
    pytester: pytest.Pytester, record: Record, hookimpl: str
) -> None:
    pytester.makeconftest(
        f"""
        import os, pytest
        ends = []

        @pytest.hookimpl({hookimpl})
        def pytest_runtest_protocol(item):
            item.extra = {{}}
            result = yield
            ends.append((item.name, os.getpid(), sorted(item.extra)))
            del item.extra
            return result

        def pytest_runtest_call(item): item.extra["seen"] = 1

        def pytest_sessionfinish():
            expected = [(n, os.getpid(), ["seen"]) for n in ("test_a", "test_b")]
            print("\\nENDS", ends == expected, len(ends))
        """
    )
    pytester.makepyfile("def test_a(): pass\ndef test_b(): assert 0")
    recorded = record("--mountns", "-s")
    assert recorded.status == 1
    assert recorded.outcomes["test_a", "call"] == "passed"
    assert recorded.outcomes["test_b", "call"] == "failed"
    assert "ENDS True 2" in recorded.out
