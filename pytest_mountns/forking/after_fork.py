"""Repairs what fork(2) breaks in the memory of a test process: thread pools and child processes."""

from __future__ import annotations

import sys
import threading
from typing import Any, Final

from ..engine.linux.untouched import os, time

#: Seconds between two looks at a process that is not a child, whose end the kernel does not tell.
_INTERVAL: Final = 0.02


def repair() -> None:
    """Repair this test process. Called after the fork, before anything of the test runs."""
    _repair_executors()
    _repair_subprocesses()


def _repair_executors() -> None:
    """Let thread pools that were made before the fork start new threads in this process.

    A ``ThreadPoolExecutor`` counts its idle threads. They do not exist in this process, and the
    pool would wait for one of them for ever. For example, an event loop that has resolved a name in
    a wider fixture would hang when it resolves the next one. There is no list of all pools, so each
    is repaired when it is used.
    """
    module = sys.modules.get("concurrent.futures.thread")
    if module is None:
        return
    executor: Any = module.ThreadPoolExecutor
    original = executor._adjust_thread_count

    def adjust_thread_count(self: Any) -> None:
        gone = {thread for thread in self._threads if not thread.is_alive()}
        if gone:
            self._threads -= gone
            self._idle_semaphore = threading.Semaphore(0)
        original(self)

    executor._adjust_thread_count = adjust_thread_count


def _repair_subprocesses() -> None:
    """Let this process see whether programs still run that wider fixtures have started.

    They are its siblings, and waitpid(2) only knows children. :mod:`subprocess` takes the error of
    waitpid for an end with status 0, and then sends no signals to the process;
    :mod:`multiprocessing` raises an error.
    """
    module = sys.modules.get("subprocess")
    popen: Any = None if module is None else module.Popen
    # gevent's Popen has no such method: its event loop waits for the programs.
    if hasattr(popen, "_try_wait"):
        original_poll, original_try = popen._internal_poll, popen._try_wait

        def internal_poll(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if self.returncode is None and _is_living_sibling(self.pid):
                return None
            return original_poll(self, *arguments, **keywords)

        def try_wait(self: Any, flags: int) -> Any:
            while _is_living_sibling(self.pid):
                if flags & os.WNOHANG:
                    return 0, 0
                time.sleep(_INTERVAL)
            return original_try(self, flags)

        popen._internal_poll, popen._try_wait = internal_poll, try_wait
    module = sys.modules.get("multiprocessing.process")
    if module is not None:
        for process in module._children:
            process._parent_pid = os.getpid()


def _is_living_sibling(pid: int) -> bool:
    """Whether ``pid`` is a running child of this process's parent.

    It is False as well if this process is in a PID namespace in which that process does not exist.
    """
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        pass
    else:
        return False
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            state, parent = os.read(descriptor, 4096).rpartition(b")")[2].split()[:2]
        finally:
            os.close(descriptor)
    except OSError:
        return False
    return state not in b"ZX" and int(parent) == os.getppid()
