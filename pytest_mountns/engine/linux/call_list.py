"""Lists of system calls that are performed at once, by the library that is written in C.

A call by way of :mod:`ctypes` costs about a microsecond beside what the kernel takes, and a
sandbox takes a hundred. ``perform_calls.c`` has the loop. Nothing needs it: where the library is
missing, each call is made by :mod:`.syscalls`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Final, NamedTuple, TypeAlias, final

from .compiled import library
from .untouched import posix


@final
class Call:
    """The system calls that can be in a list. The values are known to ``perform_calls.c``."""

    CLOSE: Final = 0
    FCHDIR: Final = 1
    FCHMODAT: Final = 2
    FCHOWNAT: Final = 3
    FCNTL: Final = 4
    FSCONFIG: Final = 5
    FSMOUNT: Final = 6
    FSOPEN: Final = 7
    MKDIRAT: Final = 8
    MKNODAT: Final = 9
    MOVE_MOUNT: Final = 10
    OPEN_TREE: Final = 11
    OPENAT: Final = 12
    SETNS: Final = 13
    SYMLINKAT: Final = 14
    UNSHARE: Final = 15
    UTIMENSAT: Final = 16
    FSPICK: Final = 17
    SETXATTR: Final = 18
    MOUNT_SETATTR: Final = 19

    #: How many there are.
    KINDS: Final = 20


class Result(NamedTuple):
    """What an earlier call of the list has returned, a descriptor."""

    register: int


#: None is a null pointer.
Argument: TypeAlias = "int | bytes | Result | None"


class _Call(ctypes.Structure):
    _fields_ = [
        ("call", ctypes.c_int64),
        ("optional", ctypes.c_int64),
        ("result", ctypes.c_int64),
        ("registers", ctypes.c_int64),
        ("arguments", ctypes.c_int64 * 5),
    ]


def is_available() -> bool:
    """Whether lists can be performed."""
    compiled = library()
    # Pointers and the kernel's timespec are 64 bits wide in a list. In an editable installation the
    # library may be an older one.
    return (
        compiled is not None
        and ctypes.sizeof(ctypes.c_void_p) == 8
        and int(compiled.mountns_kinds_of_calls()) == Call.KINDS
    )


@final
class CallList:
    """A list of system calls, made once and performed any number of times."""

    def __init__(self) -> None:
        self._calls: list[_Call] = []
        # The list holds their addresses.
        self._kept: list[object] = []
        self._registers = 0
        #: The first registers: descriptors that are there before.
        self.given: list[int] = []
        #: What is open when all calls were made; the others are closed by calls of the list.
        self.left_open: list[Result] = []
        self._array: ctypes.Array[_Call] | None = None
        self._values: ctypes.Array[ctypes.c_int64] | None = None

    def give(self, descriptor: int) -> Result:
        """Returns what stands for a descriptor that is open already. Called before :meth:`open`."""
        assert self._registers == len(self.given)
        self.given.append(descriptor)
        self._registers += 1
        return Result(self._registers - 1)

    def give_another(self, result: Result, descriptor: int) -> None:
        """Have what :meth:`give` has returned stand for another descriptor from now on."""
        self.given[result.register] = descriptor
        if self._values is not None:
            self._values[result.register] = descriptor

    def add(self, call: int, *arguments: Argument, optional: bool = False) -> int:
        """Append a call. Returns its index. ``optional``: the list goes on if it fails."""
        one = _Call(call=call, optional=optional, result=-1)
        for index, argument in enumerate(arguments):
            if isinstance(argument, Result):
                one.registers |= 1 << index
                one.arguments[index] = argument.register
            else:
                one.arguments[index] = self._address(argument)
        self._calls.append(one)
        return len(self._calls) - 1

    def open(self, call: int, *arguments: Argument) -> Result:
        """Append a call that returns a descriptor. Returns what stands for that."""
        index = self.add(call, *arguments)
        result = Result(self._registers)
        self._registers += 1
        self._calls[index].result = result.register
        self.left_open.append(result)
        return result

    def close(self, descriptor: Result) -> None:
        """Append the close(2) of what a call of the list has opened."""
        self.add(Call.CLOSE, descriptor)
        self.left_open.remove(descriptor)

    def change(self, index: int, position: int, argument: int | bytes) -> None:
        """Give one argument of a call another value.

        ``bytes`` are as long as those that they replace, and take their place in memory.
        """
        calls = self._array if self._array is not None else self._calls
        if isinstance(argument, bytes):
            ctypes.memmove(calls[index].arguments[position], argument, len(argument))
        else:
            calls[index].arguments[position] = argument

    def perform(self) -> list[int] | None:
        """Perform the calls. Returns the descriptors of :attr:`left_open`.

        If one fails, all that was opened is closed again, and None is returned; what else was done
        stays done. :func:`is_available` is true.
        """
        compiled = library()
        assert compiled is not None
        if self._array is None:
            self._array = (_Call * len(self._calls))(*self._calls)
        if self._values is None:
            self._values = (ctypes.c_int64 * self._registers)(*self.given)
        count, values = len(self._calls), self._values
        done = compiled.mountns_perform(self._array, count, values)
        if done == count:
            return [values[one.register] for one in self.left_open]
        for register in _still_open(self._calls[:done]):
            posix.close(values[register])
        return None

    def at(self) -> tuple[int, int, int]:
        """The address of the calls, how many they are, and how many registers they use.

        They stay there as long as this object lives.
        """
        if self._array is None:
            self._array = (_Call * len(self._calls))(*self._calls)
        return ctypes.addressof(self._array), len(self._calls), self._registers

    def _address(self, argument: int | bytes | None) -> int:
        if argument is None or isinstance(argument, int):
            return argument or 0
        buffer = ctypes.create_string_buffer(argument)
        self._kept.append(buffer)
        return ctypes.addressof(buffer)


def _still_open(calls: Sequence[_Call]) -> set[int]:
    """The registers of the descriptors that these calls have opened and not closed."""
    found: set[int] = set()
    for one in calls:
        if one.result >= 0:
            found.add(one.result)
        elif one.call == Call.CLOSE:
            found.discard(one.arguments[0])
    return found
