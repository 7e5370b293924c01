"""Where no test can be guarded it is said why, with the version of a kernel that is too old."""

from __future__ import annotations

import errno

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.environment import Environment
from pytest_mountns.engine.linux.errors import SyscallError
from pytest_mountns.engine.probe import guard
from pytest_mountns.engine.probe.guard import GuardProbe, probe_guard

OLD = Environment(kernel="5.10.0-32-cloud-amd64")


def probe_where(monkeypatch: pytest.MonkeyPatch, number: int, here: Environment) -> GuardProbe:
    def fail() -> int:
        raise SyscallError(number, "landlock_create_ruleset(version)")

    monkeypatch.setattr(syscalls, "landlock_abi", fail)
    monkeypatch.setattr(guard, "read_environment", lambda: here)
    found = probe_guard()
    assert found.abi == 0
    return found


@pytest.mark.parametrize(
    ("here", "cause", "remedy"),
    [
        (OLD, "Linux 5.10.0-32-cloud-amd64 is older than 5.13", "Linux 5.13 or later"),
        # Whether a filter hides the call makes no difference.
        (OLD._replace(seccomp=True), "older than 5.13", "Linux 5.13 or later"),
        (OLD._replace(kernel="6.12.113"), "Linux 6.12.113 was built without Landlock", "CONFIG_"),
    ],
)
def test_a_kernel_without_landlock_is_named(
    monkeypatch: pytest.MonkeyPatch, here: Environment, cause: str, remedy: str
) -> None:
    trial = probe_where(monkeypatch, errno.ENOSYS, here).trial
    assert cause in trial.cause
    assert remedy in trial.remedy
    assert "container" not in trial.remedy


@pytest.mark.parametrize(
    ("number", "here", "cause", "remedy"),
    [
        # The kernel was built without it, or a filter hides it: that cannot be told apart.
        (errno.ENOSYS, OLD._replace(kernel="6.1.0-50", seccomp=True), "seccomp", "container"),
        (errno.ENOSYS, OLD._replace(kernel="odd"), "seccomp", "Linux 5.13"),
        (errno.EOPNOTSUPP, OLD._replace(kernel="6.1.0-50"), "not enabled", "lsm="),
    ],
)
def test_other_causes(
    monkeypatch: pytest.MonkeyPatch, number: int, here: Environment, cause: str, remedy: str
) -> None:
    trial = probe_where(monkeypatch, number, here).trial
    assert cause in trial.cause
    assert remedy in trial.remedy
