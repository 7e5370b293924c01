"""Coverage has the numbers of a plain run, whichever process a line was run in."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


MODULE = """
import subprocess, sys, threading

def wide(a):
    if a:
        return 1
    return 2

def narrow(a):
    for number in range(a):
        if number == 3:
            return number
    return None

def in_thread():
    thread = threading.Thread(target=wide, args=(1,))
    thread.start()
    thread.join()

def in_subprocess():
    subprocess.run([sys.executable, "-c", "import module; module.only_there()"], check=True)

def only_there():
    answer = 3
    return answer

def never():
    return 4
"""

ONLY_THERE = MODULE.strip().splitlines().index("    answer = 3") + 1

SUITE = """
import os, pytest, module

@pytest.fixture(scope="module")
def of_module():
    yield module.wide(0)
    module.narrow(2)

@pytest.fixture
def of_test():
    yield module.narrow(1)
    module.narrow(5)

def test_one(of_module, of_test): assert module.wide(1) == 1
def test_two(of_module): module.in_thread()
@pytest.mark.skip
def test_three(): module.never()
def test_four(tmp_path): module.in_subprocess()
@pytest.mark.xfail
def test_five(of_module): assert module.narrow(4) == 4
"""

IN_PID_NAMESPACES = """
import pytest

def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.mountns(pid=True))
"""

PLUGIN = """
import coverage

class Tracer(coverage.FileTracer):
    def __init__(self, filename): self.filename = filename
    def source_filename(self): return self.filename
    def line_number_range(self, frame): return frame.f_lineno, frame.f_lineno

class Reporter(coverage.FileReporter):
    def lines(self): return set(range(1, 7))

class Plugin(coverage.CoveragePlugin):
    def file_tracer(self, filename):
        return Tracer(filename) if filename.endswith("traced.py") else None
    def file_reporter(self, filename): return Reporter(filename)

def coverage_init(registry, options): registry.add_file_tracer(Plugin())
"""


@pytest.fixture
def project(pytester: pytest.Pytester, process: str) -> pytest.Pytester:
    pytest.importorskip("coverage")
    # Not an option, which a run without the plugin would not know.
    pytester.makeini(f"[pytest]\nmountns_process = {process}")
    pytester.makepyfile(module=MODULE, test_suite=SUITE)
    return pytester


def _json(pytester: pytest.Pytester) -> dict[str, Any]:
    report = pytester.path / "report.json"
    files = json.loads(report.read_text())["files"]
    report.unlink()
    assert "module.py" in files
    return {name: _without_summary(content) for name, content in files.items()}


def _without_summary(content: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in content.items() if key not in ("functions", "classes")}
    # Coverage lists them in the order of a set.
    kept["contexts"] = {n: sorted(names) for n, names in kept.get("contexts", {}).items()}
    return kept


def _with_pytest_cov(pytester: pytest.Pytester, *options: str) -> dict[str, Any]:
    pytest.importorskip("pytest_cov")
    result = pytester.runpytest_subprocess(
        "--cov=module", "--cov=traced", "--cov-report=json:report.json", *options
    )
    assert result.ret == 0, result.stdout.str()
    # The run has combined all data files.
    assert not list(pytester.path.glob(".coverage.*"))
    return _json(pytester)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--cov-branch",),
        ("--cov-branch", "--cov-context=test"),
        ("--cov-branch", "-n2"),
    ],
    ids=" ".join,
)
def test_pytest_cov(
    project: pytest.Pytester, options: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "-n2" in options:
        pytest.importorskip("xdist")
    if "--cov-context=test" in options:
        # The default from Python 3.14 on, sysmon, says that it loses contexts.
        monkeypatch.setenv("COVERAGE_CORE", "ctrace")
    project.makefile(".coveragerc", "")
    (project.path / ".coveragerc").write_text("[json]\nshow_contexts = true\n")
    plain = _with_pytest_cov(project, "-pno:mountns", *options)
    assert _with_pytest_cov(project, "--mountns", *options) == plain


def test_subprocesses_are_measured_too(project: pytest.Pytester) -> None:
    """Also with ``pid=True``, where the process ids in the names of data files are all alike."""
    coverage = pytest.importorskip("coverage")
    if coverage.version_info < (7, 10):
        pytest.skip("patch = subprocess came with coverage 7.10")
    (project.path / ".coveragerc").write_text("[run]\npatch = subprocess\n")
    plain = _with_pytest_cov(project, "-pno:mountns", "--cov-branch")
    assert _with_pytest_cov(project, "--mountns", "--cov-branch") == plain
    project.makeconftest(IN_PID_NAMESPACES)
    assert _with_pytest_cov(project, "--mountns", "--cov-branch") == plain


@pytest.mark.parametrize("settings", ["branch = true", "dynamic_context = test_function"])
def test_coverage_run(project: pytest.Pytester, settings: str) -> None:
    reports = []
    (project.path / ".coveragerc").write_text(
        f"[run]\nsource = .\n{settings}\n[json]\nshow_contexts = true\n"
    )
    for option in ("-pno:mountns", "--mountns"):
        for command in (
            ["run", "-m", "pytest", "-p", "no:cov", "-p", "no:pytest_cov", option],
            ["json", "-o", "report.json"],
        ):
            subprocess.run(
                [sys.executable, "-m", "coverage", *command],
                cwd=project.path,
                check=True,
                capture_output=True,
            )
        reports.append(_json(project))
    assert reports[0] == reports[1]


def test_plugins_of_coverage(project: pytest.Pytester) -> None:
    project.makepyfile(
        tracing=PLUGIN, traced="def first():\n    return 1\n\n\ndef second():\n    return 2\n"
    )
    project.makepyfile(test_suite="import module, traced\ndef test_it(): traced.second()")
    (project.path / ".coveragerc").write_text("[run]\nplugins = tracing\n")
    project.syspathinsert()
    plain = _with_pytest_cov(project, "-pno:mountns")
    assert "traced.py" in plain
    assert _with_pytest_cov(project, "--mountns") == plain


def test_patches_of_forks_and_ends(project: pytest.Pytester) -> None:
    """The plugin's own forks and exits do not count: no more data files, no other numbers."""
    coverage = pytest.importorskip("coverage")
    if coverage.version_info < (7, 10):
        pytest.skip("patches came with coverage 7.10")
    (project.path / ".coveragerc").write_text("[run]\npatch = fork, _exit, subprocess\n")
    project.makepyfile(
        test_suite="""
        import module, os
        def test_fork():
            if os.fork() == 0:
                module.only_there()
                os._exit(0)
            os.wait()
        def test_other(): module.wide(1)
        """
    )
    plain = _with_pytest_cov(project, "-pno:mountns")
    assert ONLY_THERE in plain["module.py"]["executed_lines"]
    assert _with_pytest_cov(project, "--mountns") == plain
    project.makeconftest(IN_PID_NAMESPACES)
    assert _with_pytest_cov(project, "--mountns") == plain


def test_what_is_measured_in_an_attempt_that_is_repeated(project: pytest.Pytester) -> None:
    """The test's root is dropped, but not what its subprocesses have measured."""
    pytest.importorskip("pytest_rerunfailures")
    coverage = pytest.importorskip("coverage")
    if coverage.version_info < (7, 10):
        pytest.skip("patch = subprocess came with coverage 7.10")
    (project.path / ".coveragerc").write_text("[run]\npatch = subprocess\n")
    project.makepyfile(
        test_suite="""
        import module, pytest
        @pytest.mark.flaky(reruns=1)
        def test_it(request):
            if request.node.execution_count == 1:
                module.in_subprocess()
                assert module.narrow(5) == 5
        """
    )
    plain = _with_pytest_cov(project, "-pno:mountns")
    assert ONLY_THERE in plain["module.py"]["executed_lines"]
    assert _with_pytest_cov(project, "--mountns") == plain


#: Which test runs what, as pytest-testmon finds it out: one measurement for each test, or for all.
OWN_COVERAGE = """
import os
import coverage, pytest

FOUND = {}
# A module of this plugin has the same name.
MODULE = os.path.abspath("module.py")
TOGETHER = coverage.Coverage(data_file=None, config_file=False, include=[MODULE])

def lines(data):
    return [(context, sorted(data.lines(file))) for file in sorted(data.measured_files())
            for context in sorted(data.measured_contexts())]

@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    each = None
    if item.config.getoption("each"):
        each = coverage.Coverage(data_file=None, config_file=False, include=[MODULE])
        each.start()
    else:
        TOGETHER.start()
        TOGETHER.switch_context(item.name)
    try:
        return (yield)
    finally:
        used = each or TOGETHER
        used.stop()
        if each or not nextitem:
            FOUND[item.name] = lines(used.get_data())
            used.erase()

def pytest_addoption(parser): parser.addoption("--each", action="store_true")

def pytest_unconfigure():
    with open("found", "w") as file: print(*sorted(FOUND.items()), sep="\\n", file=file)
"""


# With "module" such a wrapper runs in both processes, see docs/limits.md.
@pytest.mark.parametrize("process", ["fork", "inline"], indirect=True)
@pytest.mark.parametrize("options", [["--each"], []], ids=["each", "together"])
def test_a_plugin_that_measures_tests_itself(project: pytest.Pytester, options: list[str]) -> None:
    project.makepyfile(
        conftest=OWN_COVERAGE,
        test_suite="""
        import module
        def test_one(): module.wide(1)
        def test_two(): module.narrow(2)
        def test_three(): module.narrow(5)
        """,
    )
    found = []
    for option in ("-pno:mountns", "--mountns"):
        result = project.runpytest_subprocess("-pno:pytest_cov", option, *options)
        assert result.ret == 0
        found.append((project.path / "found").read_text())

    assert "[" in found[0]
    assert found[1] == found[0]


def test_without_coverage(pytester: pytest.Pytester) -> None:
    """A session without coverage does not import it."""
    pytester.makepyfile(
        """
        import sys
        def test_it(overlay_root): assert "coverage" not in sys.modules
        """
    )
    options = ("-p", "no:cov", "-p", "no:pytest_cov", "-p", "no:xdist")
    assert pytester.runpytest_subprocess(*options).ret == 0
