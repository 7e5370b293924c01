"""What of the host a mount table exposes, against the plan."""

from __future__ import annotations

import pytest

from pytest_mountns.engine.linux.mountinfo import Mount, parse
from pytest_mountns.engine.plan.decide import plan
from pytest_mountns.engine.plan.exposed import exposed_paths
from pytest_mountns.engine.plan.model import Features, Host, Plan
from pytest_mountns.engine.plan.spec import SandboxSpec, Volume

_HOST = parse(
    b"1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
    b"2 1 8:2 / /home rw - ext4 /dev/sda2 rw\n"
    b"3 1 0:5 / /proc rw - proc proc rw\n"
    b"4 1 0:6 / /sys rw - sysfs sysfs rw\n"
    b"5 1 0:7 / /dev rw - devtmpfs udev rw\n"
)
_ROOT = """
1 0 0:50 / / rw - overlay overlay rw
2 1 0:51 / /home rw - overlay overlay rw
3 1 0:5 / /proc rw - proc proc rw
4 3 0:5 /sys /proc/sys ro - proc proc rw
5 1 0:6 / /sys ro - sysfs sysfs rw
6 1 0:52 / /dev rw - tmpfs tmpfs rw
"""
_USER = """
1 0 8:1 / / ro - ext4 /dev/sda1 rw
2 1 8:2 / /home ro - ext4 /dev/sda2 rw
3 1 0:5 / /proc rw - proc proc rw
5 1 0:6 / /sys ro - sysfs sysfs rw
6 1 0:52 / /dev rw - tmpfs tmpfs rw
7 6 0:7 /null /dev/null rw - devtmpfs udev rw
"""


def planned(*, user: bool, spec: SandboxSpec | None = None) -> tuple[Plan, set[str]]:
    host = Host(
        tuple(_HOST),
        protected=("/proc/sys",),
        devices=("null", "zero"),
    )
    wanted = plan(spec or SandboxSpec(), host, Features(user, mknod=not user))
    return wanted, {mount.device for mount in _HOST}


def table(text: str, *more: str) -> list[Mount]:
    return parse("\n".join([text, *more]).encode())


@pytest.mark.parametrize(("user", "text"), [(False, _ROOT), (True, _USER)])
def test_a_sandbox_as_planned_exposes_nothing(user: bool, text: str) -> None:
    assert exposed_paths(*planned(user=user), table(text)) == []


@pytest.mark.parametrize(
    ("user", "before", "after", "found"),
    [
        # pivot_root(2) was pretended, or the root was not moved to its place.
        (False, "1 0 0:50 / / rw - overlay overlay", "1 0 8:1 / / rw - ext4 x", ["/"]),
        (True, "/ / ro", "/ / rw", ["/"]),
        (False, "0:51 / /home", "8:2 / /home", ["/home"]),
        (True, "/home ro", "/home rw", ["/home"]),
        # mount_setattr(2) was pretended.
        (False, "/sys ro - sysfs", "/sys rw - sysfs", ["/sys"]),
        (False, "/proc/sys ro", "/proc/sys rw", ["/proc/sys"]),
        (False, "4 3 0:5 /sys /proc/sys ro - proc proc rw\n", "", ["/proc/sys"]),
        # Another node than the usual ones.
        (True, "/null /dev/null", "/sda /dev/sda", ["/dev/sda"]),
    ],
)
def test_what_is_exposed_is_named(user: bool, before: str, after: str, found: list[str]) -> None:
    text = (_USER if user else _ROOT).replace(before, after)
    assert text not in (_USER, _ROOT)
    assert exposed_paths(*planned(user=user), table(text)) == found


def test_what_is_covered_exposes_nothing() -> None:
    covered = ["1 0 8:1 / / rw - ext4 x rw", "8 1 0:50 / / rw - overlay overlay rw"]
    rest = [line.replace(" 1 ", " 8 ", 1) for line in _ROOT.splitlines()[2:]]
    assert exposed_paths(*planned(user=False), table("", *covered, *rest)) == []


def test_what_is_mounted_below_is_shown_as_it_is() -> None:
    """As container engines cover parts of ``/proc``."""
    wanted, filesystems = planned(user=False)
    filesystems.add("0:9")

    def exposed(place: str) -> list[str]:
        return exposed_paths(wanted, filesystems, table(_ROOT, f"{place} rw - tmpfs x rw"))

    assert exposed("7 3 0:9 / /proc/acpi") == []
    assert exposed("7 4 0:9 / /proc/sys/x") == ["/proc/sys/x"]
    assert exposed("7 5 0:9 / /sys/x") == ["/sys/x"]


def test_a_volume_is_meant_to_be_written_to() -> None:
    spec = SandboxSpec(volumes=(Volume("/home/data", "/data"),))
    there = table(_ROOT, "9 1 8:2 /data /data rw - ext4 x rw")
    assert exposed_paths(*planned(user=False, spec=spec), there) == []
    assert exposed_paths(*planned(user=False), there) == ["/data"]
