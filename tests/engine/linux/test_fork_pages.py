"""Pages that fork(2) copies at once: which they are, and what becomes of them."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pytest

from pytest_mountns.engine.linux.fork_pages import Mapping, budget, choose, read_mappings

Script: TypeAlias = Callable[[str], None]

PAGE = os.sysconf("SC_PAGE_SIZE")
MEMORY = Mapping(100 * PAGE, 200 * PAGE, of_file=False, huge=False)


def _pages(runs: Iterator[tuple[int, int]]) -> list[int]:
    return [
        page for start, length in runs for page in range(start // PAGE, (start + length) // PAGE)
    ]


def test_most_children_have_written_to_what_is_chosen() -> None:
    written = [[101, 102, 110], [101, 102, 120], [101, 130], [101, 102]]
    assert list(choose(written, [MEMORY], 10)) == [(101 * PAGE, 2 * PAGE)]


def test_what_all_have_written_to_comes_first() -> None:
    written = [[101, 102, 199], [101, 102, 199], [102, 199]]
    assert _pages(choose(written, [MEMORY], 2)) == [102, 199]


def test_only_memory_that_is_still_there_is_chosen() -> None:
    other = Mapping(300 * PAGE, 301 * PAGE, of_file=True, huge=False)
    written = [[99, 100, 199, 200, 250, 300, 301]]
    assert _pages(choose(written, [other, MEMORY], 10)) == [100, 199, 300]


def test_huge_pages_are_left_alone() -> None:
    huge = Mapping(300 * PAGE, 1300 * PAGE, of_file=False, huge=True)
    assert _pages(choose([[150, 400]], [MEMORY, huge], 10)) == [150]


@pytest.mark.parametrize(
    ("limit", "exempt", "processes", "pages"),
    [
        pytest.param(800 * PAGE, False, 1, 400, id="half is left to others"),
        pytest.param(800 * PAGE, False, 4, 100, id="workers share"),
        pytest.param(PAGE, False, 1, 0, id="too little"),
        pytest.param(0, True, 1, 2048, id="exempt"),
        pytest.param(resource.RLIM_INFINITY, False, 1, 2048, id="no limit"),
        pytest.param(1 << 40, False, 1, 2048, id="more than is of use"),
    ],
)
def test_budget(limit: int, exempt: bool, processes: int, pages: int) -> None:
    assert budget(limit, exempt=exempt, processes=processes) == pages


def test_mappings_that_can_be_pinned() -> None:
    smaps = """\
55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
AnonHugePages:         0 kB
Private_Hugetlb:       0 kB
7f0000000000-7f0000400000 rw-p 00000000 00:00 0
AnonHugePages:      2048 kB
7f1000000000-7f1000001000 rw-s 00000000 00:01 1234                       /dev/zero (deleted)
AnonHugePages:         0 kB
7f2000000000-7f2000001000 rw-p 00003000 fe:00 77                         /usr/lib/rw-p 0.so
Private_Hugetlb:       0 kB
7f2000001000-7f2000002000 r-xp 00004000 fe:00 77                         /usr/lib/rw-p 0.so
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
"""
    assert [(hex(m.start), m.of_file, m.huge) for m in read_mappings(smaps)] == [
        ("0x55d0c0000000", False, False),
        ("0x7f0000000000", False, True),
        ("0x7f2000000000", True, False),
        ("0x7ffe00000000", False, False),
    ]


# A process of its own: the pages that it pins, and its limits, last until it ends.
PRELUDE = """
import ctypes, mmap, os, re, resource, signal, struct, sys
from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.fork_pages import ForkPages

PAGES = 600
def private(pages):
    found = mmap.mmap(-1, pages * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # Huge pages, which some kernels give without being asked, cannot be pinned one by one.
    found.madvise(mmap.MADV_NOHUGEPAGE)
    found[::4096] = b"p" * pages
    return found

memory = private(PAGES)

def pinned():
    return int(re.search(r"VmPin:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 4

def child(hot, action=lambda: None):
    # Returns the child's answer, and how many page faults it had when it wrote to all the memory.
    reader, writer = os.pipe()
    learns = hot.before_fork()
    pid = os.fork()
    if pid == 0:
        hot.close()
        answer = action()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        memory[::4096] = b"c" * PAGES
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        pages = learns() if learns else b""
        os.write(writer, struct.pack("II", faults, len(pages)))
        with open(writer, "wb") as file:
            file.write(pages + repr(answer).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    faults, length = struct.unpack("II", data[:8])
    if learns:
        hot.learn(data[8:8 + length])
    return data[8 + length:].decode(), faults

def drop_ipc_lock():
    effective, permitted, inheritable = syscalls.capget()
    syscalls.capset(effective & ~(1 << 14), permitted & ~(1 << 14), inheritable & ~(1 << 14))

hot = ForkPages(1)
"""


@pytest.fixture
def script(tmp_path: Path) -> Script:
    def run(text: str) -> None:
        done = subprocess.run(
            [sys.executable, "-c", PRELUDE + text], capture_output=True, text=True, cwd=tmp_path
        )
        if done.returncode == 77:
            pytest.skip(done.stdout.strip())
        assert done.returncode == 0, done.stdout + done.stderr

    return run


NEEDS = """
try:
    os.close(syscalls.io_uring_setup(1))
except OSError as error:
    print(f"no io_uring here: {error}")
    sys.exit(77)
if not os.path.exists("/proc/self/pagemap"):
    print("no pagemap here")
    sys.exit(77)
if max(resource.getrlimit(resource.RLIMIT_MEMLOCK)) < 8 << 20 and os.geteuid():
    print("RLIMIT_MEMLOCK is too low here")
    sys.exit(77)
"""


def test_children_take_no_faults_for_pages_that_they_write_to(script: Script) -> None:
    script(
        NEEDS
        + """
first = [child(hot)[1] for _ in range(8)]
assert min(first) >= PAGES, first
assert pinned() >= PAGES, pinned()
assert child(hot)[1] < PAGES // 10
"""
    )


def test_parent_and_child_see_what_they_see_without(script: Script) -> None:
    script(
        NEEDS
        + """
for _ in range(8):
    child(hot)
assert pinned() >= PAGES
# What the child writes is its own,
assert memory[::4096] == b"p" * PAGES
# and what the parent writes while a child lives is the parent's.
reader, writer = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(reader, 1)
    os._exit(0 if memory[::4096] == b"p" * PAGES else 1)
memory[::4096] = b"q" * PAGES
os.write(writer, b".")
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert child(hot, lambda: memory[::4096] == b"q" * PAGES)[0] == "True"
# Memory that is let go of and mapped anew is new.
memory.madvise(mmap.MADV_DONTNEED)
assert child(hot, lambda: memory[::4096] == bytes(PAGES))[0] == "True"
"""
    )


def test_the_ring_is_not_in_children(script: Script) -> None:
    script(
        NEEDS
        + """
def descriptors():
    found = (os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd"))
    return sum("io_uring" in path for path in found)
for _ in range(8):
    child(hot)
assert descriptors() == 1
assert child(hot, descriptors)[0] == "0"
hot.close()
assert descriptors() == 0
"""
    )


def test_it_learns_again(script: Script) -> None:
    script(
        NEEDS
        + """
for _ in range(63):
    child(hot)
assert pinned() >= PAGES
memory = private(PAGES)
assert child(hot)[1] >= PAGES
for _ in range(4):
    child(hot)
assert child(hot)[1] < PAGES // 10
"""
    )


def test_no_more_is_locked_than_half_of_the_limit(script: Script) -> None:
    script(
        NEEDS
        + """
if not os.geteuid():
    drop_ipc_lock()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (800 * 4096, 800 * 4096))
for _ in range(8):
    child(hot)
assert 0 < pinned() <= 400, pinned()
"""
    )


SECCOMP = """
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
def forbid(number):
    # Load the number; if it is this one, EPERM; else go on.
    code = struct.pack("HBBI" * 4, 0x20, 0, 0, 0, 0x15, 0, 1, number,
                       0x06, 0, 0, 0x50001, 0x06, 0, 0, 0x7FFF0000)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(Program(4, code)), 0, 0) == 0
"""


@pytest.mark.parametrize("number", [425, 427], ids=["setup", "register"])
def test_where_it_is_forbidden_all_goes_on_as_without(script: Script, number: int) -> None:
    script(
        SECCOMP
        + f"""
forbid({number})
for _ in range(12):
    answer, faults = child(hot, lambda: memory[0])
    assert answer == str(ord("p")) and faults >= PAGES, (answer, faults)
assert pinned() == 0
assert hot._ring == -1
for _ in range(100):
    assert not hot.before_fork()
"""
    )


def test_a_limit_of_nothing_pins_nothing(script: Script) -> None:
    script(
        """
if not os.geteuid():
    drop_ipc_lock()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
for _ in range(9):
    assert child(hot, lambda: memory[0])[0] == str(ord("p"))
assert pinned() == 0
"""
    )
