"""The mount table: every documented form of a line, and which mounts a lookup finds."""

from __future__ import annotations

import pytest

from pytest_mountns.engine.linux.mountinfo import is_below, parse, read, visible


def line(number: int, parent: int, mountpoint: str, more: str = "- ext4 /dev/vda rw") -> bytes:
    return f"{number} {parent} 0:{number} / {mountpoint} rw,relatime {more}\n".encode()


def points(*lines: bytes) -> dict[str, int]:
    return {mount.mountpoint: mount.id for mount in visible(parse(b"".join(lines)))}


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [
        (rb"/a\040b", "/a b"),
        (rb"/a\011b", "/a\tb"),
        (rb"/a\012b", "/a\nb"),
        (rb"/a\134b", "/a\\b"),
        (rb"/a\043b", "/a#b"),
        (rb"/a\134040", "/a\\040"),
        (b"/a\rb", "/a\rb"),
        ("/ä".encode(), "/ä"),
        (b"/a\xffb", "/a\udcffb"),
        (b"/a:b,c", "/a:b,c"),
        (b"/a\x85\x0b\x0cb", "/a\udc85\x0b\x0cb"),
    ],
)
def test_escapes_in_mountpoints_are_decoded(escaped: bytes, plain: str) -> None:
    (mount,) = parse(b"1 0 8:1 / " + escaped + b" rw - ext4 /dev/sda rw\n")
    assert mount.mountpoint == plain


@pytest.mark.parametrize(
    ("fields", "propagation"),
    [
        (b"", ()),
        (b"shared:1 ", ("shared:1",)),
        (
            b"shared:1 master:2 propagate_from:3 unbindable ",
            ("shared:1", "master:2", "propagate_from:3", "unbindable"),
        ),
    ],
)
def test_optional_fields_are_none_one_or_many(fields: bytes, propagation: tuple[str, ...]) -> None:
    (mount,) = parse(b"1 0 8:1 /sub / rw,noatime " + fields + b"- ext4 /dev/sda rw,errors=x\n")
    assert mount.propagation == propagation
    assert (mount.root, mount.fstype, mount.source) == ("/sub", "ext4", "/dev/sda")
    assert mount.super_options == "rw,errors=x"
    assert mount.options == {"rw", "noatime"}


def test_a_mountpoint_that_is_a_hyphen_is_no_separator() -> None:
    (mount,) = parse(b"1 0 8:1 - - - shared:1 - ext4 - -\n")
    assert (mount.mountpoint, mount.propagation, mount.fstype) == ("-", ("shared:1",), "ext4")


def test_super_options_may_be_missing() -> None:
    (mount,) = parse(b"1 0 8:1 / / rw - ext4 /dev/sda\n")
    assert mount.super_options == ""


@pytest.mark.parametrize("table", [b"1 0 8:1 / / rw\n", b"nonsense\n", b"x 0 8:1 / / rw - a b c\n"])
def test_another_format_is_an_error(table: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        parse(table)


@pytest.mark.parametrize(
    ("options", "super_options", "expected"),
    [
        ("rw", "rw", False),
        ("ro", "rw", True),
        ("rw", "ro,x=y", True),
        ("rw,nodev", "errors=ro", False),
    ],
)
def test_read_only_is_of_the_mount_or_of_its_filesystem(
    options: str, super_options: str, expected: bool
) -> None:
    (mount,) = parse(f"1 0 8:1 / / {options} - ext4 x {super_options}\n".encode())
    assert mount.read_only is expected


def test_of_stacked_mounts_the_last_is_seen() -> None:
    assert points(line(1, 0, "/"), line(2, 1, "/a"), line(3, 2, "/a"), line(4, 3, "/a")) == {
        "/": 1,
        "/a": 4,
    }


def test_the_root_may_be_stacked_too() -> None:
    assert points(line(1, 0, "/"), line(2, 1, "/a"), line(3, 1, "/"), line(4, 3, "/b")) == {
        "/": 3,
        "/b": 4,
    }


def test_what_a_mount_covers_is_not_seen() -> None:
    table = (line(1, 0, "/"), line(2, 1, "/a/b"), line(3, 2, "/a/b/c"), line(4, 1, "/a"))
    assert points(*table) == {"/": 1, "/a": 4}


def test_what_hangs_below_a_covered_mount_is_not_seen() -> None:
    table = (line(1, 0, "/"), line(2, 1, "/a"), line(3, 2, "/a/b"), line(4, 2, "/a"))
    assert points(*table) == {"/": 1, "/a": 4}


def test_a_sibling_whose_name_begins_alike_covers_nothing() -> None:
    table = (line(1, 0, "/"), line(2, 1, "/ab"), line(3, 1, "/a"))
    assert points(*table) == {"/": 1, "/a": 3, "/ab": 2}


def test_parents_come_before_children_whatever_the_order_of_the_table() -> None:
    table = (line(9, 8, "/a/b"), line(8, 1, "/a"), line(1, 0, "/"))
    assert list(points(*table)) == ["/", "/a", "/a/b"]


def test_a_table_of_a_container() -> None:
    table = rb"""
1001 900 0:50 / / rw,relatime master:3 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/u
1002 1001 0:51 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1003 1001 0:52 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
1004 1003 0:53 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw,gid=5,mode=620
1005 1001 0:54 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro
1006 1005 0:30 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw,nsdelegate
1007 1001 254:1 /docker/hosts /etc/hosts rw,relatime - ext4 /dev/vda1 rw,discard
1008 1001 254:1 /docker/resolv.conf /etc/resolv.conf rw,relatime - ext4 /dev/vda1 rw
1009 1001 254:1 /docker/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw
801 1002 0:51 /sys /proc/sys ro,nosuid,nodev,noexec,relatime - proc proc rw
802 1002 0:52 /null /proc/kcore rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
803 1005 0:60 / /sys/firmware ro,relatime - tmpfs tmpfs ro
"""
    mounts = visible(parse(table))
    assert [mount.mountpoint for mount in mounts] == [
        "/",
        "/dev",
        "/dev/pts",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/proc",
        "/proc/kcore",
        "/proc/sys",
        "/sys",
        "/sys/firmware",
        "/sys/fs/cgroup",
    ]
    assert {m.mountpoint for m in mounts if m.read_only} == {
        "/proc/sys",
        "/sys",
        "/sys/firmware",
        "/sys/fs/cgroup",
    }


def test_in_a_chroot_there_may_be_no_root() -> None:
    assert points(line(7, 3, "/proc"), line(8, 7, "/proc/x")) == {"/proc": 7, "/proc/x": 8}


def test_the_real_table_has_a_root_and_each_place_once() -> None:
    mounts = visible(read())
    assert mounts[0].mountpoint == "/"
    places = [mount.mountpoint for mount in mounts]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("path", "directory", "expected"),
    [
        ("/a/b", "/a", True),
        ("/a", "/a", False),
        ("/ab", "/a", False),
        ("/a", "/", True),
        ("/", "/", False),
    ],
)
def test_below_is_strictly_below(path: str, directory: str, expected: bool) -> None:
    assert is_below(path, directory) is expected
