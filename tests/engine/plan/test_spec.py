"""What a spec may ask for, and the errors for what it may not."""

from __future__ import annotations

import pytest

from pytest_mountns.engine.plan.spec import SandboxSpec, SpecError, Tmpfs, Volume, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        (4096, 4096),
        ("512k", 512 << 10),
        ("64m", 64 << 20),
        ("64M", 64 << 20),
        ("1g", 1 << 30),
    ],
)
def test_sizes_are_bytes_or_powers_of_1024(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "0", 0, "-1", "64mb", "1.5g", "m", " 1", "1 ", "0x10", "1\n", "²"]
)
def test_anything_else_is_no_size(text: str | int) -> None:
    with pytest.raises(SpecError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "source", "target", "read_only"),
    [
        ("/a:/b", "/a", "/b", False),
        ("/a:/b:ro", "/a", "/b", True),
        ("/a:/b:rw", "/a", "/b", False),
        ("/a", "/a", "/a", False),
        ("/a:ro", "/a", "/a", True),
        ("data:/b", "/base/data", "/b", False),
        ("./data:/b", "/base/data", "/b", False),
        ("../data:/b", "/data", "/b", False),
        (".", "/base", "/base", False),
        (r"/a\:b:/c\:d", "/a:b", "/c:d", False),
        (r"/a\:ro", "/a:ro", "/a:ro", False),
        ("/a:/b//c/", "/a", "/b/c", False),
        ("/a://b/./c", "/a", "/b/c", False),
        ("/a b:/c,d", "/a b", "/c,d", False),
        ("/a:/dev/mine", "/a", "/dev/mine", False),
        ("/a:/procession", "/a", "/procession", False),
        ("/a:/b/..c", "/a", "/b/..c", False),
    ],
)
def test_a_volume_is_written_as_with_docker(
    text: str, source: str, target: str, read_only: bool
) -> None:
    assert Volume.parse(text, "/base") == Volume(source, target, read_only)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a volume"),
        (":", "is not a volume"),
        ("/a:", "is not a volume"),
        (":/b", "is not a volume"),
        ("/a:/b:/c", "is not a volume"),
        ("/a:/b:rx", "is not a volume"),
        ("/a:b", "not an absolute path"),
        ("/a:/b/../../etc", "leads outside"),
        ("/a:/..", "leads outside"),
        ("/a:/", "hide the sandbox's whole root"),
        ("/a://", "hide the sandbox's whole root"),
        ("/a:/.", "hide the sandbox's whole root"),
        ("/", "hide the sandbox's whole root"),
        ("/a:/proc", "the sandbox makes /proc"),
        ("/a:/proc/1", "the sandbox makes /proc"),
        ("/a:/sys/fs", "the sandbox makes /sys"),
        ("/a:/dev", "the sandbox makes /dev"),
        ("/a:/b\0c", "not an absolute path"),
    ],
)
def test_a_volume_that_makes_no_sense_is_refused_with_a_remedy(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as info:
        Volume.parse(text, "/base")
    assert info.value.remedy


def test_a_volume_needs_an_absolute_source() -> None:
    with pytest.raises(SpecError, match="source 'a' is not an absolute path"):
        Volume("a", "/b")


@pytest.mark.parametrize("volume", ["/a:/b", "/a:/b:ro"])
def test_a_volume_prints_as_it_is_written(volume: str) -> None:
    assert str(Volume.parse(volume)) == volume


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/t", Tmpfs("/t", None, 0o1777)),
        ("/t:size=64m", Tmpfs("/t", 64 << 20, 0o1777)),
        ("/t:size=1k,mode=755", Tmpfs("/t", 1024, 0o755)),
        ("/t/:mode=0700", Tmpfs("/t", None, 0o700)),
    ],
)
def test_a_tmpfs_takes_size_and_mode(text: str, expected: Tmpfs) -> None:
    assert Tmpfs.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("t", "not an absolute path"),
        ("/", "whole root"),
        ("/proc", "the sandbox makes /proc"),
        ("/t:size=x", "is not a size"),
        ("/t:mode=9", "not an option of a tmpfs"),
        ("/t:uid=0", "not an option of a tmpfs"),
    ],
)
def test_a_tmpfs_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Tmpfs.parse(text)


@pytest.mark.parametrize(
    ("volumes", "tmpfs"),
    [
        ((Volume("/a", "/t"), Volume("/b", "/t")), ()),
        ((Volume("/a", "/t"), Volume("/a", "/t/")), ()),
        ((Volume("/a", "/t"),), (Tmpfs("/t"),)),
        ((), (Tmpfs("/t"), Tmpfs("/t/."))),
    ],
)
def test_a_target_belongs_to_one_mount(
    volumes: tuple[Volume, ...], tmpfs: tuple[Tmpfs, ...]
) -> None:
    with pytest.raises(SpecError, match="two mounts want /t"):
        SandboxSpec(volumes=volumes, tmpfs=tmpfs)


def test_a_mount_may_lie_in_another() -> None:
    SandboxSpec(volumes=(Volume("/a", "/t"), Volume("/b", "/t/b")), tmpfs=(Tmpfs("/t/b/c"),))


@pytest.mark.parametrize("limit", [{"size": 4096}, {"inodes": 10}])
def test_an_upper_on_disk_has_no_limits(limit: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="cannot limit an upper on disk"):
        SandboxSpec(upper="disk", **limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("user", "writable", "message"),
    [
        ("keep", ("/etc",), "needs user='root'"),
        ("nobody", (), "needs user='root'"),
        ("root", ("etc",), "not the path of a directory"),
        ("root", ("/etc/../usr",), "not the path of a directory"),
    ],
)
def test_directories_to_write_to_are_those_of_root(
    user: str, writable: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        SandboxSpec(user=user, writable=writable)


def test_wider_fixtures_write_to_no_more_than_the_user() -> None:
    assert SandboxSpec(user="root", writable=("/etc",)).of_wider_scope().writable is None
    assert SandboxSpec(tmp_path="own").of_wider_scope().tmp_path == "shared"
