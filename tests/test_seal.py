"""A sandbox that a test has changed anything in serves no other one, and what the host has changed
meanwhile is seen in one that does."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.sandboxes

Record = Callable[..., dict[str, Any]]

# Before and after each change come tests without any, for sandboxes to be there to serve again,
# and for each of those in turn to serve.
COMMON = """
import ctypes
import fcntl
import os
import threading

import pytest

PLACE = os.path.expanduser("~")
HOST = []
C = ctypes.CDLL(None, use_errno=True)
GO, DONE, BEGIN = os.pipe(), os.pipe(), threading.Event()
KEPT = []
# Those of users a tmpfs takes since Linux 6.6; an ordinary user's uppers lie on disk before.
ATTRIBUTE = "trusted.seen" if os.geteuid() == 0 else "user.seen"


# At home, which for an ordinary user is another place than while tests are collected.
@pytest.fixture(scope="session", autouse=True)
def host():
    HOST.append(os.readlink("/proc/thread-self/ns/mnt"))


@pytest.fixture(autouse=True)
def isolated():
    assert os.readlink("/proc/thread-self/ns/mnt") != HOST[0]


def within(name):
    return os.path.join(PLACE, name)


def write(path):
    with open(path, "w") as file:
        file.write("x")


def table():
    with open("/proc/self/mountinfo") as file:
        return [line.split() for line in file]


def mount(source, target, fstype, flags):
    arguments = [None if word is None else word.encode() for word in (source, target, fstype)]
    assert C.mount(*arguments, flags, None) == 0, os.strerror(ctypes.get_errno())


def namespace():
    return os.readlink("/proc/thread-self/ns/mnt")


def leave_thread():
    BEGIN.clear()
    KEPT.append(threading.Thread(target=BEGIN.wait))
    KEPT[0].start()
    # Its number is given to no other one as long as the thread is in there.
    KEPT.append(namespace())


def is_where_the_thread_is():
    return bool(KEPT) and namespace() == KEPT[1]


def leave_daemon():
    child = os.fork()
    if child == 0:
        os.setsid()
        if os.fork() == 0:
            # Or it would wait for itself, if pytest ends before.
            os.close(GO[1])
            if os.read(GO[0], 1):
                write(within("by-daemon"))
                os.write(DONE[1], b".")
        os._exit(0)
    os.waitpid(child, 0)


def lock():
    KEPT.append(os.open(within("kept"), os.O_RDONLY))
    fcntl.flock(KEPT[0], fcntl.LOCK_EX)


def is_locked():
    with open(within("kept")) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# A change; whether it is seen.
CHANGES = {
    "file": (lambda: write(within("new")), lambda: os.path.exists(within("new"))),
    "deletion": (lambda: os.unlink(within("kept")), lambda: not os.path.exists(within("kept"))),
    "renaming": (
        lambda: os.rename(within("kept"), within("moved")),
        lambda: os.path.exists(within("moved")),
    ),
    "content": (
        lambda: write(within("kept")), lambda: os.stat(within("kept")).st_size == 1
    ),
    "mode": (lambda: os.chmod(PLACE, 0o711), lambda: os.stat(PLACE).st_mode & 0o777 == 0o711),
    "attribute": (
        lambda: os.setxattr(PLACE, ATTRIBUTE, b"1"),
        lambda: ATTRIBUTE in os.listxattr(PLACE),
    ),
    "shared memory": (
        lambda: write("/dev/shm/seen-by-tests"), lambda: os.path.exists("/dev/shm/seen-by-tests")
    ),
    "device file": (lambda: write("/dev/new"), lambda: os.path.exists("/dev/new")),
    "descriptor": (lock, is_locked),
    "thread": (leave_thread, is_where_the_thread_is),
}
ROOTS = {
    "mode of the root": (
        lambda: os.chmod("/", 0o711), lambda: os.stat("/").st_mode & 0o777 == 0o711
    ),
    "attribute of the root": (
        lambda: os.setxattr("/", ATTRIBUTE, b"1"), lambda: ATTRIBUTE in os.listxattr("/")
    ),
    "mode of a device": (
        lambda: os.chmod("/dev/null", 0o600), lambda: os.stat("/dev/null").st_mode & 0o77 == 0
    ),
    "mode of the terminals": (
        lambda: os.chmod("/dev/pts/ptmx", 0o600),
        lambda: os.stat("/dev/pts/ptmx").st_mode & 0o77 == 0,
    ),
    "device is gone": (
        lambda: os.unlink("/dev/zero"), lambda: not os.path.exists("/dev/zero")
    ),
    "mount": (
        lambda: mount("tmpfs", "/mnt", "tmpfs", 0), lambda: os.path.ismount("/mnt")
    ),
    "propagation": (
        lambda: mount(None, "/", None, 1 << 20),
        lambda: any(row[4] == "/" and "shared" in row[6] for row in table()),
    ),
    "mount flags": (
        lambda: mount(None, "/dev/shm", None, 0x1000 | 0x20 | 0x8),
        lambda: any(row[4] == "/dev/shm" and "noexec" in row[5] for row in table()),
    ),
}
CHANGES.update(ROOTS if os.geteuid() == 0 else {})


@pytest.mark.parametrize("turn", range(8))
@pytest.mark.parametrize("change", CHANGES)
def test_change(change, turn):
    make, is_seen = CHANGES[change]
    if turn == 2:
        assert not is_seen()
        make()
        assert is_seen()
    else:
        assert not is_seen()
        if turn == 7:
            BEGIN.set()
            KEPT.clear()
"""


@pytest.fixture
def process() -> str:
    return "inline"


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    place = tmp_path / "home"
    place.mkdir(mode=0o755)
    (place / "kept").write_text("kept")
    monkeypatch.setenv("HOME", str(place))
    return place


def passes(recorded: dict[str, Any], tests: int) -> None:
    calls = [e for e in recorded["events"] if e[0] == "report" and e[2] == "call"]
    failed = [e for e in recorded["events"] if e[0] == "report" and e[3] != "passed"]
    assert not failed, recorded["out"]
    assert len(calls) == tests
    assert recorded["status"] == 0


def test_what_a_test_changes_is_seen_by_no_other(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    pytester.makepyfile(COMMON)
    recorded = record("-pno:rerunfailures", "--mountns")
    passes(recorded, 8 * (18 if os.geteuid() == 0 else 10))
    assert os.listdir(home) == ["kept"]


def test_a_daemon_is_seen_by_no_other(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    pytester.makepyfile(
        COMMON
        + textwrap.dedent(
            """
            @pytest.mark.parametrize("turn", range(3))
            def test_nothing(turn): pass

            def test_daemon():
                leave_daemon()
                KEPT.append(namespace())

            @pytest.mark.parametrize("turn", range(9))
            def test_after(turn):
                assert namespace() != KEPT[0]
                if turn == 8:
                    os.write(GO[1], b".")
                    os.read(DONE[0], 1)
                assert not os.path.exists(within("by-daemon"))
            """
        )
    )
    passes(record("-pno:rerunfailures", "-knot test_change", "--mountns"), 13)


def test_what_the_host_changes_between_tests_is_seen(
    pytester: pytest.Pytester, record: Record, home: Path
) -> None:
    (home / "inner").mkdir()
    pytester.makeconftest(
        """
        import os
        import shutil

        PLACE = os.path.expanduser("~")
        NUMBER = [0]

        def pytest_runtest_logfinish():
            NUMBER[0] += 1
            for name in (f"new-{NUMBER[0]}", f"inner/new-{NUMBER[0]}"):
                with open(os.path.join(PLACE, name), "w"):
                    os.chmod(os.path.join(PLACE, "kept"), 0o600 + NUMBER[0] % 0o100)
            # Another directory of that name.
            shutil.copytree(os.path.join(PLACE, "inner"), os.path.join(PLACE, "other"))
            shutil.rmtree(os.path.join(PLACE, "inner"))
            os.rename(os.path.join(PLACE, "other"), os.path.join(PLACE, "inner"))
        """
    )
    pytester.makepyfile(
        COMMON
        + textwrap.dedent(
            """
            @pytest.mark.parametrize("number", range(12))
            def test_host(number):
                names = [f"new-{n}" for n in range(1, 13)]
                known = [n for n in names if os.path.exists(within(n))]
                inner = [n for n in names if os.path.exists(within(f"inner/{n}"))]
                assert known == inner == names[:number]
                assert {n for n in os.listdir(PLACE) if n in names} == set(known)
                assert os.listdir(within("inner")) != [] or number == 0
                if number:
                    assert os.stat(within("kept")).st_mode & 0o777 == 0o600 + number
            """
        )
    )
    passes(record("-pno:rerunfailures", "-ktest_host", "--mountns"), 12)
