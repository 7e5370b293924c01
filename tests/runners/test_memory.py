"""Memory that fork(2) copies at once: only the pytest process pins it."""

from __future__ import annotations

import os

import pytest

from pytest_mountns.engine.linux import syscalls

pytestmark = pytest.mark.sandboxes


def _has_io_uring() -> bool:
    try:
        os.close(syscalls.io_uring_setup(1))
    except OSError:
        return False
    return True


def test_memory_is_pinned_in_the_parent_alone(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import re

        def pinned():
            return int(re.search(r"VmPin:\\s+(\\d+)", open("/proc/self/status").read())[1])

        def pytest_sessionfinish():
            print("\\npinned:", "yes" if pinned() else "no")
        """
    )
    pytester.makepyfile(
        """
        import os, pytest
        from conftest import pinned

        shared = [object() for _ in range(10_000)]

        @pytest.mark.parametrize("number", range(12))
        def test(number):
            assert pinned() == 0
            links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
            assert not any("io_uring" in link for link in links)
            # An earlier test has appended to this list in a process of its own.
            assert len(shared) == 10_000 and number not in shared
            shared.append(number)
        """
    )
    result = pytester.runpytest_subprocess("--mountns", "--mountns-process=fork", "-s")
    result.assert_outcomes(passed=12)
    result.stdout.fnmatch_lines([f"pinned: {'yes' if _has_io_uring() else 'no'}"])
