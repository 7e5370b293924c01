"""What ``pytest --debug`` shows of sandboxes: planned, mounted, entered, sent, received, left.

pytest writes the trace to ``pytestdebug.log``, between its own lines about hooks. Without
``--debug`` a call costs one look at an attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, final

import pytest

from .. import pytest_internals
from ..engine.linux.untouched import os, time


@final
class Trace:
    """Writes a line for each step, with the seconds since the session began and the process id."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._began = time.monotonic()
        #: Whether anybody reads what is traced. Where an argument takes time, ask first.
        self.enabled: Final = pytest_internals.is_tracing(config)
        self._write: Callable[..., None] = config.trace.get("mountns")

    def __call__(self, what: str, *details: object) -> None:
        """Trace ``what`` with ``details``, which are converted to text only where it is shown.

        A detail of several lines is indented below the first.
        """
        if not self.enabled:
            return
        first, *more = "\n".join(str(part) for part in details).splitlines() or [""]
        self._write(f"{time.monotonic() - self._began:9.4f} {os.getpid()} {what}: {first}")
        for line in more:
            self._write(f"{'':9} {line}")
        # A test process ends without flushing what is buffered.
        pytest_internals.flush_trace(self._config)

    def flush(self) -> None:
        """Write out what is buffered: before a fork, or the child would write it once more."""
        if self.enabled:
            pytest_internals.flush_trace(self._config)
