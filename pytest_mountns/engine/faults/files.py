"""The files of the sandbox as nodes of the model: read before they change, and put back."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, final

from ..linux.remove_tree import remove_tree
from ..linux.untouched import os
from .disk import Name, Survivors

#: How a name begins under which something waits while names are put back.
_ASIDE: Final = ".mountns-aside-"
_CHUNK: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Attributes:
    """What fsync(2) makes durable besides content; times are not looked at."""

    mode: int
    uid: int
    gid: int
    #: Extended attributes of the user's, by name.
    extended: tuple[tuple[str, bytes], ...]


@final
@dataclass(eq=False, slots=True)
class File:
    """A file, directory or link, whatever its names are. It is held open: no number is reused."""

    #: An ``O_PATH`` descriptor.
    fd: int
    status: os.stat_result
    #: Where it stands or has stood: the directory, and the name in it.
    names: set[tuple[File, bytes]] = field(default_factory=set)

    @property
    def link(self) -> str:
        """A path that leads to it."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def is_regular(self) -> bool:
        """Whether it has content."""
        return stat.S_ISREG(self.status.st_mode)

    @property
    def is_directory(self) -> bool:
        """Whether it has entries."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def is_deleted(self) -> bool:
        """Whether the name by which it was opened is gone. It may have others, if it is a file."""
        return os.readlink(self.link).endswith(" (deleted)")

    def now(self) -> os.stat_result:
        """Its status now. Raises :class:`OSError`."""
        return os.fstat(self.fd)

    def read(self) -> bytes:
        """Its content. Raises :class:`OSError`."""
        fd = os.open(self.link, os.O_RDONLY | os.O_CLOEXEC)
        try:
            pieces = []
            while piece := os.read(fd, _CHUNK):
                pieces.append(piece)
            return b"".join(pieces)
        finally:
            os.close(fd)

    def attributes(self) -> Attributes:
        """Its attributes. Raises :class:`OSError`."""
        status = self.now()
        extended: list[tuple[str, bytes]] = []
        if not stat.S_ISLNK(status.st_mode):
            with contextlib.suppress(OSError):
                extended = [
                    (name, os.getxattr(self.link, name))
                    for name in os.listxattr(self.link)
                    if name.startswith("user.") and not name.startswith("user.overlay.")
                ]
        mode = stat.S_IMODE(status.st_mode)
        return Attributes(mode, status.st_uid, status.st_gid, tuple(extended))

    def write(self, content: bytes) -> None:
        """Give it this content. Raises :class:`OSError`."""
        fd = os.open(self.link, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        try:
            _write_all(fd, content)
        finally:
            os.close(fd)

    def write_at(self, content: bytes, offset: int) -> None:
        """Write at an offset. Raises :class:`OSError`."""
        fd = os.open(self.link, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, content, offset)
        finally:
            os.close(fd)

    def set_attributes(self, wanted: Attributes) -> None:
        """Give it these attributes. Raises :class:`OSError`."""
        status = self.now()
        if (status.st_uid, status.st_gid) != (wanted.uid, wanted.gid):
            os.chown(self.link, wanted.uid, wanted.gid)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(self.link, wanted.mode)
            before = dict(self.attributes().extended)
            for name, value in wanted.extended:
                if before.pop(name, None) != value:
                    os.setxattr(self.link, name, value)
            for name in before:
                os.removexattr(self.link, name)


def _write_all(fd: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(fd, rest) :]


@final
class Files:
    """All files that were looked at, each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], File] = {}

    def adopt(self, fd: int) -> File:
        """The file of an ``O_PATH`` descriptor, which is closed if the file is known already."""
        status = os.fstat(fd)
        key = status.st_dev, status.st_ino
        known = self._known.get(key)
        if known is not None:
            os.close(fd)
            known.status = status
            return known
        found = self._known[key] = File(fd, status)
        return found

    def at(self, directory: File, name: bytes) -> File | None:
        """What a name in a directory stands for, None for nothing."""
        try:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            found = self.adopt(os.open(name, flags, dir_fd=directory.fd))
        except OSError:
            return None
        found.names.add((directory, name))
        return found

    def note_link(self, file: File, directory: File, name: bytes) -> bool:
        """Another name was given to a file. Returns whether it is there.

        In an ordinary user's OverlayFS the names of a file that lay in a lower layer have different
        inode numbers.
        """
        try:
            flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, dir_fd=directory.fd)
        except OSError:
            # The kernel has refused the link.
            return False
        status = os.fstat(fd)
        self._known.setdefault((status.st_dev, status.st_ino), file)
        file.names.add((directory, name))
        # It stays open, so that the number is not used again.
        return True

    def _find_another_name(self, file: File) -> None:
        """Open a file by a name that it has, if the one by which it was opened is gone.

        OverlayFS does not make links to what was opened by a name that is gone.
        """
        for directory, name in list(file.names):
            if not file.is_deleted or file.is_directory:
                return
            if self.at(directory, name) is file:
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
                os.dup2(fd, file.fd, inheritable=False)
                os.close(fd)

    def put_back(self, survivors: Survivors[File]) -> None:
        """Make the files what survives. Raises :class:`OSError` if something cannot be done."""
        for file in {*survivors.contents, *survivors.names.values(), *survivors.attributes}:
            if file is not None:
                self._find_another_name(file)
        names = _Names(self, survivors)
        names.put_back()
        for file, content in survivors.contents.items():
            if file.is_regular:
                with _without_names_ignored():
                    file.write(content)
        for file, attributes in survivors.attributes.items():
            assert isinstance(attributes, Attributes)
            with _without_names_ignored():
                file.set_attributes(attributes)
        names.remove_what_is_left()


@contextlib.contextmanager
def _without_names_ignored() -> Iterator[None]:
    """A file without a name is of no interest to anybody who comes later.

    It is tried all the same: OverlayFS does not count the links of files of the lower layer.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise


@final
@dataclass
class _Names:
    """Puts back names: first all that are wrong are taken away, then those that are lost come."""

    files: Files
    survivors: Survivors[File]
    #: What was taken away, by where it is now.
    aside: dict[File, Name[File]] = field(default_factory=dict)
    _number: int = 0

    def put_back(self) -> None:
        wanted = {}
        for name, file in self.survivors.names.items():
            there = self.files.at(name.directory, name.name)
            if there is file:
                continue
            if there is not None:
                self._take_away(name, there)
            if file is not None:
                wanted[name] = file
        while wanted:
            # Parents come before what lies in them.
            possible = [name for name in wanted if not name.directory.is_deleted]
            if not possible:
                # The directory itself did not survive.
                break
            for name in possible:
                self._place(name, wanted.pop(name))

    def remove_what_is_left(self) -> None:
        """Remove what was taken away and has no other name."""
        for name in self.aside.values():
            # It is gone already if it stood in a directory that was removed here before.
            place = os.path.join(name.directory.link, os.fsdecode(name.name))
            if not name.directory.is_deleted and os.path.lexists(place):
                remove_tree(place)

    def _take_away(self, name: Name[File], file: File) -> None:
        # In the directory where it is: a rename into another one may be refused (EXDEV).
        self._number += 1
        aside = b"%s%d-%d" % (_ASIDE.encode(), os.getpid(), self._number)
        fd = name.directory.fd
        os.rename(name.name, aside, src_dir_fd=fd, dst_dir_fd=fd)
        if file in self.aside:
            # Another hard link to it waits already.
            os.unlink(aside, dir_fd=fd)
        else:
            self.aside[file] = Name(name.directory, aside)

    def _place(self, name: Name[File], file: File) -> None:
        fd = name.directory.fd
        aside = self.aside.pop(file, None)
        if aside is not None:
            os.rename(aside.name, name.name, src_dir_fd=aside.directory.fd, dst_dir_fd=fd)
        elif not self._link(name, file):
            self._make_anew(name, file)

    def _link(self, name: Name[File], file: File) -> bool:
        """Give another name to a file that has one. Returns whether that was possible."""
        if file.is_directory:
            return False
        try:
            # By way of /proc the link is to the file itself, linkat(2): AT_SYMLINK_FOLLOW.
            os.link(file.link, name.name, dst_dir_fd=name.directory.fd, follow_symlinks=True)
        except FileNotFoundError:
            # It has none any more.
            return False
        return True

    def _make_anew(self, name: Name[File], file: File) -> None:
        """Make a file that has no name any more; what is held open has its content still."""
        status, fd = file.now(), name.directory.fd
        attributes = file.attributes()
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name.name, dir_fd=fd)
        elif stat.S_ISREG(status.st_mode):
            content = self.survivors.contents.get(file)
            if content is None:
                content = file.read()
            made = os.open(name.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=fd)
            try:
                _write_all(made, content)
            finally:
                os.close(made)
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(b"", dir_fd=file.fd), name.name, dir_fd=fd)
        else:
            os.mknod(name.name, status.st_mode, status.st_rdev, dir_fd=fd)
        # From here on it stands for the file: further names are links to it.
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        made = os.open(name.name, flags, dir_fd=fd)
        os.dup2(made, file.fd, inheritable=False)
        os.close(made)
        if not stat.S_ISLNK(status.st_mode):
            file.set_attributes(attributes)
            times = status.st_atime_ns, status.st_mtime_ns
            os.utime(file.link, ns=times)
