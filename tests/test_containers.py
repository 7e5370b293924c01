"""Machines of all kinds: the same suite passes in each, and nothing of it is left there.

Each machine is made in namespaces of the test's own (see :mod:`tests.helpers.worlds`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.mountinfo import read, visible
from tests.helpers.worlds import (
    BASE,
    Mode,
    bind,
    content,
    host_unchanged,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    remount,
    write,
)

pytestmark = pytest.mark.sandboxes

MODE: Final[Mode] = "root" if os.geteuid() == 0 else "user"
PROJECT: Final = f"{BASE}/project"
#: What this Python runs from; the plugin is imported from the checkout.
PYTHON: Final = (sys.base_prefix, sys.prefix, str(Path(__file__).parents[1]))
MS_SHARED: Final = 0x100000

SUITE: Final = """
import os
import subprocess
from pathlib import Path

import pytest

OUTSIDE = {outside!r}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def isolated(overlay_root):
    assert os.readlink("/proc/self/ns/mnt") != OUTSIDE
    return overlay_root


@pytest.mark.parametrize("number", [1, 2])
def test_each_finds_what_was_there(number, isolated, tmp_path):
    assert (HERE / "kept").read_text() == "kept"
    assert not (HERE / "added").exists()
    (HERE / "added").write_text("x")
    (HERE / "kept").write_text("changed")
    (tmp_path / "file").write_text("x")
    changed = isolated.changes()
    assert (str(HERE / "added"), "added") in [(str(c.path), c.kind) for c in changed]
    subprocess.run(["sh", "-c", "echo x > of-a-shell && test -s of-a-shell"], cwd=HERE, check=True)


def test_devices():
    with open("/dev/null", "w") as file:
        file.write("x")
    Path("/dev/shm/file").write_text("x")
    assert len(os.urandom(4)) == 4


def test_what_is_special_here():
{special}
"""


@dataclass(frozen=True)
class Machine:
    """``prepare`` makes it, with the privileges to mount; ``special`` is a test's body for it.

    ``enter`` goes on in it, in the process that starts pytest. ``project``: where the suite lies.
    """

    prepare: Callable[[], object] = lambda: None
    enter: Callable[[Callable[[], str]], str] = lambda go: go()
    special: str = "pass"
    project: str = PROJECT
    only: Mode | None = None


def _file_mounts() -> None:
    """A file like those that Docker mounts over /etc/hosts."""
    for name in ("hosts", "resolv.conf", "hostname"):
        target = f"/etc/{name}"
        if os.path.isfile(target) and not os.path.islink(target):
            write(f"{BASE}/of-the-engine/{name}", f"{name} of the engine\n", 0o644)
            bind(f"{BASE}/of-the-engine/{name}", target)


_HOSTS: Final = """
if os.geteuid() == 0:
    hosts = Path("/etc/hosts")
    assert hosts.read_text() == "hosts of the engine\\n"
    hosts.write_text("changed")
    hosts.unlink()
    hosts.write_text("made again")
"""


def _docker() -> None:
    _file_mounts()
    # What an engine masks: files with /dev/null, directories with an empty tmpfs.
    if os.path.exists("/proc/kcore"):
        bind("/dev/null", "/proc/kcore")
    for path in ("/proc/acpi", "/proc/scsi", "/sys/firmware"):
        if os.path.isdir(path):
            mount_tmpfs(path)
            remount(path, syscalls.MS_RDONLY)
    bind("/proc/sys", "/proc/sys")
    remount("/proc/sys", syscalls.MS_RDONLY)


def _in_an_overlay(go: Callable[[], str]) -> str:
    """``/`` is an overlay, as in a container."""
    return in_sandbox(lambda _: go(), mode=MODE)


def _as_root_of_a_user_namespace(go: Callable[[], str]) -> str:
    """Root in it and an ordinary user outside, as with rootless podman."""
    uid, gid = os.geteuid(), os.getegid()
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 1)
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    for path, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        Path(f"/proc/self/{path}").write_text(text)
    return go()


def _chroot(go: Callable[[], str]) -> str:
    mkdir(f"{BASE}/jail")
    bind("/", f"{BASE}/jail")
    os.chroot(f"{BASE}/jail")
    os.chdir("/")
    return go()


def _many_mounts() -> None:
    for number in range(200):
        mkdir(f"many/{number}")
        mount_tmpfs(f"many/{number}", "mode=0777")
        write(f"many/{number}/file", str(number), 0o666)


_MANY: Final = f"""
for number in range(200):
    file = Path(f"{BASE}/many/{{number}}/file")
    assert file.read_text() == str(number)
    file.write_text("changed")
"""


def _read_only_root() -> None:
    _empty_tmp()
    remount("/", syscalls.MS_RDONLY)


def _empty_tmp() -> None:
    """Mount an empty /tmp. What the tests need and lies below /tmp stays visible."""
    needed = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    inside = [(path, os.open(path, os.O_PATH)) for path in needed if path.startswith("/tmp/")]
    mount_tmpfs("/tmp", "mode=1777")
    for path, fd in sorted(inside):
        os.makedirs(path, exist_ok=True)
        bind(f"/proc/self/fd/{fd}", path)
        os.close(fd)


def _noexec() -> None:
    _empty_tmp()
    remount("/tmp", syscalls.MS_NOEXEC)


_READ_ONLY: Final = """
with pytest.raises(OSError, match="Read-only"):
    Path("/new").write_text("x")
Path("/tmp/new").write_text("x")
"""


def _bare_dev() -> None:
    mkdir(f"{BASE}/dev")
    bind("/dev", f"{BASE}/dev")
    mount_tmpfs("/dev")
    for name in ("null", "zero", "full", "random", "urandom", "tty"):
        write(f"/dev/{name}")
        bind(f"{BASE}/dev/{name}", f"/dev/{name}")


def _odd_project() -> None:
    mkdir(ODD)
    mount_tmpfs(ODD, "mode=0777")


ODD: Final = f"{BASE}/new\nline, comma: colon and space"

MACHINES: Final = {
    "plain": Machine(),
    "an overlay": Machine(enter=_in_an_overlay),
    "file mounts": Machine(prepare=_file_mounts, special=_HOSTS),
    "docker": Machine(prepare=_docker, enter=_in_an_overlay, special=_HOSTS, only="root"),
    "root of a user namespace": Machine(enter=_as_root_of_a_user_namespace),
    "a chroot": Machine(enter=_chroot, only="root"),
    "200 mounts": Machine(prepare=_many_mounts, special=_MANY),
    "shared mounts": Machine(
        prepare=lambda: syscalls.mount(None, "/", None, MS_SHARED | syscalls.MS_REC)
    ),
    "noexec /tmp": Machine(prepare=_noexec),
    "read-only /": Machine(prepare=_read_only_root, special=_READ_ONLY),
    "no /dev/shm": Machine(prepare=_bare_dev),
    "odd names": Machine(prepare=_odd_project, project=ODD),
}


@pytest.mark.no_mountns(reason="nests as deep as it goes")
@pytest.mark.parametrize("name", MACHINES)
def test_the_suite_passes_and_leaves_nothing(name: str) -> None:
    machine = MACHINES[name]
    if machine.only not in (None, MODE):
        pytest.skip(f"a machine for {machine.only}")

    def prepare() -> None:
        machine.prepare()
        body = "\n".join(f"    {line}" for line in machine.special.strip().splitlines())
        write(f"{machine.project}/kept", "kept", 0o666)
        write(f"{machine.project}/pytest.ini", "[pytest]\n")
        write(f"{machine.project}/conftest.py", "")
        write(f"{machine.project}/test_it.template", SUITE.replace("{special}", body))

    def pytest_there() -> str:
        template = content(f"{machine.project}/test_it.template")
        suite = template.replace("{outside!r}", repr(os.readlink("/proc/self/ns/mnt")))
        write(f"{machine.project}/test_it.py", suite)
        before = visible(read())
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:benchmark"),
                *("--mountns-unavailable=error", "--basetemp=base", "test_it.py"),
            ],
            cwd=machine.project,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "HOME": machine.project},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert visible(read()) == before
        assert sorted(os.listdir(machine.project)) == sorted(
            ("base", "kept", "pytest.ini", "conftest.py", "test_it.template", "test_it.py")
        )
        assert content(f"{machine.project}/kept") == "kept"
        return f"exit status {done.returncode}\n{done.stdout}{done.stderr}"

    said = in_world(lambda: machine.enter(pytest_there), MODE, prepare, keep=PYTHON)
    assert said.startswith("exit status 0\n"), said
    assert "4 passed" in said, said


@pytest.mark.no_mountns(reason="nests as deep as it goes")
def test_file_mounts_keep_their_content() -> None:
    """What is written to a mounted file in a test must not reach the engine's file."""
    if MODE != "root":
        pytest.skip("an ordinary user may not write there anyway")

    def host() -> None:
        with host_unchanged():
            in_sandbox(lambda _: write("/etc/hosts", "changed"), mode="root")

    in_world(host, "root", _file_mounts)


def test_a_checkout_below_the_world_s_directory_is_kept() -> None:
    """The tests can be run from a clone that lies where a world has its tmpfs."""
    path = f"{BASE}/a checkout/file"

    def world_below() -> bytes:
        return in_world(lambda: Path(path).read_bytes(), MODE, keep=[os.path.dirname(path)])

    assert in_world(world_below, MODE, lambda: write(path, "kept", 0o644)) == b"kept"
