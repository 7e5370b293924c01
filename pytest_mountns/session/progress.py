"""The terminal's line about a layer that takes long to unpack."""

from __future__ import annotations

from typing import Final, final

import pytest

from ..engine.linux.untouched import time

#: Seconds after which a line is shown.
_LONG: Final = 1.0


@final
class UnpackingProgress:
    """Writes a line while a layer is unpacked, and how far that is, if it takes long.

    Called with what is unpacked, how many bytes are done, and how many there are (0 if unknown).
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._what = ""
        self._since = 0.0
        self._shown = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` units of ``what`` are done."""
        now = time.monotonic()
        if what != self._what:
            self.end()
            self._what, self._since = what, now
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if now - self._since < _LONG or reporter is None or self._config.get_verbosity() < 0:
            return
        share = f" {min(100, 100 * done // total)}%" if total and reporter.isatty else " ..."
        line = f"mountns: {what}{share}"
        if line == self._shown:
            return
        if reporter.isatty:
            reporter.rewrite(line, erase=True)
        else:
            reporter.write_line(line)
        self._shown = line

    def end(self) -> None:
        """The layer is unpacked, or unpacking has failed."""
        if self._shown:
            reporter = self._config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None and reporter.isatty:
                reporter.write_line("")
        self._what = self._shown = ""
