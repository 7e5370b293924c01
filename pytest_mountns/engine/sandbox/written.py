"""What a sandbox has written, read from outside by the process that holds its scratch.

That works after the sandbox has ended, however it ended: the uppers live as long as a descriptor
of where they lie. What lies below them is the reader's own tree, which the sandbox was made from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, TypeAlias, TypeVar, final

from ..changes.changes import Changes
from ..changes.compare import read_changes
from ..changes.entries import Contents
from ..linux.errors import SandboxError
from ..linux.helper_process import call_in_helper
from ..linux.namespaces import enter_mount_namespace, enter_user_namespace, make_stage, root_of
from ..mount.root import mount_root_filesystem
from ..plan.model import Layered, Plan
from .sandbox import Sandbox

if TYPE_CHECKING:
    from ..layers.layer_writer import WrittenLayer
    from ..layers.tar_writer import Compression

#: Mountpoint and upper of each overlay, and what was made to be mounted on: of plain types.
Outline: TypeAlias = tuple[list[tuple[str, str]], list[str]]


def outline(sandbox: Sandbox) -> Outline:
    """What the process that holds the scratch has to know of a sandbox to read it."""
    overlays = [(overlay.mountpoint, overlay.upper) for overlay in sandbox.overlays]
    return overlays, list(sandbox.created)


_READ: Final = "read what the sandbox has written"
_WRITE: Final = "save what the sandbox has written"
_T = TypeVar("_T")


@final
@dataclass(frozen=True, slots=True)
class Written:
    """The uppers of one sandbox.

    ``scratch``: a descriptor of where they lie, the caller's to close. ``overlays``, ``created``:
    those of the :class:`.sandbox.Sandbox`. ``view``: a namespace that shows what lies below, -1 for
    the reader's own, or what ``ground`` says. ``ground``, ``xattr_prefix``, ``user_namespace``: of
    its plan.
    """

    scratch: int
    overlays: Sequence[Layered]
    created: Collection[str]
    xattr_prefix: str
    user_namespace: bool
    view: int = -1
    root_filesystem: Plan | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        scratch: int,
        outline: Outline,
        more: Sequence[Layered] = (),
        view: int = -1,
    ) -> Written:
        """Of a sandbox of that plan, from what :func:`outline` has said of it, and ``more``."""
        overlays, created = outline
        features = plan.features
        return cls(
            scratch,
            [*(Layered(*overlay) for overlay in overlays), *more],
            created,
            features.xattr_prefix,
            features.user_namespace,
            view,
            plan.root_filesystem,
        )

    @classmethod
    def of_sandbox(cls, sandbox: Sandbox) -> Written:
        """Of a sandbox that this process has made itself, for when it is at home."""
        view = sandbox.layers.view if sandbox.layers is not None else -1
        shape = outline(sandbox)
        return cls.of(sandbox.plan, sandbox.scratch, shape, sandbox.touched(), view)

    @contextmanager
    def changes(self) -> Iterator[Changes]:
        """The changes; what they hold can be read within the context.

        Raises :class:`SandboxError`. For an ordinary user they are read by a forked process with
        the rights, and the view of owners, that the test had; contents are not.
        """
        with self._as_the_test(_READ, self._read) as ((changes, contents), lower):
            contents.trees = lambda side: nullcontext(lower if side == "before" else self.scratch)
            try:
                yield changes
            finally:
                contents.close()

    def write_layer(
        self, file: IO[bytes], *, compression: Compression, limit: int | None = None
    ) -> WrittenLayer:
        """What was written, as an OCI layer: see :func:`.oci.write_layer`.

        Raises :class:`SandboxError`.
        """
        from ..layers.layer_writer import write_layer

        def write(lower: int) -> WrittenLayer:
            return write_layer(
                file,
                self.overlays,
                upper_fd=self.scratch,
                lower_fd=lower,
                xattr_prefix=self.xattr_prefix,
                compression=compression,
                ignore=self.created,
                limit=limit,
            )

        with self._as_the_test(_WRITE, write) as (written, _):
            return written

    def _read(self, lower: int) -> tuple[Changes, Contents]:
        contents = Contents()
        changes = read_changes(
            self.overlays,
            upper_fd=self.scratch,
            lower_fd=lower,
            xattr_prefix=self.xattr_prefix,
            ignore=self.created,
            contents=contents,
        )
        return changes, contents

    @contextmanager
    def _as_the_test(self, tried: str, action: Callable[[int], _T]) -> Iterator[tuple[_T, int]]:
        """Do it with the rights that the test had, on a descriptor of the tree that lies below.

        Of an ordinary user's: in a user namespace like the test's, where its files are readable
        whatever their mode; the result is pickled. Gives the descriptor, too.
        """
        opened: list[int] = []
        try:
            if not self.user_namespace:
                try:
                    opened += self._open_below()
                    result = action(opened[0])
                except OSError as error:
                    raise SandboxError(tried, str(error)) from error
            else:
                result, opened = call_in_helper(lambda: self._in_user_namespace(action), tried)
            yield result, opened[0]
        finally:
            for fd in opened:
                os.close(fd)

    def _in_user_namespace(self, action: Callable[[int], _T]) -> tuple[_T, list[int]]:
        # A view is a namespace of the one that this process lives in.
        opened = self._open_below() if self.view >= 0 or self.root_filesystem is None else []
        enter_user_namespace()
        opened = opened or self._open_below()
        return action(opened[0]), opened

    def _open_below(self) -> list[int]:
        """A descriptor of the tree that lies below, and of what keeps it there."""
        if self.view >= 0:
            with root_of(self.view, self.user_namespace) as root:
                return [os.dup(root)]
        if self.root_filesystem is None:
            return [os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        stage = enter_mount_namespace(True) if self.user_namespace else make_stage()
        try:
            root_filesystem = mount_root_filesystem(self.root_filesystem, stage)
        finally:
            os.close(stage)
        with root_of(root_filesystem, self.user_namespace) as root:
            return [os.dup(root), root_filesystem]
