"""How this thread gets from one mount namespace to another, and back.

Things that do not work, and so are not done here:

* Moving while threads share root and working directory: setns(2) refuses that. So this thread
  stops sharing them first (unshare(2), ``CLONE_FS``). Other threads stay where they are;
  :mod:`.threads` moves them.
* Handling signals meanwhile: a handler would run in the wrong tree, and an exception that it
  raises (KeyboardInterrupt, a timeout) would leave the test there. So signals are blocked.
"""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, TypeVar, final

from . import mountinfo, threads
from . import syscalls as sys
from .errno_advice import Doing, explain
from .errors import SandboxError, Unavailable, is_failed_call, said
from .untouched import fcntl, open, os, posix

if TYPE_CHECKING:
    from .subordinate_ids import IdMaps

T = TypeVar("T")

#: The descriptor on which a process that has to end says why. Whoever captures what is written to
#: descriptor 2 sets it to the one that it has put aside.
real_stderr: Final[ContextVar[int]] = ContextVar("real_stderr", default=2)
#: The lowest number of the plugin's own descriptors, so that those that a test opens have the
#: numbers that they have without the plugin.
FD_FLOOR: Final = 500
#: How often what was interrupted is begun again. No handler raises so often by chance.
_MOST_INTERRUPTIONS: Final = 100
_NAMESPACE: Final = "/proc/thread-self/ns/mnt"
_UTS_NAMESPACE: Final = "/proc/thread-self/ns/uts"


def high(fd: int) -> int:
    """Move a descriptor out of the way of those that a test opens. It is close-on-exec."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FD_FLOOR)
    except OSError:
        # The limit of open files is too low for that.
        posix.set_inheritable(fd, False)
        return fd
    posix.close(fd)
    return moved


def current_namespace() -> int:
    """A descriptor of this thread's mount namespace. Raises :class:`OSError` without ``/proc``."""
    return high(posix.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC))


def go(namespace: int) -> None:
    """Move this thread to the root of another mount namespace, setns(2).

    Raises :class:`OSError` if the kernel refuses.
    """
    # It refuses while root and working directory are shared with other threads.
    sys.unshare(sys.CLONE_FS)
    sys.setns(namespace, sys.CLONE_NEWNS)


def _twice(call: Callable[[], T]) -> T:
    try:
        return call()
    except OSError:
        return call()


def enter_user_namespace(
    *, as_root: bool = False, maps: IdMaps | None = None, forked: bool = True
) -> None:
    """Enter a new user namespace that maps this process's uid and gid, user_namespaces(7).

    ``as_root``: they are shown as 0 in it. ``maps``: they are mapped so, and others, too.
    ``forked``: this process was forked for it, so that other threads can only be a library's.
    Raises :class:`Unavailable` if that is refused, and :class:`.ThreadsAfterFork`.
    """
    uid, gid = posix.geteuid(), posix.getegid()
    steps = (
        ("/proc/self/setgroups", "deny"),
        ("/proc/self/uid_map", f"{0 if as_root else uid} {uid} 1"),
        ("/proc/self/gid_map", f"{0 if as_root else gid} {gid} 1"),
    )
    what = "make a user namespace"
    doing: Doing = "user namespace"
    try:
        # A process that has changed its uid since its exec could not write its own maps otherwise.
        sys.prctl(sys.PR_SET_DUMPABLE, 1)
        if maps is not None:
            from .subordinate_ids import enter_mapped

            enter_mapped(maps, lambda: sys.unshare(sys.CLONE_NEWUSER))
            return
        sys.unshare(sys.CLONE_NEWUSER)
        for path, text in steps:
            what, doing = f"write {text!r} to {path}", "id map"
            with open(path, "w") as file:
                file.write(text)
    except OSError as error:
        cause, remedy = explain(error.errno or 0, True, doing)
        refused = Unavailable(what, said(error), cause, remedy)
        if forked and error.errno == errno.EINVAL and doing == "user namespace":
            raise threads.explain_forked_threads(refused) from error
        raise refused from error


def enter_mount_namespace(user_namespace: bool) -> int:
    """Move for good to a new mount namespace that nothing leaks out of. Returns its descriptor.

    It begins as a copy of the one before, and mounts that are made there appear in it as well
    (mount_namespaces(7), ``MS_SLAVE``). Raises :class:`Unavailable` if that is refused.
    """
    try:
        sys.unshare(sys.CLONE_NEWNS)
        # First of all: on a shared root every mount of ours would appear on the host.
        sys.mount(None, "/", None, sys.MS_SLAVE | sys.MS_REC)
        return current_namespace()
    except OSError as error:
        cause, remedy = explain(error.errno or 0, user_namespace, "namespace")
        raise Unavailable("make a mount namespace", said(error), cause, remedy) from error


def make_stage() -> int:
    """Make such a namespace and return its descriptor; this thread stays where it is.

    For a process that needs no user namespace. Raises :class:`SandboxError` if that is refused.
    """
    with closed_on_error() as opened, signals_held(), way_back(False) as back:
        back.away()
        opened.append(stage := enter_mount_namespace(False))
        with explained("make the chroot a root", False, "pivot"):
            _adopt_chroot(stage)
        return stage


def _adopt_chroot(namespace: int) -> None:
    """If this process is in a chroot, make its root the root of ``namespace``."""
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

    Raises :class:`SandboxError` if that cannot be found out.
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
        """Note that this thread is about to move. Raises :class:`OSError`."""
        sys.unshare(sys.CLONE_FS)
        self._away = True

    def try_out(self) -> None:
        """Go away and return to where this thread is. From then on it counts as away.

        Raises :class:`OSError` if the kernel refuses it, as it would refuse the return later. If
        setns(2) is refused, this thread has not moved; else the context returns it once more.
        """
        sys.unshare(sys.CLONE_FS)
        sys.setns(self._namespace, sys.CLONE_NEWNS)
        self._away = True
        self._return()

    def leave_for(self, namespace: int) -> None:
        """Move there. Raises :class:`OSError` if the kernel refuses."""
        self.away()
        sys.setns(namespace, sys.CLONE_NEWNS)

    def take(self) -> None:
        """Return, if this thread has moved. A failure ends the process: see :func:`give_up`.

        It is tried twice, since the kernel may have had no memory for a moment.
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
                # A handler of a signal that another thread has taken may raise at any point. This
                # thread must not stay half-way.
                interruption = error
        if interruption is not None:
            raise interruption

    def _return(self) -> None:
        # A thread that was started meanwhile shares root and working directory with this one.
        sys.unshare(sys.CLONE_FS)
        sys.setns(self._namespace, sys.CLONE_NEWNS)
        # setns(2) moves to the root of the namespace, and the test may be in a chroot below.
        if not os.path.samestat(posix.stat(self._root), posix.stat("/")):
            posix.fchdir(self._root)
            posix.chroot(".")
        posix.fchdir(self._cwd)


@contextmanager
def uts_namespace_kept() -> Iterator[None]:
    """When the context ends, this thread is in the UTS namespace in which it is now.

    Raises :class:`OSError` if the kernel would refuse the return. If it refuses it later, the
    process ends: see :func:`give_up`.
    """
    kept = posix.open(_UTS_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # Who owns another user namespace only may leave this one, and not return to it.
        sys.setns(kept, sys.CLONE_NEWUTS)
        try:
            yield
        finally:
            _return_to_uts_namespace(kept)
    finally:
        posix.close(kept)


def _return_to_uts_namespace(kept: int) -> None:
    interruption: BaseException | None = None
    for attempt in range(3):
        try:
            sys.setns(kept, sys.CLONE_NEWUTS)
        except OSError as error:
            # The kernel may have had no memory for a moment.
            if attempt:
                give_up(error)
        except BaseException as error:  # noqa: BLE001 - raised below, as in WayBack.take()
            interruption = error
        else:
            break
    if interruption is not None:
        raise interruption


def give_up(error: BaseException) -> None:
    """End this process: it is in the wrong tree, and what runs next would write there."""
    text = f"mountns: cannot return from a sandbox: {error}; aborting\n"
    for descriptor in (real_stderr.get(), 2):
        # The test may have closed it.
        with suppress(OSError):
            posix.write(descriptor, text.encode())
            break
    posix.abort()


@contextmanager
def more_descriptors() -> Iterator[None]:
    """Within the context, this process may open some more files than its soft limit allows.

    A test that has opened as many as it may cannot be left otherwise, getrlimit(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = soft + 64 if hard == resource.RLIM_INFINITY else min(soft + 64, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
    try:
        yield
    finally:
        # Unless somebody else has set it meanwhile.
        if resource.getrlimit(resource.RLIMIT_NOFILE) == (more, hard):
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def way_back(user_namespace: bool, known_namespace: int = -1) -> Iterator[WayBack]:
    """Note where this thread is, and return it there when the context ends.

    ``known_namespace``: a descriptor of the namespace that it is in, for roots without ``/proc``,
    as a test has after chroot(2). Raises :class:`SandboxError` if that cannot be noted.
    """
    opened: list[int] = []
    try:
        with explained("note the way back", user_namespace):
            opened.append(posix.open(".", os.O_PATH | os.O_CLOEXEC))
            opened.append(posix.open("/", os.O_PATH | os.O_CLOEXEC))
            try:
                opened.append(posix.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC))
            except FileNotFoundError:
                if known_namespace < 0:
                    raise
                opened.append(fcntl.fcntl(known_namespace, fcntl.F_DUPFD_CLOEXEC, 0))
        back = WayBack(*opened)
        try:
            yield back
        finally:
            back.take()
    finally:
        for fd in opened:
            posix.close(fd)


class closed_on_error:  # noqa: N801 - used as a function, like those of contextlib
    """A context that gives a list, and closes the descriptors in it if it ends by an exception."""

    def __enter__(self) -> list[int]:
        self._opened: list[int] = []
        return self._opened

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            close_all(self._opened)


@contextmanager
def mounting(user_namespace: bool, *, dropped: bool) -> Iterator[tuple[WayBack, list[int]]]:
    """For making mounts in another namespace: signals blocked, all capabilities, no umask.

    ``dropped``: see :func:`privileged`. Descriptors that are put into the list are closed if the
    context ends by an exception. Raises :class:`SandboxError` if it cannot be entered.
    """
    # Outermost: a signal that has come meanwhile is handled when the others end.
    with (
        closed_on_error() as opened,
        signals_held(),
        privileged(dropped),
        way_back(user_namespace) as back,
    ):
        umask = posix.umask(0)
        try:
            yield back, opened
        finally:
            posix.umask(umask)


@contextmanager
def visiting(namespace: int, user_namespace: bool) -> Iterator[None]:
    """Within the context, this thread is in ``namespace``, and ``/`` is its root.

    Raises :class:`SandboxError` if it cannot be entered.
    """
    with signals_held(), way_back(user_namespace) as back:
        with explained("look at the stage", user_namespace):
            back.leave_for(namespace)
        yield


@contextmanager
def root_of(namespace: int, user_namespace: bool) -> Iterator[int]:
    """A descriptor of the root of a mount namespace, open within the context.

    Raises :class:`SandboxError` if it cannot be had.
    """
    opened: list[int] = []
    try:
        with (
            explained("look at what is below", user_namespace),
            privileged(user_namespace),
            visiting(namespace, user_namespace),
        ):
            opened.append(posix.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        yield opened[0]
    finally:
        close_all(opened)


class signals_held:  # noqa: N801 - used as a function, like those of contextlib
    """A context in which no handler of a signal runs, but for signals that another thread takes."""

    # Entered several times for each test, as is explained(): a generator in place of a class would
    # take twice as many calls of functions.
    def __enter__(self) -> None:
        self._before = sys.SignalSet()
        try:
            sys.block_all_signals(self._before)
            # Signals that came before are handled here, and not later in another tree.
            sys.handle_signals()
        except BaseException:
            sys.set_signal_mask(self._before)
            raise

    def __exit__(self, *_: object) -> None:
        sys.set_signal_mask(self._before)


def despite_signals(action: Callable[[], T]) -> T:
    """Do what must not stay half-done. What a handler of a signal raises is raised afterwards.

    ``action`` may be interrupted at any point, and after its end, and is then begun again. What it
    raises itself, an :class:`OSError` or a :class:`SandboxError`, is raised at once.
    """
    interruption: BaseException | None = None
    for _ in range(_MOST_INTERRUPTIONS):
        try:
            result = action()
            break
        except BaseException as error:
            if is_failed_call(error) or isinstance(error, SandboxError):
                raise
            interruption = error
    if interruption is not None:
        raise interruption
    return result


def close_all(descriptors: Iterable[int]) -> None:
    """Close descriptors, even if a handler of a signal raises when the first ones are closed."""
    remaining = [*descriptors]

    def close_remaining() -> None:
        while remaining:
            posix.close(remaining.pop())

    despite_signals(close_remaining)


def drop_user_capabilities() -> None:
    """Drop all effective capabilities: an ordinary user has none, capabilities(7).

    With them, the test could read its own files of mode 000. They stay permitted, so that
    :func:`privileged` can take them back for a moment; execve(2) drops those, too.
    """
    _, permitted, inheritable = sys.capget()
    sys.capset(0, permitted, inheritable)


def take_user_capabilities() -> None:
    """Undo :func:`drop_user_capabilities`, in a process that goes on making namespaces."""
    _, permitted, inheritable = sys.capget()
    sys.capset(permitted, permitted, inheritable)


def owns_user_namespace() -> bool:
    """Whether this process has moved to a user namespace with :func:`enter_user_namespace`.

    An earlier session of this process has done it, or the process that has started this one. The
    capabilities are permitted and not in effect, the namespace maps this user alone, and nothing
    that is mounted in its mount namespace appears elsewhere.
    """
    effective, permitted, _ = sys.capget()
    return not effective and _is_in_own_user_namespace(permitted)


def _is_in_own_user_namespace(permitted: int) -> bool:
    uid = posix.geteuid()
    if uid == 0 or not permitted >> sys.CAP_SYS_ADMIN & 1:
        return False
    try:
        with open("/proc/self/uid_map") as file:
            is_mapped = file.read().split() == [str(uid), str(uid), "1"]
        return is_mapped and not any(mount.is_shared for mount in mountinfo.read())
    except OSError:
        return False


def hand_on_capabilities() -> None:
    """Have programs that this thread starts begin with all its permitted capabilities.

    They are ambient from now on, capabilities(7). Raises :class:`SandboxError` if that is refused.
    """
    with explained("hand on the capabilities of the user namespace", True):
        effective, permitted, _ = sys.capget()
        sys.capset(effective, permitted, permitted)
        for number in range(permitted.bit_length()):
            if permitted >> number & 1:
                sys.prctl(sys.PR_CAP_AMBIENT, sys.PR_CAP_AMBIENT_RAISE, number)


def drop_inherited_capabilities() -> bool:
    """Drop what :func:`hand_on_capabilities` has left in effect, in all threads of this process.

    They stay permitted, and programs that the process starts have none. Returns whether there were
    any. Raises :class:`SandboxError` if a thread cannot be reached.
    """
    with explained("give up the capabilities that were handed on", True):
        effective, permitted, inheritable = sys.capget()
        if not (effective and inheritable and _is_in_own_user_namespace(permitted)):
            return False
        # What is not inheritable is not ambient either.
        sys.capset(0, permitted, 0)
    if stuck := threads.drop_capabilities_of_others():
        raise threads.explain_stuck(stuck)
    return True


def privileged(dropped: bool) -> AbstractContextManager[None]:
    """Within the context, what :func:`drop_user_capabilities` has dropped is effective.

    ``dropped``: whether capabilities may have been dropped. Raises :class:`SandboxError` if they
    cannot be taken back.
    """
    return _privileged() if dropped else nullcontext()


@contextmanager
def _privileged() -> Iterator[None]:
    with explained("take back the capabilities that were given up", True):
        effective, permitted, inheritable = _twice(sys.capget)
        if effective != permitted:
            _twice(lambda: sys.capset(permitted, permitted, inheritable))
    if effective == permitted:
        yield
        return
    # If root's process has become another user, what is made now belongs to root as before. Where
    # a user namespace does not map root, this changes nothing.
    uid, gid = sys.setfsuid(0), sys.setfsgid(0)
    try:
        yield
    finally:
        sys.setfsgid(gid)
        sys.setfsuid(uid)
        with explained("give up the capabilities again", True):
            _twice(lambda: sys.capset(effective, permitted, inheritable))


class explained:  # noqa: N801 - used as a function, like those of contextlib
    """A context that turns an :class:`OSError` into an error that says what helps."""

    def __init__(
        self,
        what: str,
        user_namespace: bool,
        doing: Doing = "",
        error_type: type[SandboxError] = SandboxError,
    ) -> None:
        self._what = what
        self._user_namespace = user_namespace
        self._doing = doing
        self._error_type = error_type

    def __enter__(self) -> None:
        """Nothing has to be done."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, OSError) and is_failed_call(error):
            cause, remedy = explain(error.errno or 0, self._user_namespace, self._doing)
            raise self._error_type(self._what, said(error), cause, remedy) from error


def working_directory() -> str:
    """The path of the working directory; ``/`` if it has none any more."""
    try:
        return posix.getcwd()
    except OSError:
        return "/"


def change_directory(path: str) -> None:
    """Change to ``path``, or to ``/`` if it was removed or is closed to this user."""
    try:
        posix.chdir(path)
    except OSError:
        posix.chdir("/")
