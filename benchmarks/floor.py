"""The floor: the system calls of an inline sandbox, without the plugin.

strace(1) records a session whose tests are empty. What is kept of the record are the calls that
make and leave namespaces, mounts, and what a new root needs; everything that only looks (stat,
reads, listings) is dropped, and so is what is opened for that alone. :func:`translate` makes a
program of it: the way to the fourth test, once, and then a loop over four tests. ``floor.c`` and
this file, run as a script, carry it out and say what a sandbox took:

    python floor.py PROGRAM COUNT
"""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "/mountns-benchmark/next-test"
"""What the tests of a traced session look for before each begins (``suites/conftest.py``)."""

BEFORE, LOOPED = 4, 4
"""Four tests in the loop: numbers of descriptors may repeat only after some."""

TESTS = BEFORE + LOOPED + 2

# Which arguments are descriptors, of the calls that are kept.
_DESCRIPTORS: dict[str, tuple[int, ...]] = {
    "chdir": (),
    "chmod": (),
    "chown": (),
    "chroot": (),
    "close": (0,),
    "dup": (0,),
    "fchdir": (0,),
    "fchmod": (0,),
    "fchmodat": (0,),
    "fchown": (0,),
    "fchownat": (0,),
    "fcntl": (0,),
    "fsconfig": (0,),
    "fsmount": (0,),
    "fsopen": (),
    "lchown": (),
    "mkdir": (),
    "mkdirat": (0,),
    "mknod": (),
    "mknodat": (0,),
    "mount": (),
    "mount_setattr": (0,),
    "move_mount": (0, 2),
    "open": (),
    "openat": (0,),
    "open_tree": (0,),
    "pivot_root": (),
    "setns": (0,),
    "symlink": (),
    "symlinkat": (1,),
    "umask": (),
    "umount2": (),
    "unlinkat": (0,),
    "unshare": (),
}
_OPENING = frozenset({"dup", "fcntl", "fsmount", "fsopen", "open", "openat", "open_tree"})
_MAKING = frozenset({"mkdir", "mkdirat", "mknod", "mknodat", "chmod", "chown", "lchown"})
_DUPLICATE = (0, 0x406)  # F_DUPFD, F_DUPFD_CLOEXEC
_SET_FD = 5  # FSCONFIG_SET_FD

# All that is ever removed: a directory in the overlay on which the probe tries that.
_REMOVED = "s" + b"directory".hex()
_BY_NUMBER = "s" + b"/proc/self/fd/".hex()

_LINE = re.compile(r"\[\s*(\d+)\] (\w+)\((.*)\)\s+= (-?\w+)")
_ARGUMENT = re.compile(r'"[^"]*"|\{[^}]*\}|[^,\s]+')

_ASKING = ("access", "faccessat", "faccessat2")
_TRACED = ",".join(f"?{name}" for name in (*_DESCRIPTORS, *_ASKING))

STRACE = (
    *("strace", "-ff", "-n", "-X", "raw", "-xx", "-s", "4096"),
    *("-e", "signal=none", "-e", f"trace={_TRACED}"),
)


class FloorError(Exception):
    """The record cannot be made into a program, or the program does not run."""


@dataclass(frozen=True)
class Call:
    """One system call: ``arguments`` as the program writes them, ``result`` a register."""

    name: str
    number: int
    arguments: tuple[str, ...]
    result: int | None = None

    def __str__(self) -> str:
        result = "-" if self.result is None else f"r{self.result}"
        return " ".join([str(self.number), result, *self.arguments])

    @property
    def used(self) -> set[int]:
        return {int(text[1:]) for text in self.arguments if text[0] == "r"}


@dataclass(frozen=True)
class Program:
    """What is done once, and what is repeated: ``LOOPED`` sandboxes."""

    once: tuple[Call, ...]
    loop: tuple[Call, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.once), "loop", *map(str, self.loop), ""])

    def calls(self) -> dict[str, float]:
        """How many of each kind a sandbox takes."""
        counts = Counter(call.name for call in self.loop)
        return {name: number / LOOPED for name, number in counts.most_common()}


def translate(record: str) -> Program:
    """The program of one process' record. Raises :class:`FloorError`."""
    calls: list[Call] = []
    starts: list[int] = []
    for line in record.splitlines():
        if is_mark(line):
            starts.append(len(calls))
        elif (call := _call(line)) is not None:
            calls.append(call)
    if len(starts) < BEFORE + LOOPED + 1:
        raise FloorError(f"the record shows {len(starts)} tests of {TESTS}")
    begin, end = starts[BEFORE], starts[BEFORE + LOOPED]
    needed = _needed(calls[:end])
    once = tuple(call for index, call in enumerate(calls[:begin]) if index in needed)
    loop = tuple(calls[index] for index in range(begin, end) if index in needed)
    if not any(call.name == "unshare" for call in loop):
        raise FloorError("the traced tests have made no namespaces")
    return Program(once, loop)


def is_mark(line: str) -> bool:
    """Whether a test begins here."""
    return "".join(f"\\x{byte:02x}" for byte in MARK.encode()) in line


def _call(line: str) -> Call | None:
    """The call in this line if it worked and is one of those that are kept."""
    match = _LINE.match(line)
    if match is None or match[2] not in _DESCRIPTORS or match[4].startswith("-"):
        return None
    name, texts = match[2], _ARGUMENT.findall(match[3])
    if name == "fcntl" and int(texts[1], 0) not in _DUPLICATE:
        return None
    descriptors = set(_DESCRIPTORS[name])
    if name == "fsconfig" and int(texts[1], 0) == _SET_FD:
        descriptors.add(4)
    arguments = tuple(_argument(text, index in descriptors) for index, text in enumerate(texts))
    if name == "unlinkat" and arguments[1] != _REMOVED:
        return None
    if not name.startswith("symlink") and any(text.startswith(_BY_NUMBER) for text in arguments):
        raise FloorError(f"a path that {name} is given names a descriptor by its number")
    if name in _MAKING and arguments[len(_DESCRIPTORS[name])].startswith("s2f"):
        # On the machine's own disk: not the sandbox's doing.
        return None
    return Call(name, int(match[1]), arguments, int(match[4]) if name in _OPENING else None)


def _argument(text: str, descriptor: bool) -> str:
    if text.startswith('"'):
        plain = text.strip('"').replace("\\x", "")
        return f"s{plain}"
    if text.startswith("{"):  # struct mount_attr
        values = [int(field.rpartition("=")[2], 0) for field in text.strip("{}").split(",")]
        return f"s{struct.pack(f'={len(values)}Q', *values).hex()}"
    if text == "NULL":
        return "i0"
    value = int(text, 8) if re.fullmatch("0[0-7]+", text) else int(text, 0)
    return f"r{value}" if descriptor and value >= 0 else f"i{value}"


def _needed(calls: Sequence[Call]) -> set[int]:
    """Without what is opened and never used for a call that is kept, and its closing."""
    needed = set(range(len(calls)))
    while True:
        opened: dict[int, int] = {}
        idle: dict[int, int] = {}  # where it was opened -> where it is closed
        for index in sorted(needed):
            call = calls[index]
            for register in call.used:
                if register not in opened:
                    if register > 2:
                        # Opened before, or in a way that is not kept.
                        needed.discard(index)
                elif call.name != "close":
                    idle.pop(opened[register], None)
                else:
                    place = opened.pop(register)
                    if place in idle:
                        idle[place] = index
            if call.result is not None:
                opened[call.result] = index
                idle[index] = index
        if not idle:
            return needed
        needed.difference_update(idle, idle.values())


def replay(program: str, count: int) -> dict[str, float]:
    """Milliseconds of one sandbox, if the program's loop is done ``count`` times."""
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    registers: dict[str, ctypes.c_long] = {f"r{fd}": ctypes.c_long(fd) for fd in range(3)}

    def argument(text: str) -> ctypes.c_long | ctypes.c_char_p:
        if text[0] == "s":
            return ctypes.c_char_p(bytes.fromhex(text[1:]))
        if text[0] == "r":
            return registers.setdefault(text, ctypes.c_long(-1))
        return ctypes.c_long(int(text[1:]))

    def perform(calls: Iterable[tuple[tuple[object, ...], ctypes.c_long | None]]) -> None:
        for arguments, result in calls:
            value = syscall(*arguments)
            if value < 0:
                raise FloorError(f"{arguments}: errno {ctypes.get_errno()}")
            if result is not None:
                result.value = value

    parts = []
    for lines in program.split("loop\n"):
        calls = []
        for line in lines.splitlines():
            number, result, *texts = line.split(" ")
            register = None if result == "-" else registers.setdefault(result, ctypes.c_long(-1))
            arguments = tuple(argument(text) for text in texts)
            calls.append(((ctypes.c_long(int(number)), *arguments), register))
        parts.append(calls)
    once, loop = parts
    perform(once)
    rounds = []
    for _ in range(count):
        began = time.perf_counter()
        perform(loop)
        rounds.append((time.perf_counter() - began) * 1000)
    return {
        "mean": statistics.mean(rounds),
        "median": statistics.median(rounds),
        "p10": sorted(rounds)[len(rounds) // 10],
    }


if __name__ == "__main__":
    print(json.dumps(replay(Path(sys.argv[1]).read_text(), int(sys.argv[2]))))
