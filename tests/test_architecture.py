"""The packages and the arrows between them: what may import what.

The imports are read from the source, those in functions and under ``TYPE_CHECKING`` included.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest

import pytest_mountns

PACKAGE: Final = "pytest_mountns"
Imports = Mapping[str, frozenset[str]]

_ENGINE: Final = "linux plan changes faults mount layers sandbox probe planning"
#: What each package may import, besides the standard library, pytest (outside of the engine) and
#: itself. "engine" stands for all packages of the engine.
ARROWS: Final[Mapping[str, str]] = {
    "engine": "",
    "engine.linux": "",
    "engine.plan": "engine.linux",
    "engine.changes": "engine.linux engine.plan",
    "engine.faults": "engine.linux engine.plan engine.changes",
    "engine.mount": "engine.linux engine.plan",
    "engine.layers": "engine.linux engine.plan engine.changes",
    "engine.sandbox": "engine.linux engine.plan engine.changes engine.mount engine.layers",
    "engine.probe": "engine.linux engine.plan engine.changes engine.mount engine.layers"
    " engine.sandbox",
    "engine.planning": "engine",
    "pytest_internals": "",
    "plugin_state": "pytest_internals",
    "config": "engine.plan engine.layers engine.changes",
    # Messages carry plans, and what a reader of uppers has to know of a sandbox.
    "forking": "engine.linux engine.plan engine.sandbox pytest_internals",
    "session": "engine config plugin_state pytest_internals",
    "runners": "session forking plugin_state pytest_internals engine",
    "reports": "session config pytest_internals engine",
    "repro": "reports config session engine",
    "cli": "repro reports session config engine activation",
    "activation": "runners reports repro session config held_modules",
    "held_modules": "",
    # The faces: hooks and fixtures, a few lines each. Their types are the engine's.
    "plugin": "activation hookspecs fixtures runners reports session config",
    "fixtures": "activation runners reports session config engine",
    "hookspecs": "engine",
    # The names that users import, loaded when asked for.
    "": "fixtures engine",
}


def read_imports(root: Path) -> dict[str, frozenset[str]]:
    """Each module below the package at ``root``, and the modules that it imports."""
    names = {}
    for file in root.rglob("*.py"):
        parts = [root.name, *file.relative_to(root).with_suffix("").parts]
        names[file] = ".".join(parts).removesuffix(".__init__")
    modules = frozenset(names.values())
    found = {}
    for file, name in names.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found[name] = frozenset(_imported(tree, package, modules)) - {name}
    return found


def _imported(tree: ast.AST, package: str, modules: frozenset[str]) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            parents = parents[: len(parents) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if whole in modules else module


def package_of(module: str) -> str:
    """The entry of the table that a module of the plugin belongs to."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[:1] == ["engine"] else parts[:1])


def wrong_arrows(imports: Imports) -> list[str]:
    """The imports that the table lacks."""
    wrong = []
    for module, imported in sorted(imports.items()):
        own = package_of(module)
        allowed = {*ARROWS.get(own, "").split(), own}
        if "engine" in allowed:
            allowed |= {f"engine.{name}" for name in _ENGINE.split()}
        for other in sorted(imported):
            top = other.partition(".")[0]
            if top in ("pytest", "_pytest", "pluggy"):
                if own.startswith("engine") or (top == "_pytest" and own != "pytest_internals"):
                    wrong.append(f"{module} imports {other}")
            elif top == PACKAGE and package_of(other) not in allowed:
                wrong.append(f"{module} imports {other}")
    return wrong


def circles(imports: Imports) -> list[str]:
    """Modules that import each other, directly or by way of others."""
    reached: dict[str, set[str]] = {module: set(found) for module, found in imports.items()}
    changed = True
    while changed:
        changed = False
        for found in reached.values():
            more = set().union(*(reached.get(one, set()) for one in found)) - found
            changed |= bool(more)
            found |= more
    return sorted(
        f"{one} and {other} import each other"
        for one, found in reached.items()
        for other in found
        if one < other and one in reached.get(other, set())
    )


def named_tuples_with_other_bases(root: Path) -> list[str]:
    """Classes that Python 3.10 refuses to make, although type checkers accept them."""
    return [
        f"{file.name}: {node.name}"
        for file in sorted(root.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and len(node.bases) > 1
        and any(ast.unparse(base).endswith("NamedTuple") for base in node.bases)
    ]


def test_no_class_needs_a_newer_python_than_3_10() -> None:
    assert named_tuples_with_other_bases(Path(pytest_mountns.__file__).parent) == []


def test_a_generic_named_tuple_is_found(tmp_path: Path) -> None:
    text = "class A(NamedTuple):\n    a: int\nclass B(typing.NamedTuple, Generic[T]):\n    b: T\n"
    (tmp_path / "a.py").write_text(text)
    assert named_tuples_with_other_bases(tmp_path) == ["a.py: B"]


def test_the_packages_import_what_the_table_allows() -> None:
    imports = read_imports(Path(pytest_mountns.__file__).parent)
    assert "pytest_mountns.engine.linux.syscalls" in imports
    assert wrong_arrows(imports) == []


def test_no_modules_import_each_other() -> None:
    assert circles(read_imports(Path(pytest_mountns.__file__).parent)) == []


def test_every_package_is_in_the_table() -> None:
    imports = read_imports(Path(pytest_mountns.__file__).parent)
    assert {package_of(module) for module in imports} == set(ARROWS)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (
            {"engine/mount/root.py": "def f():\n    import pytest\n"},
            ["pytest_mountns.engine.mount.root imports pytest"],
        ),
        (
            {"reports/changes.py": "from _pytest.nodes import Node\n"},
            ["pytest_mountns.reports.changes imports _pytest.nodes"],
        ),
        (
            {
                "session/a.py": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from .b import B\n",
                "session/b.py": "from . import a\n",
            },
            ["pytest_mountns.session.a and pytest_mountns.session.b import each other"],
        ),
        (
            {"runners/forked.py": "from ..reports import audit\n", "reports/audit.py": ""},
            ["pytest_mountns.runners.forked imports pytest_mountns.reports.audit"],
        ),
        (
            {"engine/plan/spec.py": "from ..mount.api import x\n", "engine/mount/api.py": ""},
            ["pytest_mountns.engine.plan.spec imports pytest_mountns.engine.mount.api"],
        ),
        (
            {"engine/linux/a.py": "import pytest_mountns.config.options\n"},
            ["pytest_mountns.engine.linux.a imports pytest_mountns.config.options"],
        ),
        ({"pytest_internals/a.py": "import _pytest.runner, pluggy\n"}, []),
    ],
    ids=["pytest", "_pytest", "circle", "reports", "upwards", "absolute", "allowed"],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: dict[str, str], found: list[str]) -> None:
    root = tmp_path / PACKAGE
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    imports = read_imports(root)
    assert [*wrong_arrows(imports), *circles(imports)] == found
