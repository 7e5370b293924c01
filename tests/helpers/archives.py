"""Archives for tests: some are well made, others are malformed on purpose.

Members are put together by :func:`member` from bytes, not by the code under test, and not by
:mod:`tarfile`, which refuses to write most of what an attacker would.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

BLOCK = 512
END = bytes(2 * BLOCK)


def member(
    name: bytes | str,
    content: bytes = b"",
    *,
    kind: bytes = b"0",
    link: bytes | str = b"",
    mode: int = 0o644,
    size: bytes | None = None,
    uid: int = 0,
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
    checksum: bytes | None = None,
    pax: dict[str, bytes] | None = None,
) -> bytes:
    """A member: its header and content. ``pax`` puts an extended header in front of it."""
    name = name.encode() if isinstance(name, str) else name
    link = link.encode() if isinstance(link, str) else link
    block = b"".join(
        [
            name[:100].ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % uid,
            b"%07o\0" % uid,
            b"%011o\0" % len(content) if size is None else size.ljust(12, b"\0"),
            b"%011o\0" % 1_600_000_000,
            b" " * 8,
            kind,
            link[:100].ljust(100, b"\0"),
            magic.ljust(8, b"\0"),
            bytes(64),
            b"%07o\0%07o\0" % device,
            bytes(167),
        ]
    )
    total = b"%06o\0 " % sum(block) if checksum is None else checksum
    block = block[:148] + total + block[156:]
    data = block + content + bytes(-len(content) % BLOCK)
    return data if pax is None else extended(records(pax)) + data


def extended(content: bytes, kind: bytes = b"x") -> bytes:
    """An extended header with this content, which need not be well formed."""
    return member("PaxHeaders/x", content, kind=kind)


def records(values: dict[str, bytes]) -> bytes:
    """The records of an extended header, pax(1)."""
    parts = []
    for key, value in values.items():
        rest = b" " + key.encode() + b"=" + value + b"\n"
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        parts.append(b"%d" % length + rest)
    return b"".join(parts)


def archive(*members: bytes) -> bytes:
    """A whole archive of these members."""
    return b"".join(members) + END


def directory(name: str, mode: int = 0o755) -> bytes:
    """A member that is a directory."""
    return member(name, kind=b"5", mode=mode)


def symlink(name: str, target: str) -> bytes:
    """A member that is a symbolic link."""
    return member(name, kind=b"2", link=target, mode=0o777)


def hardlink(name: str, target: str) -> bytes:
    """A member that is a hard link."""
    return member(name, kind=b"1", link=target)


def sha256(data: bytes) -> str:
    """The digest of ``data``, as images name it."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Layout:
    """An OCI image layout that is being put together, as the image specification describes it."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
        self.manifests: list[dict[str, Any]] = []

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Add a blob. Returns its descriptor."""
        digest = sha256(data)
        self.files[f"blobs/{digest.replace(':', '/')}"] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(
        self,
        layers: list[tuple[bytes, bytes]],
        *,
        name: str | None = "latest",
        platform: dict[str, str] | None = None,
        diff_ids: list[str] | None = None,
    ) -> dict[str, Any]:
        """Add an image of layers, each given as it is stored and as it is uncompressed.

        Returns the descriptor of its manifest.
        """
        tar = "application/vnd.oci.image.layer.v1.tar"
        document = {
            "os": "linux",
            "config": {"Env": ["PLACE=image"]},
            "rootfs": {
                "type": "layers",
                "diff_ids": diff_ids or [sha256(plain) for _, plain in layers],
            },
        }
        config = self.json(document, "application/vnd.oci.image.config.v1+json")
        manifest = {
            "schemaVersion": 2,
            "config": config,
            "layers": [self.blob(stored, tar) for stored, _ in layers],
        }
        descriptor = self.json(manifest, "application/vnd.oci.image.manifest.v1+json")
        if name is not None:
            descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        if platform is not None:
            descriptor["platform"] = platform
        self.manifests.append(descriptor)
        return descriptor

    def json(self, document: object, media_type: str) -> dict[str, Any]:
        """Add a blob that is a JSON document. Returns its descriptor."""
        return self.blob(json.dumps(document).encode(), media_type)

    def all_files(self) -> dict[str, bytes]:
        """The content of each file of the layout, by its path."""
        index = {"schemaVersion": 2, "manifests": self.manifests}
        return {**self.files, "index.json": json.dumps(index).encode()}

    def write(self, place: Path) -> Path:
        """Write the layout into the directory ``place``, and return that."""
        for name, data in self.all_files().items():
            file = place / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        return place

    def archive(self) -> bytes:
        """The layout as a tar archive."""
        return packed(self.all_files())


def packed(files: dict[str, bytes]) -> bytes:
    """These files as a tar archive that the standard library has made."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def docker_save(layers: list[bytes], *, tag: str = "some:tag") -> dict[str, bytes]:
    """The files that ``docker save`` (before version 25) puts into its archive."""
    document = {"os": "linux", "rootfs": {"diff_ids": [sha256(layer) for layer in layers]}}
    config = json.dumps(document).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    files = {config_name: config}
    names = []
    for layer in layers:
        name = f"{hashlib.sha256(b'id' + layer).hexdigest()}/layer.tar"
        files[name] = layer
        names.append(name)
    files["manifest.json"] = json.dumps(
        [{"Config": config_name, "RepoTags": [tag], "Layers": names}]
    ).encode()
    return files
