"""Writes layers to one OCI archive: an image that skopeo, umoci and podman read.

An archive is a tar of an image layout (OCI image specification, "Image Layout"): ``oci-layout``,
``index.json``, and blobs named by their digest. The same layers give the same bytes: the only
times in it are those of the files in the layers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final, final

from .images import architecture
from .layer_writer import WrittenLayer
from .streams import CHUNK, Section
from .tar_reader import DIRECTORY, FILE, Member
from .tar_writer import Digests, Writer

_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_EPOCH: Final = "1970-01-01T00:00:00Z"


@final
@dataclass(frozen=True, slots=True)
class LayerFile:
    """A layer that has been written, and the open file that contains it and nothing else."""

    layer: WrittenLayer
    fd: int


def write_archive(
    file: IO[bytes],
    layers: Sequence[LayerFile],
    *,
    name: str = "latest",
    environment: Sequence[str] = (),
    working_directory: str = "/",
    created_by: str = "pytest-mountns",
) -> Digests:
    """Write an image of these layers, the lowest first, to an empty file.

    ``name`` is that of the image in the archive (``oci-archive:FILE:NAME``). ``environment``:
    ``NAME=VALUE``. umoci before 0.5 cannot read layers that are compressed with zstd. Raises
    :class:`OSError` if it cannot be written, :class:`LayerError` if a layer's file is too short.
    """
    config = _json(
        {
            "created": _EPOCH,
            "architecture": architecture(),
            "os": "linux",
            "config": {"Env": list(environment), "WorkingDir": working_directory},
            "rootfs": {"type": "layers", "diff_ids": [item.layer.diff_id for item in layers]},
            "history": [{"created": _EPOCH, "created_by": created_by} for _ in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [
                {
                    "mediaType": item.layer.media_type,
                    "digest": item.layer.digest,
                    "size": item.layer.size,
                }
                for item in layers
            ],
        }
    )
    index = _json(
        {
            "schemaVersion": 2,
            "manifests": [
                {
                    **_descriptor(_MANIFEST, manifest),
                    "platform": {"architecture": architecture(), "os": "linux"},
                    "annotations": {"org.opencontainers.image.ref.name": name},
                }
            ],
        }
    )
    writer = Writer(file, "")
    for directory in (b"blobs/", b"blobs/sha256/"):
        writer.add(Member(directory, DIRECTORY, b"", 0o755, 0, 0, 0, 0, (0, 0)))
    blobs: dict[str, bytes | LayerFile] = {_digest(blob): blob for blob in (config, manifest)}
    # A layer that occurs twice is stored once.
    blobs |= {item.layer.digest: item for item in layers}
    for digest, blob in sorted(blobs.items()):
        path = b"blobs/" + digest.replace(":", "/").encode()
        if isinstance(blob, bytes):
            _add(writer, path, blob)
        else:
            section = Section(blob.fd, 0, blob.layer.size)
            member = Member(path, FILE, b"", 0o644, 0, 0, blob.layer.size, 0, (0, 0))
            writer.add(member, iter(partial(section.read, CHUNK), b""))
    _add(writer, b"index.json", index)
    _add(writer, b"oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
    return writer.finish()


def _add(writer: Writer, path: bytes, content: bytes) -> None:
    writer.add(Member(path, FILE, b"", 0o644, 0, 0, len(content), 0, (0, 0)), [content])


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}
