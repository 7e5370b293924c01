"""Overlays on a scratch tmpfs, made by a forked child in namespaces of its own.

They are made with mount(2) alone, without the engine. Nothing here can reach the machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import shutil
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from pytest_mountns.engine.changes.changes import Changes
from pytest_mountns.engine.changes.compare import read_changes
from pytest_mountns.engine.plan.model import Layered
from tests.helpers.processes import fork

T = TypeVar("T")

CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
MS_REC, MS_SLAVE = 0x4000, 1 << 19

libc = ctypes.CDLL(None, use_errno=True)
libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]


def checked(result: int, what: str) -> None:
    """Raise :class:`OSError` with errno if the result of a C function is not 0."""
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, fstype: str | None, flags: int, data: str | None) -> None:
    fields = [None if text is None else text.encode() for text in (source, target, fstype)]
    result = libc.mount(*fields, flags, None if data is None else data.encode())
    checked(result, f"mount {fstype} on {target}: {data}")


class Box:
    """A scratch tmpfs with a lower tree and overlays on it, within the child that made it."""

    def __init__(self, scratch: Path) -> None:
        self.userns = os.geteuid() != 0
        uid, gid = os.geteuid(), os.getegid()
        checked(libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if self.userns else 0)), "unshare")
        if self.userns:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        _mount("none", "/", None, MS_REC | MS_SLAVE, None)
        _mount("tmpfs", str(scratch), "tmpfs", 0, "mode=755")
        os.chdir(scratch)
        os.umask(0o022)
        self.scratch = scratch
        self.lower = scratch / "lower"
        self.merged = scratch / "merged"
        self.lower.mkdir()
        self.merged.mkdir()
        self.overlays: list[Layered] = []

    def mount(self, mountpoint: str = "/") -> None:
        """Put an overlay of that part of the lower tree there."""
        place = f"{len(self.overlays)}"
        for name in ("upper", "work"):
            Path(place, name).mkdir(parents=True)
        shutil.copystat(f"lower{mountpoint}", f"{place}/upper")
        Path(f"merged{mountpoint}").mkdir(parents=True, exist_ok=True)
        options = "userxattr" if self.userns else "redirect_dir=on,xino=on,index=off,metacopy=off"
        _mount(
            "overlay",
            f"merged{mountpoint}",
            "overlay",
            0,
            f"lowerdir=lower{mountpoint},upperdir={place}/upper,workdir={place}/work,{options}",
        )
        self.overlays.append(Layered(mountpoint, f"{place}/upper"))

    def changes(self, ignore: Collection[str] = ()) -> Changes:
        descriptors = sorted(os.listdir("/proc/self/fd"))
        upper_fd = os.open(self.scratch, os.O_PATH)
        lower_fd = os.open(self.lower, os.O_PATH)
        changes = read_changes(
            self.overlays,
            upper_fd=upper_fd,
            lower_fd=lower_fd,
            xattr_prefix="user.overlay." if self.userns else "trusted.overlay.",
            ignore=ignore,
        )
        os.close(upper_fd)
        os.close(lower_fd)
        assert sorted(os.listdir("/proc/self/fd")) == descriptors
        return changes


def drop_capabilities() -> None:
    """Drop all capabilities: what is left is an ordinary owner, who is refused by mode 000."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    checked(libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")


class Run(Protocol):
    def __call__(self, job: Callable[[Box], T]) -> T: ...


def run_in_box(scratch: Path, job: Callable[[Box], T]) -> T:
    receive, send = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(receive)
            try:
                answer: tuple[bool, Any] = (True, job(Box(scratch)))
            except BaseException as error:  # noqa: BLE001 - it is raised again in the parent
                error.__traceback__ = None
                answer = (False, (error, traceback.format_exc()))
            with open(send, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(send)
    with open(receive, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    done, value = pickle.loads(data)
    if done:
        result: T = value
        return result
    cause, text = value
    raise cause from RuntimeError(text)


Make = str | bytes | None | Callable[[Path], object]


def build(root: Path, tree: Mapping[str, Make]) -> None:
    """Make files and directories: a text is a file, None a directory, a function makes the rest."""
    for name, make in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if make is None:
            path.mkdir(exist_ok=True)
        elif callable(make):
            make(path)
        else:
            path.write_bytes(make.encode() if isinstance(make, str) else make)


class Diff(Protocol):
    def __call__(
        self,
        tree: Mapping[str, Make],
        act: Callable[[Path], object],
        *,
        ignore: Collection[str] = (),
        mountpoints: Sequence[str] = ("/",),
    ) -> Changes: ...


def skip_unless_permitted(act: Callable[[], T]) -> T:
    """Call ``act``, and skip the test if it is refused.

    Whether a user namespace allows it can only be found out by trying.
    """
    try:
        return act()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL, errno.ENOTSUP):
            raise
        pytest.skip(f"not permitted here: {error}")


def remove(path: Path) -> None:
    """Remove a file or a tree."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def rewrite(path: Path, content: str) -> None:
    """Write other content, and put the times back."""
    before = path.stat()
    path.write_text(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def remake(path: Path, tree: Mapping[str, Make]) -> None:
    """Remove a directory, and make it anew with this in it."""
    shutil.rmtree(path)
    path.mkdir()
    build(path, tree)


def make_symlink(path: Path) -> None:
    """Make a symbolic link that leads to nothing."""
    path.symlink_to("elsewhere")
