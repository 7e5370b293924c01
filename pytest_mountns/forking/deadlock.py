"""Notices that a test process waits for ever, and ends it.

fork(2) copies locks, and not the threads that hold them or that would answer. A library that has
started a pool of threads before the fork waits in the test process for threads that do not exist.
pytest-timeout's signal method does not end such a wait, since Python runs handlers of signals only
when the library has returned.

A process waits for ever if each of its threads waits for a futex of its own memory (futex(2),
``FUTEX_PRIVATE_FLAG``) and has set no time limit: no other process can wake it. Only a handler of a
signal could, so it has a while for that.

Other libraries wait with a time limit, again and again (gRPC, loky). That cannot be told from a
test that waits for something outside, as a program that starts. Such a test goes on, and is
named, so that nobody has to guess which one it is.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Final, final

from ..engine.linux import processes
from ..engine.linux.errors import SandboxError
from ..engine.linux.namespaces import privileged
from ..engine.linux.threads import WATCHDOG
from ..engine.linux.untouched import open, os, signal, time

#: Seconds that a process waits before it is ended.
LIMIT: float = 60.0
#: Seconds between two looks, and from SIGABRT to SIGKILL.
_PAUSE: Final = 1.0
_KILL_AFTER: Final = 5.0
#: Clock ticks of CPU time in a second, of a process that does nothing but wait: one percent.
_IDLE: Final = os.sysconf("SC_CLK_TCK") / 100

_NUMBER_OF_FUTEX: Final = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221}
_FUTEX_WAIT: Final = 0
_FUTEX_WAIT_BITSET: Final = 9
_FUTEX_PRIVATE_FLAG: Final = 128
_COMMANDS: Final = 127

EXPLANATION: Final = (
    "the test process waited for ever and was ended: each of its threads waited for a lock or for"
    " an answer of a thread that was left behind by fork(2)"
)


@final
class DeadlockWatch:
    """Watches one test process, which was forked while other threads were alive.

    ``tell`` is called, once, when it has done nothing but wait for :data:`LIMIT` seconds and is
    not ended for that.
    """

    def __init__(self, tell: Callable[[], object]) -> None:
        self._tell = tell
        self._told = False
        #: When the process was last found to use the processor, and its CPU time then, in ticks.
        self._used: tuple[float, int] | None = None
        #: Whether the process was ended.
        self.ended = False
        self._waits: tuple[object, ...] | None = None
        self._since = 0.0
        self._next_look = 0.0

    def look(self, pid: int) -> None:
        """Look at the process now and then, and end it if it has waited for :data:`LIMIT` seconds.

        It is ended by SIGABRT first, for which faulthandler writes the stacks of its threads.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + min(_PAUSE, LIMIT / 4)
        if self.ended:
            if now > self._since + _KILL_AFTER:
                _kill(pid, signal.SIGKILL)
            return
        waits = _waits(pid)
        if waits is None or waits != self._waits:
            self._waits, self._since = waits, now
        elif now > self._since + LIMIT:
            self.ended, self._since = True, now
            _kill(pid, signal.SIGABRT)
            return
        if not self._told and self._is_idle(pid, now):
            self._told = True
            self._tell()

    def _is_idle(self, pid: int, now: float) -> bool:
        """Whether the process has done nothing but wait, for a little longer than :data:`LIMIT`.

        A process that certainly waits for ever is ended before that, and needs no line.
        """
        try:
            used = processes.cpu_time(pid)
        except OSError:
            # It has just ended.
            return False
        since, before = self._used or (now, used)
        if self._used is None or used - before > (now - since) * _IDLE + 1:
            self._used = now, used
            return False
        return now - since > LIMIT + 4 * min(_PAUSE, LIMIT / 4)


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _waits(pid: int) -> tuple[object, ...] | None:
    """What each thread of a process waits for, if nobody but itself could wake it, else None."""
    try:
        # An ordinary user's test process may have capabilities, and then its /proc is closed.
        with privileged(True):
            tasks = os.listdir(f"/proc/{pid}/task")
            found = [
                _wait(f"/proc/{pid}/task/{task}")
                for task in tasks
                if _name(f"/proc/{pid}/task/{task}") != WATCHDOG
            ]
    except (OSError, SandboxError):
        return None
    return None if None in found else (*found, processes.cpu_time(pid))


def _name(task: str) -> str:
    with open(f"{task}/comm") as file:
        return file.read().rstrip("\n")


def _wait(task: str) -> str | None:
    with open(f"{task}/syscall") as file:
        text = file.read()
    number, *arguments = text.split()
    if number != str(_NUMBER_OF_FUTEX.get(platform.machine())):
        return None
    operation, timeout = int(arguments[1], 16), int(arguments[3], 16)
    waits = operation & _COMMANDS in (_FUTEX_WAIT, _FUTEX_WAIT_BITSET)
    return text if waits and operation & _FUTEX_PRIVATE_FLAG and not timeout else None
