"""What reports say of changes: sections, properties, extras; ``writes``; assertions; the hooks."""

from __future__ import annotations

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable

import pytest

from tests.helpers.guard import GUARD
from tests.helpers.recording import Record

pytestmark = [pytest.mark.sandboxes, pytest.mark.no_mountns]

TITLE = "filesystem changes"
HOME = """
import os, signal
from pathlib import Path
import pytest

HOME = Path.home()
"""

SUITE = (
    HOME
    + """
def change():
    (HOME / "old").write_text("one\\nTWO\\nthree\\n")
    (HOME / "new").mkdir()
    (HOME / "new/file").write_text("hello\\n")
    (HOME / "gone").unlink()


def test_fails(overlay_root, tmp_path):
    (tmp_path / "own").write_text("x")
    change()
    assert 0

def test_passes(overlay_root):
    change()

def test_dies(overlay_root):
    change()
    os.kill(os.getpid(), signal.SIGKILL)

def test_fails_and_changes_nothing(overlay_root, tmp_path):
    (tmp_path / "own").write_text("x")
    assert 0

@pytest.mark.xfail
def test_is_expected_to_fail(overlay_root):
    change()
    assert 0
"""
)


@pytest.fixture
def home(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home directory with files in it, beside pytest's temporary directory and not in it."""
    home = pytester.path / "home"
    home.mkdir()
    (home / "old").write_text("one\ntwo\nthree\n")
    (home / "gone").write_text("x")
    monkeypatch.setenv("HOME", str(home))
    pytester.makeconftest(GUARD)


@pytest.fixture
def sections(record: Record) -> Callable[..., dict[tuple[str, str], str]]:
    """Runs the suite. Returns the text of the section by test and phase."""

    def run(*arguments: str) -> dict[tuple[str, str], str]:
        found = {}
        for report in record("-pno:cacheprovider", *arguments).reports:
            texts = [text for title, text in report.sections if title == TITLE]
            assert len(texts) <= 1
            if texts:
                found[report.name, report.when] = texts[0]
        return found

    return run


Sections = Callable[..., dict[tuple[str, str], str]]


@pytest.mark.usefixtures("home")
class TestSection:
    def test_what_failed_tests_have_changed(
        self, pytester: pytest.Pytester, sections: Sections
    ) -> None:
        pytester.makepyfile(SUITE)
        found = sections()
        assert set(found) == {("test_fails", "call"), ("test_dies", "call")}
        home = str(pytester.path / "home")
        for name in ("test_fails", "test_dies"):
            lines = found[name, "call"].splitlines()
            assert lines[:5] == [
                f"          {home}/",
                "deleted     gone",
                "added       new/",
                "added         file  (6 bytes)",
                "modified    old  (14 bytes)",
            ]
            diff = lines.index(f"--- {home}/old")
            assert lines[diff + 2 : diff + 7] == [
                "@@ -1,3 +1,3 @@",
                " one",
                "-two",
                "+TWO",
                " three",
            ]
        assert "(tmp_path)" in found["test_fails", "call"]
        assert "test_fails0" not in found["test_fails", "call"]

    def test_what_is_moved_into_tmp_path_is_gone(
        self, pytester: pytest.Pytester, sections: Sections
    ) -> None:
        (pytester.path / "home/data").mkdir()
        pytester.makepyfile(
            HOME
            + """
import shutil

def test_moves(destroyer, tmp_path):
    # An ordinary user's OverlayFS cannot rename it.
    shutil.move(destroyer(HOME / "data"), tmp_path / "backup")
    assert 0
"""
        )
        assert sections()["test_moves", "call"].splitlines()[:2] == [
            f"          {pytester.path}/home/",
            "deleted     data/",
        ]

    def test_of_all_or_of_none(self, pytester: pytest.Pytester, sections: Sections) -> None:
        pytester.makepyfile(SUITE)
        assert sections("--mountns-changes=none") == {}
        found = sections("--mountns-changes=all")
        assert {name for name, _ in found} == {
            "test_fails",
            "test_passes",
            "test_dies",
            "test_is_expected_to_fail",
        }
        pytester.makeini("[pytest]\nmountns_changes = none")
        assert sections() == {}
        assert len(sections("--mountns-changes", "failed")) == 2

    def test_a_choice_that_there_is_not(self, pytester: pytest.Pytester) -> None:
        result = pytester.runpytest_subprocess("--mountns-changes=some")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--mountns-changes*'some'*failed, all, none*"])

    def test_what_a_test_has_replaced_is_not_used(
        self, pytester: pytest.Pytester, sections: Sections
    ) -> None:
        pytester.makepyfile(
            HOME
            + """
from unittest import mock

@pytest.mark.parametrize("name", ["os.open", "os.stat", "os.scandir", "struct.pack", "os.readlink"])
def test_replaces(overlay_root, name):
    (HOME / "old").write_text("x")
    patch = mock.patch(name)
    patch.start()
    assert 0
"""
        )
        found = sections("--tb=no", "-p", "no:assertion")
        assert len(found) == 5
        assert all("modified    old" in text for text in found.values())

    def test_later_phases_say_only_what_is_new(
        self, pytester: pytest.Pytester, sections: Sections
    ) -> None:
        pytester.makepyfile(
            HOME
            + """
@pytest.fixture(params=["same", "other"])
def late(request):
    yield
    if request.param == "other":
        (HOME / "late").touch()
    assert 0

def test_fails_twice(overlay_root, late):
    (HOME / "old").unlink()
    assert 0
"""
        )
        assert set(sections()) == {
            ("test_fails_twice[same]", "call"),
            ("test_fails_twice[other]", "call"),
            ("test_fails_twice[other]", "teardown"),
        }

    def test_each_attempt_has_its_own(self, pytester: pytest.Pytester) -> None:
        pytest.importorskip("pytest_rerunfailures")
        pytester.makepyfile(
            HOME
            + """
def test_flaky(overlay_root, request):
    assert overlay_root.changes("/**/home/*") == {}
    (HOME / f"attempt-{request.node.execution_count}").touch()
    assert request.node.execution_count == 2
"""
        )
        result = pytester.runpytest_subprocess(
            "--reruns=1", "--junit-xml=junit.xml", "-rR", "-o", "mountns_changes=failed"
        )
        result.assert_outcomes(passed=1)
        text = (pytester.path / "junit.xml").read_text()
        assert "attempt-" not in text

    @pytest.mark.parametrize("workers", ["", "-n1"])
    def test_colours_are_the_terminals(self, pytester: pytest.Pytester, workers: str) -> None:
        pytester.makepyfile(SUITE)
        arguments = ["-k", "test_fails", "--junit-xml=junit.xml", *([workers] if workers else [])]
        plain = pytester.runpytest_subprocess("--color=no", *arguments).stdout.str()
        assert "modified    old" in plain
        assert "\x1b[" not in plain
        coloured = pytester.runpytest_subprocess("--color=yes", *arguments).stdout.str()
        assert "\x1b[33mmodified    old  (14 bytes)\x1b[0m" in coloured
        assert "\x1b[31m-two\x1b[0m" in coloured
        assert "\x1b[32m+TWO\x1b[0m" in coloured
        assert "#x1B" not in (pytester.path / "junit.xml").read_text()

    def test_junit_has_a_property_where_there_is_something(self, pytester: pytest.Pytester) -> None:
        pytester.makepyfile(SUITE)
        pytester.runpytest_subprocess("--junit-xml=junit.xml")
        tree = ElementTree.parse(pytester.path / "junit.xml")
        found = {}
        for case in tree.iter("testcase"):
            for prop in case.iter("property"):
                assert prop.get("name") == "mountns_changes"
                assert case.get("name") not in found
                found[case.get("name")] = json.loads(prop.get("value", ""))
        home = str(pytester.path / "home")
        kinds = {
            f"{home}/gone": "deleted",
            f"{home}/new": "added",
            f"{home}/new/file": "added",
            f"{home}/old": "modified",
        }
        assert found == {"test_fails": kinds, "test_dies": kinds}

    def test_pytest_html_has_an_extra(self, pytester: pytest.Pytester) -> None:
        pytest.importorskip("pytest_html")
        pytester.makepyfile(SUITE)
        pytester.runpytest_subprocess("--html=report.html", "--self-contained-html")
        text = (pytester.path / "report.html").read_text()
        blob = re.search(r'data-jsonblob="([^"]*)"', text)
        assert blob is not None
        tests = json.loads(html.unescape(blob[1]))["tests"]
        found = {
            name: [extra["name"] for row in rows for extra in row["extras"]]
            for name, rows in tests.items()
        }
        assert {name.rpartition("::")[2] for name, extras in found.items() if TITLE in extras} == {
            "test_fails",
            "test_dies",
        }

    def test_control_characters_and_odd_names_do_not_reach_the_terminal(
        self, pytester: pytest.Pytester
    ) -> None:
        pytester.makepyfile(
            HOME
            + """
def test_odd(overlay_root):
    (HOME / "a\\x1b[31m\\n").write_text("\\x1b[2J\\r\\n")
    (HOME / os.fsdecode(b"\\xff")).write_text("x")
    assert 0
"""
        )
        result = pytester.runpytest_subprocess("--color=no", "--junit-xml=junit.xml")
        output = result.stdout.str()
        assert "\x1b" not in output
        assert "a\\x1b[31m\\n" in output
        assert "+\\x1b[2J\\r" in output
        assert "added       \\xff" in output
        ElementTree.parse(pytester.path / "junit.xml")

    def test_nothing_is_read_for_tests_that_pass(self, pytester: pytest.Pytester) -> None:
        pytester.makeconftest(
            """
            from pytest_mountns.engine.sandbox import written

            def fail(self):
                raise AssertionError("was read")

            written.Written.changes = fail
            """
        )
        pytester.makepyfile(test_it="def test_it(overlay_root): pass")
        pytester.runpytest_subprocess("-Werror").assert_outcomes(passed=1)


@pytest.mark.usefixtures("home")
class TestWrites:
    SUITE = (
        HOME
        + """
PLACE = str(HOME)

@pytest.mark.mountns(writes=[f"{PLACE}/new*"])
def test_allowed(tmp_path):
    (HOME / "new").write_text("x")
    (tmp_path / "own").write_text("x")

@pytest.mark.mountns(writes=[f"{PLACE}/new*"])
def test_forbidden():
    (HOME / "new").write_text("x")
    (HOME / "old").write_text("x")
    (HOME / "other").write_text("x")

@pytest.mark.mountns(writes=[])
def test_nothing_is_allowed():
    (HOME / "new").write_text("x")

@pytest.mark.mountns(writes=[])
def test_opened_only():
    (HOME / "old").open("r+").close()

@pytest.fixture
def late():
    yield
    (HOME / "late").touch()

@pytest.mark.mountns(writes=[])
def test_late(late):
    pass

@pytest.mark.xfail(strict=True)
@pytest.mark.mountns(writes=[])
def test_expected():
    (HOME / "new").write_text("x")

@pytest.mark.mountns(writes=[])
def test_fails_otherwise():
    (HOME / "new").write_text("x")
    assert 0, "its own failure"
"""
    )

    def test_other_changes_fail_the_test(self, pytester: pytest.Pytester, record: Record) -> None:
        pytester.makepyfile(self.SUITE)
        recorded = record("-pno:cacheprovider")
        not_passed = {(report.name, report.when): report for report in recorded.not_passed}
        outcomes = {key: report.outcome for key, report in not_passed.items()}
        assert outcomes == {
            ("test_forbidden", "call"): "failed",
            ("test_nothing_is_allowed", "call"): "failed",
            ("test_late", "teardown"): "failed",
            ("test_expected", "call"): "skipped",
            ("test_fails_otherwise", "call"): "failed",
            ("test_fails_otherwise", "teardown"): "failed",
        }
        home = str(pytester.path / "home")
        text = not_passed["test_forbidden", "call"].text
        assert text.splitlines() == [
            f"{home}/old and 1 more changed, outside of writes=['{home}/new*']",
            f"  modified  {home}/old  (14 -> 1 bytes)",
            f"  added     {home}/other  (1 bytes)",
        ]
        assert "its own failure" in not_passed["test_fails_otherwise", "call"].text

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ('"/etc"', "must be a list, not str"),
            ("[1]", "must be a string, not int"),
            ('["etc"]', "paths are absolute"),
            ('["/[z-a]"]', "ends before it begins"),
        ],
    )
    def test_globs_that_make_no_sense(
        self, pytester: pytest.Pytester, value: str, message: str
    ) -> None:
        pytester.makepyfile(
            f"import pytest\n@pytest.mark.mountns(writes={value})\ndef test(): pass"
        )
        result = pytester.runpytest_subprocess()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"*::test: @pytest.mark.mountns: writes=*{message}*"])

    @pytest.mark.parametrize("process", ["fork", "module", "inline"])
    def test_each_attempt_is_checked(self, pytester: pytest.Pytester, record: Record) -> None:
        pytest.importorskip("pytest_rerunfailures")
        pytester.makepyfile(
            HOME
            + """
ATTEMPTS = {}

def attempt(name):
    ATTEMPTS[name] = ATTEMPTS.get(name, 0) + 1
    return ATTEMPTS[name]

@pytest.mark.mountns(writes=[])
def test_each_time():
    (HOME / "new").write_text("x")

@pytest.fixture
def late():
    yield
    (HOME / "late").touch()

@pytest.mark.mountns(writes=[])
def test_late(late):
    assert attempt("late") > 1

@pytest.mark.mountns(writes=[])
def test_once():
    if attempt("once") == 1:
        (HOME / "new").write_text("x")
"""
        )
        recorded = record("--mountns", "--reruns=1", "-prerunfailures")
        # Of the late one both the call and the teardown.
        reruns = [report.name for report in recorded.reports if report.outcome == "rerun"]
        assert list(dict.fromkeys(reruns)) == ["test_each_time", "test_late", "test_once"]
        assert [(one.name, one.when) for one in recorded.failed] == [
            ("test_each_time", "call"),
            ("test_late", "teardown"),
        ]
        for report in recorded.failed:
            assert "changed, outside of writes=[]" in report.text

    @pytest.mark.parametrize("process", ["fork", "module", "inline"])
    def test_a_teardown_that_fails_is_no_matter_of_the_next_test(
        self, pytester: pytest.Pytester, record: Record
    ) -> None:
        pytester.makeconftest(
            """
            import pytest

            @pytest.hookimpl(wrapper=True, tryfirst=True)
            def pytest_runtest_teardown(item):
                if item.name == "test_hook":
                    raise RuntimeError("a hook")
                return (yield)
            """
        )
        pytester.makepyfile(
            HOME
            + """
@pytest.fixture
def fails():
    yield
    raise RuntimeError("a fixture")

@pytest.mark.mountns(writes=[])
def test_fixture(fails): pass

def test_without(): (HOME / "new").write_text("x")

@pytest.mark.mountns(writes=[])
def test_with(): pass

class TestHook:
    @pytest.mark.mountns(writes=[])
    def test_hook(self): pass

    # pytest fails the setup of the test that comes next.
    def test_next(self): pass

def test_without_again(): (HOME / "new").write_text("x")

@pytest.mark.mountns(writes=[])
def test_with_again(): pass
"""
        )
        recorded = record("--mountns", "-pno:rerunfailures")
        assert [(one.name, one.when) for one in recorded.failed] == [
            ("test_fixture", "teardown"),
            ("test_hook", "teardown"),
            ("test_next", "setup"),
        ]

    def test_what_is_moved_into_a_temporary_directory_is_gone(
        self, pytester: pytest.Pytester, record: Record
    ) -> None:
        for name in ("data", "package", "sources"):
            (pytester.path / "home" / name).mkdir()
            (pytester.path / "home" / name / "file").write_text("x")
        pytester.makepyfile(
            HOME
            + """
import shutil

def move(destroyer, source, target):
    shutil.move(destroyer(HOME / source), destroyer(target))
    assert not (HOME / source).exists()

@pytest.mark.mountns(writes=[])
def test_forbidden(destroyer, tmp_path):
    move(destroyer, "data", tmp_path / "backup")

@pytest.mark.mountns(writes=[str(HOME / "data")])
def test_allowed(destroyer, tmp_path):
    move(destroyer, "data", tmp_path / "backup")

@pytest.mark.mountns(writes=[])
def test_bytecode(destroyer):
    (HOME / "__pycache__").mkdir()
    move(destroyer, "package", HOME / "__pycache__/package")

@pytest.mark.mountns(writes=[])
def test_replaced(destroyer, tmp_path):
    move(destroyer, "data", tmp_path / "backup")
    (HOME / "data").write_text("x")

@pytest.fixture(scope="session")
def made(tmp_path_factory):
    made = tmp_path_factory.mktemp("made")
    (made / "file").touch()
    return made

@pytest.mark.mountns(writes=[str(HOME / "installed")])
def test_out_of_it(destroyer, made):
    shutil.move(made, destroyer(HOME / "installed"))
"""
        )
        recorded = record("-pno:cacheprovider")
        home = str(pytester.path / "home")
        assert {(one.name, one.when): one.text.splitlines() for one in recorded.not_passed} == {
            ("test_forbidden", "call"): [
                f"{home}/data changed, outside of writes=[]",
                f"  deleted   {home}/data  (directory)",
            ],
            ("test_bytecode", "call"): [
                f"{home}/package changed, outside of writes=[]",
                f"  deleted   {home}/package  (directory)",
            ],
            ("test_replaced", "call"): [
                f"{home}/data changed, outside of writes=[]",
                f"  replaced  {home}/data  (directory -> 1 bytes)",
            ],
        }

    def test_a_renamed_directory_needs_both_places(self) -> None:
        from pytest_mountns.engine.changes.changes import Change, Changes
        from pytest_mountns.reports.writes_guard import outside

        change = Change("/a/new", "renamed", "/b/old")
        assert outside(Changes([change]), ["/a"], ()) == [change]
        assert outside(Changes([change]), ["/a", "/b/*"], ()) == []


@pytest.mark.usefixtures("home")
def test_a_comparison_says_what_differs(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        HOME
        + """
def test_compare(overlay_root):
    (HOME / "old").write_text("new\\n")
    (HOME / "more").touch()
    assert overlay_root.changes(str(HOME)) == {str(HOME / "old"): "metadata", "/etc/x": "added"}
"""
    )
    home = str(pytester.path / "home")
    result = pytester.runpytest_subprocess("-vv", "--mountns-changes=none")
    result.stdout.fnmatch_lines(
        [
            "E *assert 2 changes found, 2 expected",
            "E *Of another kind:",
            f"E *'{home}/old': 'modified', expected 'metadata'",
            "E *Expected, but not found:",
            "E *'/etc/x': 'added'",
            "E *Found, but not expected:",
            f"E *'{home}/more': 'added'  (0 bytes)",
            "E *-two",
        ]
    )


class TestHooks:
    CONFTEST = """
import dataclasses, os
import pytest
from pytest_mountns import Volume

seen = []

def pytest_mountns_spec(item, spec):
    if item.get_closest_marker("small"):
        return dataclasses.replace(spec, size=1 << 20)

def pytest_mountns_changes(item, changes):
    with open("/proc/self/stat") as file:
        pid = int(file.read().split()[0])
    own = changes.matching("/**/home/**")
    text = own[0].diff() if own else ""
    seen.append([item.name, pid, dict(own.as_dict()), text])
    if item.name == "test_refused":
        pytest.fail("refused by policy", pytrace=False)

def pytest_configure(config):
    config.addinivalue_line("markers", "small: a small upper")

def pytest_sessionfinish():
    import json
    with open(FILE, "w") as file:
        json.dump([os.getpid(), seen], file)
"""

    @pytest.mark.parametrize("option", [(), ("-s",)])
    @pytest.mark.usefixtures("home")
    def test_both(self, pytester: pytest.Pytester, record: Record, option: tuple[str, ...]) -> None:
        file = pytester.path / "seen.json"
        pytester.makeconftest(self.CONFTEST.replace("FILE", repr(str(file))))
        pytester.makepyfile(
            HOME
            + """
@pytest.mark.small
def test_full(overlay_root):
    with pytest.raises(OSError, match="No space"):
        (HOME / "big").write_bytes(bytes(2 << 20))
    (HOME / "big").unlink()

def test_changes(overlay_root):
    (HOME / "old").write_text("new\\n")

def test_dies(overlay_root):
    (HOME / "old").write_text("newer\\n")
    os._exit(3)

def test_refused(overlay_root):
    pass

def test_elsewhere():
    pass
"""
        )
        recorded = record("-pno:cacheprovider", "-Werror", *option)
        assert [(report.name, report.when) for report in recorded.failed] == [
            ("test_dies", "call"),
            ("test_refused", "teardown"),
        ]
        assert "refused by policy" in recorded.out
        pid, seen = json.loads(file.read_text())
        old = str(pytester.path / "home/old")
        assert [(name, where, kinds) for name, where, kinds, _ in seen] == [
            ("test_full", pid, {}),
            ("test_changes", pid, {old: "modified"}),
            ("test_dies", pid, {old: "modified"}),
            ("test_refused", pid, {}),
        ]
        assert seen[1][3].endswith("-two\n-three\n+new\n")
        assert seen[2][3].endswith("-two\n-three\n+newer\n")

    def test_a_spec_that_is_none(self, pytester: pytest.Pytester) -> None:
        pytester.makeconftest("def pytest_mountns_spec(item, spec): return {}")
        pytester.makepyfile("def test_it(overlay_root): pass")
        result = pytester.runpytest_subprocess()
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*::test_it: pytest_mountns_spec returned {}*"])


def test_comparisons_of_other_things_need_nothing_of_the_plugin(
    pytester: pytest.Pytester, record: Record
) -> None:
    """As ``user="nobody"``, a test may not be able to read the directory it is installed in."""
    pytester.makepyfile(
        """
        import sys

        def test_it(overlay_root):
            assert overlay_root.changes() == {}
            sys.modules["pytest_mountns.reports.assertrepr"] = None
            assert 1 == 2
        """
    )
    (failed,) = record().failed
    assert "E       assert 1 == 2" in failed.text
