"""Uppers that a real kernel wrote, as layers: read back, and read by other people's programs.

Every case runs on a machine of its own (:mod:`tests.helpers.worlds`): a lower tree, an overlay on
it, and what a test does there. The layer is then put on the same lower tree again, and has to show
the same.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from pytest_mountns.engine.layers import tar_writer
from pytest_mountns.engine.layers.archive_writer import LayerFile, write_archive
from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.layers.layer_writer import WrittenLayer, write_layer
from pytest_mountns.engine.layers.resolve import resolve
from pytest_mountns.engine.layers.unpack import Form
from pytest_mountns.engine.linux import syscalls
from pytest_mountns.engine.linux.errors import LayerError
from pytest_mountns.engine.linux.namespaces import enter_user_namespace
from pytest_mountns.engine.plan.model import Layered
from tests.helpers import worlds
from tests.helpers.worlds import BASE, Mode, in_world

# tarfile imports them late, when this process may be a user who cannot read the files.
_ASKED_FOR: Final = (bz2, gzip, lzma)
T = TypeVar("T")
Tree = dict[str, tuple[Any, ...]]
LOWER: Final = f"{BASE}/lower"
MERGED: Final = f"{BASE}/merged"
ROOT: Final = Layered("/", "0.upper")
# Where umoci notes owners that a user cannot give.
_UMOCI: Final = "user.rootlesscontainers"
_ACL: Final = struct.pack(
    "<I" + "HHI" * 5,
    *(2, 1, 6, 0xFFFFFFFF, 2, 4, 4321, 4, 4, 0xFFFFFFFF, 16, 4, 0xFFFFFFFF, 32, 0, 0xFFFFFFFF),
)


def form_of(mode: Mode) -> Form:
    return "trusted" if mode == "root" else "user"


def prefix_of(mode: Mode) -> str:
    return f"{form_of(mode)}.overlay."


def overlay(lowers: list[str], target: str, mode: Mode, upper: str | None = None) -> None:
    options = [f"lowerdir={':'.join(lowers)}"]
    if upper is not None:
        for part in ("upper", "work"):
            os.mkdir(f"{BASE}/{upper}.{part}")
        options += [f"upperdir={BASE}/{upper}.upper", f"workdir={BASE}/{upper}.work"]
    for key, value in worlds.features_of(mode).overlay_options:
        options.append(key if value is None else f"{key}={value}")
    os.makedirs(target, exist_ok=True)
    syscalls.mount("overlay", target, "overlay", 0, ",".join(options))


def on_machine(
    mode: Mode, lower: Callable[[], object], work: Callable[[], object], then: Callable[[], T]
) -> T:
    """Make a lower tree, work on an overlay of it, and look, all on a machine of its own."""
    worlds.skip_unless(mode)
    worlds.skip_unless_in_memory(mode)

    def world() -> T:
        os.umask(0o022)
        if mode == "user":
            enter_user_namespace()
            worlds.private_mounts()
        os.mkdir(LOWER)
        os.chdir(LOWER)
        lower()
        os.chdir(BASE)
        overlay([LOWER], MERGED, mode, "0")
        os.chdir(MERGED)
        work()
        os.chdir(BASE)
        return then()

    return in_world(world, mode)


def export(
    mode: Mode, file: Any, *overlays: Layered, known: bool = True, **more: Any
) -> WrittenLayer:
    upper_fd = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
    lower_fd = os.open(LOWER, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return write_layer(
            file,
            overlays or [ROOT],
            upper_fd=upper_fd,
            lower_fd=lower_fd if known else None,
            xattr_prefix=prefix_of(mode),
            **more,
        )
    finally:
        os.close(upper_fd)
        os.close(lower_fd)


def exported(mode: Mode, *overlays: Layered, **more: Any) -> bytes:
    with tempfile.TemporaryFile() as file:
        export(mode, file, *overlays, **more)
        file.seek(0)
        return file.read()


def members(mode: Mode, *overlays: Layered, **more: Any) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(exported(mode, *overlays, **more))) as tar:
        return tar.getnames()


def tree(top: str, *, times_of_directories: bool = True) -> Tree:
    """Everything that can be seen below a directory."""
    found: Tree = {}
    inodes: dict[int, list[str]] = {}
    for place, directories, names in os.walk(top):
        for name in [*directories, *names, *([""] if place == top else [])]:
            path = os.path.join(place, name).rstrip("/")
            status = os.lstat(path)
            here = path[len(top) :]
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            elif not stat.S_ISDIR(status.st_mode):
                content = status.st_rdev
            xattrs = {}
            if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
                xattrs = {
                    key: os.getxattr(path, key)
                    for key in os.listxattr(path)
                    if key.startswith(("user.", "system.")) and key != _UMOCI
                }
            links = [here]
            if not stat.S_ISDIR(status.st_mode):
                # Counted here, because overlayfs counts links to the lower file that are cut.
                links = inodes.setdefault(status.st_ino, [])
                links.append(here)
            time = status.st_mtime_ns
            if stat.S_ISDIR(status.st_mode) and not times_of_directories:
                time = 0
            owner = (status.st_uid, status.st_gid)
            found[here] = (oct(status.st_mode), owner, content, time, xattrs, links)
    return {path: (*entry[:5], sorted(entry[5])) for path, entry in found.items()}


def put_back(mode: Mode, data: bytes) -> Tree:
    """The layer on the same lower tree again, by our own reader and the kernel."""
    Path("layer.tar").write_bytes(data)
    with resolve("layer.tar", form_of(mode), cache=Cache(f"{BASE}/cache")) as stack:
        overlay([*reversed(stack.directories), LOWER], f"{BASE}/again", mode)
        try:
            return tree(f"{BASE}/again")
        finally:
            syscalls.umount(f"{BASE}/again")


def same(one: Tree, other: Tree) -> None:
    assert one.keys() == other.keys()
    differ = {path: (one[path], other[path]) for path in one if one[path] != other[path]}
    assert not differ


def write(path: str, content: str = "") -> None:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with open(path, "w") as file:
        file.write(content)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def some_tree() -> None:
    for name in ("etc/hosts", "etc/passwd", "etc/d/one", "etc/d/two", "usr/lib/a", "usr/lib/b/c"):
        write(name, f"content of {name}\n")
    os.mkdir("empty")
    os.symlink("hosts", "etc/link")
    os.link("usr/lib/a", "usr/lib/hard")
    os.chmod("etc/d", 0o750)


def much_of_everything() -> None:
    write("etc/hosts", "changed")
    os.unlink("etc/passwd")
    os.chmod("usr/lib", 0o711)
    shutil.rmtree("etc/d")
    write("etc/d/three", "3")
    os.rmdir("empty")
    write("empty", "a file now")
    os.unlink("etc/link")
    os.mkdir("etc/link")
    os.symlink("../nowhere", "dangling")
    os.mkfifo("fifo", 0o640)
    write("new/file", "x" * 1000)
    os.chmod("new/file", 0o4751)
    os.link("new/file", "new/same")
    os.link("new/file", "a-same")
    worlds.set_attribute("new/file", "user.note", b"\0\xff=\n")
    worlds.set_attribute("new", "user.note", b"of a directory")
    write("name \u00e4\n" + "n" * 100, "long")
    write("/".join(["d" * 60] * 5) + "/deep", "deep")
    os.mkdir(b"not \xff utf-8")
    os.utime("etc/hosts", ns=(5, 1_234_567_890_123_456_789))
    os.chmod("etc/hosts", 0o600)


def test_what_is_put_back_is_the_same(mode: Mode) -> None:
    def look() -> None:
        shown = tree(MERGED)
        same(put_back(mode, exported(mode)), shown)

    on_machine(mode, some_tree, much_of_everything, look)


def test_odd_names_attributes_and_times_are_put_back(mode: Mode) -> None:
    def lower() -> None:
        some_tree()
        for length in range(250, 256):
            write("g" * length)

    def work() -> None:
        for length in range(250, 256):
            os.unlink("g" * length)
            write("n" * length)
        for number, time in enumerate((-(10**10), -1, 10**10, 8**11, 10**12)):
            write(f"time{number}")
            os.utime(f"time{number}", ns=(5, time * 1_000_000_000 + 7))
        write("attributes")
        for name in ("k", "k=v", "k%3Dv", "100%", "=", "a\nb", "\u00e4", "x" * 250):
            worlds.set_attribute("attributes", f"user.{name}", name.encode())
            worlds.set_attribute("etc", f"user.{name}", b"")

    def look() -> None:
        shown = tree(MERGED)
        same(put_back(mode, exported(mode)), shown)
        assert not [path for path in shown if path.startswith("/g")]

    on_machine(mode, lower, work, look)


def test_a_tree_that_is_too_deep_to_be_unpacked_is_not_written(mode: Mode) -> None:
    def work() -> None:
        for _ in range(17):
            os.mkdir("d" * 255)
            os.chdir("d" * 255)

    with pytest.raises(LayerError, match="longer than 4095 bytes") as caught:
        on_machine(mode, some_tree, work, lambda: exported(mode))
    assert caught.value.remedy


def test_the_same_content_gives_the_same_bytes(mode: Mode) -> None:
    def look() -> None:
        assert exported(mode) == exported(mode)
        plain = exported(mode, compression="")
        assert plain == exported(mode, compression="")
        with tempfile.TemporaryFile() as file:
            layer = export(mode, file, compression="")
        assert layer.digest == layer.diff_id
        assert layer.size == len(plain)

    on_machine(mode, some_tree, much_of_everything, look)


def test_nothing_of_overlayfs_is_written(mode: Mode) -> None:
    def look() -> None:
        assert b".overlay." not in exported(mode, compression="")

    on_machine(mode, some_tree, much_of_everything, look)


def test_no_change_is_nothing(mode: Mode) -> None:
    def look() -> list[str]:
        return members(mode)

    assert on_machine(mode, some_tree, lambda: None, look) == ["."]


def test_members_in_order(mode: Mode) -> None:
    """In the order of the specification: whiteouts before siblings, opaque marks first."""

    def work() -> None:
        for name in ("hosts", "passwd"):
            os.unlink(f"etc/{name}")
        write("etc/apt", "new")
        shutil.rmtree("usr/lib/b")
        write("usr/lib/b/new", "new")

    def look() -> list[str]:
        return members(mode)

    assert on_machine(mode, some_tree, work, look) == [
        ".",
        "etc",
        "etc/.wh.hosts",
        "etc/.wh.passwd",
        "etc/apt",
        "usr",
        "usr/lib",
        "usr/lib/b",
        "usr/lib/b/.wh..wh..opq",
        "usr/lib/b/new",
    ]


def test_a_new_directory_is_not_opaque(mode: Mode) -> None:
    def work() -> None:
        os.makedirs("new/inner")
        write("new/inner/file")

    names = on_machine(mode, some_tree, work, lambda: members(mode))
    assert not [name for name in names if ".wh." in name]


def test_without_a_lower_every_mark_is_written(mode: Mode) -> None:
    def work() -> None:
        os.unlink("etc/hosts")
        shutil.rmtree("etc/d")
        write("etc/d/new")

    names = on_machine(mode, some_tree, work, lambda: members(mode, known=False))
    assert {"etc/.wh.hosts", "etc/d/.wh..wh..opq"} <= set(names)


def test_renamed_directories_are_copied() -> None:
    def lower() -> None:
        some_tree()
        write("usr/lib/b/deeper/still/file", "deep")
        os.link("usr/lib/b/c", "usr/lib/b/hard")

    def work() -> None:
        os.unlink("usr/lib/b/deeper/still/file")
        write("usr/lib/b/added", "1")
        os.rename("usr/lib/b", "usr/lib/moved")
        os.rename("usr/lib/moved/deeper", "usr/deeper")
        write("usr/lib/moved/c", "changed")
        os.rename("etc", "configuration")
        os.rename("configuration/d", "configuration/e")
        # And over what was there.
        os.rmdir("empty")
        os.rename("usr/lib/moved", "empty")

    def look() -> list[str]:
        shown = tree(MERGED)
        # Links to a file below are cut, by overlayfs as well, where it was written.
        same(put_back("root", exported("root")), shown)
        return members("root")

    names = on_machine("root", lower, work, look)
    assert {".wh.etc", "empty/.wh..wh..opq", "empty/hard", "configuration/e/one"} <= set(names)


def test_closed_to_the_owner(mode: Mode) -> None:
    def work() -> None:
        write("closed/inner/file", "1")
        write("secret", "2")
        for name in ("closed/inner/file", "closed/inner", "closed", "secret"):
            os.chmod(name, 0)

    def look() -> None:
        def upper() -> dict[str, int]:
            names = ("closed/inner/file", "closed/inner", "closed", "secret")
            return {n: os.lstat(f"{BASE}/0.upper/{n}").st_mode for n in names}

        if mode == "user":
            syscalls.capset(0, *syscalls.capget()[1:])
        data = exported(mode)
        if mode == "user":
            syscalls.capset(syscalls.capget()[1], *syscalls.capget()[1:])
        assert {stat.S_IMODE(found) for found in upper().values()} == {0}
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for name in ("closed/inner/file", "closed/inner", "closed", "secret"):
                assert tar.getmember(name).mode == 0
            for name in ("closed/inner/file", "secret"):
                content = tar.extractfile(name)
                assert content is not None
                assert content.read() in (b"1", b"2")

    on_machine(mode, some_tree, work, look)


def test_several_overlays(mode: Mode) -> None:
    def lower() -> None:
        write("home/user/one", "1")
        write("srv/data/two", "2")
        os.chmod("srv", 0o711)

    def work() -> None:
        write("srv/data/hidden", "by the overlay on it")
        overlay([f"{LOWER}/srv/data"], f"{MERGED}/srv/data", mode, "1")
        overlay([f"{LOWER}/home/user"], f"{MERGED}/home/user", mode, "2")
        os.unlink("srv/data/two")
        write("srv/data/three", "3")

    def look() -> list[str]:
        overlays = [ROOT, Layered("/srv/data", "1.upper"), Layered("/home/user", "2.upper")]
        shown = tree(MERGED, times_of_directories=False)
        data = exported(mode, *overlays)
        back = put_back(mode, data)
        back = {
            path: (*entry[:3], 0, *entry[4:]) if entry[0].startswith("0o4") else entry
            for path, entry in back.items()
        }
        same(back, shown)
        return members(mode, *overlays)

    names = on_machine(mode, lower, work, look)
    assert names == [".", "srv", "srv/data", "srv/data/.wh.two", "srv/data/three"]


def test_what_was_made_for_mounts_is_left_out(mode: Mode) -> None:
    def work() -> None:
        os.makedirs("mnt/volume")
        write("mnt/file")
        os.makedirs("mnt/other")

    def look() -> tuple[list[str], list[str]]:
        ignore = ["/mnt", "/mnt/volume", "/mnt/file", "/mnt/other"]
        nothing = members(mode, ignore=ignore)
        write(f"{MERGED}/mnt/other/test", "by the test")
        return nothing, members(mode, ignore=ignore)

    nothing, something = on_machine(mode, some_tree, work, look)
    assert nothing == ["."]
    assert something == [".", "mnt", "mnt/other", "mnt/other/test"]


def test_sockets_are_left_out_and_said(mode: Mode) -> None:
    def work() -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("socket")
        write("file")

    def look() -> tuple[str, ...]:
        assert "socket" not in members(mode)
        with tempfile.TemporaryFile() as file:
            return export(mode, file).notes

    notes = on_machine(mode, some_tree, work, look)
    assert notes == ("sockets, which no archive can hold, were left out (1)",)


def test_names_that_cannot_be_said(mode: Mode) -> None:
    with pytest.raises(LayerError, match=r"'/etc/.wh.name' begins with '.wh.'"):
        on_machine(mode, some_tree, lambda: write("etc/.wh.name"), lambda: exported(mode))


def test_limit(mode: Mode) -> None:
    def work() -> None:
        with open("big", "wb") as file:
            file.truncate(1 << 40)

    with pytest.raises(LayerError, match="more than 1000000 bytes"):
        on_machine(mode, some_tree, work, lambda: exported(mode, limit=1_000_000))


def test_devices() -> None:
    def work() -> None:
        try:
            os.mknod("null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("this root makes no devices")

    def look() -> tuple[int, int]:
        with tarfile.open(fileobj=io.BytesIO(exported("root"))) as tar:
            info = tar.getmember("null")
            return info.devmajor, info.devminor

    assert on_machine("root", some_tree, work, look) == (1, 3)


def test_access_control_lists() -> None:
    def work() -> None:
        write("file")
        try:
            os.setxattr("file", "system.posix_acl_access", _ACL)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("no access control lists here")

    def look() -> tuple[object, object]:
        back = put_back("root", exported("root"))["/file"]
        with tarfile.open(fileobj=io.BytesIO(exported("root"))) as tar:
            value = tar.getmember("file").pax_headers["SCHILY.xattr.system.posix_acl_access"]
        return back[4], value.encode("utf-8", "surrogateescape")

    back, stored = on_machine("root", some_tree, work, look)
    assert back == {"system.posix_acl_access": _ACL}
    assert stored == _ACL


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_compressions(mode: Mode, compression: tar_writer.Compression) -> None:
    if compression == "zstd" and tar_writer.best_compression() != "zstd":
        pytest.skip("nothing here compresses with zstd")

    def look() -> None:
        same(put_back(mode, exported(mode, compression=compression)), tree(MERGED))

    on_machine(mode, some_tree, much_of_everything, look)


class Player:
    """Does things at random, the same for the same seed."""

    def __init__(self, seed: int, mode: Mode) -> None:
        self.random = random.Random(seed)
        self.mode = mode

    def path(self) -> str:
        return "/".join(self.random.choices("abcd", k=self.random.randint(1, 3)))

    def play(self, times: int) -> None:
        for _ in range(times):
            action = self.random.choice(
                [
                    self.write,
                    self.write,
                    self.mkdir,
                    self.remove,
                    self.rename,
                    self.chmod,
                    self.symlink,
                    self.link,
                    self.fifo,
                    self.attribute,
                    self.append,
                ]
            )
            try:
                action()
            except OSError as error:
                allowed = (
                    errno.ENOENT,
                    errno.EEXIST,
                    errno.ENOTDIR,
                    errno.EISDIR,
                    errno.ENOTEMPTY,
                    errno.EINVAL,
                    errno.EXDEV,
                    errno.ELOOP,
                    errno.EPERM,
                    errno.ENXIO,
                )
                if error.errno not in allowed:
                    raise

    def write(self) -> None:
        # Neither through links nor into a FIFO, which would wait for a reader.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        with open(os.open(self.path(), flags, 0o644), "w") as file:
            file.write(f"{self.random.random()}")

    def append(self) -> None:
        path = self.path()
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, "a") as file:
                file.write("x" * self.random.randint(0, 2))

    def mkdir(self) -> None:
        os.makedirs(self.path())

    def remove(self) -> None:
        remove(self.path())

    def rename(self) -> None:
        os.rename(self.path(), self.path())

    def chmod(self) -> None:
        path = self.path()
        if not os.path.islink(path):
            os.chmod(path, self.random.choice([0o700, 0o755, 0o711, 0o1777]))

    def symlink(self) -> None:
        os.symlink(self.path(), self.path())

    def link(self) -> None:
        os.link(self.path(), self.path(), follow_symlinks=False)

    def fifo(self) -> None:
        os.mkfifo(self.path())

    def attribute(self) -> None:
        path = self.path()
        if not os.path.islink(path):
            worlds.set_attribute(path, "user.a", self.random.randbytes(3))


@pytest.mark.parametrize("start", range(0, 100, 20))
def test_random_changes_are_put_back(mode: Mode, start: int) -> None:
    def play(seed: int) -> None:
        player = Player(seed, mode)

        def look() -> None:
            # A link to a file that was copied up shows another inode number than that file.
            back, shown = put_back(mode, exported(mode)), tree(MERGED)
            same(*({p: entry[:5] for p, entry in t.items()} for t in (back, shown)))

        on_machine(mode, lambda: player.play(40), lambda: player.play(30), look)

    for seed in range(start, start + 20):
        try:
            play(seed)
        except worlds.Lost as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"no program {name} here")
    return found


def run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": BASE}
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def whole_image(mode: Mode, place: str, compression: tar_writer.Compression = "gzip") -> None:
    """An archive of two layers: the lower tree, and what was made of it."""
    lower_fd = os.open(BASE, os.O_RDONLY | os.O_DIRECTORY)
    with (
        tempfile.TemporaryFile() as base,
        tempfile.TemporaryFile() as above,
        open(place, "w+b") as file,
    ):
        lower = write_layer(
            base,
            [Layered("/", "lower")],
            upper_fd=lower_fd,
            lower_fd=None,
            xattr_prefix=prefix_of(mode),
            compression=compression,
        )
        upper = export(mode, above, compression=compression)
        layers = [LayerFile(lower, base.fileno()), LayerFile(upper, above.fileno())]
        write_archive(file, layers, name="kept", environment=["PLACE=here"])
    os.close(lower_fd)


def test_umoci_unpacks_the_same(mode: Mode) -> None:
    umoci = program("umoci")

    def look() -> None:
        whole_image(mode, "image.tar")
        os.mkdir("layout")
        run(program("tar"), "-C", "layout", "-xf", "image.tar")
        rootless = ["--rootless"] if mode == "user" else []
        run(umoci, "unpack", *rootless, "--image", "layout:kept", "bundle")
        unpacked = tree(f"{BASE}/bundle/rootfs", times_of_directories=False)
        same(unpacked, tree(MERGED, times_of_directories=False))

    on_machine(mode, some_tree, much_of_everything, look)


def test_skopeo_reads_it(mode: Mode) -> None:
    skopeo = program("skopeo")

    def look() -> None:
        if mode == "root":
            # Where it keeps what it knows of blobs.
            worlds.mount_tmpfs("/var/lib")
        whole_image(mode, "image.tar")
        about = json.loads(run(skopeo, "inspect", "oci-archive:image.tar:kept"))
        assert len(about["Layers"]) == 2
        assert "PLACE=here" in about["Env"]
        # Copying verifies every digest, diff ids included when the layers are packed anew.
        policy = ["--insecure-policy"]
        run(skopeo, *policy, "copy", "oci-archive:image.tar:kept", "oci:copied:kept")
        run(
            skopeo,
            *policy,
            "copy",
            "oci-archive:image.tar:kept",
            "docker-archive:saved.tar:some/name:kept",
        )
        for source in ("image.tar", "copied", "saved.tar"):
            cache = Cache(f"{BASE}/cache-{source}")
            with resolve(source, form_of(mode), cache=cache) as stack:
                overlay(list(reversed(stack.directories)), f"{BASE}/again", mode)
                shown = tree(f"{BASE}/again")
                syscalls.umount(f"{BASE}/again")
            same(shown, tree(MERGED))

    on_machine(mode, some_tree, much_of_everything, look)


def test_podman_reads_it() -> None:
    podman = program("podman")

    def look() -> None:
        # Where podman keeps its locks and its state, whatever it is told.
        for place in ("/dev/shm", "/run", "/var/lib"):
            worlds.mount_tmpfs(place)
        whole_image("root", "image.tar")
        storage = ["--root", f"{BASE}/storage", "--runroot", f"{BASE}/run"]
        storage += ["--storage-driver", "vfs"]
        run(podman, *storage, "load", "-i", "image.tar")
        listed = run(podman, *storage, "images", "-q", "--no-trunc").split()
        mounted = run(podman, *storage, "image", "mount", listed[0]).strip()
        try:
            same(
                tree(mounted, times_of_directories=False),
                tree(MERGED, times_of_directories=False),
            )
        finally:
            run(podman, *storage, "image", "unmount", listed[0])

    on_machine("root", some_tree, much_of_everything, look)


def test_an_image_made_by_umoci(mode: Mode) -> None:
    umoci = program("umoci")

    def look() -> None:
        rootless = ["--rootless"] if mode == "user" else []
        run(umoci, "init", "--layout", "layout")
        run(umoci, "new", "--image", "layout:made")
        run(umoci, "unpack", *rootless, "--image", "layout:made", "bundle")
        root = f"{BASE}/bundle/rootfs"
        os.chdir(root)
        some_tree()
        os.chdir(BASE)
        run(umoci, "repack", "--image", "layout:made", "bundle")
        shutil.rmtree("bundle")
        run(umoci, "unpack", *rootless, "--image", "layout:made", "bundle")
        os.chdir(root)
        os.unlink("etc/passwd")
        shutil.rmtree("etc/d")
        write("etc/hosts", "changed")
        write("new/file", "new")
        os.chdir(BASE)
        run(umoci, "repack", "--image", "layout:made", "bundle")
        expected = tree(root, times_of_directories=False)
        with resolve("layout", form_of(mode), cache=Cache(f"{BASE}/cache")) as stack:
            assert len(stack.directories) == 2
            overlay(list(reversed(stack.directories)), f"{BASE}/again", mode)
            shown = tree(f"{BASE}/again", times_of_directories=False)
            syscalls.umount(f"{BASE}/again")
        assert shown.keys() == expected.keys()
        for path in shown.keys() - {""}:
            assert shown[path][:3] == expected[path][:3]

    on_machine(mode, lambda: write("unused"), lambda: None, look)
