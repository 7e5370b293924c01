"""Capture, terminal and live log: which process writes, and where the cursor is."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

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


def captures_marks(config: pytest.Config) -> bool:
    """Whether what the terminal reporter writes now is captured, as output of the test.

    So are the marks of unittest's subtests, which are reported in the middle of a test, with
    ``--capture=fd`` (``CaptureManager._global_capturing``, ``MultiCapture._state``).
    """
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None or output_is_seen_at_once(config) or manager._capture_fixture is not None:
        return False
    capture = manager._global_capturing
    return capture is not None and capture._state in ("started", "resumed")


@contextlib.contextmanager
def capture_resumed(config: pytest.Config) -> Iterator[None]:
    """In the pytest process, within :func:`capture_suspended`: output is captured.

    It goes to the end of what the test process has written: both processes share that file.
    """
    manager = cast(Any, config.pluginmanager.get_plugin("capturemanager"))
    flush_output(config)
    manager.resume_global_capture()
    try:
        yield
    finally:
        flush_output(config)
        manager.suspend_global_capture(in_=False)


def before_output_is_released(config: pytest.Config, action: Callable[[], None]) -> None:
    """Call ``action`` in this process whenever output is about to reach the terminal.

    Debuggers, live logs, ``capsys.disabled()`` and ``--setup-show`` all suspend the capture
    (``CaptureManager.suspend_global_capture``).
    """
    manager = config.pluginmanager.get_plugin("capturemanager")
    if manager is None:
        return
    original = manager.suspend_global_capture

    def suspend_global_capture(in_: bool | None = None) -> None:
        # pytest passes in_=False at the end of each phase, where nothing is written.
        if in_ is not False:
            action()
        original(bool(in_))

    manager.suspend_global_capture = suspend_global_capture


def output_is_seen_at_once(config: pytest.Config) -> bool:
    """Whether what is written while a test runs goes to the terminal, too.

    With ``--capture=sys`` that is what pytest's own terminal writer writes.
    """
    return bool(config.getoption("capture", "no") != "fd")


def flush_output(config: pytest.Config) -> None:
    """Write out what is buffered in this process."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    for stream in (sys.stdout, sys.stderr, getattr(reporter, "_tw", None)):
        # The test may have closed it, or set it to None.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            cast(Any, stream).flush()


class _Unmoved(str):
    """The line up to the cursor. Writing replaces it by a new string, and so can be noticed."""

    __slots__ = ()


def cursor(config: pytest.Config) -> tuple[str, object]:
    """The line up to the cursor and whose it is, as the terminal reporter has them.

    Uses ``TerminalWriter._current_line`` and ``TerminalReporter.currentfspath``.
    """
    reporter = _reporter_with_cursor(config)
    return ("", None) if reporter is None else (reporter._tw._current_line, reporter.currentfspath)


def _reporter_with_cursor(config: pytest.Config) -> Any:
    """The terminal reporter; None if another plugin has put one of another kind in its place."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    writer = getattr(reporter, "_tw", None)
    has_cursor = hasattr(writer, "_current_line") and hasattr(reporter, "currentfspath")
    return reporter if has_cursor else None


def set_cursor(config: pytest.Config, line: str, owner: object) -> None:
    """Set the cursor to where it is in the other process, which has written meanwhile."""
    reporter = _reporter_with_cursor(config)
    if reporter is not None:
        reporter._tw._current_line = _Unmoved(line)
        reporter.currentfspath = owner


def moved_cursor(config: pytest.Config) -> tuple[str, object] | None:
    """The cursor if this process has written since :func:`set_cursor` or the last call."""
    line, owner = cursor(config)
    if isinstance(line, _Unmoved):
        return None
    set_cursor(config, line, owner)
    return line, owner


_LIVE_LOG_STATE = ("_first_record_emitted", "_when", "_section_name_shown", "_test_outcome_written")


def live_log_state(config: pytest.Config) -> dict[str, object]:
    """Which headings and line ends the live log has already written; empty if it is off."""
    handler = _live_log(config)
    return {name: vars(handler)[name] for name in _LIVE_LOG_STATE} if handler else {}


def set_live_log_state(config: pytest.Config, state: dict[str, object]) -> None:
    """Set what the live log has written in the other process."""
    handler = _live_log(config)
    if handler:
        vars(handler).update(state)


def _live_log(config: pytest.Config) -> Any:
    plugin = config.pluginmanager.get_plugin("logging-plugin")
    handler = getattr(plugin, "log_cli_handler", None)
    # Without live logs the handler has no such attributes.
    return handler if hasattr(handler, "_section_name_shown") else None


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
