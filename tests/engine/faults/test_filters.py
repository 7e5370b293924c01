"""The tables of system calls, and the filters that are made of them."""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

import pytest

from pytest_mountns.engine.faults import calls
from pytest_mountns.engine.faults.calls import (
    ARCHITECTURES,
    CALLS,
    REFUSED,
    Architecture,
    Kind,
    numbered,
)
from pytest_mountns.engine.faults.filters import program
from pytest_mountns.engine.linux.errors import Unavailable

ALLOW, NOTIFY, FAILS = 0x7FFF0000, 0x7FC00000, 0x00050000
EVERYTHING = {call.name for call in CALLS}


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def answer(
    instructions: bytes, number: int, audit: int, arguments: tuple[int, ...] = (0,) * 6
) -> int:
    """What the kernel would make of a call, by the program's own instructions."""
    data = struct.pack("=IIQ6Q", number, audit, 0, *arguments)
    accumulator, at = 0, 0
    while True:
        code, yes, no, value = struct.unpack_from("=HBBI", instructions, 8 * at)
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == 0x15:
            at += yes if accumulator == value else no
        elif code == 0x45:
            at += yes if accumulator & value else no
        else:
            assert code == 0x06
            return int(value)


def test_no_number_stands_for_two_calls(machine: Architecture) -> None:
    numbers = [call.numbers[machine.column] for call in CALLS]
    known = [number for number in numbers if number is not None]
    assert len(known) == len(set(known)) == len(numbered(machine))
    assert not {refused.numbers[machine.column] for refused in REFUSED} & set(known)


def test_the_filter_stops_the_calls_of_the_table_and_no_others(machine: Architecture) -> None:
    instructions = program(machine, EVERYTHING, changes_only=False)
    table = numbered(machine)
    for number in range(500):
        expected = NOTIFY if number in table else ALLOW
        if number in (425, {"x86_64": 206, "aarch64": 0}[machine.machine]):
            # io_uring_setup and io_setup.
            expected = FAILS | errno.ENOSYS
        assert answer(instructions, number, machine.audit) == expected, number


@pytest.mark.parametrize("changes_only", [True, False])
@pytest.mark.parametrize("names", [EVERYTHING, set()])
@pytest.mark.parametrize(
    ("request_number", "expected"),
    [
        (0x40049409, FAILS | errno.EOPNOTSUPP),
        (0x4020940D, FAILS | errno.EOPNOTSUPP),
        # The kernel looks at the low half only.
        (0xFFFFFFFF_40049409, FAILS | errno.EOPNOTSUPP),
        (0x5401, ALLOW),
        (0xC0189436, ALLOW),
    ],
)
def test_only_requests_to_clone_a_file_are_refused(
    machine: Architecture,
    request_number: int,
    expected: int,
    names: set[str],
    changes_only: bool,
) -> None:
    instructions = program(machine, names, changes_only=changes_only)
    number = {"x86_64": 16, "aarch64": 29}[machine.machine]
    arguments = (3, request_number, 4, 0, 0, 0)
    assert answer(instructions, number, machine.audit, arguments) == expected


def test_only_the_calls_that_were_asked_for_are_stopped(machine: Architecture) -> None:
    instructions = program(machine, {"fsync"}, changes_only=False)
    stopped = {
        call.name
        for number, call in numbered(machine).items()
        if answer(instructions, number, machine.audit) == NOTIFY
    }
    assert stopped == {"fsync"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (os.O_RDONLY, ALLOW),
        (os.O_RDWR | os.O_CLOEXEC | os.O_APPEND, ALLOW),
        (os.O_WRONLY | os.O_CREAT, NOTIFY),
        (os.O_WRONLY | os.O_TRUNC, NOTIFY),
        (calls.O_TMPFILE | os.O_RDWR, NOTIFY),
    ],
)
def test_an_open_that_changes_nothing_runs_at_the_kernels_own_speed(
    machine: Architecture, flags: int, expected: int
) -> None:
    instructions = program(machine, EVERYTHING, changes_only=True)
    number = calls.BY_NAME["openat"].numbers[machine.column]
    assert number is not None
    assert answer(instructions, number, machine.audit, (0, 0, flags, 0, 0, 0)) == expected


@pytest.mark.parametrize(("flags", "expected"), [(0x22, ALLOW), (0x02, ALLOW), (0x01, NOTIFY)])
def test_private_mappings_are_not_stopped(machine: Architecture, flags: int, expected: int) -> None:
    instructions = program(machine, EVERYTHING, changes_only=True)
    number = calls.BY_NAME["mmap"].numbers[machine.column]
    assert number is not None
    assert answer(instructions, number, machine.audit, (0, 4096, 3, flags, 3, 0)) == expected


def test_every_call_of_a_32_bit_program_is_stopped(machine: Architecture) -> None:
    instructions = program(machine, EVERYTHING, changes_only=True)
    assert answer(instructions, 20, 0x40000003) == NOTIFY


def test_an_architecture_without_a_table_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Elsewhere:
        machine = "riscv64"

    monkeypatch.setattr("pytest_mountns.engine.faults.calls.os.uname", Elsewhere)
    with pytest.raises(Unavailable) as caught:
        calls.architecture()
    assert "riscv64" in str(caught.value)
    assert "x86_64 or aarch64" in str(caught.value)


def _defined(text: str) -> dict[str, int]:
    # In the header of all architectures some names have a prefix that says which width is meant.
    found = re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\b", text)
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize(
    ("machine_name", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_the_numbers_are_those_of_the_kernels_headers(machine_name: str, header: str) -> None:
    if not os.path.exists(header):
        pytest.skip(f"no {header} here")
    known = _defined(Path(header).read_text())
    architecture = ARCHITECTURES[machine_name]
    ours = {call.name: number for number, call in numbered(architecture).items()}
    ours |= {refused.name: refused.numbers[architecture.column] for refused in REFUSED}
    wrong = {
        name: (number, known[name])
        for name, number in ours.items()
        # The header may be older than a call.
        if name in known and known[name] != number
    }
    assert wrong == {}
    checked = {call.name for call in CALLS} & set(known)
    assert len(checked) > 40


def test_what_changes_a_file_says_which_file() -> None:
    for call in CALLS:
        if call.kind not in (Kind.SYNC_ALL, Kind.SYNC_MAP):
            assert (call.descriptor is None) != (call.path is None), call.name
