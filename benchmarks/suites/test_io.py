"""Reading and writing, one kind a test. All below ``tmp_path`` or the suite's own directory."""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

SCALE = float(os.environ.get("BENCHMARK_SCALE", "1"))
LOWER = Path(__file__).with_name("lower")


def times(number: int) -> range:
    return range(max(1, int(number * SCALE)))


def test_nothing(witness: None, tmp_path: Path) -> None:
    pass


def test_small_files(tmp_path: Path) -> None:
    """10,000 times: create, write 100 bytes, stat, unlink."""
    for number in times(10_000):
        path = os.path.join(tmp_path, f"file{number}")
        with open(path, "wb") as file:
            file.write(b"x" * 100)
        assert os.stat(path).st_size == 100
        os.unlink(path)


def test_copy_up(tmp_path: Path) -> None:
    """One byte into each of 1,000 files of 4 KiB that lie below the sandbox."""
    for number in times(1_000):
        with open(LOWER / str(number), "r+b", buffering=0) as file:
            file.write(b"y")


def test_big_file(tmp_path: Path) -> None:
    """200 MB, written and read a megabyte at a time."""
    block, path = bytes(1_000_000), tmp_path / "big"
    with open(path, "wb", buffering=0) as file:
        for _ in times(200):
            file.write(block)
    with open(path, "rb", buffering=0) as file:
        while file.read(1_000_000):
            pass
    os.unlink(path)


def test_git(tmp_path: Path) -> None:
    """``git init`` and 200 commits, each of one new file."""
    environ = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "benchmark@example.invalid"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
    }

    def git(*arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=tmp_path, env=environ, check=True)

    git("init", "--quiet")
    for number in times(200):
        (tmp_path / f"file{number}").write_text(f"{number}\n")
        git("add", f"file{number}")
        git("-c", "gc.auto=0", "commit", "--quiet", "--message", str(number))


def test_sqlite(tmp_path: Path) -> None:
    """5,000 inserts, a commit after each 100: rollback journal, synchronous=FULL (the defaults)."""
    with closing(sqlite3.connect(tmp_path / "database")) as database:
        database.execute("create table things (number integer primary key, text text)")
        for number in times(5_000):
            database.execute("insert into things values (?, ?)", (number, "x" * 100))
            if number % 100 == 99:
                database.commit()
        database.commit()
