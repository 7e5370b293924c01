"""Makes the files and directories in a new root that something is mounted on."""

from __future__ import annotations

import errno
import stat

from ..linux.errno_advice import explain
from ..linux.errors import SandboxError, errno_name
from ..linux.untouched import os


def make_mountpoint(root: int, target: str, *, directory: bool, created: set[str]) -> None:
    """Make the absolute path ``target`` below ``root`` if it is missing.

    ``root`` is a descriptor. Every path that is made is added to ``created``. Raises
    :class:`SandboxError` if it cannot be made, if a component is a symbolic link, which would lead
    out of ``root``, or if it exists and is not of the kind that ``directory`` says.
    """
    parts = target.strip("/").split("/")
    place = "/"
    # Made with the modes given here, whatever umask the test has set.
    umask = os.umask(0)
    at = os.dup(root)
    try:
        for index, name in enumerate(parts):
            place = os.path.join(place, name)
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                step = os.open(name, flags, dir_fd=at)
            except FileNotFoundError:
                if index < len(parts) - 1 or directory:
                    os.mkdir(name, 0o755, dir_fd=at)
                else:
                    make = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
                    os.close(os.open(name, make, 0o644, dir_fd=at))
                created.add(place)
                step = os.open(name, flags, dir_fd=at)
            os.close(at)
            at = step
            if stat.S_ISLNK(os.fstat(at).st_mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if stat.S_ISDIR(os.fstat(at).st_mode) != directory:
            # Told apart here: move_mount(2) says ENOTDIR or EINVAL, depending on the kernel's age.
            raise SandboxError(f"mount on {target}", "", *explain(errno.ENOTDIR, False, "bind"))
    except OSError as error:
        number = error.errno or 0
        # It is the place that refuses, whether there is a user namespace or not.
        raise SandboxError(
            f"make {target} to be mounted on",
            f"{errno_name(number)} ({os.strerror(number)}) at {place}",
            *explain(number, False, "target"),
        ) from error
    finally:
        os.close(at)
        os.umask(umask)
