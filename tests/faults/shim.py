"""A pytest plugin that lets system calls of the plugin under test fail: ``-p tests.faults.shim``.

It replaces the functions that make calls: those of ``engine/linux/syscalls.py``, of ``os`` and of
sockets, and ``open``. Only calls that pytest_mountns makes are touched, and only while a
``test_target`` of :mod:`.suite` is run. Which calls there are to let fail is found by recording a
run, and is not listed here.

The environment says what to do. MOUNTNS_FAULTS_CASES names a file with a JSON list of [site,
errno], of which each test takes the one at its number. MOUNTNS_FAULTS_RECORD names the file that
:mod:`.events` are written to.
"""

from __future__ import annotations

import _socket
import builtins
import contextlib
import errno
import functools
import json
import os
import posix
import re
import socket
import sys
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from pytest_mountns.engine.linux import sockets, syscalls, threads, untouched
from pytest_mountns.engine.linux.errors import SyscallError

from .events import Called, Event, Failed, Over, Report, Target, to_line

CASES: Final = "MOUNTNS_FAULTS_CASES"
RECORD: Final = "MOUNTNS_FAULTS_RECORD"

_PACKAGE: Final = "pytest_mountns"
#: Modules that call what the package asks for; the caller above them is looked at.
_BETWEEN: Final = frozenset(
    ("contextlib", "genericpath", "os", "pathlib", "posixpath", "shutil", "socket", "tempfile")
)
#: Calls that do not fail, or only answer a question.
_NEVER: Final = frozenset(
    (
        *("_exit", "abort", "close", "cpu_count", "fspath", "get_inheritable", "getcwd", "getegid"),
        *("geteuid", "getgid", "getlogin", "getpgid", "getpgrp", "getpid", "getppid", "getuid"),
        *(
            "isatty",
            "major",
            "makedev",
            "minor",
            "register_at_fork",
            "strerror",
            "sysconf",
            "times",
        ),
        *("umask", "uname", "urandom", "waitstatus_to_exitcode", "set_blocking", "getresuid"),
    )
)
_NEVER_OF_THE_ENGINE: Final = frozenset(
    (
        *("exit_now", "set_signal_mask", "block_all_signals", "setfsuid", "setfsgid"),
        *("drop_stdout", "take_stdout", "put_stdout"),
    )
)

GENERAL: Final = ("EPERM", "EACCES", "EINVAL", "ENOSPC", "ENOMEM", "EMFILE")
_OF_THE_ENGINE: Final = (*GENERAL, "ENOSYS", "EINTR")
#: What a call fails with, where that is not all of the above.
SPECIAL: Final = {
    "fork": ("EAGAIN", "ENOMEM"),
    "kill": ("ESRCH", "EPERM"),
    "waitpid": ("ECHILD",),
    "waitid": ("ECHILD",),
    "read": ("EIO",),
    "pidfd_open": ("ENOSYS", "EMFILE", "EPERM"),
    "sendall": ("EPIPE", "ENOBUFS"),
    "sendmsg": ("EPIPE", "ENOBUFS"),
    "recv": ("ECONNRESET",),
    "recvmsg": ("ECONNRESET",),
    "socketpair": ("EMFILE", "ENFILE", "ENOMEM"),
    "setpgid": ("EPERM",),
    "mountns_prepare": ("EBUSY",),
    "mountns_move": ("EPERM", "EAGAIN", "ETIMEDOUT"),
}


def errnos(site: str) -> tuple[str, ...]:
    """With which errnos the call at ``site`` is tried."""
    call = site.split(" ")[1]
    if call in SPECIAL:
        return SPECIAL[call]
    return _OF_THE_ENGINE if call in _ENGINE else GENERAL


def is_engines(site: str) -> bool:
    """Whether it is a call of ``engine/linux/syscalls.py``."""
    return site.split(" ")[1] in _ENGINE


def _engines() -> dict[str, Callable[..., Any]]:
    return {
        name: function
        for name, function in vars(syscalls).items()
        if callable(function)
        and getattr(function, "__module__", "") == syscalls.__name__
        and not name.startswith("_")
        and name not in _NEVER_OF_THE_ENGINE
    }


_ENGINE: Final = frozenset(_engines())


@dataclass
class Shim:
    """What is to fail, and how often each site was called in this line of processes."""

    cases: list[tuple[str, str]]
    record: int
    armed: bool = False
    site: str = ""
    number: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    write: Callable[[int, bytes], int] = os.write

    def say(self, event: Event) -> None:
        self.write(self.record, to_line(event))

    def arm(self, index: int) -> None:
        self.site, name = self.cases[index] if index < len(self.cases) else ("", "")
        self.number = getattr(errno, name) if name else 0
        self.counts.clear()
        self.armed = True

    def passes(self, call: str) -> None:
        """Raise what the call is to fail with here, if it is."""
        if not self.armed:
            return
        frame = sys._getframe(2)
        while frame.f_globals.get("__name__") in _BETWEEN and frame.f_back is not None:
            frame = frame.f_back
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] != _PACKAGE or module.endswith(".syscalls"):
            return
        place = f"{module.removeprefix(_PACKAGE + '.')}.{frame.f_code.co_name} {call}"
        self.counts[place] += 1
        site = f"{place} {self.counts[place]}"
        if not self.site:
            self.say(Called(site))
        elif site == self.site:
            self.say(Failed(self.site, self.number))
            if call in _ENGINE:
                raise SyscallError(self.number, f"{call}()")
            raise OSError(self.number, os.strerror(self.number))


def _wrapped(shim: Shim, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        shim.passes(name)
        return function(*arguments, **named)

    return call


class _Library:
    """The compiled library that moves threads, whose answers can be errors.

    Its own system calls are made in handlers of signals, where no function can be replaced.
    """

    def __init__(self, shim: Shim, library: Any) -> None:
        self._shim = shim
        self._library = library

    def mountns_prepare(self, preferred: int) -> int:
        try:
            self._shim.passes("mountns_prepare")
        except OSError as error:
            return -(error.errno or 0)
        found: int = self._library.mountns_prepare(preferred)
        return found

    def mountns_move(self, number: int, ids: Any, results: Any, *others: Any) -> int:
        try:
            self._shim.passes("mountns_move")
        except OSError as error:
            # One thread has not moved; the others have.
            (count, *rest) = others
            done: int = self._library.mountns_move(number, ids, results, count - 1, *rest)
            results[count - 1] = error.errno
            return done
        done = self._library.mountns_move(number, ids, results, *others)
        return int(done)


def _install(shim: Shim) -> None:
    mover: Any = threads._mover()
    if mover._library is not None:
        mover._library = _Library(shim, mover._library)
    for name, function in _engines().items():
        setattr(syscalls, name, _wrapped(shim, name, function))
    builtin = type(posix.open)
    for name, function in list(vars(os).items()):
        if (
            isinstance(function, builtin)
            and function.__module__ == "posix"
            and not name.startswith(("W", "sched_", "P_"))
            and name not in _NEVER
        ):
            wrapped = _wrapped(shim, name, function)
            # The plugin calls those of its own copies of the modules, and the functions of these
            # that are written in Python call those of the modules themselves.
            for module in (os, posix, untouched.os, untouched.posix):
                setattr(module, name, wrapped)
    for name in ("sendall", "sendmsg", "recv", "recvmsg"):
        wrapped = _wrapped(shim, name, getattr(_socket.socket, name))
        for kind in (socket.socket, sockets.socket.socket):
            setattr(kind, name, wrapped)
    socketpair = _wrapped(shim, "socketpair", _socket.socketpair)
    _socket.socketpair = sockets._socket.socketpair = socketpair
    builtins.open = untouched.open = _wrapped(shim, "open", builtins.open)


class Plugin:
    """Arms the shim for the tests that say so, and notes what came of each test."""

    def __init__(self, shim: Shim) -> None:
        self._shim = shim
        self._home = os.getpid()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        shim = self._shim
        found = re.fullmatch(r"test_target\[(\d+)\]", item.name)
        if found:
            shim.say(Target(int(found[1])))
            shim.arm(int(found[1]))
        try:
            return (yield)
        finally:
            shim.armed = False
            if os.getpid() == self._home:
                shim.say(_over(item.name))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if os.getpid() == self._home and (report.when == "call" or not report.passed):
            name = report.nodeid.rpartition("::")[2]
            self._shim.say(Report(name, str(report.when), report.outcome, report.longreprtext))


def _over(test: str) -> Over:
    """The end of ``test``, with the state of this process."""
    with open("/proc/self/mountinfo", "rb") as file:
        mounts = file.read().count(b"\n")
    opened = []
    for name in os.listdir("/proc/self/fd"):
        # The descriptor of the listing itself is gone by now.
        with contextlib.suppress(FileNotFoundError):
            link = os.readlink(f"/proc/self/fd/{name}")
            # The pages of a process are pinned after some tests, and by one descriptor.
            if link != "anon_inode:[io_uring]":
                opened.append(re.sub(r"\d+", "N", link))
    return Over(test, sorted(opened), mounts, sorted(os.listdir(".")))


# Before the plugin is configured: its modules are imported then, and take `open` along.
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    with open(os.environ[CASES]) as file:
        cases = [(site, name) for site, name in json.load(file)]
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(os.environ[RECORD], flags, 0o644)
    # A number that no test counts or closes.
    record = os.dup2(fd, 900, inheritable=False)
    os.close(fd)
    shim = Shim(cases, record)
    _install(shim)
    config.pluginmanager.register(Plugin(shim), "mountns-faults")
