"""What the writer of archives writes, the reader reads: any name, attribute and time of Linux."""

from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_mountns.engine.layers.tar_reader import BLOCK, DIRECTORY, FILE, SYMLINK, Member, Reader
from pytest_mountns.engine.layers.tar_writer import Writer, header
from pytest_mountns.engine.linux.errors import LayerError
from tests.helpers.archives import END

_BILLION = 10**9
_ODD = [b"=", b"%", b"%25", b"%3D", b"%3d", b"%253D", b"\n", b" ", b"\xff", "\u00e4".encode(), b"a"]


class Memory:
    """Bytes that are read as a stream."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    @property
    def position(self) -> int:
        return self._file.tell()

    @position.setter
    def position(self, value: int) -> None:
        self._file.seek(value)

    def some(self, size: int) -> bytes:
        return self._file.read(size)

    def exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        assert len(data) == size
        return data

    def skip(self, size: int) -> None:
        self.exactly(size)


def read_back(member: Member) -> Member:
    reader = Reader(Memory(header(member) + bytes(member.size + -member.size % BLOCK) + END))
    found = reader.next()
    assert found is not None
    assert reader.next() is None
    found.position = 0
    return found


def file(mtime: int = 0, xattrs: dict[bytes, bytes] | None = None) -> Member:
    return Member(b"file", FILE, b"", 0o644, 0, 0, 0, mtime, (0, 0), 0, xattrs or {})


def test_whatever_a_file_may_be_called_and_have_is_read_back() -> None:
    for seed in range(2000):
        chance = random.Random(seed)

        def odd(most: int, chance: random.Random = chance) -> bytes:
            return b"".join(chance.choices(_ODD, k=chance.randint(1, most)))

        kind = chance.choice([FILE, DIRECTORY, SYMLINK])
        name = b"/".join(odd(chance.choice([3, 60])) for _ in range(chance.randint(1, 4)))
        member = Member(
            name + b"/" if kind == DIRECTORY else name,
            kind,
            odd(150) if kind == SYMLINK else b"",
            chance.randrange(0o10000),
            chance.choice([0, 1000, 8**7 - 1, 8**7, 2**32 - 2]),
            chance.choice([0, 1000, 8**7 - 1, 8**7, 2**32 - 2]),
            chance.choice([0, 1, BLOCK]) if kind == FILE else 0,
            chance.randrange(-(2 ** chance.randint(1, 92)), 2 ** chance.randint(1, 92)),
            (0, 0),
            0,
            {
                b"user." + odd(12): chance.randbytes(chance.randint(0, 9))
                for _ in range(chance.randint(0, 4))
            },
        )
        assert read_back(member) == member, seed


@pytest.mark.parametrize(
    "mtime",
    [
        *(-(2**63) * _BILLION, 2**63 * _BILLION - 1),
        *(10**10 * _BILLION, -(10**10) * _BILLION, 8**11 * _BILLION, 8**11 * _BILLION - 1),
        *(0, -1, 1, -_BILLION, -_BILLION + 1),
    ],
)
def test_every_time_that_the_kernel_can_hold_is_read_back(mtime: int) -> None:
    assert read_back(file(mtime=mtime)).mtime == mtime


@pytest.mark.parametrize("mtime", [2**63 * _BILLION, -(2**63) * _BILLION - 1])
def test_no_other_time_is_read(mtime: int) -> None:
    with pytest.raises(LayerError, match="out of range"):
        read_back(file(mtime=mtime))


def test_attributes_whose_names_differ_by_an_equals_sign_are_two() -> None:
    member = file(xattrs={b"user.k": b"1", b"user.k=v": b"x", b"user.k%3Dv": b"y", b"user.k%": b""})
    assert read_back(member).xattrs == member.xattrs


def test_gnu_tar_writes_names_of_attributes_in_the_same_way(tmp_path: Path) -> None:
    if (tar := shutil.which("tar")) is None:
        pytest.skip("no program tar here")
    archive, source = tmp_path / "archive", tmp_path / "file"
    source.write_bytes(b"")
    try:
        for name in ("user.k=v", "user.k%3Dv", "user.100%"):
            os.setxattr(source, name, b"x=y")
    except OSError as error:
        pytest.skip(f"no attributes here: {error}")
    command = [tar, "--xattrs", "--format=posix", "-C", str(tmp_path), "-cf", str(archive), "file"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this tar stores no attributes")
    found = Reader(Memory(archive.read_bytes())).next()
    assert found is not None
    assert found.xattrs == {b"user.k=v": b"x=y", b"user.k%3Dv": b"x=y", b"user.100%": b"x=y"}


def test_more_attributes_than_are_read_are_not_written() -> None:
    member = file(xattrs={b"user.%d" % number: bytes(65536) for number in range(130)})
    with pytest.raises(LayerError, match="extended attributes of 'file'") as caught:
        Writer(io.BytesIO(), "").add(member)
    assert caught.value.remedy
