"""What fork(2) breaks in the test process's memory, and how that is mended."""

from __future__ import annotations

import os
import sys
import threading

# Bound here: used while what the test has replaced in `os` and `time` is in place.
from os import close, getppid, read, waitid
from os import open as open_
from time import sleep
from typing import Any, Final

#: Seconds between two looks at a process whose end nobody announces.
_LOOK: Final = 0.02


def mend() -> None:
    """In the test process, before anything of the test runs."""
    _mend_executors()
    _mend_subprocesses()


def _mend_executors() -> None:
    """Have thread pools of the parent start threads of their own in this process.

    A ``ThreadPoolExecutor`` counts its idle threads. Those have not come along, and it would wait
    for one of them for ever: an event loop that has resolved a name in a wider fixture hangs at
    the next. Looked at when it is used, since there is no list of them.
    """
    module = sys.modules.get("concurrent.futures.thread")
    if module is None or not module._threads_queues:
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


def _mend_subprocesses() -> None:
    """Let this process ask after programs that wider fixtures have started.

    They are its siblings, and waitpid(2) knows only children: subprocess takes that for an end
    with status 0, and signals to such a process would not be sent; multiprocessing raises.
    """
    module = sys.modules.get("subprocess")
    if module is not None:
        popen: Any = module.Popen
        original_poll, original_try = popen._internal_poll, popen._try_wait

        def internal_poll(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if self.returncode is None and _is_living_sibling(self.pid):
                return None
            return original_poll(self, *arguments, **keywords)

        def try_wait(self: Any, flags: int) -> Any:
            while _is_living_sibling(self.pid):
                if flags & os.WNOHANG:
                    return 0, 0
                sleep(_LOOK)
            return original_try(self, flags)

        popen._internal_poll, popen._try_wait = internal_poll, try_wait
    module = sys.modules.get("multiprocessing.process")
    if module is not None:
        for process in module._children:
            process._parent_pid = os.getpid()


def _is_living_sibling(pid: int) -> bool:
    """False, too, where it is out of sight: in another PID namespace."""
    try:
        waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        pass
    else:
        return False
    try:
        descriptor = open_(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            state, parent = read(descriptor, 4096).rpartition(b")")[2].split()[:2]
        finally:
            close(descriptor)
    except OSError:
        return False
    return state not in b"ZX" and int(parent) == getppid()
