"""What a waiting system call is about to do to the files of the sandbox, and what that means.

A :class:`Observation` sees each call before it takes effect. It says whether the call changes a
file, and keeps the model of the disk (:mod:`.disk`) up to date.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias, final

from ..changes.changes import compile_globs
from ..linux import mountinfo
from ..linux.untouched import open as open_file
from ..linux.untouched import os, struct
from . import calls
from .calls import Call, Kind, PathArgument
from .disk import Disk, Name
from .files import File, Files
from .tracee import (
    Descriptor,
    Gone,
    Place,
    fdinfo,
    has_returned,
    open_descriptor,
    read_memory,
    read_path,
    resolve,
)

#: How a power cut loses what was not synced: see :mod:`.disk`. "strict" is both of its ways.
PowerModel: TypeAlias = Literal["ordered", "strict"]

_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_SYMLINK_FOLLOW: Final = 0x400
_RENAME_EXCHANGE: Final = 2
_MS_SYNC: Final = 4
#: SYNC_FILE_RANGE_WRITE and SYNC_FILE_RANGE_WAIT_AFTER
_WRITES_AND_WAITS: Final = 2 | 4
_RWF_DSYNC: Final = 2
_RWF_SYNC: Final = 4
_RWF_APPEND: Final = 0x10
#: FALLOC_FL_KEEP_SIZE
_KEEPS_SIZE: Final = 0x01
#: FALLOC_FL_COLLAPSE_RANGE and FALLOC_FL_INSERT_RANGE
_MOVES_CONTENT: Final = 0x08 | 0x20
_O_SYNC_ALONE: Final = os.O_SYNC & ~os.O_DSYNC

#: Filesystems of the kernel, and what the interpreter caches.
_NEVER: Final = re.compile(
    r"/(?:proc|sys|dev)(?:/.*)?|.*/__pycache__(?:/.*)?|.*\.py[co]", re.DOTALL
)


@final
@dataclass(slots=True)
class Torn:
    """How a write can be cut short."""

    file: File
    #: Where in the file it would have begun.
    offset: int
    #: How many bytes it would have written.
    size: int
    #: Returns the first of them.
    read: Callable[[int], bytes]


@final
@dataclass(slots=True)
class Event:
    """A call of interest that waits."""

    call: Call
    #: What it works on; of a rename or link what it leads to.
    path: str
    #: Of a rename or link the path of before.
    source: str = ""
    #: What else is to be said of it.
    detail: str = ""
    #: Whether it changes a watched file, or makes changes durable.
    counts: bool = False
    #: How it can be cut short.
    torn: Torn | None = None
    #: Takes note of it in the model; called if it goes on.
    note: Callable[[], None] | None = None

    def describe(self) -> str:
        """It in words: ``rename /a -> /b``."""
        paths = self.path
        if self.source:
            same = os.path.dirname(self.source) == os.path.dirname(self.path)
            paths = f"{self.source} -> {os.path.basename(self.path) if same else self.path}"
        detail = f" ({self.detail})" if self.detail else ""
        return " ".join(filter(None, (self.call.name, paths))) + detail


@final
@dataclass(slots=True)
class _Opened:
    """What a descriptor of the process leads to."""

    file: File
    path: str
    information: Descriptor
    #: Whether changes of it count.
    counts: bool


@final
@dataclass(slots=True)
class _Named:
    """A place in the sandbox that a path leads to."""

    directory: File
    name: bytes
    path: str
    file: File | None

    @property
    def entry(self) -> Name[File]:
        return Name(self.directory, self.name)


@final
@dataclass(slots=True)
class _UnderWay:
    """A call that goes on, and may have returned."""

    #: Its number on this machine.
    number: int
    #: Each takes note of something that the call does, if it has been done, and returns whether.
    looks: list[Callable[[], bool]] = field(default_factory=list)


@final
class Observation:
    """Watches what the calls of a process tree do to files.

    ``globs``: the paths whose changes count; all of the sandbox without them. ``power``: whether to
    keep a model of the disk, and which. ``reads``: reading counts, too. Files that are no part of a
    sandbox's own overlays, such as those of volumes, are left alone.
    """

    def __init__(
        self, globs: Sequence[str] | None, power: PowerModel | None, *, reads: bool = False
    ) -> None:
        self._globs = None if globs is None else compile_globs(globs)
        self._power = power
        self._reads = reads
        self.files = Files()
        self.disk: Disk[File] | None = Disk() if power else None
        #: The overlays, by the number of the mount, and the device number of each.
        self._mounts = {
            mount.id: mount.device for mount in mountinfo.read() if mount.fstype == "overlay"
        }
        #: What is to be looked at when a thread has carried out its call, by the thread.
        self._after: dict[int, _UnderWay] = {}
        self._mapped: dict[File, str] = {}
        #: The number of the call that waits.
        self._number = -1

    @property
    def mapped(self) -> Collection[str]:
        """The files that were mapped shared and writable: no call is made when they change."""
        return sorted(set(self._mapped.values()))

    def finished(self, thread: int | None = None) -> None:
        """The last call of a thread has been carried out; without one, those of all threads."""
        threads = [thread] if thread is not None else list(self._after)
        for one in threads:
            if (call := self._after.pop(one, None)) is not None:
                for look in call.looks:
                    look()

    def _look_at_others(self) -> None:
        """Take note of what other threads have done up to now.

        The thread whose call waits may have waited for them, and they may make no call any more.
        """
        for thread, call in list(self._after.items()):
            if has_returned(thread, call.number):
                self.finished(thread)
            # Who runs may have returned or not. What can be seen has happened.
            elif not (rest := [look for look in call.looks if not look()]):
                del self._after[thread]
            else:
                call.looks = rest

    def see(self, thread: int, call: Call, arguments: Sequence[int], number: int) -> Event | None:
        """A call waits; ``number`` is that of this machine. None if it is of no interest."""
        self.finished(thread)
        self._look_at_others()
        self._number = number
        try:
            return self._SEEING[call.kind](self, thread, call, arguments)
        except (Gone, OSError):
            # What the call is about does not exist. The kernel says so to whom it concerns.
            return None

    def _tracked(self, path: str, mount: int) -> bool:
        return mount in self._mounts and not _NEVER.fullmatch(path)

    def _watched(self, path: str) -> bool:
        return self._globs is None or self._globs.fullmatch(path) is not None

    def _opened(self, thread: int, fd: int, *, kinds: int = stat.S_IFREG) -> _Opened | None:
        """What a descriptor leads to, if that is a file of the sandbox."""
        link = f"/proc/{thread}/fd/{fd}"
        # First what is cheap: most writes go to pipes and terminals.
        kind = stat.S_IFMT(os.stat(link).st_mode)
        if kind not in (stat.S_IFREG, kinds):
            return None
        information = fdinfo(thread, fd)
        if information.mount not in self._mounts:
            return None
        file = self.files.adopt(open_descriptor(thread, fd))
        path = os.readlink(link)
        if file.is_deleted:
            path = path.removesuffix(" (deleted)")
        if not self._tracked(path, information.mount):
            return None
        # A file without a name is of no interest to anybody who comes later.
        counts = file.status.st_nlink > 0 and self._watched(path)
        return _Opened(file, path, information, counts)

    def _named(
        self, thread: int, where: PathArgument, arguments: Sequence[int], *, follows: bool
    ) -> _Named | None:
        """Where a path leads, if that is a place of the sandbox."""
        directory = None if where.directory is None else _int(arguments[where.directory])
        path = read_path(thread, arguments[where.path])
        place = resolve(thread, path, directory, follows=follows)
        try:
            return self._at(place)
        finally:
            place.close()

    def _at(self, place: Place) -> _Named | None:
        path = place.path
        mount = fdinfo("self", place.directory).mount
        if not self._tracked(path, mount):
            return None
        parent = self.files.adopt(os.dup(place.directory))
        return _Named(parent, place.name, path, self.files.at(parent, place.name))

    def _read(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.descriptor is not None
        if not self._reads:
            return None
        fd = _int(arguments[call.descriptor])
        opened = self._opened(thread, fd)
        return None if opened is None else Event(call, opened.path, counts=opened.counts)

    def _write(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.descriptor is not None
        fd = _int(arguments[call.descriptor])
        opened = self._opened(thread, fd)
        size = None if call.detail is None else arguments[call.detail]
        if opened is None or size == 0 or opened.information.flags & os.O_ACCMODE == os.O_RDONLY:
            return None
        offset = _offset(thread, call, arguments, opened)
        torn = self._torn(thread, call, arguments, opened.file, offset)
        if torn is not None:
            size = torn.size
        end = offset + (size or 0)
        file, disk = opened.file, self.disk
        synced = opened.information.flags & os.O_DSYNC
        whole = opened.information.flags & _O_SYNC_ALONE
        if call.name == "pwritev2":
            synced |= arguments[5] & (_RWF_DSYNC | _RWF_SYNC)
            whole |= arguments[5] & _RWF_SYNC

        def note() -> None:
            assert disk is not None
            disk.content_changes(file, file.read)
            if synced:
                self._when_done(thread, sync)

        def sync() -> bool:
            # The kernel syncs what was written, generic_write_sync(), and not the whole file.
            assert disk is not None
            disk.sync_part(file, offset, end, file.read)
            if whole:
                disk.sync_attributes(file)
            return True

        detail = "" if size is None or call.name in ("sendfile", "splice") else f"{size} bytes"
        return Event(call, opened.path, detail=detail, counts=opened.counts, torn=torn, note=note)

    def _torn(
        self, thread: int, call: Call, arguments: Sequence[int], file: File, offset: int
    ) -> Torn | None:
        """How this write can be cut short, if its content can be read from memory."""
        vectored = call.name in ("writev", "pwritev", "pwritev2")
        if not vectored and call.name not in ("write", "pwrite64"):
            return None
        pieces = [(arguments[1], arguments[2])]
        if vectored:
            vector = read_memory(thread, arguments[1], 16 * min(arguments[2], 1024))
            pieces = list(struct.iter_unpack("PN", vector[: len(vector) // 16 * 16]))

        def read(size: int) -> bytes:
            content = b""
            for address, length in pieces:
                if len(content) < size:
                    content += read_memory(thread, address, min(length, size - len(content)))
            return content

        return Torn(file, offset, sum(length for _, length in pieces), read)

    def _open(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.path is not None
        flags = _open_flags(thread, call, arguments)
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        follows = not (flags & os.O_NOFOLLOW or exclusive)
        if flags & calls.O_TMPFILE or not flags & calls.MAKING_FLAGS:
            return None
        named = self._named(thread, call.path, arguments, follows=follows)
        if named is None:
            return None
        disk, file, watched = self.disk, named.file, self._watched(named.path)
        if file is None:
            if not flags & os.O_CREAT:
                return None

            def make() -> None:
                assert disk is not None
                disk.name_changes(named.entry, None)

            return Event(call, named.path, detail="makes it", counts=watched, note=make)
        if exclusive or not flags & os.O_TRUNC or not file.is_regular or not file.status.st_size:
            return None
        detail = f"empties it, {file.status.st_size} bytes"
        note = self._sizing(thread, file, 0)
        return Event(call, named.path, detail=detail, counts=watched, note=note)

    def _sizing(self, thread: int, file: File, size: int) -> Callable[[], None]:
        disk = self.disk

        def note() -> None:
            assert disk is not None
            disk.content_changes(file, file.read)

            def look() -> bool:
                # The kernel may have refused it.
                if file.now().st_size != size:
                    return False
                disk.size_changed(file, size)
                return True

            self._when_done(thread, look)

        return note

    def _when_done(self, thread: int, look: Callable[[], bool]) -> None:
        """Have this called when the call that waits has returned, or may have."""
        self._after.setdefault(thread, _UnderWay(self._number)).looks.append(look)

    def _resize(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.detail is not None
        size = _signed(arguments[call.detail])
        found = self._either(thread, call, arguments)
        if found is None or not found[0].is_regular or found[0].status.st_size == size:
            return None
        file, path, counts = found
        detail = f"from {file.status.st_size} to {size} bytes"
        note = self._sizing(thread, file, size)
        return Event(call, path, detail=detail, counts=counts, note=note)

    def _either(
        self, thread: int, call: Call, arguments: Sequence[int]
    ) -> tuple[File, str, bool] | None:
        """The file that a call works on, by path or by descriptor, its path, and if it counts."""
        if call.path is not None:
            where = call.path
            if not arguments[where.path] or not read_path(thread, arguments[where.path]):
                # Without a path it is the descriptor, utimensat(2) and AT_EMPTY_PATH.
                if where.directory is None:
                    raise Gone
                return self._by_descriptor(thread, _int(arguments[where.directory]))
            follows = where.follows
            if where.flags is not None and arguments[where.flags] & _AT_SYMLINK_NOFOLLOW:
                follows = False
            named = self._named(thread, where, arguments, follows=follows)
            if named is None or named.file is None:
                return None
            return named.file, named.path, self._watched(named.path)
        assert call.descriptor is not None
        return self._by_descriptor(thread, _int(arguments[call.descriptor]))

    def _by_descriptor(self, thread: int, fd: int) -> tuple[File, str, bool] | None:
        opened = self._opened(thread, fd, kinds=stat.S_IFDIR)
        return None if opened is None else (opened.file, opened.path, opened.counts)

    def _allocate(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.descriptor is not None
        opened = self._opened(thread, _int(arguments[call.descriptor]))
        if opened is None:
            return None
        file, disk, size = opened.file, self.disk, arguments[2] + arguments[3]
        keeps = arguments[1] & (_KEEPS_SIZE | _MOVES_CONTENT)

        def look() -> bool:
            assert disk is not None
            # The kernel may have refused it.
            if file.now().st_size < size:
                return False
            disk.size_changed(file, size)
            return True

        def note() -> None:
            assert disk is not None
            disk.content_changes(file, file.read)
            if size > file.now().st_size and not keeps:
                self._when_done(thread, look)

        detail = f"{arguments[3]} bytes"
        return Event(call, opened.path, detail=detail, counts=opened.counts, note=note)

    def _make(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.path is not None
        named = self._named(thread, call.path, arguments, follows=False)
        if named is None or named.file is not None:
            return None
        source, linked = "", None
        if call.source is not None:
            linked = self._link_source(thread, call.source, arguments)
            if linked is None:
                return None
            source = os.readlink(linked.link)
        disk = self.disk

        def note() -> None:
            assert disk is not None
            disk.name_changes(named.entry, None)
            if linked is not None:
                entry = named.entry
                self._when_done(
                    thread, lambda: self.files.note_link(linked, entry.directory, entry.name)
                )

        return Event(call, named.path, source, counts=self._watched(named.path), note=note)

    def _link_source(
        self, thread: int, where: PathArgument, arguments: Sequence[int]
    ) -> File | None:
        flags = arguments[where.flags] if where.flags is not None else 0
        path = read_path(thread, arguments[where.path])
        if not path:
            assert where.directory is not None
            fd = open_descriptor(thread, _int(arguments[where.directory]))
            return self.files.adopt(fd)
        follows = bool(flags & _AT_SYMLINK_FOLLOW)
        parent, _, name = path.rpartition(b"/")
        if follows and parent in (b"/proc/self/fd", b"/dev/fd") and name.isdigit():
            # How a file that was made without a name gets one, open(2) on O_TMPFILE.
            return self.files.adopt(open_descriptor(thread, int(name)))
        directory = None if where.directory is None else _int(arguments[where.directory])
        place = resolve(thread, path, directory, follows=follows)
        try:
            return self.files.at(self.files.adopt(os.dup(place.directory)), place.name)
        finally:
            place.close()

    def _remove(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.path is not None
        named = self._named(thread, call.path, arguments, follows=False)
        if named is None or named.file is None:
            return None
        disk = self.disk

        def note() -> None:
            assert disk is not None
            disk.name_changes(named.entry, named.file)

        return Event(call, named.path, counts=self._watched(named.path), note=note)

    def _rename(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.path is not None
        assert call.source is not None
        old = self._named(thread, call.source, arguments, follows=False)
        new = self._named(thread, call.path, arguments, follows=False)
        # Of two hard links to one file nothing is renamed, rename(2).
        if old is None or new is None or old.file is None or old.file is new.file:
            return None
        disk = self.disk
        exchanged = call.detail is not None and arguments[call.detail] & _RENAME_EXCHANGE

        def note() -> None:
            assert disk is not None
            disk.name_changes(old.entry, old.file)
            disk.name_changes(new.entry, new.file)

            def look() -> bool:
                # This also notes the name.
                if self.files.at(new.directory, new.name) is not old.file:
                    return False
                # Once more: another thread may have synced a directory while this was under way.
                disk.name_changes(old.entry, old.file)
                disk.name_changes(new.entry, new.file)
                disk.moved((old.entry, new.file if exchanged else None), (new.entry, old.file))
                return True

            self._when_done(thread, look)

        counts = self._watched(new.path) or self._watched(old.path)
        return Event(call, new.path, old.path, counts=counts, note=note)

    def _metadata(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        found = self._either(thread, call, arguments)
        if found is None:
            return None
        (file, path, counts), disk = found, self.disk

        def note() -> None:
            assert disk is not None
            if not call.name.startswith(("utime", "futime")):
                disk.attributes_change(file, file.attributes)

        return Event(call, path, counts=counts, note=note)

    def _sync(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.descriptor is not None
        opened = self._opened(thread, _int(arguments[call.descriptor]), kinds=stat.S_IFDIR)
        if opened is None or self.disk is None:
            return None
        file, disk = opened.file, self.disk
        is_directory = stat.S_ISDIR(file.status.st_mode)

        def note() -> None:
            if call.name == "sync_file_range":
                # "This system call is extremely dangerous and should not be used in portable
                # programs": it writes no metadata, and does not flush the disk's own cache.
                flags = arguments[3]
                if self._power == "ordered" and flags & _WRITES_AND_WAITS == _WRITES_AND_WAITS:
                    begin = arguments[1]
                    end = begin + arguments[2] if arguments[2] else file.now().st_size
                    disk.sync_part(file, begin, end, file.read)
                return
            if is_directory:
                disk.sync_names(file)
            disk.sync(file, data_only=call.name == "fdatasync")

        return Event(call, opened.path, counts=opened.counts, note=note)

    def _sync_all(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        disk = self.disk
        if disk is None:
            return None
        if call.descriptor is None:
            return Event(call, "", counts=True, note=disk.sync_all)
        device = self._mounts.get(fdinfo(thread, _int(arguments[call.descriptor])).mount)
        if device is None:
            return None

        def lies_there(file: File) -> bool:
            return self._mounts.get(fdinfo("self", file.fd).mount) == device

        return Event(call, "", counts=True, note=lambda: disk.sync_all(lies_there))

    def _map(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        assert call.descriptor is not None
        fd = _int(arguments[call.descriptor])
        if fd < 0 or not arguments[3] & calls.MAP_SHARED:
            return None
        opened = self._opened(thread, fd)
        # Also if it is not mapped writable now: mprotect(2) can change that.
        if opened is None or opened.information.flags & os.O_ACCMODE != os.O_RDWR:
            return None
        file, path, disk = opened.file, opened.path, self.disk
        self._mapped[file] = path
        note = None if disk is None else lambda: disk.is_mapped(file, file.read)
        return Event(call, path, note=note)

    def _sync_map(self, thread: int, call: Call, arguments: Sequence[int]) -> Event | None:
        disk = self.disk
        if disk is None or not arguments[2] & _MS_SYNC or not self._mapped:
            return None
        if arguments[0] % mmap.PAGESIZE:
            # The kernel refuses it.
            return None
        parts = _mapped_at(thread, arguments[0], arguments[1])
        links = {os.readlink(file.link): file for file in self._mapped}
        found = [(links[path], start, end) for path, start, end in parts if path in links]
        if not found:
            return None

        def note() -> None:
            for file, start, end in found:
                disk.sync_part(file, start, end, file.read)

        path = self._mapped[found[0][0]]
        return Event(call, path, counts=self._watched(path), note=note)

    _SEEING: Final = {
        Kind.READ: _read,
        Kind.WRITE: _write,
        Kind.OPEN: _open,
        Kind.RESIZE: _resize,
        Kind.ALLOCATE: _allocate,
        Kind.MAKE: _make,
        Kind.REMOVE: _remove,
        Kind.RENAME: _rename,
        Kind.METADATA: _metadata,
        Kind.SYNC: _sync,
        Kind.SYNC_ALL: _sync_all,
        Kind.MAP: _map,
        Kind.SYNC_MAP: _sync_map,
    }


def _int(argument: int) -> int:
    """An argument of the type int: the upper half of its register is undefined."""
    return ctypes.c_int(argument & 0xFFFFFFFF).value


def _signed(argument: int) -> int:
    return ctypes.c_longlong(argument).value


def _open_flags(thread: int, call: Call, arguments: Sequence[int]) -> int:
    if call.name == "creat":
        return os.O_CREAT | os.O_WRONLY | os.O_TRUNC
    assert call.detail is not None
    if call.name == "openat2":
        # struct open_how: __u64 flags; __u64 mode; __u64 resolve;
        how = read_memory(thread, arguments[call.detail], 8)
        if len(how) < 8:
            raise Gone
        return int(struct.unpack("=Q", how)[0])
    return arguments[call.detail] & 0xFFFFFFFF


def _offset(thread: int, call: Call, arguments: Sequence[int], opened: _Opened) -> int:
    """Where in the file a write begins."""
    appends = call.name == "pwritev2" and arguments[5] & _RWF_APPEND
    if opened.information.flags & os.O_APPEND or appends:
        return opened.file.status.st_size
    if call.name in ("copy_file_range", "splice") and arguments[3]:
        # A pointer to the offset; the size of that is 8 on both architectures.
        text = read_memory(thread, arguments[3], 8)
        if len(text) < 8:
            raise Gone
        return int(struct.unpack("=q", text)[0])
    if call.name in ("pwrite64", "pwritev", "pwritev2") and _signed(arguments[3]) != -1:
        return arguments[3]
    return opened.information.position


def _mapped_at(pid: int, address: int, length: int) -> list[tuple[str, int, int]]:
    """The parts of files that are mapped shared at these addresses, proc_pid_maps(5).

    Of each the path of the file, and where in it the part begins and ends.
    """
    found = []
    with open_file(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            fields = line.rstrip(b"\n").split(None, 5)
            if len(fields) < 6 or not fields[1].endswith(b"s"):
                continue
            first, last = (int(one, 16) for one in fields[0].split(b"-"))
            begin, end = max(first, address), min(last, address + length)
            if begin < end:
                path = os.fsdecode(fields[5].replace(b"\\012", b"\n"))
                shift = int(fields[2], 16) - first
                found.append((path, begin + shift, end + shift))
    return found
