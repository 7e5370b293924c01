"""Run a command where the kernel has no mount API but mount(2), as Linux 5.11.

``python -m tests.helpers.old_kernel COMMAND ...``: a seccomp filter answers as that kernel does.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

from tests.helpers.environments import NEW_MOUNT_API
from tests.helpers.seccomp import install, refuse


def main(arguments: list[str]) -> NoReturn:
    """Hide the calls from this process and become the command."""
    install(refuse(NEW_MOUNT_API, errno.ENOSYS))
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
