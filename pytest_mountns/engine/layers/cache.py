"""The cache of unpacked layers. A layer that is in several images is unpacked once.

::

    $XDG_CACHE_HOME/pytest-mountns/       mode 0700, or ~/.cache/pytest-mountns/
        layers/FORM-sha256-DIGEST/
            tree/                         the lower directory for overlayfs
            layer.json                    describes it; processes that use it hold a flock(2)
        partial/                          what is being unpacked
        locks/                            held by the process that unpacks a layer
        files/                            which layers a file contained when last read

A layer is named by the digest of its uncompressed archive, the *diff id* of the OCI image
specification. It is unpacked in ``partial``, written to disk, and moved by one rename(2): what
is in ``layers`` and has a ``layer.json`` is complete. A process that is killed may leave files in
``partial``. The next process that wants the layer removes them, and so does ``prune``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast, final

from filelock import FileLock, Timeout

from ..linux import syscalls
from ..linux.errors import LayerError
from ..linux.namespaces import high
from ..linux.openat import DIRECTORY
from ..linux.remove_tree import remove_tree
from ..linux.untouched import fcntl, open, os, time
from .unpack import Form, Unpacked

_VERSION: Final = 1
_DAY: Final = 86_400
# Above the granularity of a file's times (10 ms at most, one tick of the kernel's clock).
_TICK: Final = 20_000_000
_TAG: Final = (
    b"Signature: 8a477f597d28d172789f06886806bc55\n"
    b"# Unpacked layers of pytest-mountns. See `pytest-mountns cache`.\n"
)


def default_directory() -> str:
    """``$XDG_CACHE_HOME/pytest-mountns``, or in ``~/.cache``.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification requires.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "pytest-mountns")


@final
@dataclass(frozen=True, slots=True)
class Held:
    """A layer that is not removed before :meth:`release`, or the end of this process.

    ``path``: the directory to stack. ``opaque``: layers below it must be left out. ``lock``: the
    descriptor that holds it.
    """

    path: str
    diff_id: str
    opaque: bool
    notes: tuple[str, ...]
    lock: int

    def release(self) -> None:
        """Allow others to remove it."""
        os.close(self.lock)


@final
@dataclass(frozen=True, slots=True)
class Entry:
    """A layer in the cache. ``used``: seconds since the epoch. ``bytes``: size of its files."""

    name: str
    source: str
    bytes: int
    members: int
    used: float
    in_use: bool


@final
class Cache:
    """One directory of layers. Safe to share between processes of one user.

    Every method raises :class:`LayerError` if the directory cannot be used.
    """

    def __init__(self, directory: str | None = None) -> None:
        self.directory = directory or default_directory()

    def hold(self, form: Form, diff_id: str) -> Held | None:
        """Return the layer if it is in the cache and complete, else None."""
        with self._explained(), self._there():
            return self._hold(_name(form, diff_id), diff_id)

    def _hold(self, name: str, diff_id: str) -> Held | None:
        marker = self._path("layers", name, "layer.json")
        try:
            fd = os.open(marker, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            about = _about(fd)
            # It may have been removed while this process waited.
            if about is None or not _is_still(marker, fd):
                os.close(fd)
                return None
            os.utime(fd)
        except BaseException:
            os.close(fd)
            raise
        tree = self._path("layers", name, "tree")
        notes = tuple(about["notes"])
        return Held(tree, diff_id, about["opaque"] is True, notes, high(fd))

    def add(
        self,
        form: Form,
        diff_id: str,
        source: str,
        fill: Callable[[int], Unpacked],
        *,
        sync: bool = True,
    ) -> Held:
        """Return the layer. If it is not in the cache, ``fill`` unpacks it into a directory.

        ``sync`` is False if it is not used any more after the machine has been started again, so
        that a power failure cannot harm it: syncfs(2) waits for all that others write. ``source``
        is shown in the list of layers. While another process unpacks the layer, this one
        waits. An error that ``fill`` raises is passed on, and nothing of the layer is left.
        """
        name = _name(form, diff_id)
        with self._explained(), self._there(), self._locked(name):
            held = self._hold(name, diff_id)
            if held is not None:
                return held
            self._remove_partial(name)
            # A directory without its marker is not a layer: it was made by hand, or is damaged.
            self._remove("layers", name)
            place = f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
            partial = self._path("partial", place)
            os.mkdir(partial, 0o700)
            try:
                self._fill(partial, form, diff_id, source, fill, sync)
                os.rename(partial, self._path("layers", name))
            except BaseException:
                self._remove("partial", place)
                raise
            held = self._hold(name, diff_id)
            if held is None:
                raise LayerError(
                    f"use the layer {name} of the cache",
                    cause="it vanished while it was being unpacked",
                    remedy="run the tests again",
                )
            return held

    @staticmethod
    def _fill(
        partial: str,
        form: Form,
        diff_id: str,
        source: str,
        fill: Callable[[int], Unpacked],
        sync: bool,
    ) -> None:
        os.mkdir(f"{partial}/tree", 0o700)
        fd = os.open(f"{partial}/tree", DIRECTORY)
        try:
            result = fill(fd)
            about = {
                "version": _VERSION,
                "form": form,
                "diff_id": diff_id,
                "source": source,
                "members": result.members,
                "bytes": result.bytes,
                "opaque": result.opaque,
                "notes": result.notes,
            }
            with open(f"{partial}/layer.json", "x", encoding="utf-8") as file:
                json.dump(about, file)
            if sync:
                # A power failure must not leave a complete name with an incomplete content.
                syscalls.syncfs(fd)
        finally:
            os.close(fd)

    def entries(self) -> list[Entry]:
        """Return the layers in the cache, the one that is unused for longest first."""
        found = []
        with self._explained():
            for name in self._names("layers"):
                marker = self._path("layers", name, "layer.json")
                try:
                    fd = os.open(marker, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    about = _about(fd)
                    used = os.fstat(fd).st_mtime
                    in_use = not _lock_alone(fd)
                finally:
                    os.close(fd)
                if about is not None:
                    source, size, members = about["source"], about["bytes"], about["members"]
                    found.append(Entry(name, source, size, members, used, in_use))
        return sorted(found, key=lambda entry: (entry.used, entry.name))

    def prune(self, unused_days: float, *, dry_run: bool = False) -> list[str]:
        """Remove layers not used for so many days, and what killed processes have left.

        Returns their names. Layers that a process uses or unpacks are not removed.
        """
        removed = []
        before = time.time() - unused_days * _DAY
        with self._explained():
            for name in self._names("layers"):
                try:
                    with self._locked(name, wait=False):
                        gone = self._prune_layer(name, before, dry_run=dry_run)
                except Timeout:
                    continue
                removed += [name] if gone else []
            for place in self._names("partial"):
                name = place.partition(".")[0]
                try:
                    with self._locked(name, wait=False):
                        if not dry_run:
                            self._remove("partial", place)
                        removed.append(place)
                except Timeout:
                    continue
            for name in [] if dry_run else self._names("files"):
                path = self._path("files", name)
                if os.stat(path).st_mtime < before:
                    os.unlink(path)
        return removed

    def drop(self, form: Form, diff_id: str) -> None:
        """Remove a layer that nobody will want again, unless a process uses it."""
        name = _name(form, diff_id)
        with self._explained():
            try:
                with self._locked(name, wait=False):
                    self._prune_layer(name, float("inf"), dry_run=False)
            except Timeout:
                return

    def _prune_layer(self, name: str, before: float, *, dry_run: bool) -> bool:
        try:
            fd = os.open(self._path("layers", name, "layer.json"), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            # It is not complete, so no process uses it: the one that completes it has the lock.
            fd = -1
        try:
            if fd >= 0 and (os.fstat(fd).st_mtime > before or not _lock_alone(fd)):
                return False
            if not dry_run:
                gone = f"{name}.{os.getpid()}.{os.urandom(4).hex()}"
                os.rename(self._path("layers", name), self._path("partial", gone))
                self._remove("partial", gone)
            return True
        finally:
            if fd >= 0:
                os.close(fd)

    def recall(self, key: str) -> dict[str, Any] | None:
        """Return what :meth:`remember` has stored for this :func:`file_key`, else None."""
        with self._explained():
            try:
                with open(self._path("files", f"{key}.json"), encoding="utf-8") as file:
                    known = json.load(file)
            except (FileNotFoundError, ValueError):
                return None
        return known if isinstance(known, dict) else None

    def remember(self, key: str, answer: dict[str, Any]) -> None:
        """Store what has been found out about a file."""
        with self._explained(), self._there():
            place = self._path("files", f"{key}.json")
            partial = f"{place}.{os.getpid()}.{os.urandom(4).hex()}"
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(answer, file)
            os.replace(partial, place)

    @contextmanager
    def spool(self) -> Iterator[str]:
        """Return a directory for large temporary files, which get no name (O_TMPFILE)."""
        with self._there():
            yield self._path("partial")

    def _path(self, *names: str) -> str:
        return os.path.join(self.directory, *names)

    def _names(self, part: str) -> list[str]:
        try:
            return sorted(os.listdir(self._path(part)))
        except FileNotFoundError:
            return []

    @contextmanager
    def _there(self) -> Iterator[None]:
        """Make the directories. Only this user may write to them."""
        os.makedirs(os.path.dirname(self.directory), exist_ok=True)
        _make(self.directory)
        status = os.stat(self.directory)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise LayerError(
                f"use the cache {self.directory}",
                cause=f"it belongs to user {status.st_uid}, mode {status.st_mode & 0o7777:o}:"
                " somebody else could put layers there",
                remedy="set XDG_CACHE_HOME to a directory of your own"
                " (sudo -H takes root's home directory)",
            )
        for part in ("layers", "partial", "locks", "files"):
            _make(self._path(part))
        tag = self._path("CACHEDIR.TAG")
        if not os.path.exists(tag):
            with open(tag, "wb") as file:
                file.write(_TAG)
        yield

    @contextmanager
    def _locked(self, name: str, *, wait: bool = True) -> Iterator[None]:
        os.makedirs(self._path("locks"), exist_ok=True)
        with FileLock(self._path("locks", f"{name}.lock"), timeout=-1 if wait else 0):
            yield

    def _remove_partial(self, name: str) -> None:
        for place in self._names("partial"):
            if place.startswith(f"{name}."):
                self._remove("partial", place)

    def _remove(self, part: str, name: str) -> None:
        fd = os.open(self._path(part), DIRECTORY)
        try:
            remove_tree(name, fd)
        finally:
            os.close(fd)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LayerError(
                f"use the cache {self.directory}",
                str(error),
                f"the cache {self.directory} cannot be used, or its disk is full",
                "set XDG_CACHE_HOME to a directory on a disk with room, or pytest-mountns cache"
                " prune",
            ) from error


def _make(directory: str) -> None:
    try:
        os.mkdir(directory, 0o700)
    except FileExistsError:
        pass


def _name(form: Form, diff_id: str) -> str:
    return f"{form}-{diff_id.replace(':', '-')}"


def _about(fd: int) -> dict[str, Any] | None:
    """Return the content of the marker; None if there is none, or it has another version."""
    try:
        about = json.loads(os.pread(fd, 1 << 20, 0))
    except ValueError:
        return None
    if not isinstance(about, dict) or about.get("version") != _VERSION:
        return None
    return cast("dict[str, Any]", about)


def _is_still(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _lock_alone(fd: int) -> bool:
    """Take the lock unless a process holds it. It is released when the descriptor is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def file_key(fd: int, question: str) -> str:
    """Return a key for facts about an open file. A file that has changed has another key.

    The key is "" if the file was changed a moment ago: another change might leave the same times.
    """
    status = os.fstat(fd)
    if time.time_ns() - status.st_ctime_ns < _TICK:
        return ""
    key = [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        question,
    ]
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()
