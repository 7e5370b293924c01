"""What a test process leaves of the host besides its files: network, host name, user.

Done by a process that does not return.
"""

from __future__ import annotations

import _socket
import fcntl
import posix
import struct
from typing import Final

from ..linux import syscalls as sys
from ..linux.errno_advice import Doing, explain
from ..linux.errors import Unavailable, said
from ..linux.helper_process import call_in_helper
from ..linux.namespaces import drop_user_capabilities
from ..plan.model import Plan, User

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("16sH14x")


def leave_outer_namespaces(plan: Plan) -> None:
    """Move to network and UTS namespaces of its own, as planned. Raises :class:`Unavailable`."""
    flags = sys.CLONE_NEWUTS * plan.uts_namespace | sys.CLONE_NEWNET * plan.network_namespace
    what = "make namespaces for host name and network"
    doing: Doing = "namespace"
    try:
        if flags:
            sys.unshare(flags)
        if plan.hostname is not None:
            what = f"set the host name {plan.hostname}"
            _socket.sethostname(plan.hostname)
        if plan.network_namespace:
            what, doing = "bring up the loopback interface", "network"
            have_loopback()
    except OSError as error:
        cause, remedy = explain(error.errno or 0, plan.user_namespace, doing)
        raise Unavailable(what, said(error), cause, remedy) from error


def have_loopback() -> None:
    """In a network namespace of its own, whose interface is down. Raises :class:`OSError`."""
    try:
        _bring_up_loopback()
    except PermissionError:
        # Root of a container mostly lacks CAP_NET_ADMIN. Whoever makes a user namespace has it in
        # there.
        _, (descriptor,) = call_in_helper(_make_network, "make a network namespace")
        try:
            sys.setns(descriptor, sys.CLONE_NEWNET)
        finally:
            posix.close(descriptor)


def _make_network() -> tuple[None, list[int]]:
    try:
        sys.unshare(sys.CLONE_NEWUSER | sys.CLONE_NEWNET)
        _bring_up_loopback()
        return None, [posix.open("/proc/self/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)]
    except OSError as error:
        cause, remedy = explain(error.errno or 0, False, "network")
        raise Unavailable("make a network namespace", said(error), cause, remedy) from error


def _bring_up_loopback() -> None:
    """netdevice(7) ``SIOCSIFFLAGS``; its addresses come with that. Raises :class:`OSError`."""
    # Not of the module `socket`, which suites replace that forbid the network.
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))
    finally:
        control.close()


def become(user: User) -> None:
    """Root's process is that user's from now on, programs that it starts included.

    What resets and binds need is kept as permitted capabilities, capabilities(7), and is not in
    effect. Raises :class:`Unavailable`.
    """
    try:
        sys.prctl(sys.PR_SET_KEEPCAPS, 1)
        posix.setgroups(list(user.groups))
        posix.setresgid(user.gid, user.gid, user.gid)
        posix.setresuid(user.uid, user.uid, user.uid)
        sys.prctl(sys.PR_SET_KEEPCAPS, 0)
        drop_user_capabilities()
        # It was cleared, and with it the process would not own its own /proc/self.
        sys.prctl(sys.PR_SET_DUMPABLE, 1)
    except OSError as error:
        cause, remedy = explain(error.errno or 0, False, "user")
        raise Unavailable(user.describe(), said(error), cause, remedy) from error
