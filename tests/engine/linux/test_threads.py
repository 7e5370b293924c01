"""Threads move between mount namespaces, and where one cannot, nothing has moved or it is named."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import syscalls, threads
from pytest_mountns.engine.linux.compiled import LIBRARY
from pytest_mountns.engine.linux.errors import SandboxError, errno_name
from pytest_mountns.engine.linux.namespaces import (
    current_namespace,
    drop_user_capabilities,
    enter_user_namespace,
    go,
    privileged,
)
from tests.helpers.worlds import BASE, Mode, in_world

pytestmark = pytest.mark.skipif(not (LIBRARY.exists()), reason="installed without a C compiler")

_SECONDS = 20


@pytest.fixture(autouse=True)
def _loaded() -> None:
    # Before a test becomes a user who may not read this checkout.
    threads._mover()


def namespace_of_thread() -> tuple[str, str]:
    """The mount namespace and the working directory of the calling thread."""
    return os.readlink("/proc/thread-self/ns/mnt"), os.getcwd()


class Places:
    """Two mount namespaces of one process, and the way between them for this thread."""

    def __init__(self, mode: Mode) -> None:
        self._user = mode == "user"
        if self._user:
            enter_user_namespace()
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount(None, "/", None, syscalls.MS_SLAVE | syscalls.MS_REC)
        self.home = current_namespace()
        syscalls.unshare(syscalls.CLONE_NEWNS)
        self.away = current_namespace()
        os.mkdir("of-threads")
        syscalls.mount("threads", f"{BASE}/of-threads", "tmpfs", 0)
        go(self.home)
        if self._user:
            drop_user_capabilities()

    def move(self, namespace: int, directory: str = "/") -> list[threads.StuckThread]:
        """Move this thread, then the others."""
        with privileged(self._user):
            go(namespace)
            os.chdir(directory)
        return threads.move_other_threads(namespace, raise_capabilities=self._user)


@contextmanager
def pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """A pool, all of whose threads are running."""
    with ThreadPoolExecutor(size) as executor:
        everywhere(executor, size)
        yield executor


def everywhere(executor: ThreadPoolExecutor, size: int) -> set[tuple[str, str]]:
    """Where the threads of the pool are; each of them is asked."""
    together = threading.Barrier(size)

    def where() -> tuple[str, str]:
        together.wait(_SECONDS)
        return namespace_of_thread()

    return {future.result() for future in [executor.submit(where) for _ in range(size)]}


@contextmanager
def running(function: Callable[[], object]) -> Iterator[threading.Thread]:
    """A thread, joined at the end."""
    thread = threading.Thread(target=function, name="the-thread")
    thread.start()
    try:
        yield thread
    finally:
        thread.join(_SECONDS)
        assert not thread.is_alive()


@pytest.mark.parametrize("size", [1, 8, 100])
def test_all_threads_move_and_return(mode: Mode, size: int) -> None:
    def check() -> None:
        places = Places(mode)
        with pool(size) as executor:
            home = namespace_of_thread()
            for _ in range(10):
                assert places.move(places.away, f"{BASE}/of-threads") == []
                assert namespace_of_thread()[1] == f"{BASE}/of-threads"
                assert everywhere(executor, size) == {namespace_of_thread()} != {home}
                assert places.move(places.home, home[1]) == []
                assert everywhere(executor, size) == {home}

    in_world(check, mode)


def test_capabilities_are_as_before(mode: Mode) -> None:
    def check() -> None:
        places = Places(mode)
        with pool(1) as executor:
            before = executor.submit(syscalls.capget).result()
            places.move(places.away)
            assert executor.submit(syscalls.capget).result() == before
            assert mode == "root" or before[0] == 0

    in_world(check, mode)


def test_a_thread_that_blocks_signals_is_named(mode: Mode) -> None:
    """It moves as soon as it does not."""

    def check() -> None:
        places = Places(mode)
        blocked, unblock, unblocked, end = (threading.Event() for _ in range(4))

        def block() -> None:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            blocked.set()
            unblock.wait(_SECONDS)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            unblocked.set()
            end.wait(_SECONDS)

        with running(block) as thread:
            blocked.wait(_SECONDS)
            assert thread.native_id is not None
            (stuck,) = threads.stuck_threads()
            assert (stuck.tid, stuck.name, stuck.of_python) == (
                thread.native_id,
                "the-thread",
                True,
            )
            assert "blocks the signal" in stuck.describe()
            assert places.move(places.away) == [stuck]
            unblock.set()
            unblocked.wait(_SECONDS)
            assert threads.stuck_threads() == []
            assert places.move(places.away) == []
            there = os.readlink(f"/proc/self/task/{thread.native_id}/ns/mnt")
            assert there == namespace_of_thread()[0]
            end.set()

    in_world(check, mode)


def test_a_signal_that_was_sent_too_early_moves_nothing(mode: Mode) -> None:
    """A thread that was given up stays where it is when it handles the signal after all."""

    def check() -> None:
        places = Places(mode)
        library = ctypes.PyDLL(str(LIBRARY))
        number = library.mountns_prepare(0)
        ready, go_on, end = (threading.Event() for _ in range(3))

        def late() -> None:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
            ready.set()
            go_on.wait(_SECONDS)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            end.wait(_SECONDS)

        with running(late) as thread:
            ready.wait(_SECONDS)
            results = (ctypes.c_int * 1)()
            ids = (ctypes.c_int * 1)(thread.native_id or 0)
            directory = os.open("/", os.O_PATH)
            user = mode == "user"
            assert not library.mountns_move(
                number, ids, results, 1, places.away, directory, user, 50
            )
            assert errno_name(results[0]) == "ETIMEDOUT"
            go_on.set()
            place = f"/proc/self/task/{thread.native_id}"
            while "SigPnd:\t0000000000000000" not in Path(place, "status").read_text():
                time.sleep(0.001)
            assert os.readlink(f"{place}/ns/mnt") == namespace_of_thread()[0]
            end.set()

    in_world(check, mode)


def test_threads_that_start_meanwhile(mode: Mode) -> None:
    """Each thread starts the next one and ends: none of them escapes."""

    def check() -> None:
        places = Places(mode)
        end = threading.Event()
        seen: list[str] = []
        life = 0.002

        def move(namespace: int) -> None:
            nonlocal life
            while True:
                try:
                    assert places.move(namespace) == []
                except SandboxError:
                    # They end faster than this machine can look at them.
                    life *= 2
                    assert life < 2
                else:
                    return

        def chain() -> None:
            time.sleep(life)
            seen.append(os.readlink("/proc/thread-self/ns/mnt"))
            if not end.is_set():
                threading.Thread(target=chain).start()

        for _ in range(4):
            threading.Thread(target=chain).start()
        for _ in range(25):
            for namespace in (places.away, places.home):
                move(namespace)
                here, before = namespace_of_thread()[0], len(seen)
                while len(seen) < before + 20:
                    time.sleep(0.001)
                assert set(seen[before + 8 :]) == {here}
        end.set()
        while threading.active_count() > 1:
            time.sleep(0.001)

    in_world(check, mode)


def test_what_a_thread_is_doing_goes_on(mode: Mode) -> None:
    """System calls that wait begin again, signal(7), or Python calls them again."""

    def check() -> None:
        places = Places(mode)
        reader, writer = os.pipe()
        results: dict[str, object] = {}

        def read() -> None:
            results["read"] = os.read(reader, 10)

        def sleep() -> None:
            began = time.monotonic()
            time.sleep(0.3)
            results["slept"] = time.monotonic() - began >= 0.3

        def wait() -> None:
            results["waited"] = event.wait(_SECONDS)

        event = threading.Event()
        with running(read), running(sleep), running(wait):
            for _ in range(50):
                assert places.move(places.away) == places.move(places.home) == []
            os.write(writer, b"data")
            event.set()
        assert results == {"read": b"data", "slept": True, "waited": True}

    in_world(check, mode)


def test_another_signal_if_the_test_has_taken_ours(mode: Mode) -> None:
    def check() -> None:
        places = Places(mode)
        with pool(2) as executor:
            assert places.move(places.away) == []
            signal.signal(signal.SIGRTMAX, lambda *_: None)
            assert places.move(places.home) == []
            assert everywhere(executor, 2) == {(namespace_of_thread()[0], "/")}

    in_world(check, mode)


def test_a_signal_of_somebody_else_moves_nothing(mode: Mode) -> None:
    def check() -> None:
        places = Places(mode)
        with pool(1) as executor:
            assert places.move(places.away) == []
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGRTMAX)
            assert everywhere(executor, 1) == {namespace_of_thread()}

    in_world(check, mode)


def test_without_the_library_other_threads_are_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_mover", lambda: threads._Mover(None))
    with running(lambda: time.sleep(0.2)):
        stuck = [one for one in threads.stuck_threads() if one.name == "the-thread"]
        assert ["lacks the part" in one.why for one in stuck] == [True]


def test_names_of_threads_that_need_not_move(mode: Mode) -> None:
    def check() -> None:
        places = Places(mode)
        ready, end = threading.Event(), threading.Event()

        def block() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            with open("/proc/thread-self/comm", "w") as file:
                file.write("jemalloc_bg_thd")
            ready.set()
            end.wait(_SECONDS)

        with running(block):
            ready.wait(_SECONDS)
            assert threads.stuck_threads() == []
            assert places.move(places.away) == []
            end.set()

    in_world(check, mode)
