"""Capture, terminal and live log: which process writes, and where the cursor is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast, final

import pytest


@contextlib.contextmanager
def capture_suspended(config: pytest.Config) -> Iterator[None]:
    """Output goes to the terminal; what was captured so far stays where it is."""
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None:
        yield
    else:
        with manager.global_and_fixture_disabled():
            yield


def _reporter_with_cursor(config: pytest.Config) -> Any:
    """The terminal reporter; None if another plugin has put one of another kind in its place."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    writer = getattr(reporter, "_tw", None)
    has_cursor = hasattr(writer, "_current_line") and hasattr(reporter, "currentfspath")
    return reporter if has_cursor else None


class _Unmoved(str):
    """The line up to the cursor. Writing replaces it by a new string, and so can be noticed."""

    __slots__ = ()


_LIVE_LOG_STATE = ("_first_record_emitted", "_when", "_section_name_shown", "_test_outcome_written")


def _live_log(config: pytest.Config) -> Any:
    plugin = config.pluginmanager.get_plugin("logging-plugin")
    handler = getattr(plugin, "log_cli_handler", None)
    # Without live logs the handler has no such attributes.
    return handler if hasattr(handler, "_section_name_shown") else None


@final
class Moved(NamedTuple):
    """What a test process has done to the screen, and how it is connected to it now."""

    #: See :attr:`Screen.cursor`; None if this process has written nothing since it was set.
    cursor: tuple[str, object] | None
    #: Which headings and line ends the live log has already written; None if the pytest process
    #: knows.
    live_log: dict[str, object] | None
    #: Whether what the terminal reporter writes now is captured, as output of the test. So are the
    #: marks of unittest's subtests, which are reported in the middle of a test, with
    #: ``--capture=fd`` (``CaptureManager._global_capturing``, ``MultiCapture._state``).
    captures_marks: bool


@final
class Screen:
    """The terminal, to which the pytest process and its test processes write in turn.

    It is made in the pytest process, when all plugins are loaded, and each test process has a copy.
    """

    def __init__(self, config: pytest.Config) -> None:
        get_plugin = config.pluginmanager.get_plugin
        self._reporter = _reporter_with_cursor(config)
        self._writer = getattr(get_plugin("terminalreporter"), "_tw", None)
        self._capture: Any = get_plugin("capturemanager")
        self._live_log = _live_log(config)
        #: What of the live log both processes know.
        self._told: dict[str, object] = {}
        #: Whether what is written while a test runs goes to the terminal, too. With
        #: ``--capture=sys`` that is what pytest's own terminal writer writes.
        self.is_seen_at_once = bool(config.getoption("capture", "no") != "fd")

    def begin(self, action: Callable[[], None]) -> None:
        """In a test process: note where the cursor is, and watch the terminal.

        ``action`` is called whenever output is about to reach it. Debuggers, live logs,
        ``capsys.disabled()`` and ``--setup-show`` all suspend the capture
        (``CaptureManager.suspend_global_capture``).
        """
        manager = self._capture
        self.set_cursor(*self.cursor)
        self._told = self._live_log_state()
        if manager is None:
            return
        original = manager.suspend_global_capture

        def suspend_global_capture(in_: bool | None = None) -> None:
            # pytest passes in_=False at the end of each phase, where nothing is written.
            if in_ is not False:
                action()
            original(bool(in_))

        manager.suspend_global_capture = suspend_global_capture

    @property
    def cursor(self) -> tuple[str, object]:
        """The line up to the cursor and whose it is, as the terminal reporter has them.

        Uses ``TerminalWriter._current_line`` and ``TerminalReporter.currentfspath``.
        """
        reporter = self._reporter
        return (
            ("", None) if reporter is None else (reporter._tw._current_line, reporter.currentfspath)
        )

    def set_cursor(self, line: str, owner: object) -> None:
        """Set the cursor to where it is in the other process, which has written meanwhile."""
        if self._reporter is not None:
            self._reporter._tw._current_line = _Unmoved(line)
            self._reporter.currentfspath = owner

    def set_live_log(self, state: dict[str, object]) -> None:
        """Set what the live log has written in the other process."""
        if self._live_log is not None:
            vars(self._live_log).update(state)

    def _live_log_state(self) -> dict[str, object]:
        """Which headings and line ends the live log has already written; empty if it is off."""
        handler = self._live_log
        return {} if handler is None else {name: vars(handler)[name] for name in _LIVE_LOG_STATE}

    def flush(self) -> None:
        """Write out what is buffered in this process."""
        for stream in (sys.stdout, sys.stderr, self._writer):
            # The test may have closed it, or set it to None.
            with contextlib.suppress(OSError, ValueError, AttributeError):
                cast(Any, stream).flush()

    @contextlib.contextmanager
    def capture_resumed(self) -> Iterator[None]:
        """In the pytest process, within :func:`capture_suspended`: output is captured.

        It goes to the end of what the test process has written: both processes share that file.
        """
        self.flush()
        self._capture.resume_global_capture()
        try:
            yield
        finally:
            self.flush()
            self._capture.suspend_global_capture(in_=False)

    def moved(self) -> Moved:
        """Write out what is buffered. Returns what has been written since the last call."""
        self.flush()
        line, owner = self.cursor
        unmoved = self._reporter is None or isinstance(line, _Unmoved)
        if not unmoved:
            self.set_cursor(line, owner)
        live_log = self._live_log_state()
        same, self._told = live_log == self._told, live_log
        manager = self._capture
        captures = False
        if manager is not None and not self.is_seen_at_once and manager._capture_fixture is None:
            capture = manager._global_capturing
            captures = capture is not None and capture._state in ("started", "resumed")
        return Moved(None if unmoved else (line, owner), None if same else live_log, captures)


@contextlib.contextmanager
def live_log_of_one_teardown(config: pytest.Config) -> Iterator[None]:
    """Write no second heading above what wider teardowns log: the test process has written one."""
    handler = _live_log(config)
    if handler is None or handler._when != "teardown":
        yield
        return
    handler.set_when = lambda when: None
    try:
        yield
    finally:
        del handler.set_when


def captured_so_far(config: pytest.Config) -> tuple[str, str]:
    """Remove and return what is captured: after a crash, what the test process has written.

    With ``--capture=fd`` it is in a file that both processes share. With ``sys`` it was in the
    memory of the test process and is lost.
    """
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None or not manager.is_globally_capturing():
        return "", ""
    out, err = manager.read_global_capture()
    return out, err
