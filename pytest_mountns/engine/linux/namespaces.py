"""How this thread gets from one mount namespace to another, and back.

Things that do not work, and so are not done here:

* Moving with the working directory shared between threads: setns(2) refuses. ``CLONE_FS`` apart
  first; threads that are already there stay where they are.
* Being away with signals let in: a handler would run in the wrong tree, and an exception out of
  it (KeyboardInterrupt, a timeout) would leave the test there. They wait.

Functions are taken from :mod:`posix`: those of :mod:`os` a test may have replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar, final

from . import syscalls as sys
from .errno_advice import Doing, explain
from .errors import SandboxError, Unavailable, said
from .untouched import _signal, fcntl, open, os, posix, signal

T = TypeVar("T")

# High, so that descriptors a test opens have the numbers they have without us.
_FD_FLOOR: Final = 500
_NAMESPACE: Final = "/proc/thread-self/ns/mnt"


def high(fd: int) -> int:
    """Move a descriptor out of the way of those a test opens; close-on-exec."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_FLOOR)
    except OSError:
        # A low limit of open files: stay where it is.
        posix.set_inheritable(fd, False)
        return fd
    posix.close(fd)
    return moved


def current_namespace() -> int:
    """A descriptor of this thread's mount namespace. Raises :class:`OSError`."""
    return high(posix.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC))


def go(namespace: int) -> None:
    """Move this thread to the root of another mount namespace, setns(2)."""
    # setns refuses while root and working directory are shared with other threads.
    sys.unshare(sys.CLONE_FS)
    sys.setns(namespace, sys.CLONE_NEWNS)


def _twice(call: Callable[[], T]) -> T:
    try:
        return call()
    except OSError:
        return call()


def enter_user_namespace(*, as_root: bool = False) -> None:
    """unshare(CLONE_NEWUSER) with the own uid and gid kept, user_namespaces(7).

    ``as_root``: they are shown as 0. Raises :class:`Unavailable`.
    """
    uid, gid = posix.geteuid(), posix.getegid()
    steps = (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{0 if as_root else uid} {uid} 1"),
        ("/proc/self/gid_map", f"{0 if as_root else gid} {gid} 1"),
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
        raise Unavailable(what, said(error), cause, remedy) from error


def enter_mount_namespace(user_namespace: bool) -> int:
    """Move for good to a mount namespace that nothing leaks out of; returns its descriptor.

    It is a copy of the mounts of the one before, which it follows. Raises :class:`Unavailable`.
    """
    try:
        sys.unshare(sys.CLONE_NEWNS)
        # Before anything else: on a shared root every mount of ours would appear on the host.
        sys.mount(None, "/", None, sys.MS_SLAVE | sys.MS_REC)
        return current_namespace()
    except OSError as error:
        cause, remedy = explain(error.errno or 0, user_namespace, "namespace")
        raise Unavailable("make a mount namespace", said(error), cause, remedy) from error


def make_stage() -> int:
    """A descriptor of a further such namespace; this thread stays where it is.

    For a process that needs no user namespace. Raises :class:`SandboxError`.
    """
    with signals_held(), way_back(False) as back:
        back.away()
        stage = enter_mount_namespace(False)
        with explained("make the chroot a root", False, "pivot"):
            _adopt_chroot(stage)
        return stage


def _adopt_chroot(namespace: int) -> None:
    """If this process is in a chroot, make that the root of its ``namespace``."""
    root = posix.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sys.setns(namespace, sys.CLONE_NEWNS)
        if os.path.samestat(posix.stat(root), posix.stat("/")):
            return
        posix.fchdir(root)
        sys.pivot_root(".", ".")
        sys.mount(None, ".", None, sys.MS_SLAVE | sys.MS_REC)
        sys.umount(".", sys.MNT_DETACH)
    finally:
        posix.close(root)


def in_chroot() -> bool:
    """Whether ``/`` is another directory than the root of this thread's mount namespace.

    Raises :class:`SandboxError`.
    """
    before = posix.stat("/")
    doing = "look at the root of the mount namespace"
    with signals_held(), way_back(False) as back, explained(doing, False, "namespace"):
        back.leave_for(current := current_namespace())
        posix.close(current)
        return not os.path.samestat(before, posix.stat("/"))


@final
class WayBack:
    """Namespace, root and working directory of this thread, to return to."""

    def __init__(self, cwd: int, root: int, namespace: int) -> None:
        self._cwd = cwd
        self._root = root
        self._namespace = namespace
        self._away = False

    def away(self) -> None:
        """From now on this thread may be elsewhere."""
        sys.unshare(sys.CLONE_FS)
        self._away = True

    def leave_for(self, namespace: int) -> None:
        """Go there. Raises :class:`OSError`."""
        self.away()
        sys.setns(namespace, sys.CLONE_NEWNS)

    def take(self) -> None:
        """Return, if :meth:`away`. What fails here ends the process: see :func:`give_up`.

        Tried twice: the kernel may have had no memory for a moment.
        """
        if not self._away:
            return
        interruption: BaseException | None = None
        has_failed = False
        while self._away:
            try:
                self._return()
                self._away = False
            except OSError as error:
                if has_failed:
                    give_up(error)
                has_failed = True
            except BaseException as error:  # noqa: BLE001 - raised below
                # Of a signal's handler: another thread has taken the signal. Half-way is no place.
                interruption = error
        if interruption is not None:
            raise interruption

    def _return(self) -> None:
        sys.setns(self._namespace, sys.CLONE_NEWNS)
        # setns has moved to the namespace's own root; a test may be in a chroot below.
        if not os.path.samestat(posix.stat(self._root), posix.stat("/")):
            posix.fchdir(self._root)
            posix.chroot(".")
        posix.fchdir(self._cwd)


def give_up(error: BaseException) -> None:
    """End this process: it is in the wrong tree, and whatever runs next would write there."""
    posix.write(2, f"mountns: cannot return from a sandbox: {error}; aborting\n".encode())
    posix.abort()


@contextmanager
def way_back(user_namespace: bool) -> Iterator[WayBack]:
    """Note where this thread is, and take it back there. Raises :class:`SandboxError`."""
    opened: list[int] = []
    try:
        with explained("note the way back", user_namespace):
            opened.append(posix.open(".", os.O_PATH | os.O_CLOEXEC))
            opened.append(posix.open("/", os.O_PATH | os.O_CLOEXEC))
            opened.append(posix.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC))
        back = WayBack(*opened)
        try:
            yield back
        finally:
            back.take()
    finally:
        for fd in opened:
            posix.close(fd)


@contextmanager
def mounting(user_namespace: bool, *, dropped: bool) -> Iterator[tuple[WayBack, list[int]]]:
    """For making mounts elsewhere: no signal, all capabilities, no umask, and then back.

    ``dropped``: as for :func:`privileged`. Descriptors that are put into the list are closed if
    that fails. Raises :class:`SandboxError`.
    """
    opened: list[int] = []
    with signals_held(), privileged(dropped), way_back(user_namespace) as back:
        umask = posix.umask(0)
        try:
            yield back, opened
        except BaseException:
            for fd in opened:
                posix.close(fd)
            raise
        finally:
            posix.umask(umask)


@contextmanager
def visiting(namespace: int, user_namespace: bool) -> Iterator[None]:
    """Be there for a moment: ``/`` is what it shows. Raises :class:`SandboxError`."""
    with signals_held(), way_back(user_namespace) as back:
        with explained("look at the stage", user_namespace):
            back.leave_for(namespace)
        yield


@contextmanager
def root_of(namespace: int, user_namespace: bool) -> Iterator[int]:
    """A descriptor of the root that a mount namespace shows. Raises :class:`SandboxError`."""
    with (
        explained("look at what is below", user_namespace),
        privileged(user_namespace),
        visiting(namespace, user_namespace),
    ):
        root = posix.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield root
    finally:
        posix.close(root)


@contextmanager
def signals_held() -> Iterator[None]:
    """No signal handler runs, but for signals that another thread of the test takes."""
    before = sys.block_all_signals()
    try:
        # What came before is handled here: not later, in another tree. Not by the standard
        # library's, which makes 64 enumeration members of what it returns.
        _signal.pthread_sigmask(signal.SIG_BLOCK, ())
        yield
    finally:
        sys.set_signal_mask(before)


def drop_user_capabilities() -> None:
    """No effective capability, as an ordinary user has none.

    Without it, the test could read its own mode-000 files. They stay permitted, so that
    :func:`privileged` can take them back for a moment; exec drops them, capabilities(7).
    """
    _, permitted, inheritable = sys.capget()
    sys.capset(0, permitted, inheritable)


def take_user_capabilities() -> None:
    """Undo :func:`drop_user_capabilities`, for a process that goes on making namespaces."""
    _, permitted, inheritable = sys.capget()
    sys.capset(permitted, permitted, inheritable)


@contextmanager
def privileged(dropped: bool) -> Iterator[None]:
    """What :func:`drop_user_capabilities` has dropped, for a moment.

    ``dropped``: whether that may have been.
    """
    if not dropped:
        yield
        return
    with explained("take back the capabilities that were given up", True):
        effective, permitted, inheritable = _twice(sys.capget)
        if effective != permitted:
            _twice(lambda: sys.capset(permitted, permitted, inheritable))
    if effective == permitted:
        yield
        return
    # Root's process that has become another user: what is made now is root's as before. Where a
    # user namespace maps no such ids, nothing changes.
    uid, gid = sys.setfsuid(0), sys.setfsgid(0)
    try:
        yield
    finally:
        sys.setfsgid(gid)
        sys.setfsuid(uid)
        with explained("give up the capabilities again", True):
            _twice(lambda: sys.capset(effective, permitted, inheritable))


@contextmanager
def explained(what: str, user_namespace: bool, doing: Doing = "") -> Iterator[None]:
    """Turn an :class:`OSError` into a :class:`SandboxError` that says what helps."""
    try:
        yield
    except OSError as error:
        cause, remedy = explain(error.errno or 0, user_namespace, doing)
        raise SandboxError(what, said(error), cause, remedy) from error


def working_directory() -> str:
    """The working directory's path; ``/`` where it has none any more."""
    try:
        return posix.getcwd()
    except OSError:
        return "/"


def change_directory(path: str) -> None:
    """Go there, or to ``/`` where it is not shown: it was removed, or is another user's."""
    try:
        posix.chdir(path)
    except OSError:
        posix.chdir("/")
