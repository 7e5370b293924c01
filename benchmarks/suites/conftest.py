"""For every suite that the benchmarks write: how long each test took, and whether it was isolated.

The harness says by the environment what it wants; nothing of this costs more in one way to run the
tests than in another.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import pytest

HOME = os.readlink("/proc/self/ns/mnt")

#: What a module of a large program consists of, more or less.
MODULE = """
import functools, re

NAMES = {f"{__name__}.{number}": (number, str(number), [number]) for number in range(200)}
TABLE = [dict(name=f"{__name__}-{number}", size=number, tags={number}) for number in range(50)]

class Base:
    \"\"\"Of this module.\"\"\"
    limit: int = 3
    def __init__(self, *arguments, **keywords): self.arguments, self.keywords = arguments, keywords
    def one(self, value=None): return [value for value in self.arguments if value]
    @property
    def two(self): return functools.reduce(lambda a, b: a + b, self.arguments)

CLASSES = [
    type(f"Class{number}", (Base,), {
        "number": number, "__slots__": ("own",), "method": lambda self, x=number: x + self.limit,
    })
    for number in range(20)
]
"""


def resident() -> int:
    """The memory of this process in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fill_modules(size: int) -> None:
    """Make modules of functions, classes, dicts and strings until ``size`` bytes are in use."""
    code = compile(MODULE, "<benchmark>", "exec")
    began, number = resident(), 0
    while resident() - began < size:
        module = types.ModuleType(f"benchmark_module_{number}")
        exec(code, module.__dict__)
        sys.modules[module.__name__] = module
        number += 1


# Lists, so that the garbage collector has to look at them; with what is in one, 900 bytes each.
gc.disable()
HEAP = [[bytes(780)] for _ in range(int(os.environ.get("BENCHMARK_HEAP_MB", "0")) * 1100)]
fill_modules(int(os.environ.get("BENCHMARK_MODULES_MB", "0")) << 20)
for name in filter(None, os.environ.get("BENCHMARK_IMPORTS", "").split(",")):
    importlib.import_module(name)
gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    keys = json.loads(os.environ.get("BENCHMARK_KEYS", "{}"))
    for item in items:
        if keys:
            item.add_marker(pytest.mark.mountns(**keys))


def cpu() -> float:
    """The CPU time of this process, and of the processes that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _hooks() -> tuple[Callable[[pytest.Item], None], Callable[[], None]]:
    # Not in a global variable: those of conftest files are compared in each forked test.
    starts: list[tuple[str, float, float]] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(item: pytest.Item) -> None:
        """From here to the next test, in the pytest process: the way in and out again is in it."""
        if "BENCHMARK_TRACED" in os.environ:
            # A system call that does nothing and is found again in the trace.
            os.access("/mountns-benchmark/next-test", os.F_OK)
        starts.append((item.nodeid, time.perf_counter(), cpu()))

    def pytest_sessionfinish() -> None:
        if "BENCHMARK_TIMES" in os.environ and starts:
            ends = [*starts[1:], ("", time.perf_counter(), cpu())]
            times = {
                name.rpartition("::")[2] if len(starts) < 10 else name: (end - start, cpu_end - cpu)
                for (name, start, cpu), (_, end, cpu_end) in zip(starts, ends, strict=True)
            }
            Path(os.environ["BENCHMARK_TIMES"]).write_text(json.dumps(times))

    return pytest_runtest_protocol, pytest_sessionfinish


pytest_runtest_protocol, pytest_sessionfinish = _hooks()


@pytest.fixture
def witness() -> None:
    """Fails unless the test is where it is said to be: in another mount namespace, or not."""
    isolated = os.readlink("/proc/self/ns/mnt") != HOME
    assert isolated == (os.environ["BENCHMARK_ISOLATED"] == "yes")
