"""What a sandbox has written, read from outside by a process that holds its scratch.

That works after the sandbox has ended, however it has ended: the uppers exist as long as a
descriptor of the directory in which they lie. The tree below them is the one that the sandbox was
made from, as the reader sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import IO, TYPE_CHECKING, NamedTuple, TypeVar, final

from ..changes.changes import Changes
from ..changes.entries import Contents
from ..linux.errors import SandboxError
from ..linux.helper_process import call_in_helper
from ..linux.namespaces import enter_mount_namespace, enter_user_namespace, make_stage, root_of
from ..linux.subordinate_ids import IdMaps
from ..linux.untouched import os
from ..mount.root import mount_root_filesystem
from ..plan.model import Layered, Plan, UppersDescription
from .sandbox import Layers, Sandbox
from .uppers import Uppers

if TYPE_CHECKING:
    from ..layers.layer_writer import WrittenLayer
    from ..layers.tar_writer import Compression

_T = TypeVar("_T")


@final
class Written(NamedTuple):
    """What one sandbox has written."""

    #: The uppers. Whoever has made this object closes their scratch.
    uppers: Uppers
    #: Whether the sandbox is in a user namespace.
    user_namespace: bool
    #: A descriptor of a mount namespace that shows the tree below the uppers; -1 if that is what
    #: ``root_filesystem`` says, or the reader's own root.
    lower_namespace: int = -1
    #: The plan of the root filesystem that lies below the uppers; None if it is the reader's root.
    root_filesystem: Plan | None = None
    #: Whether that namespace shows the user as root, and with which ids.
    shown_as_root: bool = False
    id_maps: IdMaps | None = None

    @classmethod
    def of(
        cls,
        plan: Plan,
        scratch: int,
        description: UppersDescription,
        shared_overlays: Sequence[Layered] = (),
        layers: Layers | None = None,
    ) -> Written:
        """What a sandbox of ``plan`` on ``layers`` has written that another process has described.

        ``shared_overlays`` are those of its template that were written to.
        """
        uppers = Uppers.described(plan, scratch, description, shared_overlays)
        lower_namespace = layers.namespace if layers is not None else -1
        user_namespace = plan.features.user_namespace
        return cls(
            uppers,
            user_namespace,
            lower_namespace,
            plan.root_filesystem,
            plan.fake_root,
            plan.id_maps,
        )

    @classmethod
    def of_sandbox(cls, sandbox: Sandbox) -> Written:
        """What a sandbox has written that this process has made, for reading it on the host.

        Raises :class:`SandboxError` if it cannot be found out whether shared overlays were written
        to.
        """
        shared = sandbox.written_template_overlays()
        description = sandbox.describe_uppers()
        return cls.of(sandbox.plan, sandbox.scratch, description, shared, sandbox.layers)

    @contextmanager
    def changes(self) -> Iterator[Changes]:
        """The changes. What they hold can be read within the context.

        An ordinary user's are read by a forked process, with the rights that the test had and the
        owners that it saw. Contents are read by this process. Raises :class:`SandboxError` if
        something cannot be read.
        """
        scratch = self.uppers.scratch

        def read(lower: int) -> tuple[Changes, Contents]:
            contents = Contents()
            return self.uppers.changes(lower, contents), contents

        tried = "read what the sandbox has written"
        with self._with_the_rights_of_the_test(tried, read) as ((changes, contents), lower):
            contents.trees = lambda side: nullcontext(lower if side == "before" else scratch)
            try:
                yield changes
            finally:
                contents.close()

    def write_layer(
        self, file: IO[bytes], *, compression: Compression, limit: int | None = None
    ) -> WrittenLayer:
        """Write it to ``file``, as a layer of an OCI image, of ``limit`` bytes at most.

        Raises :class:`SandboxError` if that fails.
        """

        def write(lower: int) -> WrittenLayer:
            return self.uppers.write_layer(file, lower, compression=compression, limit=limit)

        tried = "save what the sandbox has written"
        with self._with_the_rights_of_the_test(tried, write) as (written, _):
            return written

    @contextmanager
    def _with_the_rights_of_the_test(
        self, tried: str, action: Callable[[int], _T]
    ) -> Iterator[tuple[_T, int]]:
        """Call ``action`` with a descriptor of the tree below, with the rights that the test had.

        For an ordinary user's test that is done by a child in a user namespace like the test's,
        where the user may read his files whatever their mode. The result is pickled. Yields the
        result and a descriptor of the tree below.
        """
        opened: list[int] = []
        try:
            if not self.user_namespace:
                try:
                    opened += self._open_lower()
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
        # The namespace of layers belongs to the user namespace that this process is in already. A
        # root filesystem is mounted in the new one.
        is_mounted = self.lower_namespace >= 0 or self.root_filesystem is None
        opened = self._open_lower() if is_mounted else []
        enter_user_namespace(as_root=self.shown_as_root, maps=self.id_maps)
        opened = opened or self._open_lower()
        return action(opened[0]), opened

    def _open_lower(self) -> list[int]:
        """Returns a descriptor of the tree below, and what has to stay open for it."""
        if self.lower_namespace >= 0:
            with root_of(self.lower_namespace, self.user_namespace) as root:
                return [os.dup(root)]
        if self.root_filesystem is None:
            return [os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        stage = enter_mount_namespace(True) if self.user_namespace else make_stage()
        try:
            namespace = mount_root_filesystem(self.root_filesystem, stage)
        finally:
            os.close(stage)
        with root_of(namespace, self.user_namespace) as root:
            return [os.dup(root), namespace]
