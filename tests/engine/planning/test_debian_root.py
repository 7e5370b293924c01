"""A whole system as a root: a Debian of another release, from the network, once.

Skipped where debootstrap is not installed; takes about a minute where it is.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
from pathlib import Path

import pytest

from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.layers.resolve import resolve
from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.planning.python_runtime import needs_of_foreign_root, survey_runtime
from tests.engine.planning.test_python_runtime import (
    PROJECT,
    enter,
    furnish,
    importable,
    imported_here,
)
from tests.helpers import worlds
from tests.helpers.debian import MARKS, bootstrap
from tests.helpers.worlds import BASE, in_child

pytestmark = MARKS


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of a minimal Debian, not the release of this machine if it is one."""
    place = tmp_path_factory.mktemp("debian")
    bootstrap(place / "root")
    subprocess.run(
        [
            *("tar", "-C", str(place / "root"), "--numeric-owner", "--xattrs"),
            *("--format=posix", "-czf", str(place / "root.tar.gz"), "."),
        ],
        check=True,
    )
    return place


def entries(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for place, directories, names in os.walk(top):
        for name in (*directories, *names):
            path = os.path.join(place, name)
            status = os.lstat(path)
            content: object = status.st_size
            if stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif stat.S_ISDIR(status.st_mode):
                content = None
            found[os.path.relpath(path, top)] = (
                status.st_mode,
                status.st_uid,
                status.st_gid,
                content,
                status.st_mtime_ns,
            )
    return found


def test_a_debian_root(debian: Path, tmp_path: Path) -> None:
    home = os.readlink("/proc/self/ns/mnt")
    runtime = survey_runtime()
    expected = importable()
    with resolve(str(debian / "root.tar.gz"), "trusted", cache=Cache(str(tmp_path))) as stack:
        assert len(stack.directories) == 1
        there, here = entries(debian / "root"), entries(Path(stack.directories[0]))
        nodes = {
            path
            for path, entry in there.items()
            if stat.S_ISCHR(int(str(entry[0]))) or stat.S_ISBLK(int(str(entry[0])))
        }
        assert nodes
        assert all(path.startswith("dev/") for path in nodes)
        assert here == {path: entry for path, entry in there.items() if path not in nodes}
        assert [note for note in stack.notes if "device nodes in /dev" in note]

        def world() -> str:
            worlds.private_mounts()
            worlds.mount_tmpfs(BASE)
            for part in ("upper", "work", "root"):
                os.mkdir(f"{BASE}/{part}")
            options = f"lowerdir={stack.directories[0]},upperdir={BASE}/upper,workdir={BASE}/work"
            root = f"{BASE}/root"
            syscalls.mount("overlay", root, "overlay", 0, options)
            os.chmod(root, 0o755)
            visible = needs_of_foreign_root(
                runtime, [PROJECT], lambda path: os.path.lexists(root + path)
            )
            for library in visible.preload:
                ctypes.CDLL(library)
            furnish(root, visible)
            enter(root, home)
            # Programs are those of the root, with the root's libraries.
            shell = subprocess.run(
                ["/bin/sh", "-c", ". /etc/os-release && dpkg-query -W base-files && echo $ID"],
                capture_output=True,
                text=True,
                check=False,
            )
            assert shell.returncode == 0, shell.stderr
            missing = [text for text in imported_here() if text.partition(":")[0] in expected]
            assert missing == []
            return shell.stdout.split()[-1]

        assert in_child(world) == "debian"


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_a_debian_root_for_a_test(
    debian: Path, pytester: pytest.Pytester, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(debian / "cache"))
    pytester.makeini("[pytest]")
    pytester.makepyfile(beside="VALUE = 42")
    pytester.makepyfile(
        f"""
        import os, shutil, subprocess, sys
        import pytest

        pytestmark = pytest.mark.mountns(root="{debian}/root.tar.gz")

        def test_programs_are_the_root_s(overlay_root, tmp_path):
            import beside, ssl, sqlite3
            run = dict(shell=True, capture_output=True, text=True)
            done = subprocess.run(". /etc/os-release; echo $ID; dpkg --version", **run)
            assert done.returncode == 0, done.stderr
            assert done.stdout.startswith("debian")
            subprocess.run("useradd --create-home somebody && dpkg -r --force-all tar", **run)
            changes = overlay_root.changes("/etc", "/home", "/bin", "/usr/bin")
            kinds = {{change.path: change.kind for change in changes}}
            assert kinds["/etc/passwd"] == "modified"
            assert kinds["/home/somebody"] == "added"
            assert kinds["/usr/bin/tar"] == "deleted"
            assert os.getcwd() == os.path.dirname(os.path.abspath(__file__))
            (tmp_path / "file").write_text("text")

        def test_all_of_it_can_go(overlay_root):
            with open("/proc/self/mountinfo") as file:
                root = next(line for line in file if line.split()[4] == "/")
            assert " overlay " in root
            for name in ("bin", "sbin", "etc", "home", "opt", "srv", "boot", "media"):
                path = os.path.realpath("/" + name)
                if path == "/" + name:
                    shutil.rmtree(path)
            assert overlay_root.changes("/etc") == {{"/etc": "deleted"}}

        def test_it_is_there_again():
            assert os.path.exists("/etc/passwd")
            assert not os.path.exists("/home/somebody")
            assert subprocess.run(["tar", "--version"], capture_output=True).returncode == 0

        def test_another_python_where_the_c_library_lets_it():
            command = [sys.executable, "-c", "print(1)"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0 or "GLIBC" in done.stderr
        """
    )
    result = pytester.runpytest_subprocess(f"--mountns-process={process}")
    result.assert_outcomes(passed=4)
