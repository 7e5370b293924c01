"""Modules that are read when the plugin is activated, and executed when they are first needed.

They explain failures, read what a test has changed, or make what hardly any sandbox has. Most
sessions never need them. But where one of them is needed, a test may be running: in its sandbox the
files of this package may be gone, its user may not be able to read them, and it may have replaced
what importing takes (``sys.meta_path``, ``sys.modules``, ``builtins.__import__``).

So all of them are executed at once, by :meth:`HeldModules.load` before a test that is known to need
them, or by :meth:`HeldModules.importable` when one has failed.

This exists for speed alone: in a session with one test they would be one in six of the plugin's
modules, and importing these, and taking them apart at the end, is four fifths of what such a
session costs.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    "engine.linux.job_control",
    "engine.linux.openat",
    "engine.linux.pid_namespace",
    "engine.linux.remove_tree",
    "engine.linux.subordinate_ids",
    "engine.mount.assemble",
    "engine.mount.classic_api",
    "engine.sandbox.disk_guard",
    "engine.sandbox.uppers",
    "engine.sandbox.written",
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
        self._finders = list(sys.meta_path)
        self._import = builtins.__import__
        #: The modules of this package that are there when others of it are imported.
        self._modules: dict[str, ModuleType] = {}
        self._are_loaded = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a module that is held; None for every other module."""
        return self._specs.get(name)

    def load(self) -> None:
        """Execute all of them, if that was not done before."""
        with self.importable():
            pass

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Within the context this package can be imported, whatever a test has replaced.

        All modules that are held are executed before, if they were not. What the test has replaced
        is in its place again afterwards.
        """
        former, importing = sys.meta_path, builtins.__import__
        sys.meta_path, builtins.__import__ = self._finders, self._import
        missing = {
            name: module for name, module in self._modules.items() if name not in sys.modules
        }
        sys.modules.update(missing)
        try:
            if not self._are_loaded:
                for name in self._specs:
                    import_module(name)
                self._are_loaded = True
                self.remember()
            yield
        finally:
            sys.meta_path, builtins.__import__ = former, importing
            for name in missing:
                sys.modules.pop(name, None)

    def remember(self) -> None:
        """Note which modules of this package are loaded: held ones are executed among these."""
        self._modules = dict(_modules_of_package())

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


def _modules_of_package() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name == __package__ or name.startswith(f"{__package__}."):
            yield name, module


class _HeldLoader(SourceFileLoader):
    """Has read its module. However often that is imported in a session, it is executed once.

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
