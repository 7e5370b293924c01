"""Keeps frames of the plugin out of tracebacks, as pytest keeps its own out."""

from __future__ import annotations

from collections.abc import Callable
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
