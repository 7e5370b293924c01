"""A process that lives at home, goes into sandboxes one after another, and returns.

What it has with it is as before when it is back: working directory, open directories, and the root.
Where it lives is known by a descriptor of a mount namespace, which no path leads into.
"""

from __future__ import annotations

import os
import posix
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import final

from ..linux.background_close import BackgroundCloser
from ..linux.errors import SandboxError, Unavailable
from ..linux.namespaces import (
    change_directory,
    current_namespace,
    drop_user_capabilities,
    enter_mount_namespace,
    enter_user_namespace,
    explained,
    give_up,
    go,
    in_chroot,
    make_stage,
    privileged,
    signals_held,
    way_back,
    working_directory,
)
from ..linux.open_directories import Opened, ParkedDescriptors
from ..mount.template import Templates
from ..plan.model import Bind, Plan
from .create import make
from .sandbox import Layers, Sandbox


@final
@dataclass(slots=True)
class _Visit:
    """``home`` is the working directory there; ``directories`` what was opened again on the way
    in, with what each stands for inside; ``left`` what was collected from the room.
    """

    sandbox: Sandbox
    home: str
    room: ParkedDescriptors
    directories: Sequence[tuple[int, os.stat_result]] = ()
    left: list[int] = field(default_factory=list)


@final
class SandboxManager:
    """Makes sandboxes for this process and moves its main thread in and out.

    ``places``: directories that tests are expected to write to.
    """

    def __init__(self, places: Sequence[str]) -> None:
        with explained("note the namespace to return to", False):
            self._home = current_namespace()
        self._stage = -1
        self._templates = Templates(places)
        self._stack: list[ParkedDescriptors] = []
        self._visits: list[_Visit] = []
        self._reaper = BackgroundCloser()
        self._chrooted: bool | None = None
        self.in_user_namespace = False

    def move_to_user_namespace(self) -> None:
        """From now on this process lives in a user namespace of its own: an ordinary user's.

        It keeps uid and gid, and has no capability but for moments. For good: there is no way
        back. Raises :class:`Unavailable` if that cannot be, as with other threads alive.
        """
        threads = len(posix.listdir("/proc/self/task"))
        if threads > 1:
            # The kernel would say EINVAL.
            raise Unavailable(
                "make a user namespace for this process",
                cause=f"it has {threads} threads, and only one is allowed",
                remedy="run as root, or without what starts threads (pytest-xdist does)",
            )
        cwd = working_directory()
        enter_user_namespace()
        self.in_user_namespace = True
        stage = enter_mount_namespace(True)
        posix.close(self._home)
        # The stage, too: nothing that this process does at home makes mounts.
        self._home = self._stage = stage
        posix.chdir(cwd)
        drop_user_capabilities()

    @property
    def is_inside(self) -> bool:
        """Whether this process is in a sandbox."""
        return bool(self._visits)

    @property
    def stage(self) -> int:
        """A namespace with the host's mounts of now, or of some time since :meth:`strike`."""
        if self._stage < 0:
            self._stage = make_stage()
        return self._stage

    def drop_caches(self) -> None:
        """Let go of the stage, and of what was made on it: the host's mounts change, and they
        would keep old ones in use.
        """
        self._templates.close()
        if self._stage >= 0 and self._stage != self._home:
            posix.close(self._stage)
            self._stage = -1

    def make(
        self,
        plan: Plan,
        *,
        directory: str | None = None,
        layers: Layers | None = None,
        bound: Sequence[Bind] = (),
        shared: bool = True,
    ) -> Sandbox:
        """A sandbox; see :func:`.create.make`. Raises :class:`SandboxError`.

        ``shared``: overlays that nobody writes to may be those of the sandboxes before.
        """
        stage = self.stage
        base = self._templates.without_overlays(plan, stage)
        template = (
            base if layers or not shared else self._templates.with_overlays(plan, stage, base)
        )
        return make(
            plan,
            stage,
            directory=directory,
            layers=layers,
            bound=bound,
            template=template,
            base=base,
        )

    def enter(self, sandbox: Sandbox, cwd: str) -> None:
        """Go in, from home. Raises :class:`SandboxError`; then this process is at home."""
        if self._chrooted is None:
            # In a chroot nobody gets into a user namespace, user_namespaces(7).
            self._chrooted = not self.in_user_namespace and in_chroot()
        if self._chrooted:
            raise Unavailable(
                "enter a sandbox and return",
                cause="this process is in a chroot: it would return to the root outside of that",
                remedy='process="fork" and scope="function", or run outside of the chroot',
            )
        room = self._free_room()
        with signals_held():
            directories = sandbox.foreign_directories()
            with explained("keep the way home", sandbox.plan.user_namespace):
                here = posix.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    room.leave([here, *(fd for fd, _ in directories)])
                finally:
                    posix.close(here)
            visit = _Visit(sandbox, working_directory(), room)
            self._visits.append(visit)
            try:
                sandbox.join(cwd, directories)
                visit.directories = [(fd, posix.fstat(fd)) for fd, _ in directories]
            except BaseException:
                self._return(visit, directories)
                raise

    def leave(self) -> str:
        """Return home. The working directory in the sandbox, as it was last.

        What fails in here ends the process: it must not go on in the wrong root. Handlers of
        signals that other threads take run in here all the same. What they raise is raised when
        this process is at home.
        """
        depth = len(self._visits)
        try:
            return self._leave()
        except BaseException:
            if len(self._visits) == depth:
                # It had not begun to return.
                self._leave()
            raise

    def _leave(self) -> str:
        with signals_held():
            visit = self._visits[-1]
            cwd = working_directory()
            kept = [(fd, "") for fd, inside in visit.directories if _stands_for(fd, inside)]
            self._return(visit, kept)
            return cwd

    def _return(self, visit: _Visit, directories: Sequence[Opened]) -> None:
        failed = False
        raised: BaseException | None = None
        while True:
            try:
                if self._visits and self._visits[-1] is visit:
                    self._go_home(visit, directories)
                while visit.left:
                    posix.close(visit.left.pop())
                visit.room.clear()
                break
            except BaseException as error:  # noqa: BLE001 - raised below, at home
                if not _is_failure(error):
                    raised = error
                elif failed:
                    give_up(error)
                else:
                    failed = True
        if raised is not None:
            raised.__context__ = None
            raise raised

    def _go_home(self, visit: _Visit, directories: Sequence[Opened]) -> None:
        # May be interrupted at any point, and begun again.
        with privileged(self.in_user_namespace):
            go(self._home)
            if not visit.left:
                visit.left = visit.room.collect()
            here, *originals = visit.left
            posix.fchdir(here)
            wanted = {fd for fd, _ in directories}
            known = [fd for fd, _ in visit.directories] or [fd for fd, _ in directories]
            for fd, original in zip(known, originals, strict=True):
                if fd in wanted:
                    posix.dup2(original, fd, inheritable=posix.get_inheritable(fd))
        self._visits.pop()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Be at home for a moment, in the middle of a visit. Raises :class:`SandboxError`."""
        if not self._visits:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._going_home(self._visits[-1]))
            except SandboxError:
                # Tried twice: a report that cannot be heard at home ends the session.
                stack.enter_context(self._going_home(self._visits[-1]))
            yield

    @contextmanager
    def _going_home(self, visit: _Visit) -> Iterator[None]:
        with way_back(visit.sandbox.plan.user_namespace) as back:
            try:
                with signals_held(), privileged(self.in_user_namespace):
                    with explained("go home for a moment", visit.sandbox.plan.user_namespace):
                        back.leave_for(self._home)
                    change_directory(visit.home)
                yield
            finally:
                try:
                    with signals_held(), privileged(self.in_user_namespace):
                        back.take()
                except SandboxError as error:
                    # The test would go on out here.
                    give_up(error)

    def release(self, sandboxes: Sequence[Sandbox]) -> None:
        """Let go of sandboxes that nobody is in, without waiting for that."""
        for sandbox in sandboxes:
            self._reaper.close(sandbox.descriptors)

    def _free_room(self) -> ParkedDescriptors:
        # Visits nest where a visitor goes home for a moment, and from there elsewhere.
        depth = len(self._visits)
        if depth == len(self._stack):
            self._stack.append(ParkedDescriptors())
        return self._stack[depth]

    def close(self) -> None:
        """Let go of everything. This process is at home."""
        self.drop_caches()
        self._reaper.stop()
        for room in self._stack:
            room.close()
        posix.close(self._home)


def _is_failure(error: BaseException) -> bool:
    """Whether the kernel, or what it gave, is the cause. What a handler of a signal raises has no
    errno, TimeoutError neither.
    """
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, SandboxError | ValueError)


def _stands_for(fd: int, inside: os.stat_result) -> bool:
    """Whether the test has left this number to the directory it was on the way in."""
    try:
        return os.path.samestat(posix.fstat(fd), inside)
    except OSError:
        return False
