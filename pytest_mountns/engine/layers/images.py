"""Finds out what a file or directory contains that is named as a root or a layer.

Its content decides, and never its name: it is an OCI image layout, as a directory or in a tar
archive; or what ``docker save`` writes; or else a tar archive of one layer. Formats: the OCI image
specification ("Image Layout", "Image Manifest", "Image Index", "Image Configuration"), and Docker's
image specification v1.2, "Combined Image JSON + Filesystem Changeset Format".

Digests are verified wherever there is one. A digest is also a file name, so its form is checked
before anything is opened.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, final

from ..linux.errors import LayerError, malformed
from ..linux.untouched import os
from .streams import CHUNK, Section
from .tar_reader import FILE, LINK, SYMLINK, Reader
from .tree import WHITEOUT, split

#: A tar archive with more members than this is not an image.
_MOST_BLOBS: Final = 20_000
_LARGEST_JSON: Final = 4 << 20
_DEEPEST_INDEX: Final = 4
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}")
_DIFF_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_REF_NAMES: Final = ("org.opencontainers.image.ref.name", "io.containerd.image.name")
_ARCHITECTURES: Final = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv6l": "arm",
    "armv7l": "arm",
    "i386": "386",
    "i686": "386",
    "loongarch64": "loong64",
}
_Json: TypeAlias = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Blob:
    """A part of an open file. ``digest``: the one that it must have, "" if none is known."""

    fd: int
    start: int
    size: int
    digest: str = ""

    def section(self, progress: Any = None) -> Section:
        """Return a section to read. Call :meth:`verify` when it has been read."""
        return Section(self.fd, self.start, self.size, self.digest.partition(":")[0], progress)

    def verify(self, section: Section) -> None:
        """Raises :class:`LayerError` if the content is not what the digest says."""
        if self.digest and section.digest() != self.digest.partition(":")[2]:
            raise malformed(
                f"the content of blob {self.digest} does not have that digest", "fetch it anew"
            )


@final
@dataclass(frozen=True, slots=True)
class Image:
    """An image: its layers with their diff ids, the lowest first, and its environment."""

    layers: tuple[tuple[Blob, str], ...]
    environment: tuple[str, ...] = ()


class ImageSource(Protocol):
    """What an image is read from: a directory or an archive that contains named files."""

    def find(self, name: str) -> Blob | None:
        """Return the file of that name, None without one.

        Raises :class:`LayerError` if it is not a regular file.
        """
        ...


@final
class DirectorySource:
    """A directory that contains an OCI image layout. Its files stay open until :meth:`close`."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: list[int] = []

    def find(self, name: str) -> Blob | None:
        """See :meth:`ImageSource.find`."""
        try:
            # A FIFO would keep an open() waiting.
            flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(os.path.join(self._path, name), flags)
        except (FileNotFoundError, NotADirectoryError):
            return None
        self._open.append(fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise malformed(f"{name} in the image layout is not a regular file")
        return Blob(fd, 0, status.st_size)

    def close(self) -> None:
        """Close all files that have been found."""
        while self._open:
            os.close(self._open.pop())


@final
class ArchiveSource:
    """An uncompressed tar archive, whose members are read in place."""

    def __init__(self, fd: int, members: Mapping[str, tuple[int, int] | str]) -> None:
        self._fd = fd
        self._members = members

    def find(self, name: str) -> Blob | None:
        """See :meth:`ImageSource.find`."""
        # Docker writes a layer that occurs twice as a link. Older versions write chains of links.
        for _ in range(8):
            there = self._members.get(name)
            if there is None:
                return None
            if not isinstance(there, str):
                return Blob(self._fd, *there)
            name = there
        raise malformed(f"{name!r} in the image archive is a link that leads nowhere")


def read_archive(fd: int, size: int) -> ArchiveSource | None:
    """Return the members of an archive, without reading their content.

    Returns None if it has too many members to be an image. Raises :class:`LayerError` if it is
    damaged.
    """
    reader = Reader(_Skimmed(fd, size))
    members: dict[str, tuple[int, int] | str] = {}
    while (member := reader.next()) is not None:
        # It may be a layer, too.
        parts = split(member.name, prefix=WHITEOUT)
        name = os.fsdecode(b"/".join(parts))
        if len(members) >= _MOST_BLOBS:
            return None
        if member.kind == FILE:
            members[name] = (member.position, member.size)
        elif member.kind in (LINK, SYMLINK):
            base = os.path.dirname(name) if member.kind == SYMLINK else ""
            members[name] = os.path.normpath(os.path.join(base, os.fsdecode(member.link)))
    return ArchiveSource(fd, members)


@final
class _Skimmed:
    """A :class:`.streams.Stream` that seeks instead of reading what is skipped."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size
        self.position = 0

    def some(self, size: int) -> bytes:
        data = os.pread(self._fd, min(size, CHUNK), self.position)
        self.position += len(data)
        return data

    def exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.some(size - len(data))
            if not piece:
                raise malformed("the archive is truncated", "fetch or make it anew")
            data += piece
        return data

    def skip(self, size: int) -> None:
        self.position += size
        if self.position > self._size:
            raise malformed("the archive is truncated", "fetch or make it anew")


def image_in_layout(files: ImageSource, ref: str | None = None) -> Image | None:
    """Return the image in an OCI layout; None if this is not an OCI layout.

    ``ref``: its name, needed if there are several. Raises :class:`LayerError`.
    """
    if not files.find("oci-layout") or not files.find("index.json"):
        return None
    version = _json(files, "oci-layout").get("imageLayoutVersion")
    if version != "1.0.0":
        raise malformed(f"an image layout of version {str(version)[:40]!r}, not 1.0.0")
    return _oci_image(files, ref)


def image_in_archive(files: ArchiveSource, ref: str | None = None) -> Image | None:
    """Return the image in an OCI archive or an archive of ``docker save``, None if it is neither.

    See :func:`image_in_layout`. Newer versions of Docker write archives that are both.
    """
    image = image_in_layout(files, ref)
    if image is None and files.find("manifest.json"):
        return _docker_image(files, ref)
    return image


def _oci_image(files: ImageSource, ref: str | None) -> Image:
    found = {d["digest"]: d for d in _manifests(files, _json(files, "index.json"), ref, 0)}
    if not found:
        which = f"called {ref!r}" if ref else f"for linux/{architecture()}"
        raise LayerError(
            "read an image",
            cause=f"there is no image {which} in it; it has {_names(files)}",
            remedy="name one that is there",
        )
    if len(found) > 1:
        raise LayerError(
            "read an image",
            cause=f"there are several images in it: {_names(files)}",
            remedy="name one of them",
        )
    manifest = _json(files, _blob_name(descriptor := next(iter(found.values()))), descriptor)
    config_at = _typed(manifest, "config", dict)
    config = _json(files, _blob_name(config_at), config_at)
    return _image(config, [_blob(files, layer) for layer in _typed(manifest, "layers", list)])


def _manifests(files: ImageSource, index: _Json, ref: str | None, depth: int) -> Iterator[_Json]:
    """Yield the descriptors of the manifests that ``ref`` can mean."""
    for descriptor in _typed(index, "manifests", list):
        _blob_name(descriptor)
        if ref is not None and ref not in _refs(descriptor):
            continue
        runs_on = descriptor.get("platform")
        if isinstance(runs_on, dict) and (
            runs_on.get("os") != "linux" or runs_on.get("architecture") != architecture()
        ):
            continue
        if descriptor.get("mediaType") not in _INDEXES:
            yield descriptor
        elif depth < _DEEPEST_INDEX:
            inner = _json(files, _blob_name(descriptor), descriptor)
            yield from _manifests(files, inner, None, depth + 1)
        else:
            raise malformed("the indexes of the image are nested too deep")


def _names(files: ImageSource) -> str:
    names = []
    for descriptor in _typed(_json(files, "index.json"), "manifests", list)[:20]:
        runs_on = descriptor.get("platform")
        where = ""
        if isinstance(runs_on, dict):
            where = f" for {runs_on.get('os')}/{runs_on.get('architecture')}"
        names.append((min(_refs(descriptor), default="one without a name")) + where)
    return ", ".join(names) or "none"


def _refs(descriptor: _Json) -> set[str]:
    notes = descriptor.get("annotations")
    if not isinstance(notes, dict):
        return set()
    return {name for key in _REF_NAMES if isinstance(name := notes.get(key), str)}


def _docker_image(files: ImageSource, ref: str | None) -> Image | None:
    images = _json_value(files, "manifest.json", None)
    if not isinstance(images, list) or not images:
        return None
    if not all(isinstance(i, dict) and {"Config", "Layers"} <= i.keys() for i in images):
        return None
    tags = [_tags(i) for i in images]
    if ref is not None:
        images = [i for i, own in zip(images, tags, strict=True) if ref in own]
    if len(images) != 1:
        names = ", ".join(tag for own in tags for tag in own) or "no name"
        raise LayerError(
            "read an image",
            cause=f"there is not one image {'of that name ' if ref else ''}in it but"
            f" {len(images)}; it has {names}",
            remedy="name one that is there",
        )
    config_name = _typed(images[0], "Config", str)
    # In an archive of Docker the file name of a configuration is its digest.
    match = re.fullmatch(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?", config_name)
    config = _json(files, config_name, {"digest": f"sha256:{match[1]}"} if match else None)
    blobs = []
    for name in _typed(images[0], "Layers", list):
        blob = files.find(name) if isinstance(name, str) else None
        if blob is None:
            raise malformed(f"the layer {name!r} is missing in the image archive")
        blobs.append(blob)
    return _image(config, blobs)


def _tags(image: _Json) -> list[str]:
    tags = image.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _image(config: _Json, blobs: list[Blob]) -> Image:
    root = _typed(config, "rootfs", dict)
    diff_ids = _typed(root, "diff_ids", list)
    if len(diff_ids) != len(blobs):
        raise malformed(f"the image has {len(blobs)} layers, and digests for {len(diff_ids)}")
    for diff_id in diff_ids:
        if not isinstance(diff_id, str) or not _DIFF_ID.fullmatch(diff_id):
            raise malformed(f"a layer's diff id is none: {str(diff_id)[:100]!r}")
    if not blobs:
        raise malformed("the image has no layers", "choose another image")
    settings = config.get("config")
    variables = settings.get("Env") if isinstance(settings, dict) else None
    environment = variables if isinstance(variables, list) else []
    return Image(
        tuple(zip(blobs, diff_ids, strict=True)),
        tuple(text for text in environment if isinstance(text, str)),
    )


def _blob_name(descriptor: object) -> str:
    digest = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise malformed(f"a descriptor of the image has no digest: {str(descriptor)[:200]}")
    return f"blobs/{digest.replace(':', '/')}"


def _blob(files: ImageSource, descriptor: _Json) -> Blob:
    name = _blob_name(descriptor)
    media = str(descriptor.get("mediaType"))
    if media.endswith("+encrypted"):
        raise LayerError("read an image", cause="it is encrypted", remedy="decrypt it (skopeo)")
    found = files.find(name)
    if found is None:
        raise malformed(f"{name} is missing in the image", "copy the image anew, with all layers")
    size = descriptor.get("size")
    if size is not None and size != found.size:
        raise malformed(f"{name} has {found.size} bytes and should have {str(size)[:40]}")
    return Blob(found.fd, found.start, found.size, descriptor["digest"])


def _json(files: ImageSource, name: str, descriptor: _Json | None = None) -> _Json:
    value = _json_value(files, name, descriptor)
    if not isinstance(value, dict):
        raise malformed(f"{name} in the image is no JSON object")
    return value


def _json_value(files: ImageSource, name: str, descriptor: _Json | None) -> object:
    blob = files.find(name)
    if blob is None:
        raise malformed(f"{name} is missing in the image")
    if blob.size > _LARGEST_JSON:
        raise malformed(f"{name} in the image is too big: {blob.size} bytes")
    section = blob.section()
    data = b""
    while piece := section.read(CHUNK):
        data += piece
    if descriptor is not None:
        algorithm, _, digest = str(descriptor["digest"]).partition(":")
        if hashlib.new(algorithm, data).hexdigest() != digest:
            raise malformed(f"{name} in the image does not have its digest", "fetch it anew")
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise malformed(f"{name} in the image is no JSON: {str(error)[:200]}") from error
    return value


def _typed(value: object, key: str, kind: type) -> Any:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise malformed(f"a document of the image has no {key!r}, or not of the right type")
    return found


def architecture() -> str:
    """Return the architecture of this machine as images name it, which is Go's ``GOARCH``."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)
