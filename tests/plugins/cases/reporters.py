"""Plugins that show or write down what tests have come to, or measure them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.plugins.case import Case

#: Every outcome, with output, a property and a parametrized test.
OUTCOMES = {
    "test_it.py": """
        import pytest
        @pytest.fixture
        def broken(): raise RuntimeError("broken")
        @pytest.fixture
        def untidy():
            yield
            raise RuntimeError("untidy")
        def test_passes(record_property):
            record_property("colour", "red")
            print("out of test_passes")
        def test_fails():
            print("out of test_fails")
            assert {"a": 1, "b": [1, 2]} == {"a": 1, "b": [1, 3]}
        @pytest.mark.skip(reason="not today")
        def test_skipped(): pass
        @pytest.mark.xfail
        def test_expected(): assert 0
        @pytest.mark.xfail
        def test_not_expected(): pass
        def test_setup(broken): pass
        def test_teardown(untidy): pass
        @pytest.mark.parametrize("n", [1, 2])
        def test_number(n): assert n == 1
    """
}

MEASURED = {
    "product.py": "def f(n):\n    if n > 1:\n        return 2\n    return 1\n",
    "test_it.py": """
        import product
        def test_one(): assert product.f(1) == 1
        def test_two(): assert product.f(2) == 3
    """,
}


def json_report(directory: Path) -> object:
    found = json.loads((directory / ".report.json").read_text())
    tests = [(one["nodeid"], one["outcome"], one.get("metadata")) for one in found["tests"]]
    stages = [[one.get(s, {}).get("stdout") for s in ("setup", "call")] for one in found["tests"]]
    return sorted(tests), sorted(map(str, stages)), found["summary"], found["exitcode"]


def benchmark_names(directory: Path) -> object:
    found = json.loads((directory / "benchmark.json").read_text())["benchmarks"]
    return sorted((one["name"], one["group"], str(one["extra_info"])) for one in found)


def coverage_lines(directory: Path) -> object:
    found = json.loads((directory / "coverage.json").read_text())
    return {name: one["executed_lines"] for name, one in found["files"].items()}


def html_rows(directory: Path) -> object:
    text = (directory / "report.html").read_text()
    data = text.partition('data-jsonblob="')[2].partition('"')[0].replace("&#34;", '"')
    tests = json.loads(data)["tests"]
    return sorted((name, [one["result"] for one in runs]) for name, runs in tests.items())


CASES = [
    Case(
        "pytest-cov",
        ("pytest_cov.plugin",),
        MEASURED,
        uses="`--cov`, its table and `coverage.json`",
        options=("--cov=product", "--cov-report=term-missing", "--cov-report=json"),
        digest=coverage_lines,
        shown=("TOTAL",),
        drop="timestamp",
    ),
    Case(
        "pytest-html",
        ("pytest_html.plugin", "pytest_metadata.plugin"),
        OUTCOMES,
        uses="a self-contained report",
        options=("--html=report.html", "--self-contained-html"),
        digest=html_rows,
        # It has the names of all plugins, and how long it took.
        drop="data-jsonblob|took",
    ),
    Case(
        "pytest-json-report",
        ("pytest_jsonreport.plugin", "pytest_metadata.plugin"),
        {
            **OUTCOMES,
            "test_metadata.py": "def test_it(json_metadata): json_metadata['x'] = 1\n",
        },
        uses="`--json-report`, `json_metadata`",
        options=("--json-report",),
        digest=json_report,
    ),
    Case(
        "pytest-json-ctrf",
        (),
        OUTCOMES,
        uses="`--ctrf report.json`",
        options=("--ctrf", "report.json"),
        drop=r'"(duration|reportId|start|stop|timestamp)"',
    ),
    Case(
        "pytest-reportlog",
        ("pytest_reportlog.plugin",),
        OUTCOMES,
        uses="`--report-log`",
        options=("--report-log=log.jsonl",),
    ),
    Case(
        "pytest-csv",
        (),
        OUTCOMES,
        uses="`--csv`",
        options=("--csv=report.csv", "--csv-columns=id,status,message,markers"),
    ),
    Case(
        "pytest-md-report",
        (),
        OUTCOMES,
        uses="`--md-report`, on the terminal and in a file",
        options=("--md-report", "--md-report-output=report.md"),
    ),
    Case(
        "pytest-tap",
        (),
        OUTCOMES,
        uses="`--tap-stream`",
        options=("--tap-stream",),
        requires=("pytest<9",),
    ),
    Case(
        "pytest-sugar",
        (),
        OUTCOMES,
        uses="its reporter",
        options=("--force-sugar",),
        drop=r"\d+%( |$)",
    ),
    Case("pytest-rich", (), OUTCOMES, uses="`--rich`", options=("--rich",)),
    Case(
        "pytest-pretty",
        (),
        OUTCOMES,
        uses="its reporter and table of failures",
        # With -n2, tests and what is said of them share lines in any way.
        drop=r"^test_it\.py",
    ),
    Case("pytest-instafail", (), OUTCOMES, uses="`--instafail`", options=("--instafail",)),
    Case("pytest-spec", (), OUTCOMES, uses="`--spec`", options=("--spec",)),
    Case("pytest-icdiff", (), OUTCOMES, uses="differences of values"),
    Case("pytest-clarity", (), OUTCOMES, uses="differences of values", options=("-vv",)),
    Case(
        "pytest-github-actions-annotate-failures",
        (),
        OUTCOMES,
        uses="annotations, under `GITHUB_ACTIONS`",
        environment={"GITHUB_ACTIONS": "true"},
        shown=("::error file=",),
    ),
    Case(
        "pytest-azurepipelines",
        ("azurepipelines", "nunit"),
        OUTCOMES,
        uses="its XML and its messages",
        options=("--test-run-title=title",),
        requires=("pytest-nunit",),
        drop="uploadsummary|command-line|publish|vso",
    ),
    Case(
        "pytest-benchmark",
        ("pytest_benchmark.plugin",),
        {
            "test_it.py": """
                def test_sum(benchmark):
                    benchmark.extra_info["x"] = 1
                    assert benchmark(sum, [1, 2]) == 3
                def test_wrong(benchmark):
                    assert benchmark(sum, [1, 2]) == 4
            """
        },
        uses="its table and `--benchmark-json`",
        options=("--benchmark-json=benchmark.json", "--benchmark-max-time=0.05"),
        digest=benchmark_names,
        drop=r"\d\.\d|^test_|: \d|^\d",
        shown=("benchmark: 2 tests",),
    ),
    Case(
        "pytest-structlog",
        (),
        {
            "test_it.py": """
                import structlog
                def test_events(log):
                    structlog.get_logger().info("hello", n=1)
                    assert log.has("hello", n=1)
                def test_none(log): assert log.events
            """
        },
        uses="`log`",
        requires=("structlog",),
    ),
    Case(
        "pytest-loguru",
        (),
        {
            "test_it.py": """
                from loguru import logger
                def test_events(caplog):
                    logger.info("hello")
                    assert "hello" in caplog.text
                def test_fails():
                    logger.warning("shown")
                    assert 0
            """
        },
        uses="`caplog`, captured log",
        requires=("loguru",),
        drop=r"^\d+-\d+",
    ),
]
