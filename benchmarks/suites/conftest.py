"""For every suite that the benchmarks write: how long each test took, and whether it was isolated.

The harness says by the environment what it wants; nothing of this costs more in one way to run the
tests than in another.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator
from pathlib import Path

import pytest

HOME = os.readlink("/proc/self/ns/mnt")
TIMES: dict[str, float] = {}

# Lists, so that the garbage collector has to look at them, of somewhat less than a kilobyte each.
HEAP = [[number] * 110 for number in range(int(os.environ.get("BENCHMARK_HEAP_MB", "0")) * 1100)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    keys = json.loads(os.environ.get("BENCHMARK_KEYS", "{}"))
    for item in items:
        if keys:
            item.add_marker(pytest.mark.mountns(**keys))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Seen from the pytest process: the way into the sandbox and out again is in it."""
    if "BENCHMARK_TRACED" in os.environ:
        # A system call that does nothing and is found again in the trace.
        os.access("/mountns-benchmark/next-test", os.F_OK)
    began = time.perf_counter()
    result = yield
    TIMES[item.name] = time.perf_counter() - began
    return result


def pytest_sessionfinish() -> None:
    if "BENCHMARK_TIMES" in os.environ:
        Path(os.environ["BENCHMARK_TIMES"]).write_text(json.dumps(TIMES))


@pytest.fixture
def witness() -> None:
    """Fails unless the test is where it is said to be: in another mount namespace, or not."""
    isolated = os.readlink("/proc/self/ns/mnt") != HOME
    assert isolated == (os.environ["BENCHMARK_ISOLATED"] == "yes")
