"""One thin function per system call, and one place that raises.

Nothing here decides anything. Flags are the kernel's (``include/uapi/linux``), names are those
of the man pages. Every failure is a :class:`SyscallError` that names the call.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Sequence
from itertools import chain
from typing import Final, NoReturn

from .errors import SyscallError
from .untouched import os, signal, struct

CLONE_FS: Final = 0x00000200
CLONE_THREAD: Final = 0x00010000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_UNBINDABLE: Final = 0x20000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_SHARED: Final = 0x100000
MS_RELATIME: Final = 0x200000

MNT_DETACH: Final = 0x2

AT_FDCWD: Final = -100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

OPEN_TREE_CLONE: Final = 0x1
OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
FSOPEN_CLOEXEC: Final = 0x1
FSMOUNT_CLOEXEC: Final = 0x1
FSCONFIG_SET_FLAG: Final = 0
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSCONFIG_CMD_RECONFIGURE: Final = 7
FSPICK_CLOEXEC: Final = 0x1

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_NOATIME: Final = 0x10
#: The bits of which NOATIME is one value.
MOUNT_ATTR_ATIME_MASK: Final = 0x70

RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_SET_NAME: Final = 15
PR_SET_CHILD_SUBREAPER: Final = 36
_PR_GET_CHILD_SUBREAPER: Final = 37
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2

PR_SET_PTRACER: Final = 0x59616D61

CAP_SYS_ADMIN: Final = 21

_P_ALL: Final = 0
_NO_FLAG_OF_UNSHARE: Final = 0x1

LANDLOCK_CREATE_RULESET_VERSION: Final = 1
LANDLOCK_RULE_PATH_BENEATH: Final = 1

SECCOMP_SET_MODE_FILTER: Final = 1
SECCOMP_FILTER_FLAG_TSYNC: Final = 1 << 0
SECCOMP_FILTER_FLAG_NEW_LISTENER: Final = 1 << 3
SECCOMP_FILTER_FLAG_TSYNC_ESRCH: Final = 1 << 4
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: Final = 1 << 5

IORING_REGISTER_BUFFERS: Final = 0
IORING_UNREGISTER_BUFFERS: Final = 1

SFD_CLOEXEC: Final = os.O_CLOEXEC
SFD_NONBLOCK: Final = os.O_NONBLOCK

IN_ATTRIB: Final = 0x004
IN_MOVED_FROM: Final = 0x040
IN_MOVED_TO: Final = 0x080
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200

# The numbers of the calls made since 2018 are the same on every architecture.
_SYS_IO_URING_SETUP: Final = 425
_SYS_IO_URING_REGISTER: Final = 427
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_FSOPEN: Final = 430
_SYS_FSCONFIG: Final = 431
_SYS_FSMOUNT: Final = 432
_SYS_FSPICK: Final = 433
_SYS_OPENAT2: Final = 437
_SYS_PIDFD_GETFD: Final = 438
_SYS_MOUNT_SETATTR: Final = 442
_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_SYS_LANDLOCK_ADD_RULE: Final = 445
_SYS_LANDLOCK_RESTRICT_SELF: Final = 446

# sigset_t of glibc and musl.
_SIGSET_SIZE: Final = 128
_ALL_SIGNALS: Final = b"\xff" * _SIGSET_SIZE
#: What no mask begins with: SIGKILL is among these signals, and cannot be blocked.
_NO_MASK: Final = b"\xff" * 8
_CAP_VERSION_3: Final = 0x20080522
_IO_URING_PARAMS_SIZE: Final = 120


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


_int = ctypes.c_int
_long = ctypes.c_long
_str = ctypes.c_char_p
_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.unshare.argtypes = [_int]
_libc.setns.argtypes = [_int, _int]
_libc.mount.argtypes = [_str, _str, _str, ctypes.c_ulong, _str]
_libc.umount2.argtypes = [_str, _int]
_libc.pivot_root.argtypes = [_str, _str]
_libc.prctl.argtypes = [_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_libc.setfsuid.argtypes = [ctypes.c_uint]
_libc.setfsgid.argtypes = [ctypes.c_uint]
_libc.capget.argtypes = [_str, ctypes.c_void_p]
_libc.capset.argtypes = [_str, _str]
_libc.pthread_sigmask.argtypes = [_int, _str, ctypes.c_void_p]
_libc.waitid.argtypes = [_int, ctypes.c_uint, ctypes.c_void_p, _int]
_libc.syncfs.argtypes = [_int]
_libc.signalfd.argtypes = [_int, ctypes.c_void_p, _int]
_libc._exit.argtypes = [_int]
_libc.process_vm_readv.argtypes = [_int, _str, ctypes.c_ulong, _str, ctypes.c_ulong, ctypes.c_ulong]
_libc.process_vm_readv.restype = ctypes.c_ssize_t
_libc.process_vm_writev.argtypes = _libc.process_vm_readv.argtypes
_libc.process_vm_writev.restype = ctypes.c_ssize_t
_libc.syscall.restype = _long


_check_signals: Final = ctypes.pythonapi.PyErr_CheckSignals
_check_signals.argtypes = []


def _prototype(*argtypes: type) -> ctypes._FuncPointer:
    """``syscall(2)`` with the types of one call, so that no argument is narrowed to an int."""
    function = ctypes.CDLL(None, use_errno=True).syscall
    function.argtypes = [_long, *argtypes]
    function.restype = _long
    return function


# Descriptors, flags and bytes alone: ctypes passes these as they are, in 1.5 in place of 2.1 us.
_open_tree: Final = _libc.syscall
_move_mount: Final = _libc.syscall
_fsopen: Final = _libc.syscall
_fsconfig: Final = _libc.syscall
_fsmount: Final = _libc.syscall
_mount_setattr: Final = _prototype(
    _int, _str, ctypes.c_uint, ctypes.POINTER(_MountAttr), ctypes.c_size_t
)

_io_uring_setup: Final = _prototype(ctypes.c_uint, ctypes.c_void_p)
_io_uring_register: Final = _prototype(_int, ctypes.c_uint, ctypes.c_void_p, ctypes.c_uint)
_seccomp: Final = _prototype(ctypes.c_uint, ctypes.c_uint, _str)
_pidfd_getfd: Final = _prototype(_int, _int, ctypes.c_uint)
_openat2: Final = _prototype(_int, _str, ctypes.POINTER(_OpenHow), ctypes.c_size_t)
_landlock_create_ruleset: Final = _prototype(_str, ctypes.c_size_t, ctypes.c_uint)
_landlock_add_rule: Final = _prototype(_int, ctypes.c_uint, _str, ctypes.c_uint)
_landlock_restrict_self: Final = _prototype(_int, ctypes.c_uint)


#: The highest descriptor that a process is started with.
_STANDARD_ERROR: Final = 2


def _fail(call: str) -> SyscallError:
    return SyscallError(ctypes.get_errno(), call)


def pretended(call: str) -> SyscallError:
    """What to raise where a call has only seemed to work."""
    return SyscallError(errno.EPROTO, f"{call}, which something else than the kernel has answered")


def _checked(descriptor: int, call: str) -> int:
    """What a call has returned that opens a descriptor with the flag to be closed on execve(2)."""
    if descriptor < 0:
        raise _fail(call)
    # A seccomp filter answers 0, which is standard input.
    try:
        is_new = not os.get_inheritable(descriptor)
    except OSError:
        is_new = False
    if not is_new:
        raise pretended(call)
    return descriptor


def unshare(flags: int) -> None:
    """unshare(2). Raises :class:`SyscallError` with EPROTO if somebody else answers it.

    A seccomp filter can have it seem to work. What is mounted then would be mounted on the host.
    """
    if _libc.unshare(flags) < 0:
        raise _fail(f"unshare({_clone_names(flags)})")
    # The kernel refuses a flag that does not exist. What follows CLONE_FS fails if that has done
    # nothing, and so does writing the maps of a user namespace.
    if flags not in (CLONE_FS, CLONE_NEWUSER) and _libc.unshare(flags | _NO_FLAG_OF_UNSHARE) >= 0:
        raise pretended(f"unshare({_clone_names(flags)})")


def is_single_threaded() -> bool:
    """Whether this process has one thread. False as well where unshare(2) may not be called.

    ``CLONE_THREAD`` unshares nothing: it is refused to a process with several threads. The kernel
    refuses an unknown flag, and a filter that has everything seem to work does not.
    """
    unshare = _libc.unshare
    return bool(unshare(CLONE_THREAD) == 0 and unshare(_NO_FLAG_OF_UNSHARE) < 0)


def has_children(options: int) -> bool:
    """Whether waitid(2) finds a child. ``WNOHANG`` is one of the options.

    The standard library's function raises an exception if there is none, as for most tests.
    """
    if _libc.waitid(_P_ALL, 0, None, options) == 0:
        return True
    if ctypes.get_errno() != errno.ECHILD:
        raise _fail("waitid()")
    return False


def setns(fd: int, nstype: int) -> None:
    """setns(2). Acts on the calling thread; resets its root and working directory.

    Raises :class:`SyscallError` with EPROTO if somebody else answers it: see :func:`unshare`.
    """
    if _libc.setns(fd, nstype) < 0:
        raise _fail(f"setns({fd}, {_clone_names(nstype)})")
    if _libc.setns(-1, nstype) >= 0:
        raise pretended(f"setns({fd}, {_clone_names(nstype)})")


def mount(
    source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2). ``data`` beyond one page is silently cut by the kernel, so it is refused here."""
    raw = None if data is None else os.fsencode(data)
    if raw is not None and len(raw) > 4095:
        raise SyscallError(7, f"mount({source!r}, {target!r}, {fstype!r}): options too long")
    result = _libc.mount(
        None if source is None else os.fsencode(source),
        os.fsencode(target),
        None if fstype is None else fstype.encode(),
        flags,
        raw,
    )
    if result < 0:
        raise _fail(f"mount({source!r}, {target!r}, {fstype!r}, {flags:#x}, {data!r})")


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        raise _fail(f"umount2({target!r}, {flags:#x})")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    if _libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)) < 0:
        raise _fail(f"pivot_root({new_root!r}, {put_old!r})")


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """open_tree(2), since Linux 5.2. Returns an ``O_PATH`` descriptor."""
    result = int(_open_tree(_SYS_OPEN_TREE, dirfd, os.fsencode(path), flags))
    return (
        result if result > _STANDARD_ERROR else _checked(result, f"open_tree({path!r}, {flags:#x})")
    )


def move_mount(from_fd: int, to_dirfd: int, to_path: str) -> None:
    """move_mount(2) of the mount that ``from_fd`` stands for, since Linux 5.2."""
    result = _move_mount(
        _SYS_MOVE_MOUNT, from_fd, b"", to_dirfd, os.fsencode(to_path), MOVE_MOUNT_F_EMPTY_PATH
    )
    if result < 0:
        raise _fail(f"move_mount(fd {from_fd}, {to_path!r})")


def move_mount_from(from_dirfd: int, from_path: str, to_dirfd: int, to_path: str) -> None:
    """move_mount(2) of what is mounted at a path."""
    result = _move_mount(
        _SYS_MOVE_MOUNT, from_dirfd, os.fsencode(from_path), to_dirfd, os.fsencode(to_path), 0
    )
    if result < 0:
        raise _fail(f"move_mount({from_path!r}, {to_path!r})")


def fsopen(fstype: str) -> int:
    """fsopen(2), since Linux 5.2."""
    result = int(_fsopen(_SYS_FSOPEN, fstype.encode(), FSOPEN_CLOEXEC))
    return result if result > _STANDARD_ERROR else _checked(result, f"fsopen({fstype!r})")


def fsconfig_string(fd: int, key: str, value: str) -> None:
    """fsconfig(2) ``FSCONFIG_SET_STRING``. Values over 255 bytes are EINVAL."""
    raw = os.fsencode(value)
    if _fsconfig(_SYS_FSCONFIG, fd, FSCONFIG_SET_STRING, key.encode(), raw, 0) < 0:
        raise _fail(f"fsconfig({key}={value})")


def fsconfig_flag(fd: int, key: str) -> None:
    """fsconfig(2) ``FSCONFIG_SET_FLAG``."""
    if _fsconfig(_SYS_FSCONFIG, fd, FSCONFIG_SET_FLAG, key.encode(), None, 0) < 0:
        raise _fail(f"fsconfig({key})")


def fsconfig_create(fd: int, what: str) -> None:
    """fsconfig(2) ``FSCONFIG_CMD_CREATE``; ``what`` only names the filesystem in an error."""
    if _fsconfig(_SYS_FSCONFIG, fd, FSCONFIG_CMD_CREATE, None, None, 0) < 0:
        raise _fail(f"fsconfig(create {what})")


def fsmount(fd: int, attributes: int) -> int:
    """fsmount(2): a detached mount, as an ``O_PATH``-like descriptor."""
    result = int(_fsmount(_SYS_FSMOUNT, fd, FSMOUNT_CLOEXEC, attributes))
    return result if result > _STANDARD_ERROR else _checked(result, "fsmount()")


def fspick(dirfd: int, path: str) -> int:
    """fspick(2): a context to reconfigure the filesystem that is mounted at a path."""
    result = int(_libc.syscall(_SYS_FSPICK, dirfd, os.fsencode(path), FSPICK_CLOEXEC))
    return result if result > _STANDARD_ERROR else _checked(result, f"fspick({path!r})")


def fsconfig_reconfigure(fd: int, what: str) -> None:
    """fsconfig(2) ``FSCONFIG_CMD_RECONFIGURE``; ``what`` only names the filesystem in an error."""
    if _fsconfig(_SYS_FSCONFIG, fd, FSCONFIG_CMD_RECONFIGURE, None, None, 0) < 0:
        raise _fail(f"fsconfig(reconfigure {what})")


def mount_attributes(attr_set: int, attr_clr: int = 0, propagation: int = 0) -> ctypes.Structure:
    """A ``struct mount_attr`` of mount_setattr(2)."""
    return _MountAttr(attr_set, attr_clr, propagation, 0)


def mount_setattr(
    dirfd: int, path: str, flags: int, attr_set: int, attr_clr: int = 0, propagation: int = 0
) -> None:
    """mount_setattr(2), since Linux 5.12."""
    attributes = mount_attributes(attr_set, attr_clr, propagation)
    result = _mount_setattr(
        _SYS_MOUNT_SETATTR,
        dirfd,
        os.fsencode(path),
        flags,
        ctypes.byref(attributes),
        ctypes.sizeof(attributes),
    )
    if result < 0:
        raise _fail(f"mount_setattr({path!r}, {attr_set:#x})")


def prctl(option: int, value: int, third: int = 0) -> None:
    """prctl(2) with one or two arguments."""
    if _libc.prctl(option, value, third, 0, 0) < 0:
        raise _fail(f"prctl({option}, {value})")


def is_subreaper() -> bool:
    """prctl(2) ``PR_GET_CHILD_SUBREAPER``: whether orphans become children of this process."""
    found = ctypes.c_int()
    prctl(_PR_GET_CHILD_SUBREAPER, ctypes.addressof(found))
    return bool(found.value)


def adopts_orphans() -> bool:
    """Whether orphans become children of this process: PID 1 of its namespace, or a subreaper."""
    return os.getpid() == 1 or is_subreaper()


def set_thread_name(name: bytes) -> None:
    """prctl(2) ``PR_SET_NAME``: the name of this thread, of at most 15 bytes."""
    buffer = ctypes.create_string_buffer(name)
    prctl(PR_SET_NAME, ctypes.addressof(buffer))


def capget() -> tuple[int, int, int]:
    """capget(2) of this thread: effective, permitted, inheritable, as 64-bit masks."""
    header = struct.pack("=Ii", _CAP_VERSION_3, 0)
    data = ctypes.create_string_buffer(24)
    if _libc.capget(header, data) < 0:
        raise _fail("capget()")
    e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of this thread."""
    low = 0xFFFFFFFF
    header = struct.pack("=Ii", _CAP_VERSION_3, 0)
    data = struct.pack(
        "=6I",
        effective & low,
        permitted & low,
        inheritable & low,
        effective >> 32,
        permitted >> 32,
        inheritable >> 32,
    )
    if _libc.capset(header, data) < 0:
        raise _fail("capset()")


def setfsuid(uid: int) -> int:
    """setfsuid(2) of this thread. Returns the one before; that it was refused is not said."""
    return int(_libc.setfsuid(uid))


def setfsgid(gid: int) -> int:
    """setfsgid(2) of this thread. Returns the one before; that it was refused is not said."""
    return int(_libc.setfsgid(gid))


class SignalSet(ctypes.Array[ctypes.c_char]):
    """sigset_t: the signals that a thread blocks, once :func:`block_all_signals` has written it."""

    _type_ = ctypes.c_char
    _length_ = _SIGSET_SIZE


def block_all_signals(before: SignalSet | None = None) -> None:
    """Block every signal for this thread, pthread_sigmask(3).

    The mask that the thread had is written to ``before``. It is no result, since a handler of a
    signal that has just come may raise before this function returns. The standard library's
    function makes a set of 64 enumeration members, twice.
    """
    if before is not None:
        before[: len(_NO_MASK)] = _NO_MASK
    number = _libc.pthread_sigmask(signal.SIG_SETMASK, _ALL_SIGNALS, before)
    if number:
        raise SyscallError(number, "pthread_sigmask()")


def set_signal_mask(mask: SignalSet) -> None:
    """Undo :func:`block_all_signals`, if it was called with ``mask``, pthread_sigmask(3)."""
    if bytes(mask).startswith(_NO_MASK):
        return
    number = _libc.pthread_sigmask(signal.SIG_SETMASK, mask, None)
    if number:
        raise SyscallError(number, "pthread_sigmask()")


def handle_signals() -> None:
    """Call the handlers of signals that have come, and raise what they raise."""
    _check_signals()


def signalfd(signals: frozenset[int]) -> int:
    """signalfd(2): a non-blocking descriptor that reads the given pending signals."""
    mask = ctypes.create_string_buffer(_SIGSET_SIZE)
    for number in signals:
        byte, bit = divmod(number - 1, 8)
        mask[byte] = bytes([mask.raw[byte] | 1 << bit])
    result = int(_libc.signalfd(-1, mask, SFD_CLOEXEC | SFD_NONBLOCK))
    if result < 0:
        raise _fail("signalfd()")
    return result


def inotify_init() -> int:
    """inotify_init1(2): a non-blocking descriptor."""
    result = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
    if result < 0:
        raise _fail("inotify_init1()")
    return result


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2). Returns a watch descriptor."""
    result = int(_libc.inotify_add_watch(fd, os.fsencode(path), mask))
    if result < 0:
        raise _fail(f"inotify_add_watch({path!r}, {mask:#x})")
    return result


def inotify_rm_watch(fd: int, watch: int) -> None:
    """inotify_rm_watch(2)."""
    if _libc.inotify_rm_watch(fd, watch) < 0:
        raise _fail(f"inotify_rm_watch({watch})")


def exit_now(status: int) -> NoReturn:
    """Call _exit(2), and not ``os._exit``: coverage.py replaces that to save its data."""
    _libc._exit(status)
    raise AssertionError("_exit() has returned")


def openat2(dirfd: int, path: bytes, flags: int, resolve: int) -> int:
    """openat2(2), since Linux 5.6; never creates. ``O_CLOEXEC`` is not implied."""
    how = _OpenHow(flags, 0, resolve)
    result = int(_openat2(_SYS_OPENAT2, dirfd, path, ctypes.byref(how), ctypes.sizeof(how)))
    if result < 0:
        raise _fail(f"openat2({path!r}, {flags:#x}, {resolve:#x})")
    return result


def process_vm_readv(pid: int, pieces: Sequence[tuple[int, int]]) -> bytes:
    """process_vm_readv(2): the memory of another process, of each piece its address and length.

    The kernel ends before the first piece that it cannot read as a whole.
    """
    size = sum(length for _, length in pieces)
    buffer = ctypes.create_string_buffer(size)
    local = struct.pack("PN", ctypes.addressof(buffer), size)
    remote = struct.pack("PN" * len(pieces), *chain.from_iterable(pieces))
    got = int(_libc.process_vm_readv(pid, local, 1, remote, len(pieces), 0))
    if got < 0:
        raise _fail(f"process_vm_readv({pid})")
    return buffer.raw[:got]


def process_vm_writev(pid: int, address: int, content: bytes) -> int:
    """process_vm_writev(2). Returns how many bytes were written."""
    buffer = ctypes.create_string_buffer(content, len(content))
    local = struct.pack("PN", ctypes.addressof(buffer), len(content))
    remote = struct.pack("PN", address, len(content))
    got = int(_libc.process_vm_writev(pid, local, 1, remote, 1, 0))
    if got < 0:
        raise _fail(f"process_vm_writev({pid})")
    return got


def seccomp_set_filter(number: int, program: bytes, flags: int) -> int:
    """seccomp(2) ``SECCOMP_SET_MODE_FILTER``; ``number`` is that of the call on this machine.

    ``program`` is a ``struct sock_filter[]``. Returns what the flags ask for.
    """
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter;
    whole = struct.pack("HP", len(program) // 8, ctypes.addressof(buffer))
    result = int(_seccomp(number, SECCOMP_SET_MODE_FILTER, flags, whole))
    if result < 0:
        raise _fail("seccomp(SECCOMP_SET_MODE_FILTER)")
    return result


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2), since Linux 5.6: a copy of another process's descriptor, close-on-exec."""
    result = int(_pidfd_getfd(_SYS_PIDFD_GETFD, pidfd, fd, 0))
    if result < 0:
        raise _fail(f"pidfd_getfd({fd})")
    return result


def io_uring_setup(entries: int) -> int:
    """io_uring_setup(2), since Linux 5.1. Returns a descriptor, close-on-exec."""
    parameters = ctypes.create_string_buffer(_IO_URING_PARAMS_SIZE)
    result = int(_io_uring_setup(_SYS_IO_URING_SETUP, entries, parameters))
    if result < 0:
        raise _fail(f"io_uring_setup({entries})")
    return result


def io_uring_register_buffers(fd: int, buffers: Sequence[tuple[int, int]]) -> None:
    """io_uring_register(2) ``IORING_REGISTER_BUFFERS``; of each its address and length."""
    iovecs = struct.pack("PN" * len(buffers), *chain.from_iterable(buffers))
    call = _io_uring_register
    if call(_SYS_IO_URING_REGISTER, fd, IORING_REGISTER_BUFFERS, iovecs, len(buffers)) < 0:
        raise _fail(f"io_uring_register({len(buffers)} buffers)")


def io_uring_unregister_buffers(fd: int) -> None:
    """io_uring_register(2) ``IORING_UNREGISTER_BUFFERS``."""
    if _io_uring_register(_SYS_IO_URING_REGISTER, fd, IORING_UNREGISTER_BUFFERS, None, 0) < 0:
        raise _fail("io_uring_register(no buffers)")


def landlock_abi() -> int:
    """The version of Landlock's interface, landlock_create_ruleset(2), since Linux 5.13.

    It is 1 or more. The error is ENOSYS where the kernel has no Landlock, and EOPNOTSUPP where it
    was not enabled when the machine was started.
    """
    flag = LANDLOCK_CREATE_RULESET_VERSION
    result = int(_landlock_create_ruleset(_SYS_LANDLOCK_CREATE_RULESET, None, 0, flag))
    if result < 0:
        raise _fail("landlock_create_ruleset(version)")
    return result


def landlock_create_ruleset(attributes: bytes) -> int:
    """landlock_create_ruleset(2). Returns a descriptor, close-on-exec.

    ``attributes``: as much of ``struct landlock_ruleset_attr`` as the interface has.
    """
    result = int(
        _landlock_create_ruleset(_SYS_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)
    )
    if result < 0:
        raise _fail(f"landlock_create_ruleset({attributes.hex()})")
    return result


def landlock_add_path_rule(ruleset: int, path_fd: int, access: int) -> None:
    """landlock_add_rule(2) ``LANDLOCK_RULE_PATH_BENEATH``: allow ``access`` below ``path_fd``."""
    # struct landlock_path_beneath_attr, which is packed.
    rule = struct.pack("=Qi", access, path_fd)
    kind = LANDLOCK_RULE_PATH_BENEATH
    if _landlock_add_rule(_SYS_LANDLOCK_ADD_RULE, ruleset, kind, rule, 0) < 0:
        raise _fail(f"landlock_add_rule(fd {path_fd}, {access:#x})")


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2): for this thread, and all threads and processes it starts."""
    if _landlock_restrict_self(_SYS_LANDLOCK_RESTRICT_SELF, ruleset, 0) < 0:
        raise _fail("landlock_restrict_self()")


def syncfs(fd: int) -> None:
    """syncfs(2): the filesystem that ``fd`` is on."""
    if _libc.syncfs(fd) < 0:
        raise _fail(f"syncfs({fd})")


def _clone_names(flags: int) -> str:
    names = {
        CLONE_FS: "CLONE_FS",
        CLONE_NEWNS: "CLONE_NEWNS",
        CLONE_NEWUTS: "CLONE_NEWUTS",
        CLONE_NEWIPC: "CLONE_NEWIPC",
        CLONE_NEWUSER: "CLONE_NEWUSER",
        CLONE_NEWPID: "CLONE_NEWPID",
        CLONE_NEWNET: "CLONE_NEWNET",
    }
    return "|".join(name for bit, name in names.items() if flags & bit) or str(flags)
