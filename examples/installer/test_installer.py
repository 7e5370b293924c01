"""What an installer does to a machine, asserted path by path, and undone with the test.

It is installed where ``install.sh`` installs by default: /usr/local and /etc. An ordinary user is
shown as root for that, ``user="root"``, and writes to the same places.
"""

from __future__ import annotations

import pwd
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_mountns import Changes, OverlayRoot

from .. import mounts

SCRIPT = Path(__file__).with_name("install.sh")
PREFIX = Path("/usr/local")
SYSCONF = Path("/etc")
PROGRAM = PREFIX / "bin/greeter"
SETTINGS = SYSCONF / "greeter.conf"

# useradd and userdel keep the last state of what they edit, and a lock file.
SHADOW_BACKUPS = {
    *("/etc/passwd-", "/etc/group-", "/etc/shadow-", "/etc/gshadow-"),
    *("/etc/subuid-", "/etc/subgid-", "/etc/.pwd.lock"),
}

pytestmark = [
    pytest.mark.mountns(user="root"),
    pytest.mark.skipif(
        not all(mounts.can_be_lost_by_root(place) for place in (PREFIX, SYSCONF)),
        reason=f"{PREFIX} or {SYSCONF} holds other mounts",
    ),
]

Installer = Callable[..., str]


@pytest.fixture
def installer(overlay_root: OverlayRoot, expendable: Callable[[Path], Path]) -> Installer:
    """Runs ``install.sh``, where nothing of the host's can be harmed."""

    def run(*arguments: str) -> str:
        for place in (PREFIX, SYSCONF):
            expendable(place)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PREFIX": str(PREFIX),
            "SYSCONF": str(SYSCONF),
        }
        command = [str(SCRIPT), *arguments]
        done = subprocess.run(
            command,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return run


def contents(changes: Changes) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time of the last write and content of every changed file."""
    found = {}
    for path in map(Path, changes.paths()):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[str(path)] = (status.st_mode, status.st_mtime_ns, path.read_bytes())
    return found


def test_program_and_settings(overlay_root: OverlayRoot, installer: Installer) -> None:
    installer()
    changes = overlay_root.changes(str(PREFIX), str(SETTINGS)).as_dict()
    assert changes[str(PROGRAM)] == "added"
    assert changes[str(SETTINGS)] == "added"
    assert "modified" not in changes.values()
    assert subprocess.check_output([PROGRAM], text=True) == "Hello, world\n"


def test_hosts_and_user(overlay_root: OverlayRoot, installer: Installer) -> None:
    installer()
    etc = overlay_root.changes("/etc").as_dict()
    assert etc.pop("/etc/greeter.conf") == "added"
    for name in ("hosts", "passwd", "group"):
        assert etc.pop(f"/etc/{name}") == "modified"
    assert set(etc) <= {"/etc/shadow", "/etc/gshadow"} | SHADOW_BACKUPS
    assert pwd.getpwnam("greeter").pw_shell == "/bin/false"
    assert not Path("/home/greeter").exists()


def test_second_run_changes_nothing(overlay_root: OverlayRoot, installer: Installer) -> None:
    installer()
    first = overlay_root.changes(str(PREFIX), str(SYSCONF))
    before = contents(first)
    installer()
    second = overlay_root.changes(str(PREFIX), str(SYSCONF))
    assert second == first
    assert contents(second) == before
    assert str(PROGRAM) in before


def test_edited_settings_are_kept(overlay_root: OverlayRoot, installer: Installer) -> None:
    installer()
    SETTINGS.write_text("GREETING=Servus\n")
    installer()
    assert subprocess.check_output([PROGRAM], text=True) == "Servus\n"


def test_uninstall_leaves_nothing(overlay_root: OverlayRoot, installer: Installer) -> None:
    """Files that were edited and edited back have another time: "metadata", no more."""
    PROGRAM.parent.mkdir(parents=True, exist_ok=True)
    SYSCONF.mkdir(exist_ok=True)
    before = overlay_root.changes(str(PREFIX), str(SYSCONF))
    installer()
    installer("--uninstall")
    after = overlay_root.changes(str(PREFIX), str(SYSCONF))
    left = {change.path: change.kind for change in after if change not in before}
    same = {path for path, kind in left.items() if kind == "metadata"}
    assert same <= {f"/etc/{name}" for name in ("hosts", "passwd", "group", "shadow", "gshadow")}
    assert set(left) - same <= SHADOW_BACKUPS


@pytest.mark.no_mountns(reason="looks at the host")
def test_none_of_it_has_happened() -> None:
    """On the host, after all the others."""
    assert not PROGRAM.exists()
    assert not SETTINGS.exists()
    with pytest.raises(KeyError):
        pwd.getpwnam("greeter")
