"""What the pages of the documentation show is what happens."""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from docs import draw
from tests.helpers.pages import ROOT, Block, pages, read
from tests.helpers.walk import walk

#: Every test of an example is run in a sandbox, because examples write to /etc.
GUARD = """
import os
import re
import pytest

HOME = os.readlink("/proc/self/ns/mnt")


@pytest.fixture(autouse=True)
def _guard(request):
    assert os.readlink("/proc/self/ns/mnt") != HOME, "not isolated"
"""

BLOCKS = [block for page in pages() for block in read(page)]
NEEDS = {"as_root", "layered"}
WORDS = {*NEEDS, "append", "fails", "file", "plugins", "programs", "skip"}


def _examples() -> list[Any]:
    found = []
    for block in BLOCKS:
        if block.language == "python" and not {"file", "skip"} & set(block.words):
            marks = [getattr(pytest.mark, need) for need in NEEDS & set(block.words)]
            found.append(pytest.param(block, id=block.name, marks=marks))
    return found


@pytest.mark.sandboxes
@pytest.mark.parametrize("block", _examples())
def test_example(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    """A block of Python is a module of tests, and those pass."""
    for program in filter(None, block.words.get("programs", "").split(",")):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    for other in BLOCKS:
        if (other.page, other.section) == (block.page, block.section) and "file" in other.words:
            _write(pytester.path / other.words["file"], other.code)
    _write(pytester.path / "guard.py", GUARD)
    _write(pytester.path / "test_example.py", block.code)
    # The option is unknown without the plugin, so that nothing is run then.
    plugins = ["guard", "pytest_mountns.plugin", *block.words.get("plugins", "").split(",")]
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    result = pytester.runpytest_subprocess("--mountns", *(f"-p{name}" for name in plugins if name))
    outcomes = result.parseoutcomes()
    outcomes.pop("warning", None), outcomes.pop("warnings", None)
    assert set(outcomes) == ({"failed"} if "fails" in block.words else {"passed"})


def test_words_of_comments_are_known() -> None:
    for block in BLOCKS:
        assert set(block.words) <= WORDS, block.name
        assert block.words.get("skip") != "", f"{block.name}: no reason"


@pytest.mark.sandboxes
@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
def test_a_page_word_for_word(tmp_path: Path, page: str) -> None:
    """Its files are written and its commands typed; they print what the page shows."""
    home = tmp_path / "you"
    project = home / "greeter"
    project.mkdir(parents=True)
    (tmp_path / "temp").mkdir()
    # Otherwise the root directory of the run would be this checkout.
    (project / "pytest.ini").touch()
    environment = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "80",
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(tmp_path / "temp"),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "-p pytest_mountns.plugin",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    steps = list(walk(read(ROOT / page), project, environment, home=str(home)))
    assert steps
    for step in steps:
        assert step.as_shown, f"{step.where}: {step.command}\n{step.output}"
    assert {*os.listdir(home)} == {"greeter"}


@pytest.mark.parametrize("name", ["how-a-test-travels.svg", "layers-by-scope.svg"])
def test_drawings_are_those_of_their_source(tmp_path: Path, name: str) -> None:
    drawing = draw.DRAWN[name](tmp_path)
    assert drawing == (draw.PICTURES / name).read_text()


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_every_package_has_its_row_in_the_map() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text()
    table = text[text.index("## The map") : text.index("![Boxes for the packages")]
    listed = set(
        re.findall(r"`([\w./]+)`", "".join(re.findall(r"^\|(.*?)\|", table, re.MULTILINE)))
    )
    package = ROOT / "pytest_mountns"
    faces = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    folders = {str(path.parent.relative_to(package)) for path in package.glob("**/__init__.py")}
    # Parts of what has a row.
    folders -= {".", "engine", "cli/commands"}
    assert listed == faces | folders


def test_the_map_names_modules_that_exist() -> None:
    text = (ROOT / "docs" / "contributing.md").read_text()
    text = text[text.index("## The map") : text.index("## Tests\n")]
    for name in re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)`", text):
        assert (ROOT / "pytest_mountns" / name).exists() or (ROOT / name).exists(), name


def test_the_map_names_functions_that_exist() -> None:
    """Those in brackets, as in `module.py` (`function`), and `Class.method`."""
    text = (ROOT / "docs" / "contributing.md").read_text()
    text = text[text.index("## The map") : text.index("## Tests\n")]
    named = re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.py)` \(`([A-Za-z_.]+)`\)", text)
    assert len(named) > 10
    for module, name in named:
        source = ast.parse((ROOT / "pytest_mountns" / module).read_text())
        defined = {
            f"{node.name}.{part.name}" if part is not node else node.name
            for node in source.body
            if isinstance(node, ast.ClassDef | ast.FunctionDef)
            for part in (node, *node.body)
            if isinstance(part, ast.ClassDef | ast.FunctionDef)
        }
        assert name in {*defined, *(d.partition(".")[2] for d in defined)}, f"{name} in {module}"


def test_the_way_of_a_test_names_modules_that_exist() -> None:
    from docs.draw import _WAY

    for _, module, _ in _WAY:
        assert (ROOT / "pytest_mountns" / module).exists(), module
