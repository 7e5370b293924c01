"""A process on the host that makes sandboxes, enters them one after another, and returns.

When it has returned, its working directory, its open directories and its root are as before. The
way back is a descriptor of a mount namespace, which no path leads into, setns(2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Final, final

from ..linux.ablation import is_left_out
from ..linux.background_close import BackgroundCloser
from ..linux.call_helper import CallHelper
from ..linux.environment import read_environment
from ..linux.errors import SandboxError, Unavailable
from ..linux.namespaces import (
    change_directory,
    current_namespace,
    despite_signals,
    drop_user_capabilities,
    enter_mount_namespace,
    enter_user_namespace,
    explained,
    give_up,
    in_chroot,
    make_stage,
    more_descriptors,
    owns_user_namespace,
    privileged,
    signals_held,
    way_back,
    working_directory,
)
from ..linux.open_directories import ParkedDescriptors, is_open
from ..linux.threads import explain_stuck, move_other_threads, other_threads, stuck_threads
from ..linux.untouched import os, posix
from ..mount.root import NewRoot, RootAhead, make_root_ahead
from ..mount.shown_files import ShownFiles
from ..mount.template import Template, Templates
from ..plan.model import Bind, Plan
from .create import make
from .sandbox import Layers, Sandbox

#: After so many roots in a row that were made ahead, and then not taken, no more are made.
_MOST_IN_VAIN: Final = 3


@final
@dataclass(slots=True, eq=False, repr=False)
class _Entered:
    """A sandbox that the process has entered, and what it needs to return from it."""

    #: Returns the sandbox that the process is in: that one, or the one of a checkpoint in it.
    now: Callable[[], Sandbox]
    #: The working directory on the host.
    host_directory: str
    #: Whether that is another one than was parked: it was changed within on_host().
    has_moved: bool = field(default=False, init=False)
    #: Holds the working directory and the open directories of the host meanwhile.
    parked: ParkedDescriptors
    #: See :attr:`.Sandbox.reopened`.
    reopened: dict[int, os.stat_result] = field(default_factory=dict)
    #: Descriptors that were taken out of ``parked`` and are not closed yet.
    unparked: list[int] = field(default_factory=list)


@final
class SandboxManager:
    """Makes sandboxes for this process, and moves all its threads in and out of them.

    ``places`` are directories that tests are expected to write to. Raises :class:`SandboxError` if
    the mount namespace of the process cannot be opened.
    """

    def __init__(self, places: Sequence[str]) -> None:
        with explained("open the mount namespace to return to", False):
            self._host_namespace = current_namespace()
        self._stage = -1
        self._templates = Templates(places, self._let_go_of_template)
        # Sandboxes that were made and not released. Some may be closed already.
        self._made: list[Sandbox] = []
        # Descriptors of stages and templates that only some of these use: no new one is made from
        # them.
        self._outdated: list[tuple[int, ...]] = []
        #: Whether this process has moved to a user namespace of its own.
        self.in_user_namespace = False
        # The sandboxes that this process has entered and not left. There can be several: on_host()
        # returns to the host for a moment, and from there the process may enter another one.
        self._entered: list[_Entered] = []
        # One for each level of these, made when it is needed first.
        self._parked: list[ParkedDescriptors] = []
        self._closer = BackgroundCloser()
        self._in_chroot: bool | None = None
        # See make_ahead().
        self._ahead: RootAhead | None = None
        self._made_in_vain = 0
        # With one processor both processes take their turns, and forked tests would cost 4 % more.
        self._makes_ahead = len(os.sched_getaffinity(0)) > 1 and not is_left_out("made_ahead")
        self._helper: CallHelper | None = None
        # Of the root that the last sandbox was made from, if that was made ahead.
        self._just_seen: ShownFiles | None = None

    def move_to_user_namespace(self) -> None:
        """Move this process into a user namespace of its own: an ordinary user's, who needs one.

        It keeps its uid and gid, and has effective capabilities for moments only. There is no way
        back, user_namespaces(7).

        Raises :class:`Unavailable` if that is refused. It says what the kernel has answered, and
        names the cause if this environment leaves only one: several threads (EINVAL), a chroot, a
        setting, AppArmor or seccomp (EPERM or EACCES), a limit (ENOSPC), the nesting (EUSERS).
        """
        if owns_user_namespace():
            # Of an earlier session in this process, or inherited. They do not nest for ever.
            self.in_user_namespace = True
            self._stage = self._host_namespace
            return
        # Read before: in the new namespace the process has all capabilities, whatever they are
        # worth, and /proc/self says so.
        here = read_environment()
        cwd = working_directory()
        step = "user namespace"
        try:
            enter_user_namespace(forked=False)
            step = "mount namespace"
            stage = enter_mount_namespace(True)
        except Unavailable as error:
            if step == "mount namespace":
                # It stays in the user namespace, and must not have more rights than before.
                drop_user_capabilities()
            from ..linux.diagnosis import diagnosed

            raise diagnosed(error, step, here) from error.__cause__
        self.in_user_namespace = True
        posix.close(self._host_namespace)
        # It is the stage as well: nothing that this process does on the host makes mounts.
        self._host_namespace = self._stage = stage
        posix.chdir(cwd)
        drop_user_capabilities()

    @property
    def _drops_capabilities(self) -> bool:
        """Whether this process may have capabilities that are not in effect.

        Root's process has, if the test has become another user for a moment, seteuid(2).
        """
        return self.in_user_namespace or posix.geteuid() != 0

    @property
    def is_inside(self) -> bool:
        """Whether this process has entered a sandbox and not left it."""
        return bool(self._entered)

    @property
    def depth(self) -> int:
        """How many sandboxes this process has entered and not left."""
        return len(self._entered)

    @property
    def stage(self) -> int:
        """A descriptor of a mount namespace with the host's mounts.

        They are those of the moment when it was asked for first after :meth:`drop_caches`. Raises
        :class:`SandboxError` if it cannot be made.
        """
        if self._stage < 0:
            self._stage = make_stage()
        return self._stage

    def drop_caches(self) -> None:
        """Close the stage and the templates: the host's mounts are about to change, or have done.

        As long as they are open, the host's old mounts are in use, and as long as sandboxes that
        were released are not unmounted. What sandboxes that are still open were made from, is
        closed when these are released.
        """
        self.drop_ahead()
        if self._helper is not None:
            self._helper.finish()
        self._closer.finish()
        self._templates.close()
        if self._stage >= 0 and self._stage != self._host_namespace:
            stage, self._stage = self._stage, -1
            self._outdated.append((stage,))
        self._close_outdated()

    def _let_go_of_template(self, template: Template) -> None:
        self._outdated.append(template.descriptors)
        self._close_outdated()

    def _close_outdated(self) -> None:
        """Close what no sandbox uses that is still open."""
        used: set[int] = set().union(*(one.shared_descriptors for one in self._made if one.is_open))
        for descriptors in [one for one in self._outdated if used.isdisjoint(one)]:
            self._outdated.remove(descriptors)
            for fd in descriptors:
                posix.close(fd)

    def make(
        self,
        plan: Plan,
        *,
        directory: str | None = None,
        layers: Layers | None = None,
        bound: Sequence[Bind] = (),
        shared: bool = True,
    ) -> Sandbox:
        """Make a sandbox, from a template where there can be one: see :func:`.create.make`.

        ``shared`` says that it may have overlays in common with sandboxes before it, as long as
        nobody writes to them. Raises :class:`SandboxError` if a step fails.
        """
        stage = self.stage
        template = without_overlays = self._templates.without_overlays(plan, stage)
        if shared and not layers:
            template = self._templates.with_overlays(plan, stage)
        unusual = bool(layers or bound or directory is not None) or not shared
        root = self._take_ahead(None if unusual else plan, template)
        made = make(
            plan,
            stage,
            directory=directory,
            layers=layers,
            bound=bound,
            template=template,
            template_without_overlays=without_overlays,
            root=root,
        )
        self._made = [*(one for one in self._made if one.is_open), made]
        return made

    def make_ahead(self, sandbox: Sandbox, *, beside: bool = False) -> None:
        """Make the root of the sandbox that comes after ``sandbox`` now, if it has the same plan.

        :meth:`make` gives it to that one if it is what would be made then. A process that has to
        wait anyway makes it itself. With ``beside``, a helper makes it while this process goes on,
        as long as a processor is idle. If it cannot be made, nothing is raised here: :meth:`make`
        tries again.

        It exists for speed alone; ``MOUNTNS_ABLATE=made_ahead`` leaves it out. Measured on Linux
        6.18 with two processors, with and without it in turn: what an empty test costs with
        ``process="inline"`` is 1.24 times the wall time without it, and the same CPU time (14 runs
        of 500 tests). With ``process="fork"`` a whole run takes 1.07 times the wall time without
        it. With two workers of pytest-xdist there is no difference.
        """
        template = sandbox.template
        usual = sandbox.directory is None and not sandbox.layers and not sandbox.bound
        if self._ahead is not None or template is None or not usual:
            return
        if not self._makes_ahead or self._made_in_vain >= _MOST_IN_VAIN:
            return
        if beside and self._helper is None:
            self._helper = CallHelper(dropped=self._drops_capabilities)
        helper = self._helper if beside else None
        if helper is None or helper.is_worth_it:
            with suppress(SandboxError):
                self._ahead = make_root_ahead(
                    sandbox.plan, sandbox.stage, template, helper, self._just_seen
                )

    def _take_ahead(self, plan: Plan | None, template: Template | None) -> NewRoot | None:
        """The root that was made ahead, if it is of this plan and template; it is let go else."""
        ahead = self._ahead
        self._just_seen = None
        if ahead is None:
            return None
        root = ahead.take(plan, template) if plan is not None else None
        if root is None:
            self.drop_ahead()
        else:
            self._ahead, self._made_in_vain = None, 0
            self._just_seen = ahead.files
        return root

    def drop_ahead(self) -> None:
        """Let go of a root that was made ahead.

        It is to be called before a fork, unless that process enters the root: it would hold it.
        """
        if self._ahead is not None:
            descriptors = self._ahead.descriptors()
            self._ahead = None
            self._made_in_vain += 1
            # It happens too seldom for a helper of its own.
            self._closer.close(descriptors, may_start=False)

    def enter(self, sandbox: Sandbox, cwd: str, now: Callable[[], Sandbox] | None = None) -> None:
        """Enter a sandbox from the host, with ``cwd`` as working directory.

        ``now`` returns the sandbox that the process has gone on to from there, if it may do so.

        Raises :class:`Unavailable` if this process is in a chroot, and :class:`SandboxError` if the
        sandbox cannot be entered. The process is then on the host. What the handler of a signal
        raises may come out of here when the process is inside: then the caller has to leave, and
        knows it by :attr:`depth`.
        """
        if self._in_chroot is None:
            # In a chroot nobody can make a user namespace, user_namespaces(7).
            self._in_chroot = not self.in_user_namespace and in_chroot()
        if self._in_chroot:
            raise Unavailable(
                "enter a sandbox and return",
                cause="this process is in a chroot: it would return to the root outside of that",
                remedy='process="fork" and scope="function", or run outside of the chroot',
            )
        if self._ahead is not None and self._ahead.is_here:
            # Its directories would be opened again.
            self.drop_ahead()
        parked = self._free_parking()
        with signals_held():
            directories = sandbox.directories_to_reopen()
            with explained("hold the directories to return to", sandbox.plan.user_namespace):
                parked.leave([fd for fd, _ in directories])
            entered = _Entered(now or (lambda: sandbox), working_directory(), parked)
            self._entered.append(entered)
            try:
                sandbox.enter(cwd, directories)
                entered.reopened = {fd: posix.fstat(fd) for fd, _ in directories}
                sandbox.reopened = entered.reopened
            except BaseException:
                self._return(entered, [fd for fd, _ in directories])
                raise

    def leave(self) -> str:
        """Return to the host. Returns the last working directory in the sandbox.

        If that fails, the process ends: it must not go on in the wrong root. A handler of a signal
        that another thread takes may run meanwhile. What it raises is raised when this process is
        on the host.
        """
        depth = len(self._entered)
        try:
            return self._leave()
        except BaseException:
            if len(self._entered) == depth:
                # It was interrupted before it began to return.
                self._leave()
            raise

    def _leave(self) -> str:
        with signals_held():
            entered = self._entered[-1]
            cwd = working_directory()
            directories = [fd for fd, inside in entered.reopened.items() if is_open(fd, inside)]
            self._return(entered, directories)
            return cwd

    def _return(self, entered: _Entered, directories: Sequence[int]) -> None:
        """Return to the host, where the descriptors ``directories`` are again what they were.

        A failure is tried again once. An exception of a signal handler does not stop it.
        """
        failed = False
        raised: BaseException | None = None
        while True:
            try:
                if self._entered and self._entered[-1] is entered:
                    with more_descriptors() if failed else nullcontext():
                        self._move_to_host(entered, directories)
                while entered.unparked:
                    posix.close(entered.unparked.pop())
                entered.parked.clear()
                break
            except BaseException as error:  # noqa: BLE001 - raised below, on the host
                if not _is_failure(error):
                    raised = error
                elif failed:
                    give_up(error)
                else:
                    failed = True
        if raised is not None:
            raised.__context__ = None
            raise raised

    def _move_to_host(self, entered: _Entered, directories: Sequence[int]) -> None:
        # This may be interrupted at any point, and is then begun again.
        with privileged(self._drops_capabilities):
            if not entered.unparked:
                entered.unparked = entered.parked.go_back(self._host_namespace)
            if entered.has_moved:
                change_directory(entered.host_directory)
            originals = entered.unparked[1:]
            # In the order in which they were parked.
            parked = [*entered.reopened] or directories
            for fd, original in zip(parked, originals, strict=True):
                if fd in directories:
                    posix.dup2(original, fd, inheritable=posix.get_inheritable(fd))
            # A thread that cannot move any more stays where nothing is left to write to. It is
            # named when the next sandbox is to be entered.
            with suppress(SandboxError):
                move_other_threads(
                    self._host_namespace, raise_capabilities=self._drops_capabilities
                )
        self._entered.pop()

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """Be on the host within the context, and then in the sandbox again.

        Other threads stay in the sandbox: they may be at work for the test. Those that are started
        on the host are moved into the sandbox with this one. A change of the working directory is
        kept, on the host and in the sandbox.

        Raises :class:`SandboxError` if this process cannot go there. If it cannot return from
        there, it ends.
        """
        if not self._entered:
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(self._on_host(self._entered[-1]))
            except SandboxError:
                # Tried twice: a report that nobody can hear on the host ends the session. The test
                # may have opened all the files that it may.
                stack.enter_context(more_descriptors())
                stack.enter_context(self._on_host(self._entered[-1]))
            yield

    @contextmanager
    def _on_host(self, entered: _Entered) -> Iterator[None]:
        sandbox = entered.now()
        user_namespace = sandbox.plan.user_namespace
        with ExitStack() as stack:
            with privileged(self._drops_capabilities):
                # The test's user may not be allowed to look at the directory that it is in.
                way = way_back(user_namespace, sandbox.namespace)
                back = stack.enter_context(way)
            before = _other_threads_if_known()
            # The working directory in which this process comes to the host, and the last one there.
            begun_in: str | None = None
            ended_in: str | None = None

            def take() -> None:
                # This may be interrupted at any point, and is then begun again.
                nonlocal ended_in
                with signals_held(), privileged(self._drops_capabilities):
                    if ended_in is None:
                        ended_in = working_directory()
                    has_moved = begun_in not in (None, ended_in)
                    if has_moved:
                        entered.host_directory, entered.has_moved = ended_in, True
                    back.take()
                    if has_moved:
                        with suppress(OSError):
                            posix.chdir(ended_in)
                    if _other_threads_if_known() - before:
                        # Those that stay are found by check_threads().
                        with suppress(SandboxError):
                            move_other_threads(
                                sandbox.namespace, raise_capabilities=self._drops_capabilities
                            )

            def return_inside() -> None:
                try:
                    despite_signals(take)
                except SandboxError as error:
                    # The test would go on on the host.
                    give_up(error)

            try:
                with signals_held(), privileged(self._drops_capabilities):
                    with explained("return to the host for a moment", user_namespace):
                        back.leave_for(self._host_namespace)
                    change_directory(entered.host_directory)
                    begun_in = working_directory()
                yield
            finally:
                try:
                    return_inside()
                except BaseException:
                    # It may have been interrupted before it began.
                    return_inside()
                    raise

    def check_threads(self) -> None:
        """Raises :class:`SandboxError` if a thread of this process cannot move into a sandbox."""
        if stuck := stuck_threads():
            raise explain_stuck(stuck)

    def release(self, sandboxes: Sequence[Sandbox]) -> None:
        """Close sandboxes that nobody is in, without waiting until they are unmounted."""
        for index, sandbox in enumerate(sandboxes):
            try:
                self._closer.close(sandbox.take_descriptors(), may_start=not self._entered)
            except BaseException:
                # Of the handler of a signal.
                self.release(sandboxes[index + 1 :])
                raise
        if self._outdated:
            self._close_outdated()

    def _free_parking(self) -> ParkedDescriptors:
        depth = len(self._entered)
        if depth == len(self._parked):
            self._parked.append(ParkedDescriptors())
        return self._parked[depth]

    def close(self) -> None:
        """Close everything. This process is on the host."""
        self.drop_caches()
        self._closer.stop()
        if self._helper is not None:
            self._helper.close()
        for parked in self._parked:
            parked.close()
        posix.close(self._host_namespace)


def _other_threads_if_known() -> frozenset[int]:
    """The other threads; none if the test's root has no ``/proc``."""
    try:
        return other_threads()
    except SandboxError:
        return frozenset()


def _is_failure(error: BaseException) -> bool:
    """Whether a system call, or what it gave, is the cause, and not a handler of a signal.

    What a handler raises has no errno; TimeoutError is an :class:`OSError` without one.
    """
    if isinstance(error, OSError):
        return error.errno is not None
    return isinstance(error, SandboxError | ValueError)
