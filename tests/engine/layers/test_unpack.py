"""Archives of layers, sound and malformed, unpacked into a directory of the test's own."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_mountns.engine.layers import streams
from pytest_mountns.engine.layers.limits import Limits
from pytest_mountns.engine.layers.streams import Section, Stream, decompressed
from pytest_mountns.engine.layers.unpack import Form, Unpacked, unpack
from pytest_mountns.engine.linux.errors import LayerError
from pytest_mountns.engine.linux.openat import open_directory
from pytest_mountns.engine.linux.remove_tree import remove_tree
from pytest_mountns.engine.linux.syscalls import AT_FDCWD
from pytest_mountns.engine.plan.spec import SpecError
from tests.helpers.archives import (
    END,
    archive,
    directory,
    extended,
    hardlink,
    member,
    records,
    sha256,
    symlink,
)
from tests.helpers.places import place_for_whiteouts

FORM: Form = "trusted" if os.geteuid() == 0 else "user"


class Place:
    """Where archives are unpacked, beside something that must not change."""

    def __init__(self, path: Path) -> None:
        self.base = path
        self.tree = path / "tree"
        self.tree.mkdir()
        self.outside = path / "outside"
        self.outside.mkdir()
        (self.outside / "file").write_bytes(b"untouched")

    def unpack(
        self,
        data: bytes,
        form: Form = FORM,
        limits: Limits | None = None,
        *,
        openat2: bool = True,
    ) -> Unpacked:
        limits = limits or Limits()
        file = self.base / "archive"
        file.write_bytes(data)
        fd = os.open(file, os.O_RDONLY)
        tree = os.open(self.tree, os.O_RDONLY | os.O_DIRECTORY)
        try:
            section = Section(fd, 0, len(data))
            with decompressed(section, str(self.base)) as source:
                stream = Stream(source, section, limits)
                result = unpack(stream, tree, form, limits, openat2=openat2)
                stream.digest()
            return result
        finally:
            os.close(tree)
            os.close(fd)

    def check_outside(self) -> None:
        names = {path.name for path in self.base.iterdir()}
        # A test that is skipped has none.
        assert names | {"archive"} == {"tree", "outside", "archive"}
        assert [path.name for path in self.outside.iterdir()] == ["file"]
        assert (self.outside / "file").read_bytes() == b"untouched"
        assert os.lstat(self.outside / "file").st_nlink == 1


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with place_for_whiteouts(tmp_path) as place:
        yield place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.check_outside()


def is_whiteout(path: Path) -> bool:
    status = os.lstat(path)
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path, form: str = FORM) -> bool:
    name = f"{form}.overlay.opaque"
    return name in os.listxattr(path) and os.getxattr(path, name) == b"y"


def test_what_the_standard_library_packs(place: Place) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind, mode in (
            ("etc", tarfile.DIRTYPE, 0o751),
            ("etc/" + "long" * 40, tarfile.REGTYPE, 0o640),
            ("etc/link", tarfile.SYMTYPE, 0o777),
            ("etc/hard", tarfile.LNKTYPE, 0o640),
            ("etc/fifo", tarfile.FIFOTYPE, 0o600),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.mtime = kind, mode, 1_500_000_000
            if kind == tarfile.REGTYPE:
                info.size = 5
                tar.addfile(info, io.BytesIO(b"hello"))
                continue
            info.linkname = "etc/" + "long" * 40 if kind == tarfile.LNKTYPE else "/nowhere/../x"
            tar.addfile(info)
    result = place.unpack(out.getvalue())
    etc = place.tree / "etc"
    assert stat.S_IMODE(etc.stat().st_mode) == 0o751
    assert (etc / ("long" * 40)).read_bytes() == b"hello"
    assert os.readlink(etc / "link") == "/nowhere/../x"
    assert os.path.samefile(etc / "hard", etc / ("long" * 40))
    assert stat.S_ISFIFO(os.lstat(etc / "fifo").st_mode)
    assert {os.lstat(path).st_mtime for path in (etc, *etc.iterdir())} == {1_500_000_000}
    assert (result.members, result.bytes, result.opaque, result.notes) == (5, 5, False, [])


def test_what_the_program_tar_packs(place: Place, tmp_path: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("no program tar here")
    source = place.base / "outside"
    data = subprocess.run(
        ["tar", "-C", str(source), "--format=posix", "-c", "."], check=True, capture_output=True
    ).stdout
    place.unpack(data)
    assert (place.tree / "file").read_bytes() == b"untouched"
    assert (place.tree / "file").stat().st_mtime_ns == (source / "file").stat().st_mtime_ns


@pytest.mark.parametrize("openat2", [True, False])
def test_whiteouts(place: Place, openat2: bool) -> None:
    data = archive(
        directory("kept"),
        member("kept/.wh.gone"),
        directory("opaque"),
        member("opaque/.wh..wh..opq"),
        member("opaque/new", b"new"),
        # The specification has whiteouts first, but any order works.
        member(".wh.first"),
        member("first/inner", b"1"),
        directory("second"),
        member(".wh.second"),
        member(".wh.file"),
        member("file", b"new"),
    )
    result = place.unpack(data, openat2=openat2)
    assert is_whiteout(place.tree / "kept/gone")
    assert not is_opaque(place.tree / "kept")
    assert all(is_opaque(place.tree / name) for name in ("opaque", "first", "second"))
    assert (place.tree / "first/inner").read_bytes() == b"1"
    assert (place.tree / "file").read_bytes() == b"new"
    assert sorted(os.listdir(place.tree / "opaque")) == ["new"]
    assert not result.opaque


def test_root_attributes_and_opaque_root(place: Place) -> None:
    result = place.unpack(archive(directory("./", 0o711), member("./.wh..wh..opq")))
    assert result.opaque
    assert stat.S_IMODE(place.tree.stat().st_mode) == 0o711


def test_missing_parents_are_made(place: Place) -> None:
    place.unpack(archive(member("a/b/c", b"x"), directory("a", 0o700)))
    assert stat.S_IMODE((place.tree / "a").stat().st_mode) == 0o700
    assert stat.S_IMODE((place.tree / "a/b").stat().st_mode) == 0o755


def test_a_directory_twice_is_the_latter(place: Place) -> None:
    place.unpack(archive(directory("a", 0o700), member("a/f", b"x"), directory("a", 0o755)))
    assert stat.S_IMODE((place.tree / "a").stat().st_mode) == 0o755


def test_the_longest_names(place: Place) -> None:
    """A whiteout's name is longer than that of what it hides, which is what has to fit."""
    longest = b"x" * 255
    deep = b"/".join([b"d" * 255] * 15 + [b"e" * 254])
    assert len(deep) == 4094
    place.unpack(
        archive(
            member("a", pax={"path": b".wh." + longest}),
            member("a", kind=b"5", pax={"path": deep + b"f/"}),
            member("a", pax={"path": deep + b"f/.wh..wh..opq"}),
            member("a", pax={"path": deep + b"f/.wh." + longest}),
            member("a", b"content", pax={"path": deep + b"f/y" + longest[1:]}),
        )
    )
    assert is_whiteout(place.tree / os.fsdecode(longest))
    fd = open_directory(AT_FDCWD, os.fsencode(place.tree) + b"/" + deep + b"f")
    try:
        assert os.listxattr(fd) == [f"{FORM}.overlay.opaque"]
        assert sorted(map(os.fsencode, os.listdir(fd))) == [longest, b"y" + longest[1:]]
    finally:
        os.close(fd)
    # An ordinary user may not write to the directories, and pytest could not remove them.
    parent = os.open(place.tree, os.O_RDONLY)
    try:
        remove_tree("d" * 255, parent)
    finally:
        os.close(parent)


def test_closed_directories_are_filled(place: Place) -> None:
    place.unpack(archive(directory("closed", 0), member("closed/inner/file", b"x")))
    assert stat.S_IMODE((place.tree / "closed").stat().st_mode) == 0
    parent = os.open(place.base, os.O_RDONLY)
    try:
        # The cache removes such trees in this way as well.
        remove_tree("tree", parent)
    finally:
        os.close(parent)
    assert not place.tree.exists()
    place.tree.mkdir()


def test_attributes_by_pax(place: Place) -> None:
    pax = {
        "mtime": b"1234567890.987654321",
        "SCHILY.xattr.user.note": b"a\0b\n\xff",
        "path": "n\u00e4me".encode(),
    }
    place.unpack(archive(member("short", b"x", pax=pax)))
    file = place.tree / "n\u00e4me"
    assert file.stat().st_mtime_ns == 1234567890_987654321
    assert os.getxattr(file, "user.note") == b"a\0b\n\xff"


def test_owners(place: Place) -> None:
    result = place.unpack(archive(member("file", b"x", uid=1234, mode=0o4755)))
    status = (place.tree / "file").stat()
    if FORM == "trusted":
        if result.notes:
            pytest.skip("this root may not give files away")
        assert (status.st_uid, status.st_gid) == (1234, 1234)
        assert stat.S_IMODE(status.st_mode) == 0o4755
    else:
        # No other program runs as this user.
        assert status.st_uid == os.geteuid()
        assert stat.S_IMODE(status.st_mode) == 0o755


def test_user_form_gives_no_owners_and_no_set_ids(place: Place) -> None:
    place.unpack(archive(member("file", b"x", uid=1234, mode=0o6755)), "user")
    status = (place.tree / "file").stat()
    assert status.st_uid == os.geteuid()
    assert stat.S_IMODE(status.st_mode) == 0o755


def test_devices_of_a_whole_system_are_left_out(place: Place) -> None:
    result = place.unpack(
        archive(directory("dev"), member("dev/null", kind=b"3", device=(1, 3)), member("file"))
    )
    assert os.listdir(place.tree / "dev") == []
    assert result.notes == ["device nodes in /dev were left out (1)"]


def test_foreign_attributes_are_left_out_and_said(place: Place) -> None:
    pax = {"SCHILY.xattr.security.selinux": b"label", "RHT.security.selinux": b"label"}
    result = place.unpack(archive(member("file", b"x", pax=pax)))
    assert result.notes == ["extended attributes security.selinux were left out (1)"]


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "gzip": lambda data: gzip.compress(data[:600]) + gzip.compress(data[600:]) + bytes(64),
    "bzip2": lambda data: bz2.compress(data[:600]) + bz2.compress(data[600:]),
    "xz": lambda data: lzma.compress(data[:600]) + lzma.compress(data[600:]) + bytes(8),
}


@pytest.mark.parametrize("kind", COMPRESSED)
def test_compressions(place: Place, kind: str) -> None:
    content = os.urandom(700_000)
    place.unpack(
        COMPRESSED[kind](archive(member("file", content), member("zeros", bytes(1 << 20))))
    )
    assert (place.tree / "file").read_bytes() == content
    assert (place.tree / "zeros").read_bytes() == bytes(1 << 20)


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_compression(place: Place, kind: str, damage: str) -> None:
    data = COMPRESSED[kind](archive(member("file", os.urandom(50_000)))).rstrip(b"\0")
    half = len(data) // 2
    flipped = data[:half] + bytes([data[half] ^ 0x55]) + data[half + 1 :]
    with pytest.raises(LayerError, match=f"{kind} data|truncated|checksum"):
        place.unpack(data[:-40] if damage == "cut" else flipped)


@pytest.mark.parametrize("kind", COMPRESSED)
def test_empty_extended_header(place: Place, kind: str) -> None:
    place.unpack(COMPRESSED[kind](archive(extended(b""), member("file", bytes(600)))))
    assert (place.tree / "file").read_bytes() == bytes(600)


def zstd(data: bytes) -> bytes:
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("no program zstd here")
    return subprocess.run([program, "-qc"], input=data, check=True, capture_output=True).stdout


def test_zstd(place: Place) -> None:
    content = os.urandom(700_000)
    place.unpack(zstd(archive(member("file", content))))
    assert (place.tree / "file").read_bytes() == content


def test_damaged_zstd(place: Place) -> None:
    data = zstd(archive(member("file", os.urandom(50_000))))
    with pytest.raises(LayerError, match=r"zstd data|truncated"):
        place.unpack(data[:-40])


def test_zstd_without_anything_that_reads_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    data = zstd(archive(member("file", b"x")))
    monkeypatch.setattr(streams, "_zstd_library", lambda: None)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LayerError, match="pip install zstandard"):
        place.unpack(data)


DEEP = "/".join(["d" * 200] * 30)

MALFORMED = {
    "absolute": (archive(member("/etc/passwd", b"x")), "absolute"),
    "dotdot": (archive(member("../outside/file", b"x")), "leads outside"),
    "dotdot inside": (archive(directory("a"), member("a/../../outside/new", b"x")), "outside"),
    "dotdot directory": (archive(directory("..")), "leads outside"),
    "dotdot by pax": (archive(member("a", b"x", pax={"path": b"../outside/new"})), "outside"),
    "dotdot by gnu": (archive(member("L", b"../outside/x\0", kind=b"L"), member("a")), "outside"),
    "file through a link": (
        archive(symlink("link", "../outside"), member("link/file", b"x")),
        "symbolic link",
    ),
    "directory through a link": (
        archive(symlink("link", "../outside"), directory("link/new")),
        "symbolic link",
    ),
    "link replaced by directory": (
        archive(symlink("link", "../outside"), directory("link")),
        "there twice",
    ),
    "file over a link": (
        archive(symlink("link", "../outside/file"), member("link", b"x")),
        "there twice",
    ),
    "whiteout through a link": (
        archive(symlink("link", "../outside"), member("link/.wh.file")),
        "symbolic link",
    ),
    "opaque through a link": (
        archive(symlink("link", "../outside"), member("link/.wh..wh..opq")),
        "symbolic link",
    ),
    "link to the root": (archive(symlink("link", "."), member("link/x", b"x")), "symbolic link"),
    "hard link outside": (archive(hardlink("a", "../outside/file")), "outside"),
    "absolute hard link": (archive(hardlink("a", "/etc/passwd")), "absolute"),
    "hard link through a link": (
        archive(symlink("link", "../outside"), hardlink("a", "link/file")),
        "not in the archive",
    ),
    "hard link to nothing": (archive(hardlink("a", "b")), "not in the archive"),
    "hard link to a directory": (archive(directory("d"), hardlink("a", "d")), "directory"),
    "hard link to a whiteout": (archive(member(".wh.b"), hardlink("a", "b")), "not in the"),
    "hard link to the root": (archive(hardlink("a", ".")), "not in the archive"),
    "device": (archive(member("sda", kind=b"4", device=(8, 0))), "device node"),
    "device in a directory called dev": (
        archive(member("a/dev/sda", kind=b"4", device=(8, 0))),
        "device node",
    ),
    "whiteout of overlayfs": (archive(member("gone", kind=b"3")), "device node"),
    "whiteout of nothing": (archive(member(".wh.")), "no whiteout of anything"),
    "whiteout of dot": (archive(member("a/.wh..")), "no whiteout of anything"),
    "whiteout of dotdot": (archive(member("a/.wh...")), "no whiteout of anything"),
    "reserved whiteout": (archive(member(".wh..wh.plnk")), "no whiteout of anything"),
    "whiteout twice": (archive(member(".wh.a"), member(".wh.a")), "there twice"),
    "whiteout as a directory": (archive(directory(".wh.a")), "no regular file"),
    "whiteout as a link": (archive(symlink(".wh.a", "b")), "no regular file"),
    "below a whiteout": (archive(member(".wh.a/b", b"x")), "begins with"),
    "file twice": (archive(member("a", b"1"), member("a", b"2")), "there twice"),
    "file and directory": (archive(member("a", b"1"), directory("a")), "there twice"),
    "below a file": (archive(member("a", b"1"), member("a/b", b"2")), "no directory"),
    "root as a file": (archive(member("./", kind=b"2", link="x")), "root of the layer"),
    "empty name": (archive(member("")), "empty name"),
    "NUL in a name": (archive(member("a", pax={"path": b"a\0b"})), "NUL"),
    "long part": (archive(member("a", pax={"path": b"x" * 300})), "255 bytes"),
    "long part of a whiteout": (
        archive(member("a", pax={"path": b".wh." + b"x" * 256})),
        "255 bytes",
    ),
    "long part above a whiteout": (
        archive(member("a", pax={"path": b".wh." + b"x" * 255 + b"/.wh.a"})),
        "255 bytes",
    ),
    "hard link to a long name": (
        archive(member("a", kind=b"1", pax={"linkpath": b".wh." + b"x" * 255})),
        "255 bytes",
    ),
    "long name": (archive(member("a", pax={"path": DEEP.encode()})), "4095 bytes"),
    "long name of a directory": (
        archive(member("a", kind=b"5", pax={"path": b"/".join([b"d" * 255] * 16) + b"/d"})),
        "4095 bytes",
    ),
    "empty link": (archive(symlink("a", "")), "can be no path"),
    "NUL in a link": (archive(member("a", kind=b"2", pax={"linkpath": b"a\0b"})), "no path"),
    "sparse": (archive(member("a", kind=b"S")), "sparse"),
    "sparse by pax": (archive(member("a", pax={"GNU.sparse.major": b"1"})), "sparse"),
    "another volume": (archive(member("a", kind=b"M")), "volume"),
    "unknown type": (archive(member("a", kind=b"Z")), "unknown type"),
    "checksum": (archive(member("a", b"x", checksum=b"000000\0 ")), "checksum"),
    "no tar": (b"#!/bin/sh\n" * 200, "no tar archive"),
    "damaged in the middle": (
        archive(member("a", b"1"), b"\xff" * 512, member("b", b"2")),
        "damaged|no number",
    ),
    "size no number": (archive(member("a", b"x", size=b"0000000x001")), "no number"),
    "size negative": (archive(member("a", b"", size=b"\xff" * 12)), "out of range"),
    "size enormous": (archive(member("a", b"", size=b"\x80" + b"\xff" * 11)), "out of range"),
    "size by pax negative": (archive(member("a", pax={"size": b"-512"})), "no number"),
    "size by pax": (archive(member("a", pax={"size": b"1e9"})), "no number"),
    "size past the end": (archive(member("a", b"", pax={"size": b"99999999"})), "truncated"),
    "uid": (archive(member("a", pax={"uid": b"4294967295"})), "out of range"),
    "mtime": (archive(member("a", pax={"mtime": b"nan"})), "no time"),
    "mtime of the far future": (archive(member("a", pax={"mtime": b"9" * 19})), "out of range"),
    "mtime that is no number of seconds": (
        archive(member("a", pax={"mtime": b"9" * 20})),
        "no time",
    ),
    "no end": (member("a", b"x"), "truncated"),
    "cut in a header": (archive(member("a", b"x"))[:700] + b"x", "truncated"),
    "cut in content": (member("a", b"x" * 5000)[:1000], "truncated"),
    "end behind an extended header": (extended(records({"mtime": b"1"})) + END, "extended"),
    "record without length": (archive(extended(b"path=x\n"), member("a")), "damaged"),
    "record too long": (archive(extended(b"99 path=x\n"), member("a")), "damaged"),
    "record too short": (archive(extended(b"3 path=x\n"), member("a")), "end where"),
    "record without end": (archive(extended(b"10 path=xy"), member("a")), "end where"),
    "record without keyword": (archive(extended(b"6 =ab\n"), member("a")), "no keyword"),
    "record twice": (
        archive(extended(records({"path": b"x"}) * 2), member("a")),
        "says .* twice",
    ),
    "global path": (
        archive(extended(records({"path": b"x"}), b"g"), member("a")),
        "for all members",
    ),
    "global attribute": (
        archive(extended(records({"SCHILY.xattr.user.a": b"x"}), b"g"), member("a")),
        "for all members",
    ),
    "many extended headers": (archive(*[extended(b"")] * 40, member("a")), "too many"),
    "long extended header": (member("x", b"", kind=b"x", size=b"77777777777"), "too long"),
    "overlay attribute": (
        archive(member("a", pax={"SCHILY.xattr.trusted.overlay.redirect": b"/etc"})),
        "OverlayFS' own",
    ),
    "overlay attribute on a directory": (
        archive(extended(records({"SCHILY.xattr.user.overlay.opaque": b"y"})), directory("a")),
        "OverlayFS' own",
    ),
    "attribute twice": (
        archive(
            member("a", pax={"SCHILY.xattr.user.a%": b"x", "SCHILY.xattr.user.a%25": b"y"}),
        ),
        "says .* twice",
    ),
    "overlay attribute that is encoded": (
        archive(member("a", pax={"SCHILY.xattr.user.overlay.a%3Db": b"x"})),
        "OverlayFS' own",
    ),
    "NUL in an attribute": (
        archive(member("a", pax={"SCHILY.xattr.user.a\0b": b"x"})),
        "can be none",
    ),
}


@pytest.mark.parametrize("openat2", [True, False])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(place: Place, case: str, openat2: bool) -> None:
    data, message = MALFORMED[case]
    with pytest.raises(LayerError, match=message) as caught:
        place.unpack(data, openat2=openat2)
    assert caught.value.cause
    assert caught.value.remedy


def test_too_many_members(place: Place) -> None:
    data = archive(*[member(f"f{number}") for number in range(11)])
    place.unpack(data, limits=Limits(members=11))
    shutil.rmtree(place.tree)
    place.tree.mkdir()
    with pytest.raises(LayerError, match="more than 10 members"):
        place.unpack(data, limits=Limits(members=10))


def test_too_many_bytes(place: Place) -> None:
    data = gzip.compress(archive(member("f", bytes(200_000))))
    with pytest.raises(LayerError, match="more than 100000 bytes"):
        place.unpack(data, limits=Limits(bytes=100_000))
    # Also behind the last member.
    shutil.rmtree(place.tree)
    place.tree.mkdir()
    with pytest.raises(LayerError, match="more than 100000 bytes"):
        place.unpack(archive(member("f")) + bytes(200_000), limits=Limits(bytes=100_000))


def test_bomb(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "UNSUSPECTED", 1 << 20)
    data = gzip.compress(archive(member("f", bytes(8 << 20))))
    with pytest.raises(LayerError, match="more than 100 times its size"):
        place.unpack(data, limits=Limits(ratio=100))
    assert sum(path.stat().st_size for path in place.tree.iterdir()) < 3 << 20


def test_limits_as_text() -> None:
    assert Limits.parse("members=10, bytes=4k") == Limits(members=10, bytes=4096)
    assert Limits.parse("") == Limits()
    with pytest.raises(SpecError, match="not a limit of a layer"):
        Limits.parse("files=1")


def test_digest_is_of_all_bytes(place: Place) -> None:
    data = archive(member("a", b"x" * 10_000)) + b"behind the end"
    file = place.base / "archive"
    file.write_bytes(data)
    fd = os.open(file, os.O_RDONLY)
    try:
        section = Section(fd, 0, len(data), "sha256")
        stream = Stream(section, section, Limits())
        stream.exactly(512)
        assert f"sha256:{stream.digest()}" == sha256(data)
        assert f"sha256:{section.digest()}" == sha256(data)
    finally:
        os.close(fd)
