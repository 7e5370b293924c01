"""``--mountns-audit``: its tables, its JSON, and its page as a browser shows it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from pytest_mountns.engine.changes.changes import Change, Changes
from pytest_mountns.reports.audit import page, places
from tests.helpers.browser import Page, browse, find_browser

pytestmark = pytest.mark.no_mountns

SUITE = """
import os, signal
from pathlib import Path
import pytest

HOME = Path.home()

def test_nothing(tmp_path):
    (tmp_path / "own").write_text("x")

def test_cache():
    (HOME / "cache/made").mkdir(parents=True)
    for n in range(3):
        (HOME / "cache/made" / str(n)).write_text("x")

def test_settings():
    (HOME / "settings").write_text("one\\n</script><b>two</b>\\n")
    (HOME / "cache").mkdir()

def test_dies():
    (HOME / "settings").unlink()
    os.kill(os.getpid(), signal.SIGKILL)

@pytest.fixture
def late():
    yield
    (HOME / "late").write_text("x")
    assert 0

def test_fails_late(late):
    pass

@pytest.mark.no_mountns
def test_on_the_host():
    pass

@pytest.mark.skip
def test_skipped():
    pass
"""


@pytest.fixture
def home(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = pytester.path / "home"
    home.mkdir()
    (home / "settings").write_text("one\n")
    monkeypatch.setenv("HOME", str(home))
    pytester.makepyfile(test_suite=SUITE)
    return home


@pytest.mark.sandboxes
class TestRun:
    @pytest.mark.parametrize("workers", ["", "-n2"])
    def test_json_and_tables(self, pytester: pytest.Pytester, home: Path, workers: str) -> None:
        result = pytester.runpytest_subprocess(
            *("-pno:cacheprovider", "--mountns-audit-json=out/audit.json"),
            # One of the tests ends its process.
            "--mountns-process=fork",
            *([workers] if workers else []),
        )
        result.assert_outcomes(passed=5, failed=1, errors=1, skipped=1)
        data = json.loads((pytester.path / "out/audit.json").read_text())
        assert data["format"] == 1
        tests = {test["nodeid"].rpartition("::")[2]: test for test in data["tests"]}
        assert {name: (test["places"], test["outcome"]) for name, test in tests.items()} == {
            "test_nothing": ({}, "passed"),
            "test_cache": ({str(home): 5}, "passed"),
            "test_settings": ({str(home): 2}, "passed"),
            "test_dies": ({str(home): 1}, "failed"),
            "test_fails_late": ({str(home): 1}, "failed"),
        }
        assert data["directories"] == [{"path": str(home), "tests": 4, "paths": 9}]
        assert data["not_audited"] == ["test_suite.py::test_on_the_host"]
        assert tests["test_nothing"]["temporary"] >= 1
        (settings,) = (c for c in tests["test_settings"]["changes"] if c["kind"] == "modified")
        assert settings["path"] == str(home / "settings")
        assert settings["diff"].endswith(" one\n+</script><b>two</b>")
        assert sorted(os.listdir(home)) == ["settings"]
        result.stdout.fnmatch_lines(
            [
                "*mountns audit*",
                "4 of 5 tests write outside of tmp_path: 9 paths in 1 directory",
                "  tests   paths  directory",
                f"      4       9  {home}",
                "  paths  test",
                f"      5  test_suite.py::test_cache: {home}",
                "not audited, since they ran without a sandbox: test_suite.py::test_on_the_host",
                f"written: {pytester.path}/out/audit.json",
            ]
        )

    def test_without_a_file(self, pytester: pytest.Pytester, home: Path) -> None:
        result = pytester.runpytest_subprocess("--mountns-audit", "-k", "nothing")
        result.stdout.fnmatch_lines(["0 of 1 test write outside of tmp_path"])
        assert [path.name for path in pytester.path.iterdir() if "audit" in path.name] == []

    def test_a_file_that_cannot_be_written(self, pytester: pytest.Pytester, home: Path) -> None:
        result = pytester.runpytest_subprocess(
            "--mountns-audit-json=/proc/nowhere/audit.json", "-k", "nothing"
        )
        result.assert_outcomes(passed=1, deselected=6)
        result.stdout.fnmatch_lines(["cannot write /proc/nowhere/audit.json: *"])

    def test_reports_of_others_are_as_without(self, pytester: pytest.Pytester, home: Path) -> None:
        pytester.runpytest_subprocess("--mountns-audit", "--junit-xml=junit.xml", "-k", "settings")
        assert "propert" not in (pytester.path / "junit.xml").read_text()


def test_without_sandboxes_there_is_nothing_to_audit(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--no-mountns", "--mountns-audit")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--no-mountns: there is nothing to audit*"])


def test_what_is_in_a_new_directory_belongs_to_where_that_stands() -> None:
    class Directory:
        type = "directory"

    changes = Changes(
        [
            Change("/", "metadata"),
            Change("/etc/a", "modified"),
            Change("/etc/a-b", "added"),
            Change("/tmp/x", "added", None, None, Directory()),  # type: ignore[arg-type]
            Change("/tmp/x/y", "added", None, None, Directory()),  # type: ignore[arg-type]
            Change("/tmp/x/y/z", "added"),
            Change("/tmp/x-y", "added"),
            Change("/tmp/xx/y", "deleted"),
        ]
    )
    assert places(changes) == {"/": 1, "/etc": 2, "/tmp": 4, "/tmp/xx": 1}


def test_a_renamed_directory_counts_where_it_was_as_well() -> None:
    changes = [
        Change("/opt/new", "renamed", "/srv/old"),
        Change("/srv/b", "renamed", "/srv/a"),
        Change("/srv/c", "modified"),
    ]
    assert places(Changes(changes)) == {"/opt": 1, "/srv": 3}


# The page ----------------------------------------------------------------------------------------


def data_of(tests: int = 6) -> dict[str, Any]:
    def change(path: str, kind: str, diff: str = "") -> dict[str, Any]:
        made: dict[str, Any] = {"path": path, "kind": kind, "source": None, "what": "3 bytes"}
        return {**made, **({"diff": diff} if diff else {})}

    return {
        "format": 1,
        "directories": [
            {"path": "/etc", "tests": tests, "paths": tests},
            {"path": "/srv/<b>", "tests": 1, "paths": 2},
        ],
        "tests": [
            {
                "nodeid": f"tests/test_{n % 2}.py::test_{n}[</script><i>]",
                "places": {"/etc": 1, **({"/srv/<b>": 2} if n == 1 else {})},
                "kinds": {"modified": 1, **({"added": 2} if n == 1 else {})},
                "changes": [
                    change("/etc/hosts", "modified", "--- /etc/hosts\n+++ /etc/hosts\n+<new>"),
                    *([change("/srv/<b>/d", "added")] if n == 1 else []),
                    *([change("/srv/<b>/d/f", "added")] if n == 1 else []),
                ],
                "omitted": 0,
                "temporary": 1,
                "bytecode": 0,
                "outcome": "failed" if n == 0 else "passed",
            }
            for n in range(tests)
        ],
        "not_audited": [],
    }


def test_the_page_is_one_file_that_loads_nothing() -> None:
    text = page(data_of())
    assert text.count("</script>") == 2
    assert not re.search(r"\b(src|href)\s*=|@import|url\(|https?:", text)
    assert "default-src 'none'" in text


def click(shown: Page, cell: str) -> None:
    shown.evaluate(f"document.querySelector('button[data-test^=test_1]{cell}').click()")


def test_the_page_in_a_browser(tmp_path: Path) -> None:
    browser = find_browser()
    if browser is None:
        pytest.skip("there is no Chromium here")
    file = tmp_path / "audit.html"
    file.write_text(page(data_of()))
    with browse(browser) as shown:
        shown.open(file.as_uri())
        assert "6 of 6 tests wrote there: 8 paths in 2 directories." in shown.evaluate(
            "document.getElementById('summary').textContent"
        )
        # Rows: a module, then its tests. Columns: the directories.
        rows = shown.evaluate(
            "[...document.querySelectorAll('#map tbody tr')].map(row =>"
            " [...row.cells].map(cell => cell.textContent))"
        )
        assert rows[0] == ["tests/test_0.py", "3", ""]
        assert rows[1] == ["test_0[</script><i>]", "1", ""]
        assert rows[4] == ["tests/test_1.py", "3", "2"]
        assert rows[5] == ["test_1[</script><i>]", "1", "2"]
        assert len(rows) == 8
        # The more paths, the stronger the colour.
        heat = (
            "Number(getComputedStyle(document.querySelector("
            "'#map tbody tr:nth-child({}) td:nth-child({}) button'"
            ")).backgroundColor.match(/[\\d.]+(?=\\))/)[0])"
        )
        assert shown.evaluate(heat.format(6, 3)) > shown.evaluate(heat.format(6, 2)) > 0
        assert shown.evaluate("document.getElementById('detail').textContent") == ""
        click(shown, '[data-place="/etc"]')
        detail = shown.evaluate("document.getElementById('detail').innerText")
        assert "test_1[</script><i>] in /etc" in detail
        assert re.search(r"modified\s*/etc/hosts", detail)
        assert "+<new>" in detail
        assert "/srv" not in detail
        click(shown, '[data-place^="/srv"]')
        detail = shown.evaluate("document.getElementById('detail').innerText")
        assert "/srv/<b>/d/f" in detail
        assert "/etc/hosts" not in detail
        assert shown.evaluate("document.querySelectorAll('b, i').length") == 0
        shown.evaluate(
            "(() => { const box = document.getElementById('filter'); box.value = 'TEST_3';"
            " box.dispatchEvent(new Event('input')); })()"
        )
        assert shown.evaluate("document.querySelectorAll('#map tbody tr').length") == 2
        assert shown.requests == [file.as_uri()]
        assert shown.errors == []
        shown.screenshot(tmp_path / "audit.png")
        assert (tmp_path / "audit.png").stat().st_size > 1000
