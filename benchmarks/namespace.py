"""Run a command in a mount namespace of its own, which goes when the command ends.

    python namespace.py [--read-only] [--mounts N DIRECTORY] COMMAND ...

``--mounts``: with N tmpfs mounted below DIRECTORY. ``--read-only``: every mount the machine shows
refuses writes. Run as root, by any Python from 3.10 on; imports nothing of this project.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

CLONE_NEWNS = 0x20000
MS_NOSUID_NODEV = 0x6
MS_REC_PRIVATE = 0x44000
SYS_MOUNT_SETATTR = 442  # the same on every architecture
AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_RDONLY = -100, 0x8000, 0x1

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [*[ctypes.c_char_p] * 3, ctypes.c_ulong, ctypes.c_char_p]


def check(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def separate() -> None:
    """Into a copy of the mounts out of which nothing leaks."""
    check(libc.unshare(CLONE_NEWNS))
    check(libc.mount(None, b"/", None, MS_REC_PRIVATE, None))


def make_read_only() -> None:
    attributes = struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)
    arguments = (AT_FDCWD, b"/", AT_RECURSIVE, attributes, len(attributes))
    check(libc.syscall(SYS_MOUNT_SETATTR, *arguments))


def add_mounts(count: int, directory: str) -> None:
    for number in range(count):
        target = os.path.join(directory, str(number))
        os.makedirs(target, exist_ok=True)
        check(libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", MS_NOSUID_NODEV, b"size=1m"))


def main(arguments: list[str]) -> None:
    separate()
    if arguments[0] == "--read-only":
        make_read_only()
        arguments = arguments[1:]
    if arguments[0] == "--mounts":
        add_mounts(int(arguments[1]), arguments[2])
        arguments = arguments[3:]
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
