"""Seccomp filters: which system calls stop and ask a supervisor, seccomp(2) and seccomp_unotify(2).

A filter stays on a process for good, and on everything that this starts.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import Final

from ..linux import syscalls
from ..linux.errors import SandboxError, Unavailable, said
from ..linux.untouched import struct
from .calls import (
    CALLS,
    MAKING_FLAGS,
    MAP_SHARED,
    OPEN_FLAGS,
    REFUSED,
    Architecture,
    Call,
    Refused,
)

# <linux/bpf_common.h>
_LOAD: Final = 0x20
_JUMP_EQUAL: Final = 0x15
_JUMP_SET: Final = 0x45
_RETURN: Final = 0x06
# <linux/seccomp.h>
_ALLOW: Final = 0x7FFF0000
_NOTIFY: Final = 0x7FC00000
_ERRNO: Final = 0x00050000
# struct seccomp_data: int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6];
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4
_ARGUMENTS: Final = 16

_SYS_SECCOMP: Final = {"x86_64": 317, "aarch64": 277}


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def program(architecture: Architecture, names: Collection[str], *, changes_only: bool) -> bytes:
    """The filter that stops these calls, as ``struct sock_filter[]``.

    ``changes_only``: an open that neither makes nor empties a file, and a private mapping, are not
    stopped; the kernel answers them at its own speed. The calls of another architecture (32-bit
    programs) are always stopped. Calls of :data:`REFUSED` fail, since what they write would not be
    seen; libraries then fall back to others.
    """
    blocks = [
        _instruction(_LOAD, _ARCHITECTURE),
        _instruction(_JUMP_EQUAL, architecture.audit, yes=1),
        _instruction(_RETURN, _NOTIFY),
        _instruction(_LOAD, _NUMBER),
    ]
    for refused in REFUSED:
        rest = _refusal(refused)
        stated = refused.numbers[architecture.column]
        blocks += [_instruction(_JUMP_EQUAL, stated, no=len(rest)), *rest]
    for call in CALLS:
        number = call.numbers[architecture.column]
        if number is None or call.name not in names:
            continue
        rest = [_instruction(_RETURN, _NOTIFY)]
        if changes_only and (test := _condition(call)) is not None:
            argument, bits = test
            rest = [
                _load(argument),
                _instruction(_JUMP_SET, bits, no=1),
                *rest,
                _instruction(_RETURN, _ALLOW),
            ]
        blocks += [_instruction(_JUMP_EQUAL, number, no=len(rest)), *rest]
    blocks.append(_instruction(_RETURN, _ALLOW))
    return b"".join(blocks)


def _load(argument: int) -> bytes:
    # The low half of the argument: both architectures are little-endian.
    return _instruction(_LOAD, _ARGUMENTS + 8 * argument)


def _refusal(refused: Refused) -> list[bytes]:
    fails = _instruction(_RETURN, _ERRNO | refused.error)
    if not refused.requests:
        return [fails]
    tests = []
    for request in refused.requests:
        tests += [_instruction(_JUMP_EQUAL, request, no=1), fails]
    return [_load(1), *tests, _instruction(_RETURN, _ALLOW)]


def _condition(call: Call) -> tuple[int, int] | None:
    """The argument, and the bits of it, without which the call changes nothing."""
    if call.name in OPEN_FLAGS:
        return OPEN_FLAGS[call.name], MAKING_FLAGS
    if call.name == "mmap":
        return 3, MAP_SHARED
    return None


def install(architecture: Architecture, instructions: bytes, *, flags: int = 0) -> int:
    """Put the filter on this thread for good. Returns the descriptor that the supervisor reads.

    It is close-on-exec. Raises :class:`SandboxError` if the kernel refuses it.
    """
    flags |= syscalls.SECCOMP_FILTER_FLAG_NEW_LISTENER
    # Since Linux 5.19. Without it, a call that a signal interrupts before it was answered is made
    # again, and would count twice.
    killable = syscalls.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
    try:
        return _install(architecture, instructions, flags | killable)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise _refused(error) from error
    try:
        return _install(architecture, instructions, flags)
    except OSError as error:
        raise _refused(error) from error


def _install(architecture: Architecture, instructions: bytes, flags: int) -> int:
    number = _SYS_SECCOMP[architecture.machine]
    try:
        return syscalls.seccomp_set_filter(number, instructions, flags)
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
    # Who has CAP_SYS_ADMIN need not give up that setuid programs gain rights; this process has to.
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    return syscalls.seccomp_set_filter(number, instructions, flags)


def _refused(error: OSError) -> SandboxError:
    tried = "supervise the system calls of a process"
    kernel, number = said(error), error.errno
    if number == errno.EBUSY:
        return SandboxError(
            tried,
            kernel,
            "this process has a supervisor already, and the kernel allows one: faults= and faults()"
            " cannot be combined with crashes() and fault_points(), nor can one of these be called"
            " in another; or the container engine supervises it",
            "use one of them in a test",
        )
    if number in (errno.EINVAL, errno.ENOSYS):
        return Unavailable(
            tried,
            kernel,
            "the kernel is older than 5.5 or was built without CONFIG_SECCOMP_FILTER",
            "uname -r; zgrep SECCOMP /proc/config.gz",
        )
    return Unavailable(
        tried,
        kernel,
        "a seccomp profile of the container, or a security module, forbids seccomp(2)",
        "in Docker: --security-opt seccomp=unconfined",
    )
