"""Plugins of which something has to be known: notes, files that tests write, refusals."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from tests.plugins.case import Case

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


CASES = [
    Case(
        "pytest-dependency",
        ("pytest_dependency",),
        {"test_it.py": FAILING_CHAIN},
        uses="tests that are skipped since another has failed",
    ),
    Case(
        "pytest-depends",
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
        uses="the same, and the order of tests",
    ),
    Case(
        "pytest-testmon",
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
        uses="a second run that selects tests by what has changed",
        options=("--testmon",),
        again=("--testmon",),
        edited={"product.py": "def f(): return 1\ndef g(): return 3\n"},
    ),
    Case(
        "pytest_httpserver",
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
        uses="expectations, answers, `check_assertions()`",
        refused_forked="has its server in the pytest process",
    ),
    Case(
        "allure-pytest",
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
        uses="steps, attachments, labels, titles",
        options=("--alluredir=results",),
        digest=allure_results,
        said_forked="has the titles of forked tests",
    ),
    Case(
        "pytest-monitor",
        ("pytest_monitor.pytest_monitor",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n"},
        uses="its database",
        options=("--db=monitor.db",),
        digest=monitor_rows,
    ),
    Case(
        "pytest-tldr",
        ("pytest_tldr",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n"},
        uses="its reporter",
        shown=("assert 0",),
    ),
    Case(
        "pytest-harvest",
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
        uses="`results_bag`, results at the end of the session",
    ),
    Case(
        "pytest-bdd",
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
        uses="scenarios, `--cucumberjson`, `--gherkin-terminal-reporter`",
        options=("--cucumberjson=out.json", "--gherkin-terminal-reporter", "-v"),
        shown=("Feature: F", "Scenario: S PASSED", "Scenario: T FAILED"),
    ),
    Case(
        "pytest-durations",
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
        uses="its table of fixtures and calls",
        options=("--pytest-durations=10", "--pytest-durations-min=0"),
        ordered=False,
        shown=("test_it.py::test_a",),
    ),
    Case(
        "pytest-retry",
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
        uses="attempts, its report",
        shown=("the following tests were retried", "test_a passed on attempt 2"),
    ),
    Case(
        "pytest-metadata",
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
        uses="metadata that tests add",
        # A test sees what another has added.
        xdist=False,
    ),
    Case(
        "teamcity-messages",
        ("teamcity.pytest_plugin",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert [1] == [2]\n"},
        uses="messages, actual and expected values",
        options=("--teamcity",),
    ),
    Case(
        "pytest-recording",
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
        uses="`--record-mode=once` writes cassettes",
        options=("--record-mode=once",),
    ),
    Case(
        "pytest-regressions",
        ("pytest_regressions.plugin", "pytest_datadir.plugin"),
        {"test_it.py": "def test_a(data_regression): data_regression.check({'a': 1})\n"},
        uses="`--force-regen` writes files",
        options=("--force-regen",),
    ),
    Case(
        "pytest-snapshot",
        ("pytest_snapshot.plugin",),
        {"test_it.py": "def test_a(snapshot): snapshot.assert_match('x', 'a.txt')\n"},
        uses="`--snapshot-update` writes files",
        options=("--snapshot-update",),
    ),
    Case(
        "pytest-golden",
        ("pytest_golden.plugin",),
        {
            "g.yml": "input: 1\noutput: 2\n",
            "test_it.py": """
                import pytest
                @pytest.mark.golden_test("g.yml")
                def test_a(golden): assert golden["input"] + 2 == golden.out["output"]
            """,
        },
        uses="`--update-goldens` writes files",
        options=("--update-goldens",),
        refused="has tests write into the project",
    ),
    Case(
        "pytest-mpl",
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
        uses="`--mpl-generate-path` writes pictures",
        requires=("matplotlib",),
        options=("--mpl-generate-path=baseline",),
    ),
    Case(
        "pytest-insta",
        ("pytest_insta.plugin",),
        {"test_it.py": "def test_a(snapshot): assert snapshot() == 'x'\n"},
        uses="`--insta=update` writes files",
        options=("--insta=update",),
        said_forked="does not list the snapshots",
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
        uses="`--inline-snapshot=create` changes sources",
        options=("--inline-snapshot=create",),
        refused_forked="writes files into the project when the last test has ended",
    ),
    Case(
        "nbmake",
        ("nbmake.pytest_plugin",),
        {
            "a.ipynb": notebook(execution_count=None, outputs=[]),
        },
        uses="`--overwrite` changes notebooks",
        requires=("ipykernel",),
        options=("--nbmake", "--overwrite"),
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
        uses="`--nbval`: the cells of a notebook",
        requires=("ipykernel",),
        options=("--nbval",),
        refused_forked="would wait for ever",
    ),
    Case(
        "pytest-examples",
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
        uses="`--update-examples` changes a document",
        options=("--update-examples",),
        refused_forked="writes files into the project when the last test has ended",
    ),
    Case(
        "pytest-doctestplus",
        ("pytest_doctestplus.plugin",),
        {"product.py": 'def f():\n    """\n    >>> 1 + 1\n    3\n    """\n'},
        uses="`--doctest-plus-generate-diff=overwrite` changes sources",
        options=("--doctest-plus", "--doctest-plus-generate-diff=overwrite", "--doctest-modules"),
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
        uses="examples of a document that share names",
        said_forked="does not have the names",
    ),
    Case(
        "pytest-codspeed",
        ("pytest_codspeed.plugin",),
        {"test_it.py": "def test_a(benchmark): benchmark(lambda: 1)\n"},
        uses="its table and results",
        options=("--codspeed", "--codspeed-mode=walltime", "--codspeed-max-time=0.2"),
        drop=r"\d",
        said_forked="keeps its results in the test process",
    ),
    Case(
        "pytest-memray",
        ("pytest_memray.plugin",),
        {"test_it.py": "def test_a(): x = [0] * 100000\n"},
        uses="its table of allocations",
        options=("--memray",),
        shown=("Allocation results for test_it.py::test_a",),
    ),
    Case(
        "pytest-profiling",
        ("pytest_profiling",),
        {"test_it.py": "def test_a(): pass\n"},
        uses="its profile and table",
        options=("--profile",),
        # What was called, and how long that took.
        drop=r"function calls|List reduced|:\d+\(|\{|^[A-Z][a-z]{2} ",
        said_forked="measures the pytest process",
    ),
    Case(
        "pytest-opentelemetry",
        ("pytest_opentelemetry.plugin",),
        {"test_it.py": "def test_a(): pass\ndef test_b(): assert 0\n"},
        uses="spans that are exported",
        requires=("opentelemetry-sdk",),
        environment={"OTEL_TRACES_EXPORTER": "console"},
        drop=r'_id"|_time"|"process\.(command|pid)|instance\.id|timestamp',
        said_forked="exports the spans of a forked test",
    ),
    Case(
        "pytest-ruff",
        ("pytest_ruff",),
        {"product.py": "import os\n"},
        uses="`--ruff`: an item for each file",
        # The plugins' hooks, in a traceback.
        drop="^(methods|hook_impls) = ",
        options=("--ruff",),
        shown=("`os` imported but unused",),
    ),
]
