"""A mount table as the kernel shows it, /proc/PID/mountinfo, for the examples to look at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """One line of the table; proc_pid_mountinfo(5) says what the columns are."""

    id: int
    device: str
    root: str
    mountpoint: str
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        return "ro" in self.options or "ro" in self.super_options


def parse(table: str) -> list[Mount]:
    """All lines, in their order: of two with one mountpoint, the later covers the earlier."""
    mounts = []
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        number, _, device, root, mountpoint, options, *_ = left.split(" ")
        fstype, source, super_options = right.split(" ")
        mounts.append(
            Mount(
                id=int(number),
                device=device,
                root=_decode(root),
                mountpoint=_decode(mountpoint),
                options=tuple(options.split(",")),
                fstype=fstype,
                source=_decode(source),
                super_options=tuple(super_options.split(",")),
            )
        )
    return mounts


def read() -> list[Mount]:
    """The table of this process."""
    return parse(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mount_of(path: Path) -> Mount:
    """The mount that shows ``path``, a file or directory that exists."""
    descriptor = os.open(path, os.O_PATH)
    try:
        lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    finally:
        os.close(descriptor)
    number = next(int(line.split()[1]) for line in lines if line.startswith("mnt_id:"))
    return next(mount for mount in read() if mount.id == number)


def below(directory: Path) -> list[str]:
    """The mountpoints beneath ``directory``; none where there is no /proc."""
    if not os.path.exists("/proc/self/mountinfo"):
        return []
    return [m.mountpoint for m in read() if directory in Path(m.mountpoint).parents]


def can_be_lost_by_root(directory: Path) -> bool:
    """Whether the sandbox shows ``directory`` as one overlay, with ``user="root"``.

    Files that are mounted are copied for that; directories are mounts of their own.
    """
    return os.geteuid() == 0 or not any(map(os.path.isdir, below(directory)))


def _decode(field: str) -> str:
    for code, character in (("040", " "), ("011", "\t"), ("012", "\n"), ("043", "#")):
        field = field.replace(f"\\{code}", character)
    return field.replace("\\134", "\\")
