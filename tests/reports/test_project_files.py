"""What tests write into the project is dropped, and the end of the run says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_mountns.engine.changes.touched import Touched, TouchedBelow
from pytest_mountns.reports.project_files import line

pytestmark = pytest.mark.no_mountns

SUITE = """
import os
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.mark.parametrize("n", [1, 2])
def test_records(n):
    (HERE / "cassettes").mkdir(exist_ok=True)
    (HERE / "cassettes" / f"{n}.yaml").write_text("recorded")

def test_changes():
    (HERE / "data/known").write_text("changed")

def test_deletes():
    (HERE / "data/known").unlink()

def test_opens_for_writing():
    os.close(os.open(HERE / "data/known", os.O_RDWR))

def test_writes_elsewhere(tmp_path, pytestconfig):
    (tmp_path / "file").write_text("x")
    (HERE / "data/__pycache__").mkdir()
    (HERE / "data/__pycache__/x.pyc").write_text("x")
    (HERE / "cached").mkdir()
    (HERE / "cached/CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55")
    (HERE / "cached/file").write_text("x")
    pytestconfig.cache.set("a", 1)

@pytest.mark.mountns
def test_with_a_mark_that_deletes():
    (HERE / "data/known").unlink()

def test_removes_what_it_has_made():
    (HERE / "data/new").write_text("x")
    (HERE / "data/new").unlink()
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> Path:
    pytester.makepyfile(**{"tests/test_suite": SUITE})
    (pytester.path / "tests/data").mkdir()
    (pytester.path / "tests/data/known").write_text("known")
    return pytester.path


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def _said(result: pytest.RunResult) -> list[str]:
    return [one for one in result.outlines if "into the project" in one]


@pytest.mark.sandboxes
@pytest.mark.parametrize(
    "options",
    [["--mountns-process=fork"], ["--mountns-process=inline"], ["-n2"], ["--basetemp=tmp"], ["-q"]],
    ids=" ".join,
)
def test_the_line(pytester: pytest.Pytester, project: Path, options: list[str]) -> None:
    result = pytester.runpytest_subprocess("--mountns", *options)
    assert _said(result) == [
        "mountns: 4 tests wrote into the project (tests/cassettes, tests/data, 3 files), dropped:"
        " mountns_volumes = tests/cassettes, tests/data (each on a line of its own)"
    ]
    assert not (project / "tests/cassettes").exists()


@pytest.mark.sandboxes
@pytest.mark.parametrize("options", [["-k", "elsewhere or opens or mark or removes"], ["-qq"]])
def test_nothing_is_said(pytester: pytest.Pytester, project: Path, options: list[str]) -> None:
    result = pytester.runpytest_subprocess("--mountns", *options)
    assert result.ret == 0
    assert _said(result) == []


@pytest.mark.sandboxes
@pytest.mark.parametrize("process", ["fork", "inline"])
def test_what_the_line_says_to_set_keeps_the_files(
    pytester: pytest.Pytester, project: Path, process: str
) -> None:
    only = ["--mountns", f"--mountns-process={process}", "-k", "test_records or test_changes"]
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\n")
    result = pytester.runpytest_subprocess(*only)
    (said,) = _said(result)
    setting = said.rpartition("dropped: ")[2]
    assert setting == 'mountns_volumes = ["tests/cassettes", "tests/data"]'
    pytester.makepyprojecttoml(f"[tool.pytest.ini_options]\n{setting}\n")
    result = pytester.runpytest_subprocess(*only)
    assert _said(result) == []
    assert (project / "tests/cassettes/2.yaml").read_text() == "recorded"
    assert (project / "tests/data/known").read_text() == "changed"


@pytest.mark.sandboxes
@pytest.mark.parametrize("process", ["fork", "inline"])
def test_a_file_in_the_root_directory(
    pytester: pytest.Pytester, project: Path, process: str
) -> None:
    pytester.makepyfile(test_it="def test(): open('report.txt', 'w').close()")
    only = ["--mountns", f"--mountns-process={process}", "test_it.py"]
    result = pytester.runpytest_subprocess(*only)
    assert _said(result) == [
        "mountns: 1 test wrote into the project (., 1 file), dropped: mountns_volumes = ."
    ]
    pytester.makeini("[pytest]\nmountns_volumes = .")
    result = pytester.runpytest_subprocess(*only)
    assert _said(result) == []
    assert (project / "report.txt").exists()


@pytest.mark.sandboxes
def test_a_test_process_that_dies(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import os\ndef test():\n    open('file', 'w').close()\n    os._exit(3)")
    result = pytester.runpytest_subprocess("--mountns", "--mountns-process=fork")
    assert len(_said(result)) == 1


@pytest.mark.sandboxes
def test_the_audit_lists_paths(pytester: pytest.Pytester, project: Path) -> None:
    result = pytester.runpytest_subprocess("--mountns-audit", "-v", "-k", "test_changes")
    result.stdout.fnmatch_lines(
        [
            "*1*tests/test_suite.py::test_changes: */tests/data",
            f" *modified *{project}/tests/data/known",
        ]
    )
    result = pytester.runpytest_subprocess("--mountns-audit", "-k", "test_changes")
    assert "data/known" not in result.stdout.str()


def test_many_directories() -> None:
    files = {f"d{n}": ["x"] for n in range(9)}
    assert line(2, {**files, "b": ["b/1", "b/2"]}, toml=False) == (
        "2 tests wrote into the project (b, d0, d1, ..., 3 files), dropped: mountns_volumes ="
        " b, d0, d1, ... (each on a line of its own)"
    )
    # A volume has all that is below it.
    assert line(1, {".": ["a"], "b/c": ["d"]}, toml=True).endswith('mountns_volumes = ["."]')


def test_without_an_entry_nothing_is_read(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "etc").mkdir(parents=True)
    touched = TouchedBelow("/home/me/project")
    with _opened(tmp_path) as fd:
        assert not touched.has_entry([("/", "upper"), ("/var", "other")], fd)
        (upper / "home/me/project/new").mkdir(parents=True)
        assert touched.has_entry([("/", "upper")], fd)
        (upper / "home/me/project/new/file").touch()
        found = list(touched.find([("/", "upper")], fd, lambda *_: False))
        assert found == [Touched("/home/me/project/new/file", "/home/me/project/new", False)]
        # Of a mount below the project.
        place = "/home/me/project/mnt"
        (tmp_path / "mnt").mkdir()
        (tmp_path / "mnt/file").touch()
        found = list(touched.find([(place, "mnt")], fd, lambda *_: False))
        assert found == [Touched(f"{place}/file", place, False)]


@pytest.mark.layered
@pytest.mark.sandboxes
@pytest.mark.parametrize("tmp_path", ["shared", "own"])
def test_temporary_files_in_the_project_are_none_of_it(
    pytester: pytest.Pytester, tmp_path: str
) -> None:
    pytester.makepyfile("def test_it(tmp_path): (tmp_path / 'file').write_text('x')")
    options = ("--mountns", "-o", f"mountns_tmp_path={tmp_path}", "-pno:cacheprovider")
    out = pytester.runpytest_subprocess(*options, "--basetemp=here").stdout
    out.fnmatch_lines(["*1 passed*"])
    out.no_fnmatch_line("*wrote into the project*")
