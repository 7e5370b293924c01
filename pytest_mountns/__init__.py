"""Run each pytest test in its own throwaway root filesystem.

The public names; everything else may change.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .engine.changes import Change, Changes
    from .engine.entries import Entry
    from .engine.errors import SandboxError
    from .engine.spec import SandboxSpec, Tmpfs, Volume
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
            "engine.changes": ("Change", "Changes"),
            "engine.entries": ("Entry",),
            "engine.errors": ("SandboxError",),
            "engine.spec": ("SandboxSpec", "Tmpfs", "Volume"),
        }
        for place, names in places.items():
            if name in names:
                value = globals()[name] = getattr(import_module(f".{place}", __name__), name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
