"""The uppers of one sandbox, and the reading of them: as changes, or as a layer of an image.

:class:`.sandbox.Sandbox` reads those of a sandbox from within it. :class:`.written.Written` reads
them from outside, also when the sandbox has ended. They differ in how they get at the tree that
lies below the uppers, and with which rights; what is read is the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import IO, TYPE_CHECKING, NamedTuple, final

from ..changes.changes import Changes
from ..changes.compare import read_changes
from ..changes.entries import Contents
from ..plan.model import Layered, Plan, UppersDescription

if TYPE_CHECKING:
    from ..layers.layer_writer import WrittenLayer
    from ..layers.tar_writer import Compression


@final
class Uppers(NamedTuple):
    """The uppers of one sandbox, in the form in which they are read."""

    #: A descriptor of the directory in which they lie.
    scratch: int
    #: The overlays of the sandbox.
    overlays: Sequence[Layered]
    #: The paths that were made only to be mounted on; they are no changes.
    created: Collection[str]
    #: What the names of the overlays' own extended attributes begin with.
    xattr_prefix: str

    @classmethod
    def described(
        cls,
        plan: Plan,
        scratch: int,
        description: UppersDescription,
        shared_overlays: Sequence[Layered] = (),
    ) -> Uppers:
        """Returns the uppers of a sandbox of ``plan`` that another process has described.

        ``shared_overlays`` are those of its template that were written to.
        """
        overlays = [Layered(*overlay) for overlay in description.overlays]
        prefix = plan.features.xattr_prefix
        return cls(scratch, [*overlays, *shared_overlays], description.created, prefix)

    def changes(self, lower: int, contents: Contents) -> Changes:
        """Returns what the uppers add, modify, replace, delete or re-label.

        ``lower`` is a descriptor of the root of the tree that lies below them. Raises
        :class:`OSError` if something cannot be read, see :func:`.compare.read_changes`.
        """
        return read_changes(
            self.overlays,
            upper_fd=self.scratch,
            lower_fd=lower,
            xattr_prefix=self.xattr_prefix,
            ignore=self.created,
            contents=contents,
        )

    def write_layer(
        self,
        file: IO[bytes],
        lower: int,
        *,
        compression: Compression,
        ignore: Collection[str] = (),
        limit: int | None = None,
    ) -> WrittenLayer:
        """Write what the uppers hold to ``file``, as a layer of an OCI image.

        ``lower`` is as for :meth:`changes`; ``ignore`` are paths that are left out, and ``limit``
        is the size of the content at most, in bytes. Raises :class:`LayerError` and
        :class:`OSError` as :func:`.layer_writer.write_layer` does.
        """
        from ..layers.layer_writer import write_layer

        return write_layer(
            file,
            self.overlays,
            upper_fd=self.scratch,
            lower_fd=lower,
            xattr_prefix=self.xattr_prefix,
            compression=compression,
            ignore={*self.created, *ignore} if ignore else self.created,
            limit=limit,
        )
