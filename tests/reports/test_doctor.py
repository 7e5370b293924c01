"""The doctor in broken environments: what it finds, why, and what it says to do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.diagnosis import diagnose
from pytest_mountns.engine.linux.environment import Environment, read_environment
from pytest_mountns.engine.probe.features import ProbeResult, probe
from pytest_mountns.engine.probe.trials import Trial
from pytest_mountns.reports import doctor
from tests.helpers.environments import ENVIRONMENTS
from tests.helpers.worlds import BASE, descriptors, host_unchanged, in_world, skip_unless

#: Where nothing can be isolated: the step that fails, its errno, and words of cause and remedy.
IMPOSSIBLE = {
    "docker": ("mount namespace", "EPERM", "CAP_SYS_ADMIN", "--privileged"),
    "docker-sys-admin": ("mount namespace", "EACCES", "AppArmor", "apparmor=unconfined"),
    "apparmor": ("user namespace", "EACCES", "AppArmor", "apparmor_restrict_unprivileged_userns=0"),
    "apparmor-late": ("mount namespace", "EPERM", "AppArmor", "sudo"),
    "no-user-namespaces": (
        "user namespace",
        "ENOSPC",
        "user.max_user_namespaces is 0",
        "sysctl -w user.max_user_namespaces",
    ),
    "chroot": ("read /proc/self/mountinfo", "", "chroot", "mount --bind"),
    "too-deep": ("a whole root and pivot_root", "EINVAL", "two deep", "further out"),
}
#: Where something else is done instead: the step, its errno, a word of the cause, what is done.
DEGRADED = {
    "hidden-calls": ("new mount API", "ENOSYS", "", "mount(2) is used"),
    "no-mknod": ("mknod of devices", "EPERM", "CAP_MKNOD", "device nodes are bound"),
    "no-xattrs": ("extended attributes on tmpfs", "ENOTSUP", "", "uppers are put on disk"),
}
BY_NAME = {environment.name: environment for environment in ENVIRONMENTS}


def test_every_environment_is_looked_at() -> None:
    assert IMPOSSIBLE.keys() | DEGRADED.keys() == BY_NAME.keys()


def found_in(name: str) -> ProbeResult:
    def examined() -> ProbeResult:
        with host_unchanged():
            before = descriptors()
            findings = probe([BASE])
            assert descriptors() == before
        return findings

    environment = BY_NAME[name]
    skip_unless(environment.needs)
    # In a sandbox or a chroot there is no mount table to compare with.
    alone = name in ("chroot", "too-deep")
    findings = environment.run((lambda: probe([BASE])) if alone else examined)
    assert isinstance(findings, ProbeResult)
    return findings


@pytest.mark.no_mountns(reason="nests as deep as it goes, writes to /proc/sys")
@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_is_impossible_is_explained(name: str) -> None:
    step, number, cause, remedy = IMPOSSIBLE[name]
    findings = found_in(name)
    assert findings.features is None
    trial = findings.obstacle
    assert trial is not None
    assert (trial.name, trial.errno) == (step, number)
    assert number in trial.kernel
    assert cause in trial.cause
    assert remedy in trial.remedy
    assert "tests cannot be isolated here" in "\n".join(doctor.lines(findings))


@pytest.mark.no_mountns(reason="nests as deep as it goes")
@pytest.mark.parametrize("name", DEGRADED)
def test_what_has_another_way_says_which(name: str) -> None:
    step, number, cause, without = DEGRADED[name]
    findings = found_in(name)
    assert findings.features is not None
    trial = next(trial for trial in findings.trials if trial.name == step)
    assert not trial.works
    assert not trial.needed
    assert trial.errno == number
    assert cause in trial.cause
    assert without in trial.without
    text = "\n".join(doctor.lines(findings))
    assert f"no     {step}" in text
    assert f"without it: {trial.without}" in text


@pytest.mark.sandboxes
@pytest.mark.parametrize(
    "command",
    [
        ("-m", "pytest_mountns.reports.doctor"),
        ("-m", "pytest", "--mountns-doctor", "-p", "no:cacheprovider"),
    ],
)
def test_the_commands_agree(command: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"Linux {os.uname().release}, uid {os.geteuid()}")
    assert "tests can be isolated here" in done.stdout.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.sandboxes
def test_facts_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["version"] == doctor.FACTS_VERSION
    assert facts["possible"] is True
    assert facts["here"]["kernel"] == os.uname().release
    names = {"name", "works", "needed", "errno", "kernel", "cause", "remedy", "without"}
    assert names | {"of_process"} == set(facts["trials"][0])
    assert facts["capabilities"]["user_namespace"] in (True, False)


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_facts_where_it_is_impossible() -> None:
    facts = doctor.facts(found_in("no-user-namespaces"))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["possible"] is False
    assert facts["capabilities"] is None
    failed = [trial for trial in facts["trials"] if not trial["works"]]
    assert [(trial["name"], trial["errno"]) for trial in failed] == [("user namespace", "ENOSPC")]


@pytest.mark.sandboxes
def test_modes() -> None:
    """What the trials mean for tests: sandboxes, other users, a guard."""
    findings = doctor.examine()
    given = doctor.modes(findings)
    names = {trial.name: trial.works for trial in findings.trials}
    assert given[0].startswith("sandbox")
    assert ("guard" in given) is names["guard (Landlock)"]
    if findings.user_namespace:
        others = "other users" if names["subordinate ids"] else "one user"
        assert f'user="root" with {others}' in given
    assert f"modes  {', '.join(given)}" in list(doctor.lines(findings))


def test_a_wrong_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        doctor.main(["--yaml"])
    assert info.value.code == 2
    assert "--yaml" in capsys.readouterr().err


# The reason, where what is known of the place leaves only one.

PLAIN = Environment(kernel="6.8.0-45-generic", sys_admin=False)
UBUNTU = PLAIN._replace(sysctls={"kernel.apparmor_restrict_unprivileged_userns": 1})
CONFINED = PLAIN._replace(apparmor_userns="unprivileged_userns")
DEBIAN = PLAIN._replace(sysctls={"kernel.unprivileged_userns_clone": 0})
ROOT = Environment(kernel="6.8.0-45-generic")


@pytest.mark.parametrize(
    ("step", "number", "here", "user", "cause", "remedy"),
    [
        ("user namespace", "EPERM", UBUNTU, True, "AppArmor", "restrict_unprivileged_userns=0"),
        ("user namespace", "EACCES", UBUNTU, True, "AppArmor", "userns,"),
        ("mount namespace", "EPERM", UBUNTU, True, "AppArmor", "sudo"),
        ("user namespace", "EACCES", CONFINED, True, "unprivileged_userns", "userns,"),
        ("user namespace", "EPERM", DEBIAN, True, "userns_clone is 0", "userns_clone=1"),
        (
            "mount namespace",
            "EACCES",
            ROOT._replace(apparmor="docker-default", container="docker", seccomp=True),
            False,
            "the AppArmor profile docker-default",
            "apparmor=unconfined",
        ),
        (
            "mount namespace",
            "EPERM",
            ROOT._replace(sys_admin=False, container="podman"),
            False,
            "CAP_SYS_ADMIN",
            "podman run --privileged",
        ),
        (
            "a PID namespace with its own /proc",
            "EPERM",
            PLAIN._replace(container="podman"),
            True,
            "covered by the container engine",
            "unmask=ALL",
        ),
        ("overlay", "ENODEV", ROOT._replace(overlay=False), False, "OverlayFS", "modprobe overlay"),
        ("overlay", "EPERM", PLAIN._replace(kernel="5.10.0-32"), True, "5.10.0-32", "5.11"),
        ("new mount API", "ENOSYS", ROOT._replace(kernel="5.10.0-32"), False, "5.10", "5.12"),
        ("new mount API", "ENOSYS", ROOT._replace(seccomp=True), False, "seccomp", "unconfined"),
        ("uppers on a detached mount", "EINVAL", ROOT, False, "older than 6.15", "6.15"),
        ("extended attributes on tmpfs", "ENOTSUP", PLAIN._replace(kernel="6.1.0-18"), True, "6.6",
         "6.6"),
        (
            "mount namespace",
            "ENOSPC",
            ROOT._replace(sysctls={"user.max_mnt_namespaces": 0}),
            False,
            "user.max_mnt_namespaces is 0",
            "sysctl -w user.max_mnt_namespaces",
        ),
    ],
)  # fmt: skip
def test_the_reason_here(
    step: str, number: str, here: Environment, user: bool, cause: str, remedy: str
) -> None:
    advice = diagnose(step, number, here, user_namespace=user)
    assert advice is not None
    assert cause in advice[0]
    assert remedy in advice[1]


@pytest.mark.parametrize(
    ("step", "number", "here", "user"),
    [
        # A newer kernel without a filter has the calls, so that the cause must be another.
        ("new mount API", "ENOSYS", ROOT, False),
        ("uppers on a detached mount", "EINVAL", ROOT._replace(kernel="6.15.0"), False),
        # Two things may have refused it.
        ("tmpfs", "EPERM", ROOT._replace(seccomp=True, apparmor="docker-default"), False),
        ("user namespace", "EPERM", PLAIN, True),
        ("overlay", "EINVAL", ROOT, False),
        ("user namespace", "ENOSPC", PLAIN._replace(sysctls={"user.max_user_namespaces": 9}), True),
    ],
)
def test_where_it_is_not_sure_nothing_is_claimed(
    step: str, number: str, here: Environment, user: bool
) -> None:
    assert diagnose(step, number, here, user_namespace=user) is None


@pytest.mark.parametrize(
    ("kernel", "version"),
    [("6.1.0-18-amd64", (6, 1)), ("6.18.44", (6, 18)), ("5.10", (5, 10)), ("odd", (0, 0))],
)
def test_versions_are_read(kernel: str, version: tuple[int, int]) -> None:
    assert Environment(kernel=kernel).version == version


def test_circumstances_of_an_ordinary_user_and_of_a_user_namespace() -> None:
    skip_unless("user")
    here = in_world(read_environment, "user")
    assert not here.sys_admin
    assert not here.seccomp
    assert here.threads == 1
    assert here.as_data()["sysctls"] == here.sysctls
    confined = BY_NAME["no-xattrs"].run(read_environment)
    assert isinstance(confined, Environment)
    assert confined.seccomp
    nested = BY_NAME["no-user-namespaces"].run(read_environment)
    assert isinstance(nested, Environment)
    assert nested.nested
    assert nested.sysctls["user.max_user_namespaces"] == 0


def test_a_trial_that_failed_has_all_its_lines() -> None:
    trial = Trial("a step", False, "k", "c", "r", needed=False, errno="EPERM", without="w")
    assert list(doctor.lines(ProbeResult((trial,), None)))[1:] == [
        "no     a step",
        "         the kernel said: k",
        "         likely cause: c",
        "         remedy: r",
        "         without it: w",
        "tests cannot be isolated here",
    ]
