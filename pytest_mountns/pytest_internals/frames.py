"""Frames of ours in tracebacks: there are none, as there are none of pytest's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, ParamSpec, TypeVar, cast

_UNSEEN: Final = "<mountns>"

_P = ParamSpec("_P")
_R = TypeVar("_R")


def unseen(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Leave the function out of tracebacks, as pytest leaves out its own frames.

    ``filter_traceback`` drops frames of generated code, which it knows by the file's name. Hiding
    them is not enough: where only frames of pytest are left, it says that all are hidden.
    """
    raw = cast(Any, function)
    raw.__code__ = raw.__code__.replace(co_filename=_UNSEEN)
    return function


def drop_unseen(error: BaseException) -> None:
    """Take :func:`unseen` functions out of a traceback.

    Items that are not Python functions show it whole (``Node._traceback_filter``).
    """
    entry = error.__traceback__
    while entry is not None:
        below = entry.tb_next
        while below is not None and below.tb_frame.f_code.co_filename == _UNSEEN:
            below = below.tb_next
        entry.tb_next = below
        entry = below
