"""Machines to try sandboxes on, each in a process of its own.

Nothing here mounts in the machine's own mount namespace. :func:`in_world` forks, enters a private
mount namespace and mounts a tmpfs on :data:`BASE`. What a test calls the host's files lies there.
Whatever goes wrong, it is gone when the process ends.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import importlib
import os
import pickle
import signal
import stat
import struct
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Final, Literal, NoReturn, TypeAlias, TypeVar

import pytest

# The engine loads these when they are needed, which a world's user may not do: the checkout may be
# closed to him.
from pytest_mountns.engine.linux import diagnosis, subordinate_ids, syscalls  # noqa: F401
from pytest_mountns.engine.linux.errors import SandboxError
from pytest_mountns.engine.linux.mountinfo import is_below, read, visible
from pytest_mountns.engine.linux.namespaces import drop_user_capabilities, enter_user_namespace
from pytest_mountns.engine.linux.pid_namespace import die_with_parent
from pytest_mountns.engine.mount import assemble, classic_api  # noqa: F401
from pytest_mountns.engine.plan.decide import plan
from pytest_mountns.engine.plan.model import Features, Plan
from pytest_mountns.engine.plan.spec import SandboxSpec
from pytest_mountns.engine.probe.features import ProbeResult, probe, probe_pid_namespace
from pytest_mountns.engine.probe.host import survey
from pytest_mountns.engine.sandbox import disk_guard, written  # noqa: F401
from pytest_mountns.engine.sandbox.create import enter
from pytest_mountns.engine.sandbox.disk_uppers import DiskUppers
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from pytest_mountns.engine.sandbox.stack import SandboxStack, close

from .processes import fork

Mode: TypeAlias = Literal["root", "user"]
T = TypeVar("T")

#: An empty tmpfs in every world, owned by the world's user.
BASE: Final = "/srv"
#: The user that root's tests become to be an ordinary one. It has no entry in /etc/passwd.
_SOMEBODY: Final = 54321
_SECONDS: Final = 60
#: An access control list as the kernel takes it, in the format of acl(5): user 12 may read and
#: write.
ACCESS_LIST: Final = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 0x01, 7, 2**32 - 1, 0x02, 6, 12, 0x04, 5, 2**32 - 1),
    *(0x10, 7, 2**32 - 1, 0x20, 5, 2**32 - 1),
)

#: Names that a mount table, an option of mount(2) or a line of text could stumble over.
ODD_NAMES: Final = [
    "with space",
    "new\nline",
    "tab\there",
    "carriage\rreturn",
    "comma,comma",
    "colon:colon",
    "back\\slash",
    "#hash",
    "equals=",
    "quote\"'",
    "not-utf8-\udcff",
    "x" * 250,
    "/".join(["d" * 100] * 4),
]


class Lost(Exception):
    """A process ended without a result, or with an exception of an unexpected type."""


def in_child(function: Callable[[], T], meanwhile: Callable[[], object] = lambda: None) -> T:
    """Call ``function`` in a forked process. Returns its result, and raises what it raises.

    This process calls ``meanwhile`` before it waits for the result.
    Exceptions other than :class:`SandboxError` and skips are raised as :class:`Lost`, with the
    traceback as its text.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    child = fork()
    if child == 0:
        _child(function, parent, writer)
    os.close(writer)
    try:
        meanwhile()
    finally:
        with open(reader, "rb") as file:
            data = file.read()
    _, status = os.waitpid(child, 0)
    if not data:
        raise Lost(f"ended by {os.waitstatus_to_exitcode(status)}")
    kind, content = pickle.loads(data)
    if kind == "result":
        return content  # type: ignore[no-any-return]
    if kind == "sandbox":
        raise content
    if kind == "skip":
        pytest.skip(content)
    raise Lost(content)


def _child(function: Callable[[], object], parent: int, writer: int) -> NoReturn:
    try:
        # pytest points faulthandler at the terminal. The stack of a process that a test ends by
        # SIGSEGV belongs into that test's captured output.
        faulthandler.enable(2)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_SECONDS)
        if os.getppid():
            die_with_parent(parent)
        answer: tuple[str, object]
        try:
            answer = ("result", function())
        except SandboxError as error:
            answer = ("sandbox", error)
        except pytest.skip.Exception as error:
            answer = ("skip", str(error))
        except BaseException as error:  # noqa: BLE001  # handed over to the parent
            answer = ("lost", _traceback(error))
        with open(writer, "wb") as file:
            file.write(pickle.dumps(answer))
    finally:
        os._exit(0)


def _traceback(error: BaseException) -> str:
    try:
        return traceback.format_exc()
    except OSError as another:
        # Python 3.15 looks into the directories of a package of which a module is missing, and
        # the user of a world may not be able to.
        return f"{error!r}; without a traceback: {another!r}"


def _load_lazy_modules() -> None:
    """Load what PEP 810 would load late: the user of a world may not be able to read it."""
    tried: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while names := set(getattr(sys, "lazy_modules", ())) - tried:
            tried |= names
            for name in sorted(names):
                # Some are names of what is in a module.
                with suppress(ImportError):
                    importlib.import_module(name)


def private_mounts() -> None:
    """Put this process in a mount namespace that nothing leaks out of, and check that."""
    before = os.readlink("/proc/self/ns/mnt")
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
    assert os.readlink("/proc/self/ns/mnt") != before


def become_user() -> None:
    """Turn root's process into an ordinary user's, for good. Other users stay who they are."""
    if os.geteuid() != 0:
        return
    _load_lazy_modules()
    os.setgroups([])
    os.setresgid(_SOMEBODY, _SOMEBODY, _SOMEBODY)
    os.setresuid(_SOMEBODY, _SOMEBODY, _SOMEBODY)
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)


def in_world(
    function: Callable[[], T],
    mode: Mode,
    prepare: Callable[[], object] = lambda: None,
    keep: Sequence[str] = (),
) -> T:
    """Call ``function`` as root or as an ordinary user on a machine of its own.

    ``prepare`` runs first, in its mount namespace, with the privileges to mount. The working
    directory is :data:`BASE`. The directories of ``keep`` are there even if they lie below it.
    """

    def world() -> T:
        if os.geteuid() != 0:
            enter_user_namespace()
        private_mounts()
        covered = {path: os.open(path, os.O_PATH) for path in keep if is_below(path, BASE)}
        mount_tmpfs(BASE)
        if mode == "user" and os.geteuid() == 0:
            os.chown(BASE, _SOMEBODY, _SOMEBODY)
        for path, fd in covered.items():
            os.makedirs(path, exist_ok=True)
            bind(f"/proc/self/fd/{fd}", path)
            os.close(fd)
        os.chdir(BASE)
        prepare()
        if mode == "user":
            if os.geteuid() == 0:
                become_user()
            else:
                drop_user_capabilities()
        return function()

    skip_unless(mode)
    return in_child(world)


def mount_tmpfs(target: str, options: str = "mode=0755") -> None:
    """Mount a tmpfs that belongs to the world's user."""
    owner = world_owner()
    syscalls.mount("tmpfs", target, "tmpfs", 0, options)
    if target != BASE:
        os.chown(target, *owner)


def hide_shared_directories() -> None:
    """Mount an empty tmpfs on each directory that other users' processes write to at any moment.

    For tests of what is kept as long as the host's directories do not change: an ordinary user's
    sandboxes have overlays there. A world that needs this machine's ``/tmp`` cannot have that.
    """
    for path in ("/tmp", "/var/tmp", "/run/lock", "/dev/shm"):
        # A link is followed to what it stands for.
        if os.path.isdir(path):
            syscalls.mount("tmpfs", path, "tmpfs", 0, "mode=1777")


def world_owner() -> tuple[int, int]:
    """User and group id of the world's user."""
    status = os.stat(BASE)
    return status.st_uid, status.st_gid


def _give(path: str) -> None:
    """Give to the world's user what root has prepared for it."""
    owner = world_owner()
    if os.geteuid() == 0 and owner[0] != 0:
        os.chown(path, *owner)


def bind(source: str, target: str) -> None:
    """Bind a tree, with what is mounted below it."""
    syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)


def mounted(path: str) -> str:
    """The type of the filesystem that is mounted at ``path``, "" if none is."""
    return next((m.fstype for m in visible(read()) if m.mountpoint == path), "")


def remount(target: str, flags: int) -> None:
    """Change the flags of a mount."""
    syscalls.mount(None, target, None, syscalls.MS_REMOUNT | syscalls.MS_BIND | flags)


def plan_here(
    spec: SandboxSpec,
    mode: Mode,
    *,
    api: str = "best",
    places: Sequence[str] = (),
) -> Plan:
    """The plan of ``spec`` on the machine that this process is on. ``api``: see :func:`by_api`."""
    features = by_api(features_of(mode), api)
    host = survey(user_namespace=mode == "user", places=[BASE, *places])
    return plan(spec, host, features)


def by_api(features: Features, api: str) -> Features:
    """These features with one of the mount APIs. Skips what this kernel does not have.

    ``api``: "new" (uppers on a detached mount), "attached" (the new mount API of Linux before
    6.15), "classic" (mount(2)), or the "best" that this machine has.
    """
    if api == "best":
        return features
    if api in ("new", "attached") and not features.new_api:
        pytest.skip("this kernel has no new mount API")
    if api == "new" and not features.detached_uppers:
        pytest.skip("this kernel takes no uppers on a detached mount")
    return features._replace(new_api=api != "classic", detached_uppers=api == "new")


def in_sandbox(
    function: Callable[[Sandbox], T],
    spec: SandboxSpec | None = None,
    *,
    mode: Mode,
    api: str = "best",
    places: Sequence[str] = (),
    directory: str | None = None,
) -> T:
    """Call ``function`` in a sandbox on the machine that this process is on. Returns its result."""
    wanted = plan_here(spec or SandboxSpec(), mode, api=api, places=places)
    outside = os.readlink("/proc/self/ns/mnt")
    uppers = DiskUppers()
    # The test does not ask for it, but this machine has no other place for uppers.
    fallen_back = wanted.upper.medium == "disk" and (spec or SandboxSpec()).upper != "disk"

    def test() -> T:
        if mode == "user":
            enter_user_namespace()
        sandbox = enter(wanted, directory)
        if mode == "user":
            drop_user_capabilities()
        assert os.readlink("/proc/self/ns/mnt") != outside
        return function(sandbox)

    try:
        if fallen_back and directory is None:
            directory = uppers.new()
        return in_child(test)
    finally:
        uppers.close()


def reset(sandbox: Sandbox) -> None:
    """Reset the sandbox that this thread is in."""
    SandboxStack(sandbox, close).reset()


@functools.cache
def _findings(mode: Mode) -> ProbeResult:
    return _as(mode, lambda: probe([]))


@functools.cache
def has_pid_namespaces(mode: Mode) -> bool:
    """Whether these sandboxes can have PID namespaces."""
    findings = _findings(mode)
    return _as(mode, lambda: probe_pid_namespace(findings, [])).works


def _as(mode: Mode, function: Callable[[], T]) -> T:
    def call() -> T:
        if mode == "user":
            become_user()
        return function()

    return in_child(call)


def features_of(mode: Mode) -> Features:
    """What the kernel can do for these sandboxes."""
    features = _findings(mode).features
    assert features is not None
    return features


def skip_unless(mode: Mode) -> None:
    """Skip the test where no sandbox of this kind can be made, and say what was tried."""
    if mode == "root" and os.geteuid() != 0:
        pytest.skip("only root can make root's sandboxes")
    findings = _findings(mode)
    features, trial = findings.features, findings.obstacle
    if features is None:
        why = f"{trial.name}: {trial.kernel}" if trial else ""
        pytest.skip(f"no sandboxes here: {why}")
    if features.user_namespace != (mode == "user"):
        pytest.skip("root may not mount here")


def skip_unless_in_memory(mode: Mode) -> None:
    """Skip where uppers lie on disk whatever is asked for. These have no limit and do not nest."""
    skip_unless(mode)
    if not features_of(mode).memory_upper:
        pytest.skip("a tmpfs takes no extended attributes of a user's here")


def skip_unless_binding(mode: Mode) -> None:
    """Skip where a host directory cannot be bound in the middle of a test."""
    skip_unless(mode)
    if not features_of(mode).new_api:
        pytest.skip("this kernel has no new mount API")


def mark(path: str) -> None:
    """Set an extended attribute of the user's, where the filesystem takes one."""
    try:
        os.setxattr(path, "user.mark", b"here")
    except OSError:
        # Linux before 6.6, on a tmpfs.
        pass


def marks(path: str) -> list[bytes]:
    """The values that :func:`mark` has set."""
    return [os.getxattr(path, name) for name in os.listxattr(path) if name == "user.mark"]


def mkdir(path: str) -> None:
    """Make a directory and those above it, unless it is there."""
    if path and not os.path.isdir(path):
        mkdir(os.path.dirname(path))
        os.mkdir(path)
        _give(path)


def write(path: str, content: str | bytes = "", mode: int | None = None) -> str:
    """Write a file, and the directories above it. Returns the path."""
    mkdir(os.path.dirname(path))
    with open(path, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
    _give(path)
    if mode is not None:
        os.chmod(path, mode)
    return path


def set_attribute(path: str, name: str, value: bytes) -> bool:
    """Set an attribute. Returns False where the filesystem takes none (tmpfs before Linux 6.6)."""
    try:
        os.setxattr(path, name, value)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return False
    return True


def content(path: str) -> str:
    """The text in a file."""
    with open(path) as file:
        return file.read()


def errno_of(action: Callable[[], object]) -> int:
    """The errno that ``action`` fails with, 0 if it does not fail."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def descriptors() -> dict[int, str]:
    """This process's open descriptors and what they lead to, without the one that lists them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found


def tree(path: str) -> dict[str, tuple[int, bytes]]:
    """Mode and content of everything below a directory, by path."""
    found = {}
    for place, directories, files in os.walk(path):
        for name in (*directories, *files):
            entry = os.path.join(place, name)
            status = os.lstat(entry)
            data = b""
            if stat.S_ISREG(status.st_mode):
                with open(entry, "rb") as file:
                    data = file.read()
            elif stat.S_ISLNK(status.st_mode):
                data = os.fsencode(os.readlink(entry))
            found[entry[len(path) :]] = (status.st_mode, data)
    return found


@contextmanager
def host_unchanged(path: str = BASE) -> Iterator[None]:
    """Fail if mount table or the tree at ``path`` differ afterwards."""
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = file.read()
    before = tree(path)
    yield
    assert tree(path) == before
    with open("/proc/self/mountinfo", "rb") as file:
        assert file.read() == mounts
