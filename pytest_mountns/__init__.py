"""Run each pytest test in its own throwaway root filesystem.

The public names; everything else may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine.changes.changes import Change, Changes
    from .engine.changes.entries import Entry
    from .engine.linux.errors import SandboxError
    from .engine.plan.spec import SandboxSpec, Tmpfs, Volume
    from .fixtures import BindVolume, IsolatedNet, IsolatedProc, OverlayRoot

__all__ = [
    "BindVolume",
    "Change",
    "Changes",
    "Entry",
    "IsolatedNet",
    "IsolatedProc",
    "OverlayRoot",
    "SandboxError",
    "SandboxSpec",
    "Tmpfs",
    "Volume",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # Loaded when asked for: every pytest run where this is installed imports the package.
        places = {
            "fixtures": ("BindVolume", "IsolatedNet", "IsolatedProc", "OverlayRoot"),
            "engine.changes.changes": ("Change", "Changes"),
            "engine.changes.entries": ("Entry",),
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
