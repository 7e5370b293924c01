"""Finds the directories to stack for a root or a layer that is named by its path.

A directory is taken as it is. Everything else is unpacked into the cache, once: see
:mod:`.cache`, :mod:`.images` for the formats, and :mod:`.unpack` for what is refused.
"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, TypeAlias, final

from ..linux.errors import LayerError, malformed
from ..linux.untouched import os
from .cache import Cache, Held, file_key
from .images import Blob, DirectorySource, Image, image_in_archive, image_in_layout, read_archive
from .limits import Limits
from .streams import CHUNK, Stream, compression_of, decompressed
from .unpack import Form, Unpacked, unpack

#: Called with what is being done, the bytes that are done, and the bytes in all.
Report: TypeAlias = Callable[[str, int, int], None]

_VERSION: Final = 1


@final
@dataclass(slots=True)
class Stack:
    """Directories, the lowest first, which stay in the cache until they are released.

    ``environment``: ``NAME=VALUE`` from the configuration of an image. ``notes``: what is in the
    archives and not in the directories. It is a context manager, which releases them.
    """

    directories: tuple[str, ...]
    environment: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    held: tuple[Held, ...] = ()

    def close(self) -> None:
        """Allow the cache to remove them. To be called once."""
        for layer in self.held:
            layer.release()
        self.held = ()

    def __enter__(self) -> Stack:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def resolve(
    source: str,
    form: Form,
    *,
    cache: Cache | None = None,
    ref: str | None = None,
    limits: Limits | None = None,
    report: Report | None = None,
) -> Stack:
    """Return the directories of a root or layer: a directory, a tar archive, or an image.

    ``form``: for overlays of root ("trusted") or in a user namespace ("user"). ``ref``: the name of
    the image, needed if there are several. ``report`` is called while layers are unpacked.

    Raises :class:`LayerError`, which says what was tried, why it failed, and what helps. Files are
    written only in the cache.
    """
    work = _Work(source, form, cache or Cache(), ref, limits or Limits(), report)
    with _explained(source):
        status = os.stat(source)
        if stat.S_ISDIR(status.st_mode):
            return work.directory()
        if not stat.S_ISREG(status.st_mode):
            raise LayerError(
                "read a layer",
                cause="it is neither a directory nor a regular file",
                remedy="give a directory, a tar archive, an OCI layout or archive",
            )
        # If it has been replaced by a FIFO since, open() would wait.
        fd = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return work.file(fd)
        finally:
            os.close(fd)


@contextmanager
def _explained(source: str) -> Iterator[None]:
    tried = f"use {source} as a layer"
    try:
        yield
    except LayerError as error:
        raise LayerError(tried, error.kernel, error.cause, error.remedy) from error
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise LayerError(
            tried,
            str(error),
            "there is nothing of that name" if missing else "it cannot be read",
            "check the path" if missing else "check its permissions, and the disk",
        ) from error


@final
@dataclass(slots=True)
class _Work:
    source: str
    form: Form
    cache: Cache
    ref: str | None
    limits: Limits
    report: Report | None

    def directory(self) -> Stack:
        path = os.path.abspath(self.source)
        files = DirectorySource(path)
        try:
            image = image_in_layout(files, self.ref)
            return Stack((path,)) if image is None else self._image(image)
        finally:
            files.close()

    def file(self, fd: int) -> Stack:
        key = file_key(fd, f"layers {_VERSION} {self.ref}")
        known = self.cache.recall(key)
        stack = self._known(known) if known else None
        if stack is not None:
            return stack
        with self._plain(fd) as (plain, size):
            files = read_archive(plain, size)
            image = files and image_in_archive(files, self.ref)
            if image is None:
                image = Image(((Blob(plain, 0, size), self._diff_id(plain, size)),))
            stack = self._image(image)
        answer = {
            "layers": [diff_id for _, diff_id in image.layers],
            "environment": list(image.environment),
        }
        if key:
            self.cache.remember(key, answer)
        return stack

    def _known(self, known: dict[str, Any]) -> Stack | None:
        """Return the directories if all layers are still in the cache, else None."""
        held: list[Held] = []
        for diff_id in known["layers"]:
            layer = self.cache.hold(self.form, diff_id)
            if layer is None:
                for other in held:
                    other.release()
                return None
            held.append(layer)
        return _stacked(held, tuple(known["environment"]))

    @contextmanager
    def _plain(self, fd: int) -> Iterator[tuple[int, int]]:
        """Return the uncompressed archive: the file itself, or a temporary file."""
        size = os.fstat(fd).st_size
        blob = Blob(fd, 0, size)
        section = blob.section(self._progress("decompress"))
        if not size:
            raise malformed("the file is empty", "fetch or make it anew")
        if not compression_of(section):
            yield fd, size
            return
        with (
            self.cache.spool() as directory,
            tempfile.TemporaryFile(dir=directory) as file,
            decompressed(section, directory) as source,
        ):
            stream = Stream(source, section, self.limits)
            while data := stream.some(CHUNK):
                file.write(data)
            file.flush()
            yield file.fileno(), stream.position

    def _diff_id(self, fd: int, size: int) -> str:
        section = Blob(fd, 0, size, "sha256:").section(self._progress("read"))
        return f"sha256:{section.digest()}"

    def _image(self, image: Image) -> Stack:
        held: list[Held] = []
        try:
            for blob, diff_id in image.layers:
                held.append(
                    self.cache.hold(self.form, diff_id)
                    or self.cache.add(self.form, diff_id, self.source, self._filler(blob, diff_id))
                )
        except BaseException:
            for layer in held:
                layer.release()
            raise
        return _stacked(held, image.environment)

    def _filler(self, blob: Blob, diff_id: str) -> Callable[[int], Unpacked]:
        def fill(fd: int) -> Unpacked:
            section = blob.section(self._progress("unpack"))
            with (
                self.cache.spool() as directory,
                decompressed(section, directory) as source,
            ):
                stream = Stream(source, section, self.limits)
                result = unpack(stream, fd, self.form, self.limits)
                if f"sha256:{stream.digest()}" != diff_id:
                    raise malformed(
                        f"a layer does not have the digest that it should have, {diff_id}",
                        "fetch it anew",
                    )
            blob.verify(section)
            return result

        return fill

    def _progress(self, what: str) -> Callable[[int, int], None] | None:
        report = self.report
        if report is None:
            return None
        return lambda done, total: report(f"{what} {self.source}", done, total)


def _stacked(held: list[Held], environment: tuple[str, ...]) -> Stack:
    # overlayfs does not check whether the root of a layer is opaque.
    lowest = max((number for number, layer in enumerate(held) if layer.opaque), default=0)
    for layer in held[:lowest]:
        layer.release()
    kept = held[lowest:]
    return Stack(
        tuple(layer.path for layer in kept),
        environment,
        tuple(note for layer in kept for note in layer.notes),
        tuple(kept),
    )
