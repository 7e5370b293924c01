"""Enters a sandbox, fetches host directories into it, starts it afresh, and leaves it.

Things that do not work, and so are not done here:

* Entering with other threads alive in the same process, without ``CLONE_FS`` apart: setns(2)
  refuses while the working directory is shared, and a user namespace refuses any thread.
* Keeping a descriptor of the old root: ``fchdir`` and ``/proc/self/fd`` would lead out. What is
  kept is a descriptor of a mount *namespace*, the stage, which no path leads into.
* Emptying an upper under a live overlay: undefined by the kernel's documentation. A reset makes
  a new root and enters that.
* Being on the stage with signals let in: a handler would run in the host's tree, and an exception
  out of it (KeyboardInterrupt, a timeout) would leave the test there. They wait.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Final, final

from . import syscalls as sys
from .advice import Doing, explain
from .build import Building, make_target, open_scratch
from .builders import Builder, Classic, NewApi, set_read_only
from .changes import Changes
from .entries import Contents, Side
from .errors import SandboxError, Unavailable
from .plan import Bind, Plan
from .upper import Layered, read_changes

# High, so that descriptors a test opens have the numbers they have without us.
_FD_FLOOR: Final = 500


def high(fd: int) -> int:
    """Move a descriptor out of the way of those a test opens; close-on-exec."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_FLOOR)
    except OSError:
        # A low limit of open files: stay where it is.
        os.set_inheritable(fd, False)
        return fd
    os.close(fd)
    return moved


def enter_user_namespace() -> None:
    """unshare(CLONE_NEWUSER) with the own uid and gid kept, user_namespaces(7).

    Raises :class:`Unavailable`.
    """
    uid, gid = os.geteuid(), os.getegid()
    steps = (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{uid} {uid} 1"),
        ("/proc/self/gid_map", f"{gid} {gid} 1"),
    )
    what = "make a user namespace"
    try:
        # A process that has changed its uid since its exec may not write its own maps otherwise.
        sys.prctl(sys.PR_SET_DUMPABLE, 1)
        sys.unshare(sys.CLONE_NEWUSER)
        for path, text in steps:
            what = f"write {text!r} to {path}"
            with open(path, "w") as file:
                file.write(text)
    except OSError as error:
        cause, remedy = explain(error.errno or 0, True, "user namespace")
        raise Unavailable(what, str(error), cause, remedy) from error


def enter_mount_namespace(user_namespace: bool) -> int:
    """A mount namespace that nothing leaks out of. Returns the descriptor of the stage.

    The stage is a copy of the host's mounts that stays as it is; the caller is in a further copy.
    Raises :class:`Unavailable`.
    """
    stage = -1
    try:
        sys.unshare(sys.CLONE_NEWNS)
        # Before anything else: on a shared root every mount of ours would appear on the host.
        sys.mount(None, "/", None, sys.MS_SLAVE | sys.MS_REC)
        stage = high(os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        sys.unshare(sys.CLONE_NEWNS)
    except OSError as error:
        if stage >= 0:
            os.close(stage)
        cause, remedy = explain(error.errno or 0, user_namespace, "namespace")
        raise Unavailable("make a mount namespace", str(error), cause, remedy) from error
    return stage


@final
@dataclass(slots=True)
class Sandbox:
    """The sandbox this process is in.

    ``scratch`` is a descriptor of where the uppers lie; ``created`` the paths that were made only
    to be mounted on; ``overlays`` where each overlay is mounted, and its upper below ``scratch``.
    """

    plan: Plan
    scratch: int
    stage: int
    directory: str | None = None
    created: set[str] = field(default_factory=set)
    overlays: list[Layered] = field(default_factory=list)
    _bound: list[Bind] = field(default_factory=list)

    def changes(self) -> Changes:
        """Everything the uppers add, modify, replace, delete or re-label against the host.

        What they hold can be read until the next :meth:`reset`. Raises :class:`SandboxError` if the
        stage cannot be looked at.
        """
        overlays = self.overlays

        @contextmanager
        def trees(side: Side) -> Iterator[int]:
            if self.overlays is not overlays:
                raise SandboxError("read changes", cause="the sandbox was reset since")
            tree = self._below() if side == "before" else nullcontext(self.scratch)
            with _privileged(), tree as fd:
                yield fd

        # Or what the test has made unreadable to itself would be left out.
        with _privileged(), self._below() as lower:
            return read_changes(
                overlays,
                upper_fd=self.scratch,
                lower_fd=lower,
                xattr_prefix=self.plan.capabilities.xattr_prefix,
                ignore=self.created,
                contents=Contents(trees),
            )

    @contextmanager
    def _below(self) -> Iterator[int]:
        """A descriptor of the root of what lies below the uppers, for a moment."""
        with _privileged(), self._on_stage():
            lower = os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield lower
        finally:
            os.close(lower)

    def bind(self, source: str, target: str, *, read_only: bool = False) -> None:
        """Bind-mount the host's ``source`` at ``target``, now; writes persist on the host.

        Both absolute; a missing target is made. Raises :class:`SandboxError`.
        """
        step = Bind(source, os.path.realpath(target), read_only, create=True)
        if not self.plan.capabilities.new_api:
            raise Unavailable(
                step.describe(),
                cause="before Linux 5.12 a mount cannot be carried between namespaces",
                remedy='name it before the test starts: volumes=["SRC:DST"] of the marker',
            )
        self._bind(step)
        self._bound.append(step)

    def _bind(self, step: Bind) -> None:
        flags = sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC | sys.AT_RECURSIVE
        with _privileged(), _explained(step.describe(), self.plan.user_namespace, "bind"):
            with self._on_stage():
                tree = sys.open_tree(sys.AT_FDCWD, step.source, flags)
            root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if step.read_only:
                    set_read_only(tree)
                is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
                make_target(root, step.target, directory=is_directory, created=self.created)
                sys.move_mount(tree, root, step.target[1:])
            finally:
                os.close(root)
                os.close(tree)

    def reset(self) -> None:
        """Drop everything written so far: a new root of the same plan, entered now.

        The working directory is kept where it still exists, and so is what :meth:`bind` has
        mounted. Processes the test has started stay in the old root. Raises
        :class:`SandboxError`; the sandbox is then as it was.
        """
        cwd, old = _cwd(), self.scratch
        with _signals_held(), _privileged(), _way_back(self.plan.user_namespace) as way_back:
            try:
                with _explained("go back to the stage", self.plan.user_namespace, "namespace"):
                    way_back.leave_for(self.stage)
                    sys.unshare(sys.CLONE_NEWNS)
                self._enter(cwd)
            except BaseException:
                way_back.take()
                raise
        os.close(old)

    def _enter(self, cwd: str) -> None:
        """Build and pivot. Changes nothing of this object before it has worked."""
        with _explained("read the mount table", self.plan.user_namespace, "proc"):
            builder: Builder = NewApi() if self.plan.capabilities.new_api else Classic()
        building = Building(builder, self.plan)
        umask = os.umask(0)
        scratch = -1
        try:
            with _explained("make a root", self.plan.user_namespace):
                directory = self.directory
                if directory is not None and self.scratch >= 0:
                    # Another root: an upper is never used twice.
                    directory = tempfile.mkdtemp(dir=directory)
                scratch = high(open_scratch(builder, self.plan, directory))
                os.fchdir(scratch)
                building.carry_out([*self.plan.steps, *self._bound])
                directories = _directory_descriptors(besides={self.scratch, scratch, builder.root})
            with _explained("pivot into the new root", self.plan.user_namespace, "pivot"):
                builder.pivot()
                _reopen(directories)
        except BaseException:
            for fd in (scratch, builder.root):
                if fd >= 0:
                    os.close(fd)
            raise
        finally:
            os.umask(umask)
        self.scratch, self.created = scratch, building.created
        self.overlays = [Layered(o.target, f"{o.name}.upper") for o in building.overlays]
        try:
            os.chdir(cwd)
        except OSError:
            # It was removed, or lies where the new root shows nothing.
            os.chdir("/")

    @contextmanager
    def _on_stage(self) -> Iterator[None]:
        """Be on the stage for a moment: ``/`` is the host's."""
        with _signals_held(), _way_back(self.plan.user_namespace) as way_back:
            try:
                with _explained("look at the stage", self.plan.user_namespace):
                    way_back.leave_for(self.stage)
                yield
            finally:
                way_back.take()


@final
class _WayBack:
    """Namespace, root and working directory of this thread, to return to."""

    def __init__(self, cwd: int, root: int, namespace: int) -> None:
        self._cwd = cwd
        self._root = root
        self._namespace = namespace
        self._away = False

    def leave_for(self, namespace: int) -> None:
        # setns refuses while root and working directory are shared with other threads.
        sys.unshare(sys.CLONE_FS)
        sys.setns(namespace, sys.CLONE_NEWNS)
        self._away = True

    def take(self) -> None:
        if not self._away:
            return
        try:
            sys.setns(self._namespace, sys.CLONE_NEWNS)
            # setns moves to the namespace's own root; a test may have been in a chroot below.
            if not os.path.samestat(os.stat(self._root), os.stat("/")):
                os.fchdir(self._root)
                os.chroot(".")
            os.fchdir(self._cwd)
        except OSError as error:
            # Going on would be going on in the host's tree.
            os.write(2, f"mountns: cannot return to the sandbox: {error}; aborting\n".encode())
            os.abort()


@contextmanager
def _way_back(user_namespace: bool) -> Iterator[_WayBack]:
    opened: list[int] = []
    try:
        with _explained("note the way back into the sandbox", user_namespace):
            opened.append(os.open(".", os.O_PATH | os.O_CLOEXEC))
            opened.append(os.open("/", os.O_PATH | os.O_CLOEXEC))
            opened.append(os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC))
        yield _WayBack(*opened)
    finally:
        for fd in opened:
            os.close(fd)


@contextmanager
def _signals_held() -> Iterator[None]:
    """No signal handler runs, but for signals that another thread of the test takes."""
    before = sys.block_all_signals()
    try:
        # What came before is handled here: not later, on the stage.
        signal.pthread_sigmask(signal.SIG_BLOCK, ())
        yield
    finally:
        sys.set_signal_mask(before)


def enter(plan: Plan, directory: str | None = None) -> Sandbox:
    """Put this process into a sandbox as planned. The process must be single-threaded.

    ``directory``: an empty directory of the host for ``upper="disk"``. The caller is in the
    right user and PID namespace already. Raises :class:`SandboxError`; the process is then in
    an undefined half-way place and must not run anything but its own end.
    """
    cwd = _cwd()
    with _signals_held():
        stage = enter_mount_namespace(plan.user_namespace)
        sandbox = Sandbox(plan, -1, stage, directory)
        sandbox._enter(cwd)
    return sandbox


def drop_user_capabilities() -> None:
    """In a user namespace: no effective capability, as an ordinary user has none.

    Without it, the test could read its own mode-000 files. They stay permitted, so that
    :class:`Sandbox` can take them back for a moment; exec drops them, capabilities(7).
    """
    _, permitted, inheritable = sys.capget()
    sys.capset(0, permitted, inheritable)


@contextmanager
def _privileged() -> Iterator[None]:
    effective, permitted, inheritable = sys.capget()
    if effective == permitted:
        yield
        return
    sys.capset(permitted, permitted, inheritable)
    try:
        yield
    finally:
        sys.capset(effective, permitted, inheritable)


@contextmanager
def _explained(what: str, user_namespace: bool, doing: Doing = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        cause, remedy = explain(error.errno or 0, user_namespace, doing)
        raise SandboxError(what, str(error), cause, remedy) from error


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def _directory_descriptors(besides: set[int]) -> list[tuple[int, str]]:
    """Open directories and where they are: through them a test could reach the old root."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd in besides:
            continue
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                found.append((fd, os.readlink(f"/proc/self/fd/{name}")))
        except OSError:
            # The descriptor of the listing itself, closed by now.
            continue
    return found


def _reopen(directories: list[tuple[int, str]]) -> None:
    for fd, path in directories:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_PATH | os.O_DIRECTORY)
        inheritable = os.get_inheritable(fd)
        try:
            fresh = os.open(path, flags | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            # Nothing stands there in the sandbox: no way out is better than the old one.
            fresh = os.open("/", flags | os.O_DIRECTORY | os.O_CLOEXEC)
        os.dup2(fresh, fd, inheritable=inheritable)
        os.close(fresh)
