"""What a sandbox can do in the middle of a test: bind directories, and start afresh."""

from __future__ import annotations

import errno
import os
import select
import shutil
import signal
import stat
import threading
from collections.abc import Sequence

import pytest

from pytest_mountns.engine.linux import untouched
from pytest_mountns.engine.linux.background_close import BackgroundCloser
from pytest_mountns.engine.linux.errors import SandboxError, Unavailable
from pytest_mountns.engine.linux.mountinfo import read
from pytest_mountns.engine.linux.namespaces import WayBack
from pytest_mountns.engine.plan.spec import SandboxSpec, Volume
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from pytest_mountns.engine.sandbox.stack import SandboxStack, close
from tests.helpers.interruptions import Bell, Interruption
from tests.helpers.worlds import (
    BASE,
    Mode,
    bind,
    content,
    descriptors,
    errno_of,
    host_unchanged,
    in_sandbox,
    in_world,
    mkdir,
    mount_tmpfs,
    reset,
    skip_unless,
    skip_unless_binding,
    write,
)

# In the middle of a test.


def test_a_directory_can_be_bound_later(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        os.umask(0o077)
        sandbox.bind(f"{BASE}/v", f"{BASE}/made/t")
        sandbox.bind(f"{BASE}/v", f"{BASE}/ro", read_only=True)
        sandbox.bind(f"{BASE}/v/file", f"{BASE}/made/file")
        write("made/t/new", "new")
        write("made/file", "changed")
        assert stat.S_IMODE(os.stat("made").st_mode) == 0o755
        assert errno_of(lambda: write("ro/x")) == errno.EROFS
        assert os.umask(0o077) == 0o077
        assert not sandbox.changes()

    def host() -> None:
        write("v/file", "x")
        in_sandbox(test, mode=mode)
        assert sorted(os.listdir(".")) == ["v"]
        assert content("v/new") == "new"
        assert content("v/file") == "changed"

    in_world(host, mode)


def test_binding_through_a_link_mounts_where_it_leads(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("place")
        os.symlink(f"{BASE}/place", "link")
        sandbox.bind(f"{BASE}/v", f"{BASE}/link")
        assert content("place/file") == "x"

    def host() -> None:
        write("v/file", "x")
        with host_unchanged():
            in_sandbox(test, mode=mode)

    in_world(host, mode)


def test_binding_what_is_not_there_says_so_and_changes_nothing(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        before = set(descriptors())
        table = read()
        with pytest.raises(SandboxError) as info:
            sandbox.bind(f"{BASE}/missing", f"{BASE}/t")
        assert str(info.value).splitlines() == [
            f"mountns: bind {BASE}/t (from {BASE}/missing)",
            f"  the kernel said: open_tree('{BASE}/missing', 0x88001): ENOENT"
            " (No such file or directory)",
            "  likely cause: the source does not exist on the host",
            "  remedy: create it before the tests run",
        ]
        assert set(descriptors()) == before
        assert read() == table
        assert os.listdir(BASE) == []
        # The next bind works, and a reset is not disturbed by the one that failed.
        mkdir("t")
        reset(sandbox)

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_what_the_test_has_made_is_not_a_source(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("mine")
        with pytest.raises(SandboxError, match="does not exist on the host"):
            sandbox.bind(f"{BASE}/mine", f"{BASE}/t")

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_before_the_new_mount_api_nothing_can_be_bound_later(mode: Mode) -> None:
    def test(sandbox: Sandbox) -> None:
        sandbox.bind(f"{BASE}/v", f"{BASE}/t")

    with pytest.raises(Unavailable, match=r"before Linux 5\.12") as info:
        in_world(lambda: in_sandbox(test, mode=mode, api="classic"), mode)
    assert "volumes=" in info.value.remedy


def test_another_thread_may_bind(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        here = os.getcwd()
        thread = threading.Thread(target=lambda: sandbox.bind(f"{BASE}/v", f"{BASE}/t"))
        thread.start()
        thread.join()
        assert content("t/file") == "x"
        assert os.getcwd() == here
        # Also while another thread is alive.
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        sandbox.bind(f"{BASE}/v", f"{BASE}/u")
        assert not sandbox.changes()
        stop.set()
        thread.join()
        assert content("u/file") == "x"

    def host() -> None:
        write("v/file", "x")
        in_sandbox(test, mode=mode)

    in_world(host, mode)


def test_a_chroot_of_the_test_is_kept(api: str) -> None:
    skip_unless("root")

    def test(sandbox: Sandbox) -> None:
        os.chroot("jail")
        os.chdir("/deep")
        assert not sandbox.changes()
        assert sorted(os.listdir("/")) == ["deep", "proc"]
        assert os.getcwd() == "/deep"

    def prepare() -> None:
        mkdir("jail/deep")
        mkdir("jail/proc")

    def in_jail(sandbox: Sandbox) -> None:
        bind("/proc", "jail/proc")
        test(sandbox)

    in_world(lambda: in_sandbox(in_jail, mode="root", api=api), "root", prepare)


def test_without_proc_the_way_back_is_not_left() -> None:
    mode: Mode = "root"
    skip_unless(mode)
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mount_tmpfs("/proc")
        inside = os.stat("/")
        for action in (sandbox.changes, lambda: reset(sandbox), lambda: sandbox.bind(BASE, "/t")):
            with pytest.raises(SandboxError, match="note the way back"):
                action()
        assert os.path.samestat(os.stat("/"), inside)

    in_world(lambda: in_sandbox(test, mode=mode), mode)


def test_signals_wait_while_the_host_is_in_view(mode: Mode) -> None:
    def test(sandbox: Sandbox) -> None:
        inside = os.readlink("/proc/self/ns/mnt")
        seen: list[str] = []

        def handler(number: int, frame: object) -> None:
            seen.append(os.readlink("/proc/self/ns/mnt"))

        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        for _ in range(200):
            assert not sandbox.changes()
        reset(sandbox)
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert seen
        assert set(seen) <= {inside, os.readlink("/proc/self/ns/mnt")}

    in_world(lambda: in_sandbox(test, mode=mode), mode)


# A fresh start.


def test_reset_drops_writes_and_keeps_directory_volumes_and_binds(mode: Mode, api: str) -> None:
    spec = SandboxSpec(volumes=(Volume(f"{BASE}/v", f"{BASE}/t"),))

    def test(sandbox: Sandbox) -> None:
        if api != "classic":
            sandbox.bind(f"{BASE}/w", f"{BASE}/later/w")
        os.chdir("deep/down")
        write(f"{BASE}/file", "changed")
        write(f"{BASE}/added")
        shutil.rmtree(f"{BASE}/gone")
        write(f"{BASE}/t/one")
        before = set(descriptors())
        own = {sandbox.scratch, sandbox.namespace}
        reset(sandbox)
        assert set(descriptors()) - {sandbox.scratch, sandbox.namespace} == before - own
        assert os.getcwd() == f"{BASE}/deep/down"
        assert content(f"{BASE}/file") == "x"
        assert not os.path.exists(f"{BASE}/added")
        assert content(f"{BASE}/gone/file") == "x"
        assert not sandbox.changes()
        write(f"{BASE}/t/two")
        assert os.path.exists(f"{BASE}/t/one")
        if api != "classic":
            write(f"{BASE}/later/w/new")
        write(f"{BASE}/file", "again")
        assert sandbox.changes() == {f"{BASE}/file": "modified"}

    def host() -> None:
        for name in ("file", "gone/file", "deep/down/file"):
            write(name, "x")
        mkdir("v")
        mkdir("w")
        in_sandbox(test, spec, mode=mode, api=api)
        assert sorted(os.listdir("v")) == ["one", "two"]
        assert content("file") == "x"
        assert os.listdir("w") == ["new"] * (api != "classic")

    in_world(host, mode)


def test_a_working_directory_of_the_test_is_gone_after_a_reset(mode: Mode, api: str) -> None:
    def test(sandbox: Sandbox) -> str:
        mkdir("own/deep")
        os.chdir("own/deep")
        reset(sandbox)
        return os.getcwd()

    assert in_world(lambda: in_sandbox(test, mode=mode, api=api), mode) == "/"


def test_a_reset_that_fails_leaves_the_sandbox_as_it_was(mode: Mode) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        mkdir("own")
        os.chdir("own")
        sandbox.bind(f"{BASE}/v", f"{BASE}/own/v")
        root, inside = os.stat("/"), os.readlink("/proc/self/ns/mnt")
        before, created = set(descriptors()), set(sandbox.created)
        # Somebody removes the source of a volume on the host.
        write(f"{BASE}/own/v/remove")
        assert select.select([removed], [], [], 30)[0]
        with pytest.raises(SandboxError, match="does not exist on the host"):
            reset(sandbox)
        assert os.path.samestat(os.stat("/"), root)
        assert os.readlink("/proc/self/ns/mnt") == inside
        assert os.getcwd() == f"{BASE}/own"
        assert set(descriptors()) == before
        assert sandbox.created == created
        assert sandbox.changes() == {f"{BASE}/own": "added"}
        write("file")
        assert os.path.exists(f"{BASE}/own/file")

    removed, remove = os.pipe()

    def host() -> None:
        mkdir("v")
        helper = os.fork()
        if helper == 0:
            try:
                while not os.path.exists(f"{BASE}/v/remove"):
                    select.select([], [], [], 0.001)
                os.rename(f"{BASE}/v", f"{BASE}/elsewhere")
                os.write(remove, b"x")
            finally:
                os._exit(0)
        try:
            in_sandbox(test, mode=mode)
        finally:
            os.kill(helper, signal.SIGKILL)
            os.waitpid(helper, 0)

    try:
        in_world(host, mode)
    finally:
        os.close(removed)
        os.close(remove)


# Signals whose handlers raise, as Ctrl-C and timeouts do.


def is_in(sandbox: Sandbox) -> bool:
    return os.path.samestat(os.fstat(sandbox.namespace), os.stat("/proc/thread-self/ns/mnt"))


AT_MASK = pytest.mark.parametrize("at", ["before", "within"])


def test_a_handler_raises_when_a_reset_has_closed_the_old_root(
    mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    def test(sandbox: Sandbox) -> None:
        bell = Bell(monkeypatch)
        write("file")
        old, before = sandbox.namespace, len(descriptors())
        for module in (untouched.os, untouched.posix):
            bell.put_after(module, "close", lambda fd: fd == old)
        bell.is_armed = True
        with pytest.raises(Interruption):
            reset(sandbox)
        assert not bell.is_armed
        assert is_in(sandbox)
        assert len(descriptors()) == before
        assert not os.path.exists("file")
        assert not sandbox.changes()
        write("again")
        reset(sandbox)
        assert not os.path.exists("again")

    in_world(lambda: in_sandbox(test, mode=mode), mode)


@AT_MASK
def test_a_handler_raises_when_a_reset_is_about_to_enter_the_new_root(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    def test(sandbox: Sandbox) -> None:
        bell = Bell(monkeypatch)
        write("file")
        before = len(descriptors())
        bell.put_at_mask(at)
        bell.armed_by(Sandbox, "replace_with")
        with pytest.raises(Interruption):
            reset(sandbox)
        assert is_in(sandbox)
        assert len(descriptors()) == before
        assert bool(sandbox.changes()) == os.path.exists("file")
        reset(sandbox)
        assert not os.path.exists("file")

    in_world(lambda: in_sandbox(test, mode=mode), mode)


@pytest.mark.layered
@AT_MASK
@pytest.mark.parametrize("when", ["begin", "end", "end of two"])
def test_a_handler_raises_when_a_checkpoint_begins_or_ends(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, when: str, at: str
) -> None:
    def test(sandbox: Sandbox) -> None:
        stack = SandboxStack(sandbox, close)
        bell = Bell(monkeypatch)
        write("outside")
        before = len(descriptors())
        bell.put_at_mask(at)
        if when == "begin":
            bell.armed_by(Sandbox, "enter")
        left_open = stack.checkpoint()

        def interrupted() -> None:
            with stack.checkpoint():
                assert when != "begin"
                write("inside")
                if when == "end of two":
                    left_open.__enter__()
                bell.is_armed = True

        with pytest.raises(Interruption):
            interrupted()
        assert stack.sandbox is sandbox
        assert is_in(sandbox)
        assert len(descriptors()) == before
        assert os.listdir(BASE) == ["outside"]
        with stack.checkpoint():
            write("inside")
            if when == "end of two":
                # It has ended with the outer one.
                left_open.__exit__(None, None, None)
            assert sorted(os.listdir(BASE)) == ["inside", "outside"]
        assert os.listdir(BASE) == ["outside"]

    in_world(lambda: in_sandbox(test, mode=mode), mode)


@pytest.mark.parametrize("action", ["bind", "changes"])
def test_a_handler_raises_when_the_stage_was_visited_and_nothing_is_left(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    skip_unless_binding(mode)

    def test(sandbox: Sandbox) -> None:
        before = descriptors()
        bell = Bell(monkeypatch)
        bell.put_after(WayBack, "away")
        bell.is_armed = True
        with pytest.raises(Interruption):
            sandbox.bind(BASE, f"{BASE}/t") if action == "bind" else sandbox.changes()
        assert descriptors() == before

    in_world(lambda: in_sandbox(test, mode=mode), mode)


@pytest.mark.layered
@pytest.mark.parametrize("release", ["close", "closer"])
def test_a_handler_raises_when_the_first_descriptor_is_closed_and_nothing_is_left(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    def closer(sandboxes: Sequence[Sandbox]) -> None:
        # Without a helper.
        fds = [fd for sandbox in sandboxes for fd in (sandbox.namespace, sandbox.scratch)]
        BackgroundCloser().close(fds, may_start=False)

    def test(sandbox: Sandbox) -> None:
        stack = SandboxStack(sandbox, close if release == "close" else closer)
        before = descriptors()
        bell = Bell(monkeypatch)
        for module in (untouched.os, untouched.posix):
            bell.put_after(module, "close")

        left_open = stack.checkpoint()

        def interrupted() -> None:
            with stack.checkpoint():
                left_open.__enter__()
                bell.armed_by(stack, "_release")

        with pytest.raises(Interruption):
            interrupted()
        assert descriptors() == before

    in_world(lambda: in_sandbox(test, mode=mode), mode)
