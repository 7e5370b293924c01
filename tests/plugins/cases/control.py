"""Plugins that order, select, repeat, stop or extend tests."""

from __future__ import annotations

import json

from tests.plugins.case import Case

THREE = {
    "test_it.py": """
        def test_a(): pass
        def test_b(): assert 0
        def test_c(): pass
    """
}

SEVERAL = {
    "test_a.py": "def test_1(): pass\ndef test_2(): assert 0\ndef test_3(): pass\n",
    "test_b.py": "def test_4(): pass\ndef test_5(): pass\ndef test_6(): assert 0\n",
}

#: What is left of earlier tests of the module, and chance.
STATEFUL = """
    import random
    import pytest
    seen = []
    def test_a(): assert random.randrange(10**9) > 0
    def test_b(): assert random.random() < 0
    @pytest.mark.parametrize("n", range(3))
    def test_c(n): print(random.random())
"""

CASES = [
    Case("pytest-xdist", ("xdist.plugin",), SEVERAL, uses="loaded; `-n2`", options=("-v",)),
    Case(
        "pytest-timeout",
        (),
        {
            "test_it.py": """
                import time, pytest
                @pytest.mark.timeout(2)
                def test_slow(): time.sleep(60)
                def test_quick(): pass
                @pytest.fixture
                def slow(): time.sleep(60)
                @pytest.mark.timeout(2)
                def test_setup(slow): pass
            """
        },
        uses="a test and a fixture that take too long",
    ),
    Case(
        "pytest-rerunfailures",
        (),
        {
            "test_it.py": """
                import pytest
                tries = []
                @pytest.mark.flaky(reruns=2)
                def test_always(): assert 0
                @pytest.mark.flaky(reruns=2, condition=False)
                def test_never(): assert 0
                def test_passes(): pass
            """
        },
        uses="`flaky(reruns=...)`, its counts",
        options=("-rR",),
        shown=("2 rerun",),
    ),
    Case(
        "flaky",
        (),
        {
            "test_it.py": """
                from flaky import flaky
                @flaky(max_runs=3)
                def test_always(): assert 0
                tries = []
                @flaky
                def test_second():
                    tries.append(1)
                    assert len(tries) == 2
            """
        },
        uses="attempts, its report",
        shown=("Flaky Test Report",),
    ),
    Case("pytest-repeat", (), THREE, uses="`--count=3`", options=("--count=3",)),
    Case(
        "pytest-randomly",
        (),
        {"test_it.py": STATEFUL},
        uses="`-p randomly`, one seed: order and numbers",
        options=("-p", "randomly", "--randomly-seed=7", "-rA"),
    ),
    Case(
        "pytest-random-order",
        (),
        SEVERAL,
        uses="`--random-order-seed`",
        options=("--random-order", "--random-order-seed=7", "-v"),
    ),
    Case(
        "pytest-order",
        (),
        {
            "test_it.py": """
                import pytest
                @pytest.mark.order(2)
                def test_a(): pass
                @pytest.mark.order(1)
                def test_b(): assert 0
                @pytest.mark.order(after="test_d")
                def test_c(): pass
                def test_d(): pass
            """
        },
        uses="`order(...)`",
        options=("-v",),
    ),
    Case(
        "pytest-ordering",
        (),
        {
            "test_it.py": """
                import pytest
                @pytest.mark.run(order=2)
                def test_a(): pass
                @pytest.mark.run(order=1)
                def test_b(): assert 0
            """
        },
        uses="`run(order=...)`",
        options=("-v",),
    ),
    Case(
        "pytest-split",
        (),
        {
            **SEVERAL,
            ".test_durations": json.dumps(
                {"test_a.py::test_1": 3.0, "test_a.py::test_2": 2.0, "test_b.py::test_6": 1.0}
            ),
        },
        uses="`--splits 2 --group 1` by durations that were stored",
        options=("--splits=2", "--group=1"),
    ),
    Case(
        "pytest-shard",
        (),
        SEVERAL,
        uses="`--num-shards 2 --shard-id 0`",
        options=("--num-shards=2", "--shard-id=0"),
    ),
    Case(
        "pytest-picked",
        (),
        {
            **THREE,
            "conftest.py": """
                import subprocess
                def pytest_configure(config):
                    subprocess.run(["git", "init", "-q"], check=True)
            """,
        },
        uses="`--picked` in a repository",
        options=("--picked",),
        drop=r"\.git/|commit|index",
        program="git",
        xdist=False,
    ),
    Case(
        "pytest-skip-slow",
        (),
        {
            "test_it.py": """
                import pytest
                @pytest.mark.slow
                def test_slow(): assert 0
                def test_quick(): pass
            """
        },
        uses="`slow` without and with `--slow`",
        again=("--slow",),
    ),
    Case(
        "pytest-check",
        (),
        {
            "test_it.py": """
                from pytest_check import check
                def test_two():
                    check.equal(1, 2)
                    with check: assert 3 == 4
                    print("the end")
                def test_none(): check.equal(1, 1)
            """
        },
        uses="several failures of one test",
        shown=("Failed Checks: 2",),
    ),
    Case(
        "pytest-assume",
        (),
        {
            "test_it.py": """
                import pytest
                def test_two():
                    pytest.assume(1 == 2)
                    pytest.assume(3 == 4)
                def test_none(): pytest.assume(True)
            """
        },
        uses="several failures of one test",
    ),
    Case(
        "pytest-subtests",
        (),
        {
            "test_it.py": """
                import unittest
                def test_some(subtests):
                    for n in range(3):
                        with subtests.test(n=n): assert n != 1
                class TestUnit(unittest.TestCase):
                    def test_some(self):
                        for n in range(3):
                            with self.subTest(n=n): self.assertNotEqual(n, 1)
            """
        },
        uses="`subtests`, `subTest`",
        requires=("pytest<9",),
    ),
    Case(
        "pytest-cases",
        (),
        {
            "test_it.py": """
                from pytest_cases import parametrize_with_cases, fixture
                def case_one(): return 1
                def case_two(): return 2
                @fixture(scope="module")
                def wide(): return 1
                @parametrize_with_cases("n", cases=".")
                def test_n(n, wide): assert n == wide
            """
        },
        uses="cases, wider fixtures",
        requires=("pytest<9",),
    ),
    Case(
        "pytest-lazy-fixtures",
        (),
        {
            "test_it.py": """
                import pytest
                from pytest_lazy_fixtures import lf
                @pytest.fixture
                def one(): return 1
                @pytest.fixture(scope="module")
                def two(): return 2
                @pytest.mark.parametrize("n", [lf("one"), lf("two")])
                def test_n(n): assert n == 1
            """
        },
        uses="`lf` in parameters",
    ),
    Case(
        "pytest-describe",
        (),
        {
            "test_it.py": """
                def describe_list():
                    def is_empty(): assert not []
                    def has_length(): assert len([]) == 1
            """
        },
        uses="blocks of tests",
    ),
    Case(
        "pytest-variables",
        (),
        {
            "v.json": '{"a": 1}',
            "test_it.py": """
                def test_a(variables): assert variables["a"] == 1
                def test_b(variables): variables["b"]
            """,
        },
        uses="`--variables v.json`",
        options=("--variables=v.json",),
    ),
    Case(
        "pytest-env",
        (),
        {
            "pytest.ini": "[pytest]\nenv =\n    COLOUR=red\n",
            "test_it.py": """
                import os
                def test_a(): assert os.environ["COLOUR"] == "red"
                def test_b(): assert os.environ["COLOUR"] == "blue"
            """,
        },
        uses="`env` in the ini file",
    ),
    Case(
        "pytest-dotenv",
        (),
        {
            ".env": "COLOUR=red\n",
            "test_it.py": """
                import os
                def test_a(): assert os.environ["COLOUR"] == "red"
                def test_b(): assert os.environ["COLOUR"] == "blue"
            """,
        },
        uses="`.env`",
    ),
    Case(
        "pytest-forked",
        (),
        {
            "test_it.py": """
                import os, pytest
                def test_a(): pass
                def test_b(): assert 0
                def test_dies(): os.kill(os.getpid(), 9)
            """
        },
        uses="`--forked`, a test that dies",
        refused_forked="runs each test in a fork of its own",
        options=("--forked",),
        requires=("pytest<9",),
    ),
    Case(
        "pytest-unordered",
        (),
        {
            "test_it.py": """
                from pytest_unordered import unordered
                def test_a(): assert [1, 2] == unordered(2, 1)
                def test_b(): assert [1, 2] == unordered(2, 3)
            """
        },
        uses="messages of its comparisons",
    ),
    Case(
        "pytest-fail-slow",
        (),
        {
            "test_it.py": """
                import time
                def test_slow(): time.sleep(1.5)
                def test_quick(): pass
            """
        },
        uses="`--fail-slow=1`: a slow test fails",
        options=("--fail-slow=1",),
        shown=("Test passed but took too long",),
    ),
]
