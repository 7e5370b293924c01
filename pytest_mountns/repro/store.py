"""The directory of bundles: each is written atomically, and the directory cannot grow for ever."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Final, final

from filelock import FileLock, Timeout

from ..engine.linux.errors import SandboxError, said
from .bundle import DOCUMENT, Repro, load

#: The largest number of bundles in a directory, and of bytes in all of them.
MOST: Final = 100
MOST_BYTES: Final = 2 << 30
_PARTIAL: Final = ".partial-"
_PATIENCE: Final = 60.0


@final
@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a bundle besides ``repro.json``, by the names of the files."""

    texts: Mapping[str, str]
    #: Open files, which are copied.
    files: Mapping[str, IO[bytes]]


def write(path: str, repro: Repro, content: Content) -> None:
    """Write a bundle to ``path``, which does not exist yet: completely or not at all.

    Raises :class:`OSError` if it cannot be written.
    """
    partial = f"{os.path.dirname(path)}/{_PARTIAL}{os.urandom(8).hex()}"
    os.mkdir(partial, 0o700)
    try:
        for name, file in content.files.items():
            file.seek(0)
            with open(f"{partial}/{name}", "xb") as target:
                shutil.copyfileobj(file, target, 1 << 20)
        for name, text in {**content.texts, DOCUMENT: repro.to_json()}.items():
            # A lone surrogate stands for a byte that is not UTF-8.
            with open(f"{partial}/{name}", "x", encoding="utf-8", errors="backslashreplace") as out:
                out.write(text)
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@final
class Bundles:
    """The bundles of a project. Several processes may use it at the same time."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def add(self, name: str, repro: Repro, content: Content) -> str:
        """Store a bundle in place of an older one of that name. Returns its path.

        If there are too many bundles, the oldest ones of other runs are removed. Raises
        :class:`SandboxError` if it cannot be written, or if this run has filled the directory.
        """
        path = os.path.join(self.directory, name)
        try:
            os.makedirs(self.directory, 0o700, exist_ok=True)
            with FileLock(f"{self.directory}/.lock", timeout=_PATIENCE):
                self._add(path, repro, content)
        except Timeout as error:
            raise SandboxError(
                f"save {path}",
                cause=f"another process has had {error.lock_file} for {_PATIENCE:.0f} s",
                remedy="look for a pytest that hangs",
            ) from error
        except OSError as error:
            raise SandboxError(
                f"save {path}", said(error), remedy="choose another place: --mountns-dir"
            ) from error
        return path

    def _add(self, path: str, repro: Repro, content: Content) -> None:
        self._ignore()
        # Left by a process that was killed while it wrote; others hold the lock while they write.
        self._remove(entry.path for entry in self._entries() if entry.name.startswith(_PARTIAL))
        self._make_room(
            path, repro, sum(os.fstat(f.fileno()).st_size for f in content.files.values())
        )
        if os.path.lexists(path):
            old = f"{self.directory}/{_PARTIAL}{os.urandom(8).hex()}"
            os.rename(path, old)
            write(path, repro, content)
            self._remove([old])
        else:
            write(path, repro, content)

    def _make_room(self, path: str, repro: Repro, size: int) -> None:
        others = {
            entry.path: _size(entry.path)
            for entry in self._entries()
            if entry.path != path and os.path.lexists(f"{entry.path}/{DOCUMENT}")
        }
        room = MOST_BYTES - size - sum(others.values())
        if len(others) < MOST and room >= 0:
            return
        older = sorted(
            (place for place in others if _run(place) != repro.run),
            key=lambda place: os.lstat(place).st_mtime_ns,
        )
        going: list[str] = []
        for place in older:
            if len(others) - len(going) < MOST and room >= 0:
                break
            room += others[place]
            going.append(place)
        if len(others) - len(going) >= MOST or room < 0:
            raise SandboxError(
                f"save {path}",
                cause=f"this run has filled {self.directory}: {MOST} bundles or"
                f" {MOST_BYTES >> 30} GiB are the most",
                remedy="run fewer tests, or another --mountns-dir",
            )
        self._remove(going)

    def _entries(self) -> Iterable[os.DirEntry[str]]:
        with os.scandir(self.directory) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]

    def _ignore(self) -> None:
        try:
            with open(f"{self.directory}/.gitignore", "x", encoding="ascii") as file:
                file.write("# Made by pytest-mountns.\n*\n")
        except FileExistsError:
            pass

    @staticmethod
    def _remove(paths: Iterable[str]) -> None:
        for path in paths:
            shutil.rmtree(path)


def _size(path: str) -> int:
    with os.scandir(path) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _run(path: str) -> str:
    try:
        return load(path).repro.run
    except SandboxError:
        # A bundle of another version is the first to be removed.
        return ""
