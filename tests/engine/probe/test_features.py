"""What a machine can do, and what is said where it cannot: errno, cause, remedy."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errno_advice import Doing, explain
from pytest_mountns.engine.linux.errors import SandboxError, Unavailable
from pytest_mountns.engine.linux.mountinfo import read, visible
from pytest_mountns.engine.linux.namespaces import (
    drop_user_capabilities,
    enter_mount_namespace,
    enter_user_namespace,
)
from pytest_mountns.engine.plan.spec import SandboxSpec, SpecError, Volume
from pytest_mountns.engine.planning import planner
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.probe import lowerdirs
from pytest_mountns.engine.probe.features import ProbeResult, probe
from pytest_mountns.engine.probe.host import survey
from pytest_mountns.engine.probe.lowerdirs import refused_lowers
from pytest_mountns.engine.probe.trials import Trial
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.seccomp import install, refuse
from tests.helpers.worlds import (
    BASE,
    Lost,
    Mode,
    bind,
    descriptors,
    features_of,
    in_child,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    skip_unless,
    skip_unless_in_memory,
    write,
)

_CAP_SYS_ADMIN = 21
_PR_CAPBSET_DROP = 24


def drop_sys_admin() -> None:
    """What ``setpriv --bounding-set=-sys_admin`` does, and a container that is not privileged."""
    _, permitted, inheritable = syscalls.capget()
    syscalls.capset(permitted, permitted, inheritable)
    syscalls.prctl(_PR_CAPBSET_DROP, _CAP_SYS_ADMIN)
    rest = permitted & ~(1 << _CAP_SYS_ADMIN)
    syscalls.capset(rest, rest, inheritable)


def forbid_user_namespaces() -> None:
    """Enter a user namespace, and set its limit of user namespaces to none."""
    enter_user_namespace()
    write("/proc/sys/user/max_user_namespaces", "0")
    drop_user_capabilities()


def obstacle(findings: ProbeResult) -> Trial:
    assert findings.features is None
    assert findings.obstacle is not None
    return findings.obstacle


def test_here_everything_that_is_needed_works(mode: Mode) -> None:
    def host() -> ProbeResult:
        before = descriptors()
        with open("/proc/self/mountinfo", "rb") as file:
            mounts = file.read()
        findings = probe([BASE])
        with open("/proc/self/mountinfo", "rb") as file:
            assert file.read() == mounts
        assert descriptors() == before
        assert os.listdir(BASE) == []
        return findings

    findings = in_world(host, mode)
    assert findings.obstacle is None
    assert findings.features is not None
    assert findings.features.user_namespace == (mode == "user")
    assert {"mount namespace", "overlay", "a whole root and pivot_root"} <= {
        trial.name for trial in findings.trials if trial.works
    }
    assert all(trial.kernel and not trial.works for trial in findings.trials if trial.kernel)


def test_root_without_sys_admin_is_served_as_an_ordinary_user() -> None:
    skip_unless("root")
    skip_unless("user")

    def host() -> ProbeResult:
        drop_sys_admin()
        return probe([BASE])

    findings = in_world(host, "root")
    assert findings.features is not None
    assert findings.features.user_namespace


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_root_that_may_do_neither_hears_of_its_capabilities() -> None:
    skip_unless("root")
    skip_unless("user")

    def host() -> ProbeResult:
        forbid_user_namespaces()
        drop_sys_admin()
        return probe([])

    trial = obstacle(in_world(host, "root"))
    assert trial.name == "mount namespace"
    assert "EPERM" in trial.kernel
    assert "CAP_SYS_ADMIN" in trial.cause
    assert "--privileged" in trial.remedy


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_a_user_without_user_namespaces_hears_of_the_limit() -> None:
    skip_unless("user")

    def host() -> ProbeResult:
        forbid_user_namespaces()
        return probe([])

    trial = obstacle(in_world(host, "user"))
    assert trial.name == "user namespace"
    assert "ENOSPC" in trial.kernel
    assert "user.max_user_namespaces" in trial.cause
    assert "sysctl -w user.max_user_namespaces" in trial.remedy


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_the_planner_says_what_the_probe_found() -> None:
    skip_unless("user")

    def host() -> None:
        forbid_user_namespaces()
        Planner([]).plan(SandboxSpec())

    with pytest.raises(Unavailable, match="user namespace failed") as info:
        in_world(host, "user")
    assert "ENOSPC" in info.value.kernel
    assert info.value.remedy


@pytest.mark.parametrize("needed", [True, False])
def test_the_planner_asks_again_after_a_moment_without(
    monkeypatch: pytest.MonkeyPatch, needed: bool
) -> None:
    """A resource that was exhausted when it was tried may be available for the next test."""
    missing = Trial("sandbox with a PID namespace", False, needed=needed, errno="EAGAIN")
    there = Trial(missing.name, True, needed=needed)
    answers = [ProbeResult((trial,), None) for trial in (missing, there, missing)]
    monkeypatch.setattr(planner, "probe", lambda places: answers.pop(0))
    asked = Planner([])
    assert [asked.findings.trials[0].works for _ in range(3)] == [False, True, True]


@pytest.mark.no_mountns(reason="nests as deep as it goes")
def test_the_third_level_of_sandboxes_says_why(mode: Mode) -> None:
    skip_unless_in_memory(mode)

    def nested(level: int) -> ProbeResult:
        if level == 0:
            return probe([BASE])

        def test(_: Sandbox) -> ProbeResult:
            return nested(level - 1)

        return in_sandbox(test, mode=mode)

    assert in_world(lambda: nested(1), mode).features is not None
    trial = obstacle(in_world(lambda: nested(2), mode))
    assert "EINVAL" in trial.kernel
    assert "two deep" in trial.cause
    assert "one level further out" in trial.remedy


def test_without_proc_it_says_so(mode: Mode) -> None:
    def prepare() -> None:
        mount_tmpfs("/proc")

    trial = obstacle(in_world(lambda: probe([]), mode, prepare))
    assert "ENOENT" in trial.kernel
    assert "mount -t proc" in trial.remedy


def test_in_a_chroot_it_says_so() -> None:
    skip_unless("root")

    def host() -> ProbeResult:
        mkdir("jail/proc")
        bind("/proc", "jail/proc")
        os.chroot("jail")
        os.chdir("/")
        return probe([])

    trial = obstacle(in_world(host, "root"))
    assert "chroot" in trial.cause
    assert "mount --bind" in trial.remedy


def test_a_machine_that_shows_proc_in_parts_has_no_pid_namespaces() -> None:
    skip_unless("user")

    name = next((name for name in ("acpi", "scsi") if os.path.isdir(f"/proc/{name}")), None)
    if name is None:
        pytest.skip("no directory in /proc to cover")

    def prepare() -> None:
        # As container engines do. One that shows everything, as in a root that somebody makes
        # meanwhile, would be enough for a new one.
        for mount in visible(read()):
            if mount.fstype == "proc" and mount.root == "/":
                if not os.path.isdir(f"{mount.mountpoint}/{name}"):
                    pytest.skip(f"{mount.mountpoint} is closed to this user")
                mount_tmpfs(f"{mount.mountpoint.rstrip('/')}/{name}")

    def host() -> None:
        planner = Planner([BASE])
        try:
            planner.plan(SandboxSpec())
            planner.plan(SandboxSpec(pid=True))
        finally:
            planner.close()

    with pytest.raises(Unavailable, match="PID namespace") as info:
        in_world(host, "user", prepare)
    assert "EPERM" in info.value.kernel
    assert "covered" in info.value.cause
    assert "systempaths=unconfined" in info.value.remedy


def test_a_failure_to_enter_is_one_error_with_the_call(mode: Mode) -> None:
    def host() -> None:
        if mode == "root":
            drop_sys_admin()
        else:
            drop_user_capabilities()
        enter_mount_namespace(mode == "user")

    with pytest.raises(Unavailable) as info:
        in_world(host, mode)
    assert str(info.value).splitlines()[:2] == [
        "mountns: make a mount namespace",
        "  the kernel said: unshare(CLONE_NEWNS): EPERM (Operation not permitted)",
    ]


def test_a_volume_that_is_not_there_is_refused_before_anything_is_made() -> None:
    planner = Planner([])
    with pytest.raises(SpecError, match="there is no /nonexistent") as info:
        planner.plan(SandboxSpec(volumes=(Volume("/nonexistent", "/t"),)))
    planner.close()
    assert "mkdir -p /nonexistent" in info.value.remedy


def test_a_limit_needs_an_upper_in_memory() -> None:
    skip_unless("user")

    def host() -> None:
        planner = Planner([BASE])
        try:
            planner.plan(SandboxSpec())
            planner.plan(SandboxSpec(inodes=10))
        finally:
            planner.close()

    def without_xattrs() -> None:
        install(refuse(("setxattr",), errno.EOPNOTSUPP))
        host()

    with pytest.raises(Unavailable, match="uppers lie on disk") as info:
        in_world(without_xattrs, "user")
    assert "ENOTSUP" in info.value.kernel
    assert "6.6" in info.value.remedy


# Where a user can write.


def test_a_place_is_found_however_deep(mode: Mode) -> None:
    if mode == "root" or os.geteuid() != 0:
        pytest.skip("needs directories of another owner")

    def prepare() -> None:
        mkdir("a/b/c/mine")
        os.chown(BASE, 0, 0)
        for path in ("a", "a/b", "a/b/c"):
            os.chown(path, 0, 0)

    def host() -> tuple[str, ...]:
        found = survey(user_namespace=True, places=[f"{BASE}/a/b/c/mine"]).writable
        return tuple(path for path in found if path.startswith(BASE))

    assert in_world(host, mode, prepare) == (f"{BASE}/a/b/c/mine",)


def test_directories_with_mounts_are_told_apart() -> None:
    skip_unless("user")

    def prepare() -> None:
        for path in ("m", "deep/m", "plain/sub"):
            mkdir(path)
        for path in ("m", "deep/m"):
            mount_tmpfs(path)

    def host() -> tuple[tuple[str, ...], tuple[str, ...]]:
        found = survey(user_namespace=True, places=[])
        writable = tuple(path for path in found.writable if path.startswith(BASE))
        return writable, found.mixed

    writable, mixed = in_world(host, "user", prepare)
    assert writable == (f"{BASE}/deep/m", f"{BASE}/m")
    assert set(mixed) >= {BASE, f"{BASE}/deep"}


# What is said.


@pytest.mark.parametrize("user_namespace", [False, True])
@pytest.mark.parametrize(
    ("number", "doing", "word", "not_word"),
    [
        (errno.EINVAL, "overlay", "two deep", "chroot"),
        (errno.EINVAL, "pivot", "chroot", "two deep"),
        (errno.EINVAL, "bind", "unbindable", "two deep"),
        (errno.EINVAL, "", "", "two deep"),
        (errno.EACCES, "bind", "closed to this user", "AppArmor"),
        (errno.EROFS, "target", "read-only", "AppArmor"),
        (errno.ENOSPC, "user namespace", "max_user_namespaces", "full"),
        (errno.ENOSPC, "namespace", "max_mnt_namespaces", "full"),
        (errno.ENOSPC, "overlay", "full", "max_user_namespaces"),
        (errno.ENODEV, "overlay", "filesystem", "chroot"),
        (errno.EPERM, "proc", "covered", "AppArmor"),
    ],
)
def test_advice_fits_the_step(
    number: int, doing: Doing, word: str, not_word: str, user_namespace: bool
) -> None:
    cause, remedy = explain(number, user_namespace, doing)
    assert word in cause
    assert not_word not in cause
    assert remedy


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (lambda: os._exit(3), "ended by 3"),
        (lambda: os.kill(os.getpid(), 9), "ended by -9"),
    ],
)
def test_a_lost_process_of_this_suite_is_noticed(
    action: Callable[[], object], message: str
) -> None:
    with pytest.raises(Lost, match=message):
        in_child(action)


@pytest.mark.parametrize(
    ("number", "times", "refused"),
    [
        (errno.EINVAL, 2, True),
        (errno.ELOOP, 2, True),
        (errno.EACCES, 2, True),
        # It fails once and then works: the failure had another cause.
        (errno.EINVAL, 1, False),
    ],
)
def test_only_what_is_said_of_a_directory_is_a_refusal(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, number: int, times: int, refused: bool
) -> None:
    def host() -> frozenset[str]:
        _fail(monkeypatch, f"{BASE}/one", number, times)
        mkdir("one")
        mkdir("two")
        return refused_lowers([f"{BASE}/one", f"{BASE}/two"], features_of(mode))

    assert in_world(host, mode) == ({f"{BASE}/one"} if refused else set())


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EMFILE, errno.ENOSPC, errno.EINTR])
def test_what_passes_is_a_failure_and_no_refusal(
    monkeypatch: pytest.MonkeyPatch, mode: Mode, number: int
) -> None:
    def host() -> None:
        _fail(monkeypatch, f"{BASE}/one", number, 1)
        mkdir("one")
        refused_lowers([f"{BASE}/one"], features_of(mode))

    with pytest.raises(SandboxError, match=errno.errorcode[number]):
        in_world(host, mode)


def _fail(monkeypatch: pytest.MonkeyPatch, lower: str, number: int, times: int) -> None:
    """How many mounts of an overlay of ``lower`` fail."""
    original = lowerdirs.mount_trial_overlay
    left = [times]

    def overlay(path: str, *arguments: Any) -> int:
        if path == lower and left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return original(path, *arguments)

    monkeypatch.setattr(lowerdirs, "mount_trial_overlay", overlay)


@pytest.mark.skipif(os.geteuid() != 0, reason="of root")
@pytest.mark.parametrize("options", ["-Urm", "-Um", "-Urmu"])
def test_root_of_another_user_namespace_is_not_stuck(options: str) -> None:
    """It could leave namespaces of the first one, and not return to them."""
    code = "from pytest_mountns.engine.probe.features import probe; print(probe(['/tmp']).obstacle)"
    command = ["unshare", *options.split(), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr


def test_a_mount_in_a_closed_directory_is_no_obstacle_without_the_new_api(mode: Mode) -> None:
    """As the roots of containers: it stays writable, and no test can name it."""
    skip_unless(mode)

    def prepare() -> None:
        os.makedirs("closed/inner")
        syscalls.mount("tmpfs", "closed/inner", "tmpfs", 0, "mode=0777")
        os.chmod("closed", 0o700)

    def host() -> ProbeResult:
        install(refuse(("fsopen", "fsmount", "open_tree", "mount_setattr"), errno.ENOSYS))
        return probe([BASE])

    result = in_world(host, mode, prepare)
    assert result.features is not None, result.obstacle
    assert not result.features.new_api
