"""Make system calls fail for this process and all that it starts, by seccomp(2) filters.

The kernel then answers as it does under the profile of a container engine, under a security module
or as an old kernel, whoever makes the call.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pytest

from pytest_mountns.engine.linux.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    prctl,
)

#: Every flag of clone(2) that makes a namespace.
CLONE_NEW: Final = CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUSER | 0x0E000000

# Audit numbers of the architectures, and what is not the same on both (<asm/unistd.h>).
_ARCHITECTURES: Final = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NUMBERS: Final = {
    "clone": (56, 220),
    "inotify_add_watch": (254, 27),
    "inotify_init1": (294, 26),
    "mount": (165, 40),
    "mknodat": (259, 33),
    "pivot_root": (155, 41),
    "seccomp": (317, 277),
    "setns": (308, 268),
    "setxattr": (188, 5),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "clone3": (435, 435),
    "mount_setattr": (442, 442),
    "landlock_create_ruleset": (444, 444),
}
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_MODE_FILTER: Final = 2
_RET_ERRNO: Final = 0x00050000
_RET_ALLOW: Final = 0x7FFF0000
# struct seccomp_data: int nr; __u32 arch; __u64 instruction_pointer; __u64 args[6];
_NR, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
# <linux/bpf_common.h>
_LOAD, _JUMP_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x45, 0x06


@dataclass(frozen=True)
class Refusal:
    """A system call that is refused."""

    #: The name of the call.
    call: str
    #: The errno that it fails with. With 0 it does nothing, and says that it has worked.
    number: int
    #: If not 0, the call is refused only if its first argument has one of these bits.
    flags: int = 0


def refuse(calls: Sequence[str], number: int) -> list[Refusal]:
    """Refuse each of these calls with the same errno."""
    return [Refusal(call, number) for call in calls]


def install(refusals: Sequence[Refusal]) -> None:
    """Put a filter on this process that it cannot get rid of.

    Skips the test where that is not possible.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        pytest.skip(f"no numbers of system calls for {machine}")
    column = list(_ARCHITECTURES).index(machine)
    program = [_op(_LOAD, _ARCH), _op(_JUMP_EQUAL, _ARCHITECTURES[machine], 1, 0)]
    program.append(_op(_RETURN, _RET_ALLOW))
    for refusal in refusals:
        answer = [_op(_RETURN, _RET_ERRNO | refusal.number)]
        if refusal.flags:
            # The low half, on machines that are little-endian.
            answer[:0] = [_op(_LOAD, _FIRST_ARGUMENT), _op(_JUMP_SET, refusal.flags, 0, 1)]
        number = _NUMBERS[refusal.call][column]
        program += [_op(_LOAD, _NR), _op(_JUMP_EQUAL, number, 0, len(answer)), *answer]
    program.append(_op(_RETURN, _RET_ALLOW))
    code = ctypes.create_string_buffer(b"".join(program))
    # struct sock_fprog: unsigned short len; struct sock_filter *filter;
    whole = struct.pack("@HP", len(program), ctypes.addressof(code))
    holder = ctypes.create_string_buffer(whole)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p]
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.addressof(holder)) != 0:
        pytest.skip(f"no seccomp filters here: {errno.errorcode[ctypes.get_errno()]}")


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    """Struct sock_filter."""
    return struct.pack("=HBBI", code, if_true, if_false, value)
