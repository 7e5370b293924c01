"""The buffer of C's own ``stdout``, into which extension modules print past ``sys.stdout``.

A fork copies what is in it, so both processes would write it. The test process drops it, and sends
what it has printed itself to the pytest process, which prints it in its place. See stdio(3).
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .untouched import posix

_IOFBF: Final = 0
_IOLBF: Final = 1
_BUFSIZ: Final = 8192

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc.fwrite.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
_libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t]
_libc.__fpending.restype = _libc.__fbufsize.restype = ctypes.c_size_t
# Looked up here, since otherwise each test process would look them up in all libraries.
_libc.ftrylockfile.argtypes = _libc.funlockfile.argtypes = [ctypes.c_void_p]
_libc.__fpurge.argtypes = [ctypes.c_void_p]
_stdout: Final = ctypes.c_void_p.in_dll(_libc, "stdout")


@contextmanager
def _locked_stdout() -> Iterator[bool]:
    # Another thread that uses it may hold its lock for long, and after a fork for ever.
    locked = _libc.ftrylockfile(_stdout) == 0
    try:
        yield locked
    finally:
        if locked:
            _libc.funlockfile(_stdout)


def drop_stdout() -> bool:
    """Empty the buffer without writing it, fpurge(3). Returns whether there is a buffer.

    C makes it when ``stdout`` is first used.
    """
    with _locked_stdout() as locked:
        if locked:
            _libc.__fpurge(_stdout)
    return bool(_libc.__fbufsize(_stdout))


def take_stdout(had_buffer: bool) -> tuple[bytes, bool] | None:
    """Empty the buffer. Returns what was in it, and whether it is written line by line.

    ``had_buffer`` is what :func:`drop_stdout` has returned. None if nothing was printed, and no
    buffer was made since. Raises :class:`OSError` if it cannot be read.
    """
    if had_buffer >= bool(_libc.__fbufsize(_stdout)) and not _libc.__fpending(_stdout):
        return None
    with _locked_stdout() as locked:
        if not locked:
            return None
        # No function returns the content of the buffer. So it is flushed, with a file in memory in
        # the place of standard output.
        memory, own = posix.memfd_create("stdout"), posix.dup(1)
        try:
            posix.dup2(memory, 1)
            _libc.fflush(_stdout)
            data = posix.pread(memory, posix.fstat(memory).st_size, 0)
            return data, bool(_libc.__flbf(_stdout))
        finally:
            posix.dup2(own, 1)
            posix.close(own)
            posix.close(memory)


def put_stdout(data: bytes, by_lines: bool) -> None:
    """Print ``data`` with fwrite(3), so that it is written when C would have written it."""
    with _locked_stdout() as locked:
        if not locked:
            return
        if not _libc.__fbufsize(_stdout):
            # Otherwise C would choose the buffer by what standard output is now, which may be
            # another kind of file than in the test process.
            _libc.setvbuf(_stdout, None, _IOLBF if by_lines else _IOFBF, _BUFSIZ)
        _libc.fwrite(data, 1, len(data), _stdout)
