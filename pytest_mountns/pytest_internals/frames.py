"""Keeps frames of the plugin out of tracebacks, as pytest keeps its own out."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, TracebackType
from typing import Any, Final, ParamSpec, TypeVar, cast

_UNSEEN: Final = "<mountns>"

_P = ParamSpec("_P")
_R = TypeVar("_R")


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Keep the function out of tracebacks, as pytest keeps its own frames out.

    pytest's ``filter_traceback`` drops frames of generated code, which it recognises by the name
    of the file. ``__tracebackhide__`` alone is not enough: where only frames of pytest are left,
    pytest says that all frames are hidden.
    """
    raw = cast(Any, function)
    raw.__code__ = raw.__code__.replace(co_filename=_UNSEEN)
    return function


def drop_unseen(error: BaseException) -> None:
    """Remove the frames of :func:`unseen` functions from a traceback.

    Needed for items that are not Python functions, whose tracebacks pytest does not filter
    (``Node._traceback_filter``).
    """
    entry = error.__traceback__
    while entry is not None:
        below = entry.tb_next
        while below is not None and below.tb_frame.f_code.co_filename == _UNSEEN:
            below = below.tb_next
        entry.tb_next = below
        entry = below


def fill_in_lines(error: BaseException) -> None:
    """Give a line to each entry of the tracebacks of ``error`` and of what it was raised from.

    An instruction may belong to no line, as the jump at the end of a loop whose last statement is
    an ``if``. The handler of a signal may raise there, also in pytest's own loops, and pytest ends
    with an internal error where ``tb_lineno`` is None (pytest 9.0, Python 3.11).
    """
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        errors += (one.__cause__, one.__context__)
        one.__traceback__ = entry = _with_line(one.__traceback__)
        while entry is not None:
            entry.tb_next = below = _with_line(entry.tb_next)
            entry = below


def _with_line(entry: TracebackType | None) -> TracebackType | None:
    # The declared type leaves None out.
    if entry is None or cast("int | None", entry.tb_lineno) is not None:
        return entry
    line = _line_before(entry.tb_frame.f_code, entry.tb_lasti)
    return TracebackType(entry.tb_next, entry.tb_frame, entry.tb_lasti, line)


def _line_before(code: CodeType, offset: int) -> int:
    """The line of the last instruction up to ``offset`` that belongs to one."""
    lines = [line for start, _, line in code.co_lines() if start <= offset and line is not None]
    return lines[-1] if lines else code.co_firstlineno
