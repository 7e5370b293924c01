"""Errors, in words for the person who has to fix something."""

from __future__ import annotations

import errno as errno_names
from typing import final

from .untouched import os


def errno_name(number: int) -> str:
    """The kernel's name of an error number: ``"EINVAL"`` for 22."""
    return errno_names.errorcode.get(number, f"errno {number}")


def said(error: OSError) -> str:
    """What the kernel said: the errno by name, with the call or the path if that is known."""
    if isinstance(error, SyscallError) or not error.errno:
        return str(error)
    words = f"{errno_name(error.errno)} ({error.strerror})"
    if error.filename is None:
        return words
    path = error.filename if isinstance(error.filename, int) else os.fsdecode(error.filename)
    return f"{path}: {words}"


def is_failed_call(error: BaseException) -> bool:
    """Whether a system call has failed, and not a signal's handler has raised this meanwhile.

    :class:`TimeoutError`, which handlers of SIGALRM like to raise, is an :class:`OSError`; it has
    no errno then.
    """
    timed_out = isinstance(error, TimeoutError) and error.errno is None
    return isinstance(error, OSError) and not timed_out


@final
class SyscallError(OSError):
    """A system call has failed.

    It says the call and the errno, and no cause. Users never see it: the caller turns it into a
    :class:`SandboxError`.
    """

    def __init__(self, number: int, call: str) -> None:
        super().__init__(number, os.strerror(number))
        self.call = call

    def __str__(self) -> str:
        return f"{self.call}: {errno_name(self.errno or 0)} ({self.strerror})"

    def __reduce__(self) -> tuple[type[SyscallError], tuple[int, str]]:
        return (SyscallError, (self.errno or 0, self.call))


class SandboxError(Exception):
    """A sandbox could not be made, changed or left."""

    def __init__(self, tried: str, kernel: str = "", cause: str = "", remedy: str = "") -> None:
        super().__init__(tried, kernel, cause, remedy)
        #: The step that was tried, in words.
        self.tried = tried
        #: What the kernel answered; may be empty, as the following ones.
        self.kernel = kernel
        #: The likely cause.
        self.cause = cause
        #: What helps: a command, if there is one.
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [f"mountns: {self.tried}"]
        if self.kernel:
            lines.append(f"  the kernel said: {self.kernel}")
        if self.cause:
            lines.append(f"  likely cause: {self.cause}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)


@final
class Unavailable(SandboxError):
    """This machine cannot isolate at all, or not in the way that was asked for."""


@final
class LayerError(SandboxError):
    """A layer or image cannot be read or written: malformed, too big, or out of reach."""


def malformed(cause: str, remedy: str = "make the archive anew") -> LayerError:
    """An error about the content of a layer; the caller says which layer it is."""
    return LayerError("read a layer", cause=cause, remedy=remedy)
