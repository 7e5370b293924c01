"""The library that is written in C, which ``hatch_build.py`` compiles.

Nothing needs it but :mod:`.threads`, to move threads. What else it does is done faster by it than
in Python.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Final

#: A pure wheel has none.
LIBRARY: Final = Path(__file__).with_name("native.so")


@functools.cache
def library() -> ctypes.CDLL | None:
    """The library; None if it is missing. Calls of its functions release the interpreter lock."""
    try:
        found = ctypes.CDLL(str(LIBRARY), use_errno=True)
        found.mountns_perform.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        found.mountns_start_performer.argtypes = [ctypes.c_int, ctypes.c_int]
        pointer, number, inode = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64
        found.mountns_request.argtypes = [number, inode, pointer, pointer]
        found.mountns_request.restype = ctypes.c_long
        found.mountns_answer.argtypes = [number, inode, pointer, number]
        found.mountns_answer.restype = ctypes.c_long
        found.mountns_look_at.argtypes = [number, pointer, number, pointer]
        found.mountns_park.argtypes = [number, pointer, number]
        found.mountns_return.argtypes = [number, number, pointer]
        found.mountns_kinds_of_calls.argtypes = []
        found.mountns_find_directories.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
        found.mountns_start_closer.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int]
    except (OSError, AttributeError):
        # The second is for one that was compiled before these functions were written.
        return None
    return found
