"""Volumes of the run: directories that every suite needs to write to and that outlive it.

The next run reads pytest's cache and the examples that Hypothesis has found. So they are volumes
in every sandbox, unless the spec has something else at their places. So are the places that known
plugins write to (:mod:`.known_plugins`), and the pipes of whoever has started pytest
(:mod:`.runner_pipes`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import final

import pytest

from .. import pytest_internals
from ..engine.linux.untouched import os
from ..engine.plan.spec import SandboxSpec, SpecError, Volume
from .made_directories import made_directories
from .other_plugins import OtherPlugins


@final
class RunVolumes:
    """Adds the volumes of the run to specs, and makes their directories when first needed."""

    def __init__(self, config: pytest.Config, pipes: Sequence[str]) -> None:
        self._config = config
        self._pipes = pipes
        self._other_plugins = OtherPlugins(config)
        self._cache: Path | None = None
        self._asked = False
        self._made = made_directories(config)
        self._specs: dict[tuple[SandboxSpec, bool, tuple[Path, ...]], SandboxSpec] = {}

    def add(self, item: pytest.Item, spec: SandboxSpec) -> SandboxSpec:
        """Returns ``spec`` with the volumes of the run; its own ones take precedence."""
        if not self._asked:
            self._asked = True
            self._cache = pytest_internals.cache_directory(self._config)
        draws = getattr(getattr(item, "obj", None), "is_hypothesis_test", False) is True
        beside = tuple(self._other_plugins.beside(item))
        key = (spec, draws, beside)
        known = self._specs.get(key)
        if known is None or not all(os.path.exists(v.source) for v in known.volumes):
            known = self._specs[key] = self._with_volumes(spec, draws, beside)
        return known

    def _with_volumes(self, spec: SandboxSpec, draws: bool, beside: Sequence[Path]) -> SandboxSpec:
        directories = [self._cache] if self._cache else []
        if draws and (examples := _hypothesis_directory()):
            directories.append(examples)
        directories += beside
        for place, path in self._other_plugins.places(dict(os.environ)):
            if place.file and not path.is_file():
                continue
            directories.append(path)
        taken = {volume.target for volume in spec.volumes} | {part.target for part in spec.tmpfs}
        added = []
        for directory in directories:
            if str(directory) in taken or not self._is_there(directory):
                continue
            # A cache in /dev or /proc cannot be a volume.
            with contextlib.suppress(SpecError):
                added.append(Volume(str(directory), str(directory)))
        there = (pipe for pipe in self._pipes if pipe not in taken and os.path.exists(pipe))
        added += [Volume(pipe, pipe) for pipe in there]
        return dataclasses.replace(spec, volumes=(*added, *spec.volumes)) if added else spec

    def _is_there(self, directory: Path) -> bool:
        if directory.exists():
            return True
        try:
            if directory == self._cache:
                pytest_internals.make_cache_directory(self._config)
            elif directory != _hypothesis_directory():
                self._made.make(directory)
            else:
                _make_hypothesis_directory(directory)
                self._made.add([directory])
        except OSError:
            # If it cannot be made, a run without sandboxes has none either.
            return False
        return directory.is_dir()


def _hypothesis_directory() -> Path | None:
    configuration = sys.modules.get("hypothesis.configuration")
    if configuration is None:
        return None
    found = configuration.storage_directory(intent_to_write=False)
    return Path(os.path.abspath(getattr(found, "path", found)))


def _make_hypothesis_directory(directory: Path) -> None:
    storage = sys.modules["hypothesis.configuration"].storage_directory(intent_to_write=False)
    # Newer versions put a .gitignore into it, only if they make it themselves.
    make = getattr(storage, "create_if_missing", None)
    if make is not None:
        make()
    directory.mkdir(parents=True, exist_ok=True)
