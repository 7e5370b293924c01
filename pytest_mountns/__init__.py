"""Run each pytest test in its own throwaway root filesystem.

The public names; everything else may change.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from .engine.changes.changes import Change, Changes
    from .engine.changes.entries import Entry
    from .engine.faults.exploration import Crash, Fault
    from .engine.linux.errors import SandboxError
    from .engine.plan.spec import SandboxSpec, Tmpfs, Volume
    from .fixtures import BindVolume, IsolatedNet, IsolatedProc, OverlayRoot

__all__ = [
    "BindVolume",
    "Change",
    "Changes",
    "Crash",
    "Entry",
    "Fault",
    "IsolatedNet",
    "IsolatedProc",
    "OverlayRoot",
    "SandboxError",
    "SandboxSpec",
    "Tmpfs",
    "Volume",
]


def _skip_assertion_rewriting(package: str) -> None:
    """Have the modules of this package imported as any others are.

    pytest rewrites the assertions of all modules of a distribution that has a plugin. That takes
    longer for each of them (21 ms for those of a session that isolates, of 160), and where pytest
    cannot write its bytecode each session compiles them. There is nothing to rewrite here: nothing
    is asserted that a user would see.
    """
    # Outside of pytest nothing has to be skipped.
    if any(type(finder).__name__ == "AssertionRewritingHook" for finder in sys.meta_path):
        sys.meta_path.insert(0, _PlainFinder(package))


class _PlainFinder:
    """Finds the modules of one package, see :class:`importlib.abc.MetaPathFinder`."""

    def __init__(self, package: str) -> None:
        self._prefix = f"{package}."

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(self._prefix):
            return None
        return PathFinder.find_spec(name, path, target)


if not TYPE_CHECKING:
    _skip_assertion_rewriting(__name__)

    def __getattr__(name: str) -> object:
        # Loaded when asked for: every pytest run where this is installed imports the package.
        places = {
            "fixtures": ("BindVolume", "IsolatedNet", "IsolatedProc", "OverlayRoot"),
            "engine.changes.changes": ("Change", "Changes"),
            "engine.changes.entries": ("Entry",),
            "engine.faults.exploration": ("Crash", "Fault"),
            "engine.linux.errors": ("SandboxError",),
            "engine.plan.spec": ("SandboxSpec", "Tmpfs", "Volume"),
        }
        for place, names in places.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f".{place}", __name__), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
