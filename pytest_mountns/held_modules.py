"""Modules that are read when the plugin is activated, and executed when they are first imported.

They read what a test has changed and explain why it may have failed, which most sessions never
need. But where one of them is needed, a test is running: in its sandbox the files of this package
may be gone, its user may not be able to read them, and it may have replaced the functions that
importing takes.

This exists for speed alone. Measured with Python 3.11 in a session with one test, executing all of
them at once takes 1.2 times the CPU time that the plugin costs without.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Final, final

#: Their names in this package.
HELD: Final = (
    "engine.changes.changes",
    "engine.changes.compare",
    "engine.changes.diffs",
    "engine.changes.entries",
    "engine.changes.render",
    "engine.linux.diagnosis",
    "engine.linux.helper_process",
    "engine.linux.subordinate_ids",
    "engine.mount.assemble",
    "engine.mount.classic_api",
    "engine.sandbox.disk_guard",
    "engine.sandbox.uppers",
    "engine.sandbox.written",
    "pytest_internals.reports",
    "reports.assertrepr",
    "reports.explain",
    "reports.filter",
    "reports.refusals",
    "session.exploring",
)


@final
class HeldModules:
    """Finds modules that were read before; see :class:`importlib.abc.MetaPathFinder`."""

    def __init__(self, names: Sequence[str] = HELD) -> None:
        self._specs: dict[str, ModuleSpec] = {}
        for name in names:
            self._hold(f"{__package__}.{name}")
        sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a module that is held; None for every other module."""
        return self._specs.get(name)

    def close(self) -> None:
        """Find none any more; from now on they are imported like others."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _hold(self, name: str) -> None:
        if name in sys.modules:
            return
        spec = PathFinder.find_spec(name, import_module(name.rpartition(".")[0]).__path__)
        if spec is None or type(spec.loader) is not SourceFileLoader:
            # It comes from an archive, for example.
            import_module(name)
            return
        spec.loader = _HeldLoader(name, spec.loader.path)
        self._specs[name] = spec


class _HeldLoader(SourceFileLoader):
    """Has read its module. However often that is imported, it is executed once.

    A test may take modules out of :data:`sys.modules`. If one were executed anew, there would be
    two classes of the same name, and objects of the one would be none of the other.
    """

    def __init__(self, name: str, path: str) -> None:
        super().__init__(name, path)
        self._code: CodeType | None = self.get_code(name)
        self._module: ModuleType | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        if self._module is None:
            assert self._code is not None
            exec(self._code, module.__dict__)
            self._module = module
