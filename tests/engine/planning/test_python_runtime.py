"""What a root has to show of the host so that Python goes on in it."""

from __future__ import annotations

import importlib
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Final

import pytest

from pytest_mountns.engine.linux.elf import locate, read_cache, read_linked
from pytest_mountns.engine.linux.namespaces import enter_user_namespace
from pytest_mountns.engine.planning.python_runtime import (
    RootNeeds,
    Runtime,
    links_on_the_way,
    merged_directories,
    needs_of_foreign_root,
    needs_of_minimal_root,
    survey_runtime,
)
from tests.helpers import worlds
from tests.helpers.worlds import BASE, Mode, in_world

PROJECT: Final = str(Path(__file__).parents[3])

DEBIAN = Runtime(
    executables=("/usr/bin/python3",),
    prefixes=("/usr", "/usr/local"),
    trees=("/usr/lib/python3.11", "/usr/lib/python3.11/lib-dynload", "/usr/lib/python3/x"),
    loaded=("/usr/lib/x86/libc.so.6", "/usr/lib/x86/libz.so.1.2"),
    needed=("/lib/x86/libc.so.6", "/lib/x86/libssl.so.3", "/lib/x86/libz.so.1"),
    loader="/lib64/ld.so",
    links=(
        ("/lib", "usr/lib"),
        ("/lib64", "usr/lib64"),
        ("/usr/lib64/ld.so", "/lib/x86/ld.so"),
        ("/usr/lib/x86/libz.so.1", "libz.so.1.2"),
        ("/usr/bin/python3", "python3.11"),
    ),
)


def paths(visible: RootNeeds) -> list[str]:
    return [*visible.shown]


def nothing(path: str) -> bool:
    return False


def test_a_shared_prefix_is_not_shown_as_a_whole() -> None:
    visible = needs_of_foreign_root(DEBIAN, ["/home/me/project"], nothing)
    assert paths(visible) == [
        "/home/me/project",
        "/usr/bin/python3.11",
        "/usr/lib/python3.11",
        "/usr/lib/python3/x",
        "/usr/lib/x86/ld.so",
        "/usr/lib/x86/libc.so.6",
        "/usr/lib/x86/libssl.so.3",
        "/usr/lib/x86/libz.so.1.2",
    ]
    assert ("/usr/bin/python3", "python3.11") in visible.links
    assert ("/usr/lib/x86/libz.so.1", "libz.so.1.2") in visible.links
    assert visible.preload == ()


def test_libraries_of_the_root_stay() -> None:
    def present(path: str) -> bool:
        return path.startswith(("/usr/lib/x86", "/lib", "/usr/lib64"))

    visible = needs_of_foreign_root(DEBIAN, [], present)
    assert not [path for path in paths(visible) if ".so" in path]
    # Not libc and libz: they are in memory already.
    assert visible.preload == ("/usr/lib/x86/libssl.so.3",)
    assert visible.links == (("/usr/bin/python3", "python3.11"),)


def test_a_prefix_of_python_alone_is_shown_as_a_whole() -> None:
    runtime = Runtime(
        executables=("/home/me/venv/bin/python",),
        prefixes=("/home/me/venv", "/opt/python"),
        trees=("/opt/python/lib/python3.12", "/home/me/venv/lib/python3.12/site-packages", "/src"),
        loaded=("/opt/python/lib/libpython.so",),
    )
    visible = needs_of_foreign_root(runtime, ["/src/project"], nothing)
    assert visible.shown == ("/home/me/venv", "/opt/python", "/src")


def test_no_mount_where_a_link_leads_elsewhere() -> None:
    runtime = Runtime((), (), ("/home/me/lib",), links=(("/home", "/data/homes"),))
    visible = needs_of_foreign_root(runtime, ["/home/me/project"], nothing)
    assert paths(visible) == ["/data/homes/me/lib", "/data/homes/me/project"]
    assert visible.links == (("/home", "/data/homes"),)


def test_links_in_circles_end() -> None:
    runtime = Runtime((), (), ("/a/b",), links=(("/a", "b"), ("/b", "a")))
    assert len(needs_of_foreign_root(runtime, [], nothing).shown) == 1


def test_the_root_itself_is_never_shown() -> None:
    runtime = Runtime((), ("/",), ("/",))
    assert needs_of_foreign_root(runtime, ["/"], nothing).shown == ()
    assert needs_of_minimal_root(runtime, ["/"], nothing).shown == ()


def test_a_minimal_root() -> None:
    there = {"/etc/passwd", "/etc/ld.so.cache"}
    visible = needs_of_minimal_root(
        DEBIAN,
        ["/home/me/project"],
        there.__contains__,
        merged=[("/bin", "usr/bin"), ("/lib", "usr/lib")],
        home="/home/me",
    )
    assert set(paths(visible)) > there
    assert "/usr" not in paths(visible)
    assert "/usr/lib/x86/ld.so" in paths(visible)
    assert {("/bin", "usr/bin"), ("/lib64", "usr/lib64")} <= set(visible.links)
    assert ("/tmp", 0o1777) in visible.directories
    assert ("/home/me", 0o755) in visible.directories


def test_links_on_the_way(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "inner").mkdir(parents=True)
    (tmp_path / "first").symlink_to("real")
    (real / "second").symlink_to(real / "inner")
    found = links_on_the_way([str(tmp_path / "first/second/file")])
    assert {link for link in found if link[0].startswith(str(tmp_path))} == {
        (str(tmp_path / "first"), "real"),
        (str(real / "second"), str(real / "inner")),
    }


def test_what_a_program_asks_for() -> None:
    linked = read_linked(sys.executable)
    assert linked is not None
    loader = linked.loader
    if loader:
        assert os.path.exists(loader)
    assert all(".so" in name for name in linked.needed)


def test_no_elf_file(tmp_path: Path) -> None:
    assert read_linked(__file__) is None
    (tmp_path / "empty").touch()
    assert read_linked(str(tmp_path / "empty")) is None


def test_damaged_elf_files(tmp_path: Path) -> None:
    rng = random.Random(0)
    data = Path(sys.executable).read_bytes()[:20_000]
    file = tmp_path / "damaged"
    for _ in range(300):
        changed = bytearray(data[: rng.choice([40, 64, 200, len(data)])])
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(5, min(len(changed), 900))] = rng.randrange(256)
        file.write_bytes(changed)
        # Any answer is right, as long as nothing is raised.
        read_linked(str(file))


def test_the_loaders_cache() -> None:
    assert read_cache(b"") == read_cache(b"nonsense" * 100) == {}
    names = b"libz.so.1\0/lib/libz.so.1\0"
    head = 48 + 2 * 24
    entries = struct.pack("=iIIIQ", 3, head, head + 10, 0, 0) * 2
    data = (b"glibc-ld.so.cache1.1" + struct.pack("=II", 2, 0)).ljust(48, b"\0") + entries + names
    assert read_cache(data) == {"libz.so.1": "/lib/libz.so.1"}
    assert read_cache(data[:-30]) == {}


def test_where_a_library_is_found(tmp_path: Path) -> None:
    for name in ("own/libs/libx.so", "usual/libx.so", "usual/liby.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    origin, usual = str(tmp_path / "own"), [str(tmp_path / "usual")]
    assert locate("libx.so", origin, ("$ORIGIN/libs",), {}, usual) == f"{origin}/libs/libx.so"
    assert locate("libx.so", origin, (), {}, usual) == f"{tmp_path}/usual/libx.so"
    assert locate("liby.so", origin, (), {"liby.so": "/cached"}, usual) == "/cached"
    assert locate("libz.so", origin, (), {}, usual) is None


def furnish(root: str, visible: RootNeeds) -> None:
    """Put what is visible into a root, as a plan would."""
    for path, target in visible.links:
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        os.symlink(target, root + path)
    for path, mode in visible.directories:
        os.makedirs(root + path, exist_ok=True)
        os.chmod(root + path, mode)
    for shown in visible.shown:
        place = root + shown
        if os.path.isdir(shown):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            Path(place).touch()
        worlds.bind(shown, place)


def enter(root: str, home: str) -> None:
    """Enter a mount namespace first: a chroot would leave the machine's own mounts behind."""
    assert os.readlink("/proc/self/ns/mnt") != home
    os.chroot(root)
    os.chdir("/")


def user_namespace(mode: Mode) -> None:
    if mode == "user":
        if not os.access(os.__file__, os.R_OK):
            pytest.skip("this user cannot read the interpreter")
        enter_user_namespace()
        worlds.private_mounts()


_LATE: Final = (
    "ssl",
    "sqlite3",
    "ctypes",
    "lzma",
    "zoneinfo",
    "xml.sax",
    "pytest_mountns.session.session",
)


def imported_here() -> list[str]:
    """Import modules that were not imported yet, in this process and in a new one."""
    missing = []
    for name in _LATE:
        if name.partition(".")[0] not in ("pytest_mountns",):
            for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
                del sys.modules[loaded]
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return missing


def importable() -> Collection[str]:
    """The modules of these that this Python was built with."""
    found = []
    for name in _LATE:
        check = subprocess.run([sys.executable, "-c", f"import {name}"], check=False)
        found += [] if check.returncode else [name]
    return found


def test_python_in_a_minimal_root(mode: Mode) -> None:
    home = os.readlink("/proc/self/ns/mnt")
    runtime = survey_runtime()
    expected = importable()

    def world() -> None:
        user_namespace(mode)
        if not os.access(PROJECT, os.R_OK | os.X_OK):
            pytest.skip("this user cannot read the project")
        root = f"{BASE}/root"
        os.mkdir(root)
        visible = needs_of_minimal_root(
            runtime, [PROJECT], os.path.exists, merged=merged_directories(), home="/nowhere"
        )
        furnish(root, visible)
        enter(root, home)
        assert not os.path.exists("/bin/sh")
        assert set(os.listdir("/etc")) < {
            *("group", "host.conf", "hosts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d"),
            *("localtime", "nsswitch.conf", "passwd", "protocols", "resolv.conf", "services", ""),
        }
        missing = [text for text in imported_here() if text.partition(":")[0] in expected]
        assert missing == []
        code = f"import pytest, {', '.join(expected)}; print(pytest.__file__)"
        new = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert new.returncode == 0, new.stderr
        assert new.stdout.strip() == pytest.__file__
        assert stat.S_IMODE(os.stat("/tmp").st_mode) == 0o1777

    in_world(world, mode)
