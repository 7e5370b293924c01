"""What a sandbox has written, read from outside by the process that holds its scratch.

That works after the sandbox has ended, however it ended: the uppers live as long as a descriptor
of where they lie. What lies below them is the reader's own tree, which the sandbox was made from.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final, TypeAlias, TypeVar, cast, final

from .changes import Changes
from .enter import Sandbox, root_of
from .entries import Contents
from .errors import SandboxError
from .moving import enter_user_namespace
from .plan import Plan
from .processes import fork, reap
from .syscalls import block_all_signals, exit_now
from .upper import Layered, read_changes

if TYPE_CHECKING:
    from .oci import WrittenLayer
    from .tarwrite import Compression

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
class Remains:
    """The uppers of one sandbox.

    ``scratch``: a descriptor of where they lie, the caller's to close. ``overlays``, ``created``:
    those of the :class:`.enter.Sandbox`. ``view``: a namespace that shows what lies below, -1 for
    the reader's own. ``xattr_prefix``, ``user_namespace``: of its plan.
    """

    scratch: int
    overlays: Sequence[Layered]
    created: Collection[str]
    xattr_prefix: str
    user_namespace: bool
    view: int = -1

    @classmethod
    def of(
        cls,
        plan: Plan,
        scratch: int,
        outline: Outline,
        more: Sequence[Layered] = (),
        view: int = -1,
    ) -> Remains:
        """Of a sandbox of that plan, from what :func:`outline` has said of it, and ``more``."""
        overlays, created = outline
        capabilities = plan.capabilities
        return cls(
            scratch,
            [*(Layered(*overlay) for overlay in overlays), *more],
            created,
            capabilities.xattr_prefix,
            capabilities.user_namespace,
            view,
        )

    @classmethod
    def of_sandbox(cls, sandbox: Sandbox) -> Remains:
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
        with self._below(_READ) as lower:
            changes, contents = self._as_the_test(_READ, lambda: self._read(lower))
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
        from .oci import write_layer

        def write(lower: int) -> WrittenLayer:
            return write_layer(
                file,
                sorted(self.overlays, key=lambda one: one.mountpoint),
                upper_fd=self.scratch,
                lower_fd=lower,
                xattr_prefix=self.xattr_prefix,
                compression=compression,
                ignore=self.created,
                limit=limit,
            )

        with self._below(_WRITE) as lower:
            return self._as_the_test(_WRITE, lambda: write(lower))

    @contextmanager
    def _below(self, tried: str) -> Iterator[int]:
        """A descriptor of the tree that lies below."""
        try:
            if self.view < 0:
                lower = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            else:
                with root_of(self.view, self.user_namespace) as root:
                    lower = os.dup(root)
        except OSError as error:
            raise SandboxError(tried, str(error)) from error
        try:
            yield lower
        finally:
            os.close(lower)

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

    def _as_the_test(self, tried: str, action: Callable[[], _T]) -> _T:
        """Do it with the rights that the test had.

        Of an ordinary user's: in a user namespace like the test's, where its files are readable
        whatever their mode. The result is pickled.
        """
        if not self.user_namespace:
            try:
                return action()
            except OSError as error:
                raise SandboxError(tried, str(error)) from error
        reader, writer = os.pipe()
        child = fork()
        if child == 0:
            try:
                block_all_signals()
                answer: _T | SandboxError
                try:
                    enter_user_namespace()
                    answer = action()
                except SandboxError as error:
                    answer = error
                except Exception as error:  # noqa: BLE001 - for the parent to say
                    answer = SandboxError(tried, str(error))
                with open(writer, "wb") as file:
                    pickle.dump(answer, file, protocol=5)
            finally:
                exit_now(0)
        os.close(writer)
        with open(reader, "rb") as file:
            data = file.read()
        reap(child)
        result: object = pickle.loads(data) if data else SandboxError(tried)
        if isinstance(result, SandboxError):
            raise result
        return cast("_T", result)
