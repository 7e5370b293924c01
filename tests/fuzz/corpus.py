"""What the fuzzer begins with: sound archives and images, and attacks that are known."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from typing import Any

from tests.helpers.archives import (
    END,
    Layout,
    archive,
    directory,
    docker_save,
    extended,
    hardlink,
    member,
    packed,
    records,
    symlink,
)

Pack = Callable[[bytes], bytes]


def members() -> list[bytes]:
    """Members that are mixed into archives, sound ones and others."""
    return [
        directory("etc"),
        directory("./"),
        directory("etc/deep/er"),
        member("etc/file", b"content"),
        member("etc/other", b"x" * 700),
        member("etc/.wh.file"),
        member("etc/.wh..wh..opq"),
        member(".wh.etc"),
        member(".wh."),
        member(".wh..wh.plnk"),
        symlink("link", "../../../../outside"),
        symlink("etc/link", "/"),
        member("link/file", b"through a link"),
        member("etc/link/tmp/fuzzed", b"through a link"),
        hardlink("hard", "etc/file"),
        hardlink("hard2", "link/secret"),
        hardlink("hard3", "../../../outside/secret"),
        member("/absolute", b"x"),
        member("../../../outside/new", b"x"),
        member("dev/null", kind=b"3", device=(1, 3)),
        member("sda", kind=b"4", device=(8, 0)),
        member("fifo", kind=b"6"),
        member("sparse", kind=b"S"),
        member("name", b"x", pax={"path": b"etc/by-pax", "mtime": b"1.5", "uid": b"70000"}),
        member("name", b"x", pax={"SCHILY.xattr.user.a": b"\0\xff", "size": b"1"}),
        member("name", b"", pax={"SCHILY.xattr.trusted.overlay.opaque": b"y"}),
        member("L", b"etc/" + b"n" * 150 + b"\0", kind=b"L") + member("short", b"x"),
        member("K", b"t" * 150 + b"\0", kind=b"K") + symlink("long-link", "x"),
        extended(records({"comment": b"global"}), b"g"),
        member("big", b"", size=b"\x80" + b"\0" * 6 + b"\x7f" * 5),
        END,
    ]


def by_tarfile() -> list[bytes]:
    """Archives that the standard library writes, in its three formats."""
    found = []
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
            for name in ("usr", "usr/bin", "usr/bin/" + "n" * 90):
                info = tarfile.TarInfo(name)
                info.type = tarfile.REGTYPE if "n" * 90 in name else tarfile.DIRTYPE
                info.mode, info.mtime = 0o755, 1.25 if kind == tarfile.PAX_FORMAT else 1
                tar.addfile(info)
        found.append(out.getvalue())
    return found


def packs() -> list[Pack]:
    """Ways to compress, those of this machine."""
    found: list[Pack] = [bytes, bytes, bytes, gzip.compress, bz2.compress, lzma.compress]
    program = shutil.which("zstd")
    if program is not None:
        found.append(
            lambda data: (
                subprocess.run([program, "-qc"], input=data, check=True, capture_output=True).stdout
            )
        )
    return found


def changed_json(value: Any, rng: random.Random) -> Any:
    """A JSON value with one of its parts replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(sorted(value))
        changed = dict(value)
        if rng.random() < 0.1:
            del changed[key]
        else:
            changed[key] = changed_json(changed[key], rng)
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        number = rng.randrange(len(value))
        return [*value[:number], changed_json(value[number], rng), *value[number + 1 :]]
    return rng.choice(
        [
            None,
            [],
            {},
            -1,
            1e308,
            10**30,
            "",
            "../../outside/secret",
            "sha256:" + "0" * 64,
            "sha256:../../../outside/secret",
            "\ud800",
            [[]] * 3,
            {"digest": []},
            True,
        ]
    )


class Image(Layout):
    """An image whose documents are changed before their digests are taken."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def json(self, document: object, media_type: str) -> dict[str, Any]:
        if self.rng.random() < 0.3:
            document = changed_json(document, self.rng)
        return super().json(document, media_type)

    def all_files(self) -> dict[str, bytes]:
        files = super().all_files()
        if self.rng.random() < 0.3:
            index = changed_json(json.loads(files["index.json"]), self.rng)
            files["index.json"] = json.dumps(index).encode()
        return files


def saved(layers: list[bytes], rng: random.Random) -> bytes:
    """What ``docker save`` writes, its manifest changed now and then."""
    files = docker_save(layers)
    if rng.random() < 0.6:
        manifest = changed_json(json.loads(files["manifest.json"]), rng)
        files["manifest.json"] = json.dumps(manifest).encode()
    return packed(files)


def some_archive(rng: random.Random) -> bytes:
    """An archive of a few members in any order."""
    if rng.random() < 0.15:
        return rng.choice(by_tarfile())
    return archive(*rng.choices(members(), k=rng.randint(1, 6)))
