"""What fork(2) breaks in the test process's memory, and how that is mended."""

from __future__ import annotations

import sys
import threading
from typing import Any


def mend() -> None:
    """In the test process, before anything of the test runs."""
    _mend_executors()


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
