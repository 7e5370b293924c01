"""Plugins that are not this project's, a suite for each, and what isolated runs of it come to."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

FAILING_CHAIN = """
    import pytest
    @pytest.mark.dependency()
    def test_a(): assert 0
    @pytest.mark.dependency(depends=["test_a"])
    def test_b(): pass
    @pytest.mark.dependency(depends=["test_b"])
    def test_c(): pass
    @pytest.mark.dependency()
    def test_d(): pass
    @pytest.mark.dependency(depends=["test_d"])
    def test_e(): pass
"""


def notebook(**cell: object) -> str:
    code = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["1+1"], **cell}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": [code], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    )


def allure_results(directory: Path) -> object:
    found = []
    for path in directory.glob("results/*-result.json"):
        one = json.loads(path.read_text())
        steps = [(step["name"], len(step.get("attachments", ()))) for step in one.get("steps", ())]
        labels = {(each["name"], each["value"]) for each in one.get("labels", ())}
        kept = sorted(labels & {("feature", "f"), ("suite", "test_it")})
        found.append((one["name"], one["status"], steps, kept))
    return sorted(found), len(list(directory.glob("results/*-attachment*")))


def monitor_rows(directory: Path) -> object:
    with sqlite3.connect(directory / "monitor.db") as database:
        return database.execute("SELECT ITEM FROM TEST_METRICS ORDER BY ITEM").fetchall()


@dataclass(frozen=True)
class Case:
    """One plugin, and a suite that uses it.

    An isolated run has the same outcomes, exit status and files as a run without the plugin, unless
    it is refused or something is said.
    """

    name: str
    #: The entry points or modules that are loaded.
    plugins: tuple[str, ...]
    #: Files of the suite, by their paths.
    files: Mapping[str, str]
    #: The module without which it is skipped.
    module: str
    options: tuple[str, ...] = ()
    #: Options of a second run in the same directory.
    again: tuple[str, ...] | None = None
    #: What is written between the two.
    edited: Mapping[str, str] = field(default_factory=dict)
    #: Files whose content is compared; of others it is that they are there.
    compared: tuple[str, ...] = ()
    #: What is compared besides.
    digest: Callable[[Path], object] | None = None
    #: What is on the terminal in both runs.
    shown: tuple[str, ...] = ()
    #: Words with which a forked, or any other isolated run stops.
    refused_forked: str = ""
    refused: str = ""
    #: Words that a forked run says at its start; something is wrong in it then.
    said_forked: str = ""


CASES = [
    Case("dependency", ("pytest_dependency",), {"test_it.py": FAILING_CHAIN}, "pytest_dependency"),
    Case(
        "depends",
        ("pytest_depends",),
        {
            "test_it.py": """
                import pytest
                def test_a(): assert 0
                @pytest.mark.depends(on=["test_a"])
                def test_b(): pass
                @pytest.mark.depends(on=["test_b"])
                def test_c(): pass
                def test_d(): pass
                @pytest.mark.depends(on=["test_d"])
                def test_e(): pass
            """
        },
        "pytest_depends",
    ),
    Case(
        "testmon",
        ("testmon.pytest_testmon",),
        {
            "product.py": "def f(): return 1\ndef g(): return 2\n",
            "test_it.py": """
                import product
                def test_f(): assert product.f() == 1
                def test_g(): assert product.g() == 2
                def test_n(): pass
            """,
        },
        "testmon",
        options=("--testmon",),
        again=("--testmon",),
        edited={"product.py": "def f(): return 1\ndef g(): return 3\n"},
    ),
    Case(
        "httpserver",
        ("pytest_httpserver.pytest_plugin",),
        {
            "test_it.py": """
                import urllib.request
                def test_answer(httpserver):
                    httpserver.expect_request("/a").respond_with_data("yes")
                    assert urllib.request.urlopen(httpserver.url_for("/a")).read() == b"yes"
                def test_check(httpserver):
                    httpserver.expect_request("/a").respond_with_data("yes")
                    try: urllib.request.urlopen(httpserver.url_for("/b"))
                    except OSError: pass
                    httpserver.check_assertions()
            """
        },
        "pytest_httpserver",
        refused_forked="has its server in the pytest process",
    ),
    Case(
        "allure",
        ("allure_pytest.plugin",),
        {
            "test_it.py": """
                import allure, pytest
                @allure.feature("f")
                def test_a():
                    with allure.step("one"): allure.attach("text", name="n")
                def test_b(): assert 0
                @pytest.mark.skip
                def test_c(): pass
                def test_d():
                    allure.dynamic.title("other title")
            """
        },
        "allure_pytest",
        options=("--alluredir=results",),
        digest=allure_results,
        said_forked="has the titles of forked tests",
    ),
    Case(
        "monitor",
        ("pytest_monitor.pytest_monitor",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n"},
        "pytest_monitor",
        options=("--db=monitor.db",),
        digest=monitor_rows,
    ),
    Case(
        "tldr",
        ("pytest_tldr",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n"},
        "pytest_tldr",
        shown=("assert 0",),
    ),
    Case(
        "harvest",
        ("pytest_harvest.plugin", "xdist.plugin"),
        {
            "conftest.py": """
                def pytest_sessionfinish(session):
                    from pytest_harvest import get_session_results_dct
                    found = get_session_results_dct(session)
                    with open("harvest.txt", "w") as file:
                        for name, one in found.items():
                            print(name, one["status"], sorted(one["fixtures"].items()), file=file)
            """,
            "test_it.py": """
                import pytest
                def test_a(results_bag): results_bag.n = 1
                def test_b(): assert 0
                def test_synthesis(session_results_dct):
                    assert len(session_results_dct) >= 2
            """,
        },
        "pytest_harvest",
        compared=("harvest.txt",),
    ),
    Case(
        "bdd",
        ("pytest_bdd.plugin",),
        {
            "a.feature": """
                Feature: F
                  Scenario: S
                    Given a
                    Then b
                  Scenario: T
                    Given a
                    Then c
            """,
            "test_it.py": """
                from pytest_bdd import scenarios, given, then
                scenarios("a.feature")
                @given("a")
                def _(): pass
                @then("b")
                def _(): pass
                @then("c")
                def _(): assert 0
            """,
        },
        "pytest_bdd",
        options=("--cucumberjson=out.json", "--gherkin-terminal-reporter", "-v"),
        shown=("Feature: F", "Scenario: S PASSED", "Scenario: T FAILED"),
    ),
    Case(
        "durations",
        ("pytest_durations",),
        {
            "test_it.py": """
                import pytest
                @pytest.fixture
                def f(): pass
                def test_a(f): pass
                def test_b(): assert 0
            """
        },
        "pytest_durations",
        options=("--pytest-durations=10", "--pytest-durations-min=0"),
        shown=("test_it.py::test_a",),
    ),
    Case(
        "retry",
        ("pytest_retry.retry_plugin",),
        {
            "test_it.py": """
                import pytest
                from pathlib import Path
                tries = []
                @pytest.mark.flaky(retries=2)
                def test_a():
                    tries.append(1)
                    assert len(tries) == 2
                @pytest.mark.flaky(retries=1)
                def test_b(): assert 0
            """
        },
        "pytest_retry",
        shown=("the following tests were retried", "test_a passed on attempt 2"),
    ),
    Case(
        "metadata",
        ("pytest_metadata.plugin",),
        {
            "conftest.py": """
                from pytest_metadata.plugin import metadata_key
                def pytest_sessionfinish(session):
                    with open("meta.txt", "w") as file:
                        print(session.config.stash[metadata_key].get("x"), file=file)
            """,
            "test_it.py": """
                def test_a(metadata): metadata["x"] = 1
                def test_b(metadata): assert metadata["x"] == 1
            """,
        },
        "pytest_metadata",
        compared=("meta.txt",),
    ),
    Case(
        "teamcity",
        ("teamcity.pytest_plugin",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert [1] == [2]\n"},
        "teamcity",
        options=("--teamcity",),
    ),
    Case(
        "recording",
        ("pytest_recording.plugin",),
        {
            "test_it.py": """
                import pytest, urllib.request, threading, http.server
                @pytest.fixture(scope="module")
                def server():
                    class H(http.server.BaseHTTPRequestHandler):
                        def do_GET(self):
                            self.send_response(200); self.end_headers(); self.wfile.write(b"x")
                        def log_message(self, *a): pass
                    s = http.server.HTTPServer(("127.0.0.1", 0), H)
                    threading.Thread(target=s.serve_forever, daemon=True).start()
                    yield s.server_port
                    s.shutdown()
                @pytest.mark.vcr
                def test_a(server):
                    assert urllib.request.urlopen(f"http://127.0.0.1:{server}/").read() == b"x"
            """
        },
        "pytest_recording",
        options=("--record-mode=once",),
    ),
    Case(
        "regressions",
        ("pytest_regressions.plugin", "pytest_datadir.plugin"),
        {"test_it.py": "def test_a(data_regression): data_regression.check({'a': 1})\n"},
        "pytest_regressions",
        options=("--force-regen",),
    ),
    Case(
        "snapshot",
        ("pytest_snapshot.plugin",),
        {"test_it.py": "def test_a(snapshot): snapshot.assert_match('x', 'a.txt')\n"},
        "pytest_snapshot",
        options=("--snapshot-update",),
    ),
    Case(
        "golden",
        ("pytest_golden.plugin",),
        {
            "g.yml": "input: 1\noutput: 2\n",
            "test_it.py": """
                import pytest
                @pytest.mark.golden_test("g.yml")
                def test_a(golden): assert golden["input"] + 2 == golden.out["output"]
            """,
        },
        "pytest_golden",
        options=("--update-goldens",),
        compared=("g.yml",),
        refused="has tests write into the project",
    ),
    Case(
        "mpl",
        ("pytest_mpl.plugin",),
        {
            "test_it.py": """
                import pytest
                @pytest.mark.mpl_image_compare
                def test_a():
                    import matplotlib; matplotlib.use("agg")
                    from matplotlib import pyplot
                    figure = pyplot.figure(); return figure
            """
        },
        "pytest_mpl",
        options=("--mpl-generate-path=baseline",),
    ),
    Case(
        "insta",
        ("pytest_insta.plugin",),
        {"test_it.py": "def test_a(snapshot): assert snapshot() == 'x'\n"},
        "pytest_insta",
        options=("--insta=update",),
    ),
    Case(
        "inline-snapshot",
        ("inline_snapshot.pytest_plugin",),
        {
            "test_it.py": """
                from inline_snapshot import snapshot
                def test_a(): assert 1 == snapshot()
            """
        },
        "inline_snapshot",
        options=("--inline-snapshot=create",),
        compared=("test_it.py",),
        refused_forked="writes files into the project when the last test has ended",
    ),
    Case(
        "nbmake",
        ("nbmake.pytest_plugin",),
        {
            "a.ipynb": notebook(execution_count=None, outputs=[]),
        },
        "nbmake",
        options=("--nbmake", "--overwrite"),
        compared=("a.ipynb",),
        refused="has tests write into the project",
    ),
    Case(
        "nbval",
        ("nbval.plugin",),
        {
            "a.ipynb": notebook(
                execution_count=1,
                outputs=[
                    {
                        "data": {"text/plain": ["2"]},
                        "execution_count": 1,
                        "metadata": {},
                        "output_type": "execute_result",
                    }
                ],
            ),
        },
        "nbval",
        options=("--nbval",),
        refused_forked="would wait for ever",
    ),
    Case(
        "examples",
        ("pytest_examples",),
        {
            "README.md": "```py\nprint(1 + 1)\n```\n",
            "test_it.py": """
                import pytest
                from pytest_examples import find_examples, CodeExample, EvalExample
                @pytest.mark.parametrize("example", find_examples("README.md"), ids=str)
                def test_a(example: CodeExample, eval_example: EvalExample):
                    if eval_example.update_examples: eval_example.run_print_update(example)
                    else: eval_example.run_print_check(example)
            """,
        },
        "pytest_examples",
        options=("--update-examples",),
        compared=("README.md",),
        refused_forked="writes files into the project when the last test has ended",
    ),
    Case(
        "doctestplus",
        ("pytest_doctestplus.plugin",),
        {"product.py": 'def f():\n    """\n    >>> 1 + 1\n    3\n    """\n'},
        "pytest_doctestplus",
        options=("--doctest-plus", "--doctest-plus-generate-diff=overwrite", "--doctest-modules"),
        compared=("product.py",),
        refused_forked="writes files into the project when the last test has ended",
    ),
    Case(
        "sybil",
        (),
        {
            "conftest.py": """
                from sybil import Sybil
                from sybil.parsers.rest import DocTestParser
                pytest_collect_file = Sybil(parsers=[DocTestParser()], pattern="*.rst").pytest()
            """,
            "a.rst": ">>> x = 1\n\n>>> x + 1\n2\n",
        },
        "sybil",
        said_forked="does not have the names",
    ),
    Case(
        "codspeed",
        ("pytest_codspeed.plugin",),
        {"test_it.py": "def test_a(benchmark): benchmark(lambda: 1)\n"},
        "pytest_codspeed",
        options=("--codspeed", "--codspeed-mode=walltime", "--codspeed-max-time=0.2"),
        said_forked="keeps its results in the test process",
    ),
    Case(
        "memray",
        ("pytest_memray.plugin",),
        {"test_it.py": "def test_a(): x = [0] * 100000\n"},
        "pytest_memray",
        options=("--memray",),
        shown=("Allocation results for test_it.py::test_a",),
    ),
    Case(
        "profiling",
        ("pytest_profiling",),
        {"test_it.py": "def test_a(): pass\n"},
        "pytest_profiling",
        options=("--profile",),
        said_forked="measures the pytest process",
    ),
    Case(
        "opentelemetry",
        ("pytest_opentelemetry.plugin",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n"},
        "pytest_opentelemetry",
        said_forked="exports the spans of a forked test",
    ),
    Case(
        "ruff",
        ("pytest_ruff",),
        {"product.py": "import os\n"},
        "pytest_ruff",
        options=("--ruff",),
        shown=("`os` imported but unused",),
    ),
]
