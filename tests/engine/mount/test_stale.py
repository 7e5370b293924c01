"""What the host changes between two tests is seen by the second one, in every kind of sandbox."""

from __future__ import annotations

import os
import random
import resource
import stat
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from pytest_mountns.engine.linux import ablation, syscalls
from pytest_mountns.engine.linux.mountinfo import is_below
from pytest_mountns.engine.plan.spec import SandboxSpec, Volume
from pytest_mountns.engine.planning.planner import Planner
from pytest_mountns.engine.sandbox import manager as manager_module
from pytest_mountns.engine.sandbox.manager import SandboxManager
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from tests.helpers.worlds import (
    BASE,
    bind,
    in_child,
    in_world,
    mkdir,
    mount_tmpfs,
    skip_unless,
    write,
)

pytestmark = pytest.mark.layered

#: Of how many changes a sequence consists, and how many sequences there are.
CHANGES, SEQUENCES = 25, 12
#: Where the host changes things: two mounts, directories in them, a mount in one of them.
PLACES = (BASE, f"{BASE}/d", f"{BASE}/d/e", f"{BASE}/m", f"{BASE}/m/d", f"{BASE}/m/d/e")
NAMES = ("a", "b", "c")


def _looks(path: str) -> dict[str, object]:
    """All that can be seen of a tree: kinds, modes, owners, times, attributes, contents."""
    found: dict[str, object] = {}
    pending = [path]
    while pending:
        place = pending.pop()
        status = os.lstat(place)
        data: object = None
        if stat.S_ISDIR(status.st_mode):
            data = sorted(os.listdir(place))
            pending += [os.path.join(place, name) for name in os.listdir(place)]
        elif stat.S_ISREG(status.st_mode):
            with open(place, "rb") as file:
                data = file.read()
        else:
            data = os.readlink(place)
        names = sorted(os.listxattr(place, follow_symlinks=False))
        shown = (status.st_mode, status.st_uid, status.st_gid, status.st_size, status.st_mtime_ns)
        if stat.S_ISDIR(status.st_mode):
            # A directory of an overlay has another size.
            shown = (*shown[:3], 0, shown[4])
        found[place] = (*shown, data, names)
        if stat.S_ISDIR(status.st_mode):
            found[f"of another user: {place}"] = _as_another(place)
    # Names that are not there: an overlay remembers these, too.
    for place in PLACES:
        for name in NAMES:
            entry = os.path.join(place, name)
            found.setdefault(entry, os.path.lexists(entry))
    return found


def _as_another(place: str) -> object:
    """What another user sees: an overlay may check an older mode than the one that it shows."""
    group = os.getegid()
    os.setegid(1000)
    os.seteuid(1000)
    try:
        return sorted(os.listdir(place))
    except OSError as error:
        return error.errno
    finally:
        os.seteuid(0)
        os.setegid(group)


class Host:
    """Changes the host at random."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._mounted: list[str] = []

    def change(self) -> str:
        """Make one change. Returns what it was."""
        kinds: dict[str, Callable[[str], object]] = {
            "a file": lambda entry: write(entry, str(self._random.random())),
            "a file replaced": self._replace,
            "a directory": mkdir,
            "removed": self._remove,
            "renamed": lambda entry: os.rename(entry, self._entry()),
            "a link": lambda entry: os.symlink("a", entry),
            "mode": lambda entry: os.chmod(entry, self._random.choice((0o700, 0o2755, 0o644))),
            "owner": lambda entry: os.lchown(entry, self._random.randrange(9), 7),
            "time": lambda entry: os.utime(entry, (5, self._random.randrange(1000))),
            "attribute": lambda entry: os.setxattr(entry, "user.x", b"x"),
            "attributes of a root": self._change_root,
            "attributes of a directory": self._change_directory,
            "a directory replaced": self._replace_directory,
            "a mount": self._mount,
            "unmounted": self._unmount,
            "a mounted file": lambda entry: write("seed", str(self._random.random())),
            "limit": lambda entry: resource.setrlimit(
                resource.RLIMIT_NOFILE, (self._random.choice((400, 900)), 4096)
            ),
            "group": lambda entry: os.setegid(self._random.choice((0, 7))),
            "umask": lambda entry: os.umask(self._random.choice((0, 0o22, 0o77))),
        }
        kind = self._random.choice(list(kinds))
        entry = self._entry()
        with suppress(OSError):
            kinds[kind](entry)
        return f"{kind}: {entry}"

    def _entry(self) -> str:
        return f"{self._random.choice(PLACES)}/{self._random.choice(NAMES)}"

    def _replace(self, entry: str) -> None:
        write(f"{BASE}/m/new", str(self._random.random()))
        os.rename(f"{BASE}/m/new", entry)

    def _remove(self, entry: str) -> None:
        try:
            os.unlink(entry)
        except IsADirectoryError:
            os.rmdir(entry)

    def _change_root(self, entry: str) -> None:
        root = self._random.choice((BASE, f"{BASE}/m"))
        os.chmod(root, self._random.choice((0o755, 0o700, 0o1777)))
        os.utime(root, (5, self._random.randrange(1000)))
        if self._random.random() < 0.5:
            os.setxattr(root, "user.y", str(self._random.random()).encode())

    def _change_directory(self, entry: str) -> None:
        directory = self._random.choice((f"{BASE}/d", f"{BASE}/d/e", f"{BASE}/m/d"))
        os.chmod(directory, self._random.choice((0o755, 0o700, 0o711)))
        os.chown(directory, self._random.choice((0, 1000)), 7)

    def _replace_directory(self, entry: str) -> None:
        old, new = f"{BASE}/replaced-{self._random.random()}", f"{BASE}/d/e"
        if any(is_below(place, new) for place in self._mounted):
            # The kernel tells nobody that a mountpoint has another path.
            return
        os.rename(new, old)
        os.mkdir(new)
        os.rename(f"{old}/volume", f"{new}/volume")

    def _mount(self, entry: str) -> None:
        if len(self._mounted) < 3:
            os.makedirs(entry, exist_ok=True)
            mount_tmpfs(entry, "mode=0750")
            self._mounted.append(entry)
            write(f"{entry}/inner", "x")

    def _unmount(self, entry: str) -> None:
        if self._mounted:
            entry = self._mounted.pop()
            syscalls.umount(entry, syscalls.MNT_DETACH)


def _scribble(generator: random.Random) -> None:
    """What a test may do: nothing, look, or write somewhere."""
    for _ in range(generator.choice((0, 0, 0, 2))):
        entry = f"{generator.choice(PLACES)}/{generator.choice(NAMES)}"
        with suppress(OSError):
            if generator.random() < 0.5:
                write(entry, "of a test")
            else:
                os.unlink(entry)


#: What it is mounted in is an overlay.
SPEC = SandboxSpec(volumes=(Volume(f"{BASE}/d/e/volume", f"{BASE}/d/e/volume"),))


def _prepare() -> None:
    mkdir("d/e/volume")
    mkdir("m")
    mount_tmpfs(f"{BASE}/m", "mode=0755")
    mkdir("m/d/e")
    # A mount of a file, as containers have for /etc/hosts.
    for name in ("seed", "d/seeded"):
        write(name, "first")
    bind("seed", "d/seeded")


def _differing(seen: dict[str, object], expected: dict[str, object]) -> dict[str, object]:
    return {
        path: (seen.get(path), expected.get(path))
        for path in {*seen, *expected}
        if seen.get(path) != expected.get(path)
    }


@pytest.mark.parametrize("left_out", ["", "root_calls", "templates"])
@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_a_sandbox_shows_the_host_of_now(seed: int, left_out: str) -> None:
    skip_unless("root")

    def run() -> None:
        ablation.LEFT_OUT = frozenset(filter(None, [left_out]))  # type: ignore[misc]
        manager = SandboxManager([])
        planner = Planner([], mounts_changed=manager.drop_caches)
        host, generator = Host(seed), random.Random(seed)
        done: list[str] = []
        home = os.readlink("/proc/self/ns/mnt")
        for _ in range(CHANGES):
            expected = _looks(BASE)
            sandbox = manager.make(planner.plan(SPEC))
            manager.enter(sandbox, "/")
            try:
                assert os.readlink("/proc/self/ns/mnt") != home
                seen = _looks(BASE)
                _scribble(generator)
            finally:
                manager.leave()
                manager.release([sandbox])
            assert not _differing(seen, expected), done
            assert _looks(BASE) == expected
            done.append(host.change())
        planner.close()
        manager.close()

    in_world(run, "root", _prepare)


@pytest.mark.parametrize("beside", [False, True], ids=["waiting", "beside"])
@pytest.mark.parametrize("seed", range(SEQUENCES))
def test_a_sandbox_that_was_made_ahead_shows_the_host_of_now(seed: int, beside: bool) -> None:
    """It is made while the test before it runs, which may write, and the host changes after it."""
    skip_unless("root")

    def run() -> None:
        manager = SandboxManager([])
        planner = Planner([], mounts_changed=manager.drop_caches)
        host, generator = Host(seed), random.Random(seed)
        done: list[str] = []
        manager_module._MOST_IN_VAIN = CHANGES  # type: ignore[misc]
        for _ in range(CHANGES):
            expected = _looks(BASE)
            sandbox = manager.make(planner.plan(SPEC))
            reader, writer = os.pipe()

            def test(sandbox: Sandbox = sandbox, reader: int = reader) -> dict[str, object]:
                home = os.readlink("/proc/self/ns/mnt")
                sandbox.enter("/")
                assert os.readlink("/proc/self/ns/mnt") != home
                seen = _looks(BASE)
                os.read(reader, 1)
                _scribble(generator)
                return seen

            def meanwhile(sandbox: Sandbox = sandbox, writer: int = writer) -> None:
                # What the test writes may come before the next root is made, or after it.
                if generator.random() < 0.5:
                    manager.make_ahead(sandbox, beside=beside)
                os.write(writer, b"x")

            seen = in_child(test, meanwhile)
            manager.make_ahead(sandbox, beside=beside)
            os.close(reader)
            os.close(writer)
            manager.release([sandbox])
            assert not _differing(seen, expected), done
            assert _looks(BASE) == expected
            done += [host.change() for _ in range(generator.choice((0, 0, 1, 2)))]
        planner.close()
        manager.close()

    in_world(run, "root", _prepare)


def _replace_parent(path: str) -> None:
    os.rename(path, f"{path}-before")
    os.mkdir(path, 0o755)
    write(f"{path}/of-new", "x")
    os.rename(f"{path}-before/volume", f"{path}/volume")


PARENT_CHANGES: dict[str, Callable[[str], None]] = {
    "closed": lambda path: os.chmod(path, 0o700),
    "given away": lambda path: os.chown(path, 1000, 1000),
    "replaced": _replace_parent,
}


@pytest.mark.parametrize("place", ["an overlay of its own", "a shared overlay"])
@pytest.mark.parametrize("ahead", ["", "waiting", "beside"])
@pytest.mark.parametrize("change", PARENT_CHANGES)
def test_what_a_mount_lies_in_is_that_of_now(change: str, ahead: str, place: str) -> None:
    """The mount keeps the overlay from looking it up anew, and permissions are checked by that."""
    skip_unless("root")

    def run() -> None:
        parent, places = f"{BASE}/d/e", [BASE] if place == "an overlay of its own" else []
        mkdir("d/e/volume")
        manager = SandboxManager(places)
        planner = Planner([], mounts_changed=manager.drop_caches)

        def visit() -> tuple[object, ...]:
            sandbox = manager.make(planner.plan(SPEC))
            if ahead:
                manager.make_ahead(sandbox, beside=ahead == "beside")
            seen = in_child(lambda: _visit(sandbox, parent))
            manager.release([sandbox])
            return seen

        # The second one is made ahead.
        for _ in range(2):
            assert visit() == _seen_by_users(parent)
        PARENT_CHANGES[change](parent)
        assert visit() == _seen_by_users(parent)
        planner.close()
        manager.close()

    in_world(run, "root")


def _visit(sandbox: Sandbox, path: str) -> tuple[object, ...]:
    home = os.readlink("/proc/self/ns/mnt")
    sandbox.enter("/")
    assert os.readlink("/proc/self/ns/mnt") != home
    return _seen_by_users(path)


def _seen_by_users(path: str) -> tuple[object, ...]:
    return sorted(os.listdir(path)), _as_another(path), _as_another(f"{path}/volume")


def test_an_open_mount_is_no_reason_for_staleness() -> None:
    """The directories above what is changed have been looked up by the test before."""
    skip_unless("root")

    def run() -> None:
        mkdir("deep/er/still")
        manager = SandboxManager([])
        planner = Planner([], mounts_changed=manager.drop_caches)
        devices = set()
        for number in range(4):
            sandbox = manager.make(planner.plan(SandboxSpec()))
            manager.enter(sandbox, "/")
            try:
                names = os.listdir(f"{BASE}/deep/er/still")
                assert sorted(names) == [str(one) for one in range(number)]
                assert not os.path.exists(f"{BASE}/deep/er/still/{number}")
                devices.add(os.stat(BASE).st_dev)
            finally:
                manager.leave()
                manager.release([sandbox])
            write(f"deep/er/still/{number}", str(time.monotonic()))
        planner.close()
        manager.close()
        assert is_below(f"{BASE}/deep", BASE)
        # It was the same overlay.
        assert len(devices) < 4

    in_world(run, "root")
