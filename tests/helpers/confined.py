"""Run a command where namespaces and mounts are forbidden, as in a default container.

``python -m tests.helpers.confined [--no-landlock] COMMAND ...``: the seccomp filter answers as
Docker's default profile does, and root has the capabilities of a container's root.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import NoReturn

from tests.helpers.environments import forbid_as_docker
from tests.helpers.seccomp import install, refuse


def main(arguments: list[str]) -> NoReturn:
    """Confine this process and become the command."""
    forbid_as_docker()
    if arguments[0] == "--no-landlock":
        install(refuse(("landlock_create_ruleset",), errno.ENOSYS))
        arguments = arguments[1:]
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
