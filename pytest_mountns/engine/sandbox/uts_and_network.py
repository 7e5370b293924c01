"""The host name and the network of a sandbox: namespaces of a forked test process.

Nothing here can be undone, so a process that returns to the host calls none of it.
"""

from __future__ import annotations

from typing import Final

from ..linux import syscalls
from ..linux.errors import Unavailable
from ..linux.helper_process import call_in_helper
from ..linux.namespaces import explained
from ..linux.sockets import _socket
from ..linux.untouched import fcntl, posix, struct
from ..plan.model import Plan

_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_IFREQ: Final = struct.Struct("16sH14x")


def set_up_uts_and_network(plan: Plan) -> None:
    """Move this process to a UTS and a network namespace of its own, as far as planned.

    Raises :class:`Unavailable` if the kernel refuses it.
    """
    flags = (
        syscalls.CLONE_NEWUTS * plan.uts_namespace | syscalls.CLONE_NEWNET * plan.network_namespace
    )
    user = plan.user_namespace
    if flags:
        what = "make namespaces for host name and network"
        with explained(what, user, "namespace", Unavailable):
            syscalls.unshare(flags)
    if plan.hostname is not None:
        with explained(f"set the host name {plan.hostname}", user, "namespace", Unavailable):
            _socket.sethostname(plan.hostname)
    if plan.network_namespace:
        with explained("bring up the loopback interface", user, "network", Unavailable):
            bring_up_loopback()


def bring_up_loopback() -> None:
    """Bring up the loopback interface of a new network namespace.

    If this process may not do that, it moves to another new network namespace, in which the
    interface is up. Raises :class:`OSError`, or :class:`Unavailable` if neither is possible.
    """
    try:
        _set_interface_up()
    except PermissionError:
        # Root in a container usually lacks CAP_NET_ADMIN. A process that makes a user namespace has
        # all capabilities there, user_namespaces(7).
        _, (descriptor,) = call_in_helper(_make_network_namespace, "make a network namespace")
        try:
            syscalls.setns(descriptor, syscalls.CLONE_NEWNET)
        finally:
            posix.close(descriptor)


def _make_network_namespace() -> tuple[None, list[int]]:
    with explained("make a network namespace", False, "network", Unavailable):
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNET)
        _set_interface_up()
        return None, [posix.open("/proc/self/ns/net", posix.O_RDONLY | posix.O_CLOEXEC)]


def _set_interface_up() -> None:
    """Set the flag ``IFF_UP`` of ``lo``, netdevice(7). It gets its addresses with that."""
    # Not with the module `socket`, which suites replace that forbid the network.
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    try:
        fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, _IFREQ.pack(b"lo", _IFF_UP))
    finally:
        control.close()
