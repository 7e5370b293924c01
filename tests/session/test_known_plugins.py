"""What the table of known plugins comes to, and what a run says of it."""

from __future__ import annotations

import pytest

from pytest_mountns.session import known_plugins

pytestmark = pytest.mark.sandboxes

#: Stands in for pytest-httpserver: the name of its module and of its fixture are what counts.
SERVER = "import pytest\n@pytest.fixture\ndef httpserver(): pass\n"
#: Stands in for pytest-golden.
GOLDEN = "def pytest_addoption(parser): parser.addoption('--update-goldens', action='store_true')\n"
#: Stands in for pytest-snapshot.
SNAPSHOT = (
    "def pytest_addoption(parser): parser.addoption('--snapshot-update', action='store_true')\n"
)
WRITING = """
from pathlib import Path
def test_it():
    Path(__file__).with_name("snapshots").mkdir(exist_ok=True)
    Path(__file__).with_name("snapshots").joinpath("one").write_text("x")
"""


def test_an_entry_counts_if_its_plugin_is_loaded_and_its_option_set() -> None:
    def flags(*loaded: str, **options: object) -> list[str]:
        return [one.flag for one in known_plugins.updates(loaded.__contains__, options.get)]

    assert flags("pytest_snapshot", snapshot_update=True) == ["--snapshot-update"]
    assert flags("pytest_snapshot", snapshot_update=False) == []
    # Of syrupy, which has the same option, nothing is lost.
    assert flags("syrupy", snapshot_update=True) == []
    assert flags("pytest_recording", record_mode="none") == []
    assert flags("pytest_recording", record_mode="once") == ["--record-mode"]
    assert flags("inline_snapshot", inline_snapshot="report,create") == ["--inline-snapshot"]


def test_places_come_from_options_and_the_environment() -> None:
    found = known_plugins.places(
        {"allure_pytest", "pytest_memray"}.__contains__,
        {"allure_report_dir": "results"}.get,
        {"MEMRAY_RESULT_PATH": "/tmp/memray"},
    )
    assert [path for _, path in found] == ["results", "/tmp/memray"]
    loaded = {"pytest_profiling"}.__contains__
    assert not list(known_plugins.places(loaded, {"profile": False}.get, {}))
    assert list(known_plugins.places(loaded, {"profile": True}.get, {}))


@pytest.mark.parametrize("way", ["--mountns-process=fork", "mark"])
def test_a_forked_test_that_would_pass_wrongly_is_refused(
    pytester: pytest.Pytester, way: str
) -> None:
    mark = "@pytest.mark.mountns\n" if way == "mark" else ""
    pytester.makepyfile(
        pytest_httpserver=SERVER,
        test_it=f"import pytest\n{mark}def test_it(httpserver): pass\ndef test_other(): pass\n",
    )
    options = [way] if way != "mark" else []
    result = pytester.runpytest_subprocess("-ppytest_httpserver", "--mountns", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*test_it.py::test_it: *", "*check_assertions() passes*"])
    assert "test_other" not in result.stderr.str()


def test_inline_it_is_run(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(pytest_httpserver=SERVER, test_it="def test_it(httpserver): pass\n")
    pytester.runpytest_subprocess("-ppytest_httpserver", "--mountns").assert_outcomes(passed=1)


def test_a_worker_refuses_the_test(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile(
        pytest_httpserver=SERVER, test_it="def test_it(httpserver): pass\ndef test_other(): pass\n"
    )
    options = ("-ppytest_httpserver", "--mountns", "--mountns-process=fork", "-n1")
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=1, errors=1)
    assert "check_assertions() passes" in result.stdout.str()


def test_what_is_wrong_in_forked_tests_is_said(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(pytest_opentelemetry="", test_it="def test_a(): pass\ndef test_b(): pass\n")
    options = ("-ppytest_opentelemetry", "--mountns", "-Werror")
    result = pytester.runpytest_subprocess(*options, "--mountns-process=fork")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["mountns: pytest_opentelemetry exports *", "*test_it.py ..*"])
    result = pytester.runpytest_subprocess(*options)
    result.assert_outcomes(passed=2, warnings=0)
    assert "exports" not in result.stdout.str()


def test_what_a_plugin_keeps_open_is_said(pytester: pytest.Pytester) -> None:
    """Of any plugin, if it has hooks that run in test processes; the standard streams are none."""
    pytester.makepyfile(
        noting_plugin="""
        import sqlite3, sys
        database = sqlite3.connect(":memory:")
        screen = sys.stdout
        def pytest_runtest_makereport(item, call): database.execute("SELECT 1")
        """,
        other_plugin="""
        import sqlite3
        database = sqlite3.connect(":memory:")
        def pytest_sessionfinish(): database.close()
        """,
        test_it="def test_it(): pass\n",
    )
    options = ("-pnoting_plugin", "-pother_plugin", "--mountns")
    result = pytester.runpytest_subprocess(*options, "--mountns-process=fork")
    said = [line for line in result.outlines if "mountns: " in line and "keeps" in line]
    assert [line.partition(" open ")[0] for line in said] == [
        "mountns: noting_plugin keeps a database connection"
    ]
    assert "keeps a" not in pytester.runpytest_subprocess(*options).stdout.str()


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_an_option_that_writes_into_the_project_stops_the_run(
    pytester: pytest.Pytester, process: str
) -> None:
    pytester.makepyfile(pytest_golden=GOLDEN, test_it=WRITING)
    options = ("-ppytest_golden", "--update-goldens", "--mountns", f"--mountns-process={process}")
    result = pytester.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "--mountns-volume DIR" in result.stderr.str()
    pytester.mkdir("snapshots")
    result = pytester.runpytest_subprocess(*options, "--mountns-volume=snapshots")
    result.assert_outcomes(passed=1)
    assert (pytester.path / "snapshots" / "one").exists()


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_where_the_directory_is_known_it_is_a_volume(
    pytester: pytest.Pytester, process: str
) -> None:
    pytester.makepyfile(pytest_snapshot=SNAPSHOT, test_it=WRITING)
    options = ("-pno:syrupy", "-ppytest_snapshot", "--mountns", f"--mountns-process={process}")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)
    assert not (pytester.path / "snapshots").exists()
    pytester.runpytest_subprocess(*options, "--snapshot-update").assert_outcomes(passed=1)
    assert (pytester.path / "snapshots" / "one").read_text() == "x"


def test_a_directory_that_nothing_is_written_to_is_removed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(pytest_snapshot=SNAPSHOT, test_it="def test_it(): pass\n")
    options = ("-pno:syrupy", "-ppytest_snapshot", "--mountns", "--snapshot-update")
    pytester.runpytest_subprocess(*options).assert_outcomes(passed=1)
    assert not (pytester.path / "snapshots").exists()
