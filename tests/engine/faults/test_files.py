"""What survives a power cut, with real files and system calls, in a sandbox."""

from __future__ import annotations

import mmap
import os
import random
import shutil
import stat

import pytest

from pytest_mountns.engine.faults.crash_point import Order
from pytest_mountns.engine.faults.exploration import run
from pytest_mountns.engine.sandbox.sandbox import Sandbox
from pytest_mountns.engine.sandbox.stack import SandboxStack, close
from tests.engine.faults.redo import Operation, Redo, sequence
from tests.helpers.worlds import BASE, Mode, in_sandbox, in_world

#: For each kind of user. A batch is done within a minute.
SEQUENCES = int(os.environ.get("MOUNTNS_SEQUENCES", "60"))
BATCH = 250
TREE = f"{BASE}/tree"


def _carry_out(operation: str, arguments: tuple[object, ...], dice: random.Random) -> None:
    path = f"{TREE}/{arguments[0]}".rstrip("/")
    other = f"{TREE}/{arguments[1]}" if len(arguments) > 1 else ""
    if operation == "create":
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    elif operation == "mkdir":
        os.mkdir(path, 0o755)
    elif operation == "write":
        fd = os.open(path, os.O_RDWR)
        content, offset = arguments[2], arguments[1]
        assert isinstance(content, bytes)
        assert isinstance(offset, int)
        if dice.random() < 0.5:
            os.lseek(fd, offset, os.SEEK_SET)
            os.write(fd, content)
        else:
            os.pwritev(fd, [content[:1], content[1:]], offset)
        os.close(fd)
    elif operation == "truncate":
        size = arguments[1]
        assert isinstance(size, int)
        if size == 0 and dice.random() < 0.5:
            os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
        else:
            os.truncate(path, size)
    elif operation == "chmod":
        mode = arguments[1]
        assert isinstance(mode, int)
        os.chmod(path, mode)
    elif operation == "link":
        os.link(path, other)
    elif operation == "rename":
        os.rename(path, other)
    elif operation in ("fsync", "fdatasync"):
        fd = os.open(path, os.O_RDONLY)
        getattr(os, operation)(fd)
        os.close(fd)
    else:
        getattr(os, operation)(path)


def _tree() -> dict[str, tuple[int, bytes | None]]:
    found: dict[str, tuple[int, bytes | None]] = {}
    for place, directories, files in os.walk(TREE):
        for name in (*directories, *files):
            path = os.path.join(place, name)
            mode = stat.S_IMODE(os.lstat(path).st_mode)
            content = None
            if name in files:
                with open(path, "rb") as file:
                    content = file.read()
            found[os.path.relpath(path, TREE)] = mode, content
    return found


def _make(redo: Redo) -> None:
    os.mkdir(TREE)
    for path, node in redo.everything():
        if node in redo.directories:
            os.mkdir(f"{TREE}/{path}")
        else:
            with open(f"{TREE}/{path}", "wb") as file:
                file.write(redo.contents[node])


def _disagreement(sandbox: Sandbox, stack: SandboxStack, seed: int) -> str:
    """Cut the power somewhere in a random sequence, and compare. "" if all is as it should be."""
    dice = random.Random(seed)
    redo, operations = sequence(seed, dice.randint(1, 15))
    progress = mmap.mmap(-1, 4)

    def work() -> None:
        own = random.Random(seed)
        for number, (operation, arguments) in enumerate(operations):
            progress[:4] = number.to_bytes(4, "little")
            _carry_out(operation, arguments, own)
        progress[:4] = len(operations).to_bytes(4, "little")

    lose_names = dice.random() < 0.6
    order = Order(
        globs=(f"{TREE}/**", TREE),
        stop_at=dice.randint(0, len(operations)),
        power="strict" if lose_names else "ordered",
        cut=True,
        lose_names=lose_names,
        drops_capabilities=sandbox.plan.drops_capabilities,
    )
    os.umask(0o022)
    below = dice.random() < 0.5
    if below:
        _make(redo)
    try:
        with stack.checkpoint():
            if not below:
                _make(redo)
            run(work, order)
            done: list[Operation] = operations[: int.from_bytes(progress[:4], "little")]
            for operation, arguments in done:
                redo.do(operation, *arguments)
            found, expected = _tree(), redo.survivors(lose_names=lose_names)
    finally:
        if below:
            shutil.rmtree(TREE)
        progress.close()
    if found == expected:
        return ""
    return f"seed {seed}, names lost: {lose_names}, {done}:\n{found}\n{expected}"


@pytest.mark.layered
def test_random_sequences_survive_as_in_a_model_that_was_written_independently(
    mode: Mode,
) -> None:
    def batch(seeds: range) -> list[str]:
        def inside(sandbox: Sandbox) -> list[str]:
            stack = SandboxStack(sandbox, close)
            return [text for seed in seeds if (text := _disagreement(sandbox, stack, seed))]

        return in_world(lambda: in_sandbox(inside, mode=mode), mode)

    for first in range(0, SEQUENCES, BATCH):
        assert batch(range(first, min(first + BATCH, SEQUENCES))) == []
