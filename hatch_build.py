"""Compiles the part of the package that is written in C.

It moves threads between namespaces, performs lists of system calls, finds open directories, and
starts the processes that perform such lists or close descriptors in the background. It is a library
without Python's API, so one wheel serves all versions of Python on a platform. Without a C compiler
the wheel is a pure one. It lacks nothing but that part: ``process="auto"`` then forks where other
threads are alive, and making a sandbox costs some more.

``MOUNTNS_PURE=1`` in the environment makes a pure wheel in any case, and with ``MOUNTNS_NATIVE=1``
the build fails if the part cannot be compiled.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_DIRECTORY = Path("pytest_mountns/engine/linux")
_SOURCES = (
    "close_descriptors.c",
    "find_directories.c",
    "look_at_files.c",
    "move_threads.c",
    "park_descriptors.c",
    "perform_calls.c",
)
_LIBRARY = "native.so"
# Bound at once: what binds a function at its first call is not for a process that shares memory.
# A stack protector reads a variable of the thread, of which that process has none.
_FLAGS = ["-std=c11", "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-s", "-Wl,-z,now"]
_FLAGS += ["-fno-stack-protector"]


class NativeHook(BuildHookInterface):  # type: ignore[type-arg]
    """Builds ``native.so`` beside its sources: into the wheel, or for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and have the wheel contain the result and say its platform."""
        if self.target_name != "wheel" or os.environ.get("MOUNTNS_PURE"):
            return
        target = Path(self.root, _DIRECTORY, _LIBRARY)
        self._directory: str = tempfile.mkdtemp()
        built = Path(self._directory, target.name)
        problem = _compile(built, target.parent)
        if problem:
            # finalize() is not called if this fails.
            shutil.rmtree(self._directory)
            self._directory = ""
            if os.environ.get("MOUNTNS_NATIVE"):
                raise RuntimeError(f"{_LIBRARY}: {problem}")
            self.app.display_warning(f"a wheel without {target.name}: {problem}")
        elif version == "editable":
            # Moved there in one step: a process may be running the old one.
            fresh = target.with_suffix(".new")
            shutil.copy(built, fresh)
            fresh.replace(target)
        else:
            build_data["force_include"][str(built)] = str(_DIRECTORY / _LIBRARY)
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was compiled outside of the wheel."""
        if directory := getattr(self, "_directory", None):
            shutil.rmtree(directory)


def _compile(target: Path, sources: Path) -> str:
    """Compile; returns why that is impossible, or an empty string."""
    compiler = shlex.split(os.environ.get("CC", ""))
    if not compiler:
        found = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
        if found is None:
            return "no C compiler was found"
        compiler = [found]
    command = [*compiler, *_FLAGS, "-o", str(target), *_SOURCES]
    try:
        # There, so that no path of this machine gets into the library.
        done = subprocess.run(command, cwd=sources, capture_output=True, text=True)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    return done.stderr.strip() or "the compiler failed" if done.returncode else ""
