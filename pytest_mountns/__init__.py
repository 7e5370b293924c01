"""Run each pytest test in its own throwaway root filesystem.

The public names; everything else may change.
"""

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
