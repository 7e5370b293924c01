"""For every suite that the benchmarks write: how long each test took, and whether it was isolated.

The harness says by the environment what it wants; nothing of this costs more in one way to run the
tests than in another.
"""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path

import pytest

HOME = os.readlink("/proc/self/ns/mnt")
STARTS: list[tuple[str, float]] = []

# Lists, so that the garbage collector has to look at them; with what is in one, 900 bytes each.
gc.disable()
HEAP = [[bytes(780)] for _ in range(int(os.environ.get("BENCHMARK_HEAP_MB", "0")) * 1100)]
gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    keys = json.loads(os.environ.get("BENCHMARK_KEYS", "{}"))
    for item in items:
        if keys:
            item.add_marker(pytest.mark.mountns(**keys))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> None:
    """From here to the next test, in the pytest process: the way in and out again is in it."""
    if "BENCHMARK_TRACED" in os.environ:
        # A system call that does nothing and is found again in the trace.
        os.access("/mountns-benchmark/next-test", os.F_OK)
    STARTS.append((item.nodeid, time.perf_counter()))


def pytest_sessionfinish() -> None:
    if "BENCHMARK_TIMES" in os.environ and STARTS:
        ends = [*(start for _, start in STARTS[1:]), time.perf_counter()]
        times = {
            name.rpartition("::")[2] if len(STARTS) < 10 else name: end - start
            for (name, start), end in zip(STARTS, ends, strict=True)
        }
        Path(os.environ["BENCHMARK_TIMES"]).write_text(json.dumps(times))


@pytest.fixture
def witness() -> None:
    """Fails unless the test is where it is said to be: in another mount namespace, or not."""
    isolated = os.readlink("/proc/self/ns/mnt") != HOME
    assert isolated == (os.environ["BENCHMARK_ISOLATED"] == "yes")
