"""``pytest-mountns export``: writes what a test has written as an image for container tools."""

from __future__ import annotations

import argparse
import os
import tempfile
from contextlib import ExitStack

from ...engine.layers.archive_writer import LayerFile, write_archive
from ...engine.layers.images import Blob
from ...engine.layers.layer_writer import WrittenLayer
from ...engine.layers.limits import Limits
from ...engine.layers.streams import CHUNK, Stream, decompressed
from ...engine.layers.tar_writer import MEDIA_TYPES, gzipped
from ...engine.linux.errors import SandboxError, malformed, said
from ...repro.bundle import Bundle, LayerOf, load


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="a directory in .mountns")
    parser.add_argument("out", metavar="OUT", help="the OCI archive to write; it must not exist")


def run(options: argparse.Namespace) -> int:
    """Write the archive. Returns 0.

    Raises :class:`SandboxError` if it cannot be written; then there is no such file.
    """
    bundle = load(options.bundle)
    layers = bundle.own_layers()
    out = os.path.abspath(options.out)
    if os.path.lexists(out):
        raise SandboxError(
            f"write {out}", cause="it is there already", remedy="choose another name, or remove it"
        )
    partial = f"{out}.{os.urandom(4).hex()}"
    try:
        with ExitStack() as stack, open(partial, "x+b") as file:
            stack.callback(_remove, partial)
            made = bundle.repro
            write_archive(
                file,
                [_gzipped(bundle, layer, stack) for layer in layers],
                working_directory=made.cwd,
                created_by=f"pytest-mountns: {made.name}",
            )
            os.rename(partial, out)
    except OSError as error:
        raise SandboxError(
            f"write {out}",
            said(error),
            remedy="check that the directory is writable and has space",
        ) from error
    return 0


def _remove(path: str) -> None:
    if os.path.lexists(path):
        os.unlink(path)


def _gzipped(bundle: Bundle, layer: LayerOf, stack: ExitStack) -> LayerFile:
    """Compress a layer with gzip: umoci before 0.5 reads no other compression."""
    fd = stack.enter_context(bundle.opened(layer))
    blob = Blob(fd, 0, layer.size)
    section = blob.section()
    file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with the others
    with decompressed(section, tempfile.gettempdir()) as plain:
        stream = Stream(plain, section, Limits())
        digests = gzipped(iter(lambda: stream.some(CHUNK), b""), file)
    if digests.diff_id != layer.diff_id:
        raise malformed("a layer does not have the digest that it should have")
    written = WrittenLayer(
        digests.digest, digests.diff_id, digests.size, MEDIA_TYPES["gzip"], members=0
    )
    return LayerFile(written, file.fileno())
