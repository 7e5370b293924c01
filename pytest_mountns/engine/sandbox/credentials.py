"""The user that a test process becomes, credentials(7).

That cannot be undone, so a process that returns to the host does not call it.
"""

from __future__ import annotations

from ..linux import syscalls
from ..linux.errors import Unavailable
from ..linux.namespaces import drop_user_capabilities, explained
from ..linux.untouched import posix
from ..plan.model import User


def become_user(user: User) -> None:
    """Turn root's process into a process of ``user``, as programs that it starts will be.

    It retains its permitted capabilities, which resets and bind mounts need, but none of them is
    effective, capabilities(7). Raises :class:`Unavailable` if the kernel refuses the ids.
    """
    with explained(user.describe(), False, "user", Unavailable):
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
        posix.setgroups(list(user.groups))
        posix.setresgid(user.gid, user.gid, user.gid)
        posix.setresuid(user.uid, user.uid, user.uid)
        syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
        drop_user_capabilities()
        # The change of ids has cleared it, and the process would not own its /proc/self, proc(5).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
