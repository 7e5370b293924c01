"""The manager's way into a user namespace: what stops it, and what is said of that."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import Unavailable
from pytest_mountns.engine.linux.syscalls import CLONE_NEWUSER
from pytest_mountns.engine.sandbox.manager import SandboxManager
from tests.helpers.environments import ENVIRONMENTS
from tests.helpers.seccomp import Refusal, install
from tests.helpers.worlds import bind, in_world, mkdir

BY_NAME = {environment.name: environment for environment in ENVIRONMENTS}


def refusal() -> Unavailable:
    """Why this process cannot move; it is then where it was, and its manager can be closed."""
    # Where this process is in a user namespace already, it would go on in that.
    syscalls.capset(0, 0, 0)
    manager = SandboxManager([])
    before = os.readlink("/proc/self/ns/mnt")
    with pytest.raises(Unavailable) as info:
        manager.move_to_user_namespace()
    assert not manager.in_user_namespace
    assert os.readlink("/proc/self/ns/mnt") == before
    manager.close()
    return info.value


def refused_in(name: str) -> Unavailable:
    """Why a process cannot move in one of the known environments."""
    error = BY_NAME[name].run(refusal)
    assert isinstance(error, Unavailable)
    return error


def unshare_answers(number: int) -> Callable[[], Unavailable]:
    """A process of which unshare(CLONE_NEWUSER) answers so."""

    def refused() -> Unavailable:
        install([Refusal("unshare", number, CLONE_NEWUSER)])
        return refusal()

    return refused


def test_several_threads() -> None:
    def with_threads() -> Unavailable:
        end = threading.Event()
        threads = [threading.Thread(target=end.wait) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            return refusal()
        finally:
            end.set()
            for thread in threads:
                thread.join()

    error = in_world(with_threads, "user")
    assert "EINVAL" in error.kernel
    assert "it has 3 threads" in error.cause
    assert "run as root" in error.remedy


@pytest.mark.no_mountns(reason="a sandbox is no chroot, and has no other")
def test_a_chroot() -> None:
    def prepare() -> None:
        mkdir("jail/proc")
        bind("/proc", "jail/proc")
        os.chroot("jail")
        os.chdir("/")

    error = in_world(refusal, "user", prepare)
    assert "EPERM" in error.kernel
    assert "chroot" in error.cause
    assert "AppArmor" not in error.cause
    assert "outside of the chroot" in error.remedy


@pytest.mark.parametrize(
    ("number", "cause", "remedy"),
    [
        (errno.EPERM, "a seccomp filter forbids it", "seccomp=unconfined"),
        (errno.EUSERS, "nested too deep", "further out"),
        (errno.ENOSPC, "user.max_user_namespaces", "sysctl -w user.max_user_namespaces"),
    ],
    ids=["EPERM", "EUSERS", "ENOSPC"],
)
def test_the_kernel_refuses_the_namespace(number: int, cause: str, remedy: str) -> None:
    error = in_world(unshare_answers(number), "user")
    assert error.tried == "make a user namespace"
    assert errno.errorcode[number] in error.kernel
    assert cause in error.cause
    assert remedy in error.remedy


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_a_limit_of_none() -> None:
    error = refused_in("no-user-namespaces")
    assert "ENOSPC" in error.kernel
    assert error.cause == "user.max_user_namespaces is 0"


@pytest.mark.no_mountns(reason="writes to /proc/sys")
@pytest.mark.parametrize(
    ("name", "tried", "kernel"),
    [("apparmor", "/proc/self/setgroups", "EACCES"), ("apparmor-late", "mount namespace", "EPERM")],
)
def test_apparmor(name: str, tried: str, kernel: str) -> None:
    error = refused_in(name)
    assert tried in error.tried
    assert kernel in error.kernel
    assert error.cause.startswith("AppArmor")
    assert "apparmor_restrict_unprivileged_userns=0" in error.remedy


def test_the_maps_may_not_be_written_and_nobody_knows_why() -> None:
    # The call says that it has made the namespace, and has not.
    error = in_world(unshare_answers(0), "user")
    assert "/proc/self/setgroups" in error.tried
    assert "EACCES" in error.kernel or "EPERM" in error.kernel
    assert "gives no rights" in error.cause or "seccomp" in error.cause
    assert error.remedy
