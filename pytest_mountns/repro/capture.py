"""Saves what a sandbox has written, as the files of a bundle."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Final, final

from ..engine.changes.render import Limits, text_of
from ..engine.linux.errors import SandboxError
from . import bundle

if TYPE_CHECKING:
    from ..engine.changes.changes import Changes
    from ..engine.sandbox.written import Written

#: Bytes of content in one layer.
LARGEST_LAYER: Final = 512 << 20
_LIMITS: Final = Limits(paths=2000, siblings=100, files=100, lines=1000)


@final
@dataclass
class Saved:
    """What was saved of one test, until it becomes a bundle or is dropped."""

    #: Open files, by the names that they get in the bundle. They have no name on disk yet, so
    #: that nothing is left of them whatever happens.
    files: dict[str, IO[bytes]] = field(default_factory=dict)
    #: Which of the files are layers, the lowest first.
    layers: list[bundle.LayerOf] = field(default_factory=list)
    #: The content of text files, by their names in the bundle.
    texts: dict[str, str] = field(default_factory=dict)
    #: What could not be saved, a sentence each.
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Close the files, and so drop the layers."""
        for file in self.files.values():
            file.close()
        self.files.clear()
        self.layers.clear()


def _all(changes: Changes) -> tuple[Changes, str]:
    return changes, ""


def save(
    written: Sequence[Written],
    directory: str,
    choose: Callable[[Changes], tuple[Changes, str]] = _all,
) -> Saved:
    """Save ``written``, the lowest layer first, and the changes of the last.

    ``directory`` is where the files are stored; it is made if it is missing. ``choose`` returns
    the changes that are shown, and a line that says what it left out. Raises
    :class:`SandboxError` if the changes cannot be read. If layers cannot be written, a note says
    why.
    """
    saved = Saved()
    with written[-1].changes() as changes:
        shown, note = choose(changes)
        lines = text_of(shown, _LIMITS, note)
        saved.texts[bundle.CHANGES] = "".join(f"{line}\n" for line in lines)
        saved.texts[bundle.CHANGES_JSON] = changes.to_json() + "\n"
    try:
        os.makedirs(directory, 0o700, exist_ok=True)
        _write_layers(saved, written, directory)
    except (SandboxError, OSError) as error:
        saved.close()
        saved.notes[:] = [f"what was written is not saved: {error}"]
    except BaseException:
        saved.close()
        raise
    return saved


def _write_layers(saved: Saved, written: Sequence[Written], directory: str) -> None:
    from ..engine.layers.tar_writer import MEDIA_TYPES, best_compression

    compression = best_compression()
    suffix = {"zstd": ".zst", "gzip": ".gz", "": ""}[compression]
    for number, one in enumerate(written):
        stem = "layer" if one is written[-1] else f"wider-{number + 1}"
        name = f"{stem}.tar{suffix}"
        file = saved.files[name] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115
        layer = one.write_layer(file, compression=compression, limit=LARGEST_LAYER)
        media_type = MEDIA_TYPES[compression]
        saved.layers.append(
            bundle.LayerOf(name, media_type, layer.digest, layer.diff_id, layer.size)
        )
        saved.notes += layer.notes
