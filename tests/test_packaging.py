"""What is uploaded: the same bytes each time, what belongs in it, and nothing else."""

from __future__ import annotations

import email
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from tests.helpers.pages import ROOT

pytest.importorskip("hatchling.build", reason="no hatchling here")
pytest.importorskip("hatch_fancy_pypi_readme", reason="no hatch-fancy-pypi-readme here")

SOURCES = ("pytest_mountns", "tests", "examples", "benchmarks", "docs")
FILES = ("conftest.py", "hatch_build.py", "pyproject.toml", "LICENSE", ".gitignore")

#: Of the wheel, besides the modules.
DATA = {
    "pytest_mountns/reports/audit_page.html",
    "pytest_mountns/py.typed",
    "pytest_mountns/engine/linux/find_directories.c",
    "pytest_mountns/engine/linux/move_threads.c",
    "pytest_mountns/engine/linux/close_descriptors.c",
    "pytest_mountns/engine/linux/look_at_files.c",
    "pytest_mountns/engine/linux/park_descriptors.c",
    "pytest_mountns/engine/linux/perform_calls.c",
    "pytest_mountns/engine/linux/helper.h",
}
#: Compiled, where there is a compiler.
LIBRARY = "pytest_mountns/engine/linux/native.so"
METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The results of two builds, of two copies of the checkout with other times and modes."""
    return [_build(tmp_path_factory.mktemp(f"build{number}"), number) for number in range(2)]


def _build(place: Path, number: int) -> Path:
    checkout = place / f"checkout{number}"
    checkout.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "results", "*.pyc", "*.so")
    for name in SOURCES:
        shutil.copytree(ROOT / name, checkout / name, ignore=ignored)
    for file in (*FILES, *(page.name for page in ROOT.glob("*.md"))):
        shutil.copy(ROOT / file, checkout)
    for path in checkout.rglob("*"):
        path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644 - 0o40 * number)
        os.utime(path, (time.time() - 1000 * number,) * 2)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", place / "dist"],
        cwd=checkout,
        check=True,
        env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"},
        capture_output=True,
    )
    return place / "dist"


def test_two_builds_are_the_same(built: list[Path]) -> None:
    one, other = (
        {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in dist.iterdir()}
        for dist in built
    )
    assert len(one) == 2
    assert one == other


def test_the_wheel_has_the_package_and_no_more(built: list[Path]) -> None:
    (wheel,) = built[0].glob("*.whl")
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "pytest_mountns").rglob("*.py")}
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    compiled = {LIBRARY} if _has_compiler() else set()
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    assert found == modules | DATA | compiled | {f"{info}/{name}" for name in METADATA}


def _has_compiler() -> bool:
    return any(map(shutil.which, ("cc", "gcc", "clang")))


@pytest.mark.skipif(not _has_compiler(), reason="no C compiler here")
def test_the_wheel_is_for_this_platform_and_every_python(built: list[Path]) -> None:
    """The library has nothing of Python, and nothing of the machine that it was built on."""
    (wheel,) = built[0].glob("*.whl")
    assert re.fullmatch(r"pytest_mountns-[^-]+-py3-none-linux_\w+\.whl", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read(LIBRARY)
    assert library.startswith(b"\x7fELF")
    assert b"Py" + b"_" not in library
    assert b"PyObject" not in library
    assert str(built[0].parent).encode() not in library


@pytest.mark.parametrize(
    ("environment", "result"),
    [
        ({"MOUNTNS_PURE": "1"}, "py3-none-any"),
        ({"CC": "/nowhere/cc"}, "py3-none-any"),
        ({"CC": "/nowhere/cc", "MOUNTNS_NATIVE": "1"}, ""),
    ],
    ids=["asked for", "no compiler", "no compiler, and demanded"],
)
def test_a_pure_wheel(tmp_path: Path, environment: dict[str, str], result: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == bool(result), done.stderr
    names = [file.name for file in tmp_path.glob("*.whl")]
    assert [result in name for name in names] == [True] * bool(result)
    if "CC" in environment:
        assert "/nowhere/cc" in done.stderr + done.stdout
    for file in tmp_path.glob("*.whl"):
        with zipfile.ZipFile(file) as archive:
            assert LIBRARY not in archive.namelist()


def test_the_sdist_can_be_tested(built: list[Path]) -> None:
    (sdist,) = built[0].glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("tests/test_packaging.py", "conftest.py", "CHANGELOG.md", "examples/test_etc.py"):
        assert name in names
    assert not [name for name in names if re.search(r"__pycache__|\.venv|\.pyc$|results/", name)]


def test_metadata(built: list[Path]) -> None:
    """The wheel's description is README, whose links cannot be relative on the index's page."""
    (wheel,) = built[0].glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    readme = metadata.get_payload()
    assert isinstance(readme, str)
    links = re.findall(r"\]\(([^)]+)", readme)
    assert len(links) > 5
    assert [link for link in links if not link.startswith("https://")] == []
    assert "<!-- example" not in readme
    newest = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert metadata["Version"] == newest
    assert metadata.get_all("Requires-Dist") is not None


def test_twine_has_no_objections(built: list[Path]) -> None:
    pytest.importorskip("twine", reason="no twine here")
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *built[0].iterdir()],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("PASSED") == 2
