"""The settings of pytest's own plugins: cache, temporary directory, faulthandler, trace."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from _pytest.tmpdir import get_user


def cache_directory(config: pytest.Config) -> Path | None:
    """The directory of ``config.cache`` (``Cache._cachedir``); None without the cache plugin."""
    cache = getattr(config, "cache", None)
    return None if cache is None else Path(os.path.abspath(cast(Any, cache)._cachedir))


def make_cache_directory(config: pytest.Config) -> None:
    """Make the directory of the cache as pytest does, with the files that explain it.

    Raises :class:`OSError` if it cannot be made.
    """
    cache = cast(Any, config).cache
    if hasattr(cache, "_ensure_cache_dir_and_supporting_files"):
        cache._ensure_cache_dir_and_supporting_files()
    else:  # before pytest 8.2
        cache._cachedir.mkdir(parents=True)
        cache._ensure_supporting_files()


def base_temporary_directory(config: pytest.Config) -> str | None:
    """The parent directory of ``tmp_path``; None if no test has asked for one yet."""
    factory = getattr(config, "_tmp_path_factory", None)
    chosen = None if factory is None else factory._basetemp
    return None if chosen is None else str(chosen)


def user_name() -> str:
    """The name of the user in the name of pytest's directory for all runs of a user."""
    return get_user() or "unknown"


class Watchdog(NamedTuple):
    """The settings of pytest's ``faulthandler_timeout``."""

    #: Seconds.
    timeout: float
    #: The descriptor that the traceback is written to.
    stderr: int
    #: Whether the process ends then.
    exit: bool


def watchdog(config: pytest.Config) -> Watchdog | None:
    """The settings of ``faulthandler_timeout``; None if it is off."""
    stderr = config.stash.get(fault_handler_stderr_fd_key, None)
    if stderr is None:
        return None
    timeout = float(config.getini("faulthandler_timeout") or 0)
    try:
        end = bool(config.getini("faulthandler_exit_on_timeout"))
    except (KeyError, ValueError):  # before pytest 8.4
        end = False
    return Watchdog(timeout, stderr, end) if timeout > 0 else None


def real_stderr(config: pytest.Config) -> int:
    """A descriptor of the standard error of pytest, which is not captured.

    It is the one of the faulthandler plugin, or the one that the capture plugin has put aside
    (``FDCapture.targetfd_save``), or 2.
    """
    descriptor = config.stash.get(fault_handler_stderr_fd_key, None)
    if descriptor is None:
        manager: Any = config.pluginmanager.getplugin("capturemanager")
        capture = getattr(getattr(manager, "_global_capturing", None), "err", None)
        descriptor = getattr(capture, "targetfd_save", None)
    return 2 if descriptor is None else descriptor


def is_tracing(config: pytest.Config) -> bool:
    """Whether ``--debug`` is on: pluggy's tracer then has a writer (``TagTracer._writer``)."""
    return cast(Any, config.trace.root)._writer is not None


def flush_trace(config: pytest.Config) -> None:
    """Write out what the tracer's file has buffered (its writer is the file's ``write``)."""
    file = getattr(cast(Any, config.trace.root)._writer, "__self__", None)
    if file is not None:
        file.flush()
