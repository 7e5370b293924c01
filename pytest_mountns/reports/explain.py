"""Explains what fails in a sandbox and works outside."""

from __future__ import annotations

import errno
import re
import stat
from collections.abc import Callable, Iterator
from os import PathLike
from types import FrameType, TracebackType
from typing import Final, NamedTuple

import pytest

from ..engine.linux.attributes import OVERFLOW_ID
from ..engine.linux.errors import SandboxError, errno_name
from ..engine.linux.mountinfo import is_below
from ..engine.linux.untouched import os
from ..engine.plan.model import SHM, Bind, Plan
from ..engine.sandbox.sandbox import Sandbox

#: How many frames of a failure are looked at, from the innermost on.
_FRAMES: Final = 8
#: PATH_MAX, with the byte that ends a path.
_LONGEST_PATH: Final = 4096
#: Programs that give files to other users.
_PROGRAMS: Final = frozenset(["chown", "chgrp", "setfacl", "install"])
#: How programs say that a user namespace does not map an id, and which functions of Python meet it.
_SAID_OF_IDS: Final = (
    r"(?i)(?:chown|chgrp|changing (?:owner|group)|set(?:e|re|res)?[ug]id|setgroups|initgroups"
    r"|cannot set groups)[^\n]*?(?:Invalid argument|Operation not permitted)"
)
_OF_IDS: Final = r"\b(?:[fl]?chown|set(?:e|re|res)?[ug]id|setgroups|initgroups)\("


def explain_failure(report: pytest.TestReport, error: BaseException, sandbox: Sandbox) -> None:
    """Add a section if ``error``, or what it comes from, may have been caused by the sandbox."""
    if text := _missing_ids(report, error, sandbox.plan):
        report.sections.append(("mountns", f"{text} See docs/limits.md."))
        return
    for one in chain(error):
        failure = _Failure(one, sandbox)
        for explain in _EXPLANATIONS:
            if text := explain(failure):
                report.sections.append(("mountns", f"{text} See docs/limits.md."))
                return
    if isinstance(error, Exception) and (path := _opened_before()):
        text = (
            f"{path}: a descriptor of this file was opened before the test had its sandbox, and"
            " leads to the host's file. The file that the sandbox has at this path is another one"
            " by now: it was written to or replaced in the test. What is written to one is not read"
            " from the other. Open it in a fixture of function scope, or give its directory as a"
            " volume."
        )
        report.sections.append(("mountns", f"{text} See docs/limits.md."))


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception and its causes: libraries for databases raise exceptions of their own."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


class _Failure(NamedTuple):
    """An exception, and the sandbox that it was raised in."""

    error: BaseException
    sandbox: Sandbox

    @property
    def number(self) -> int:
        """The errno; 0 if it has none."""
        return (self.error.errno or 0) if isinstance(self.error, OSError) else 0

    @property
    def path(self) -> str:
        """The path that the system call was about, "" if that is not known."""
        return _decoded(getattr(self.error, "filename", None))

    @property
    def user_namespace(self) -> bool:
        """Whether the sandbox is in a user namespace."""
        return self.sandbox.plan.user_namespace

    def said(self) -> str:
        """The beginning of an explanation: the errno by name, and the path."""
        path = f"{self.path}: " if self.path else ""
        return f"{errno_name(self.number)}: {path}"

    def calls(self, *names: str) -> bool:
        """Whether the function that has raised it calls one of these."""
        frame = next(_frames(self.error.__traceback__), None)
        return frame is not None and not set(names).isdisjoint(frame.f_code.co_names)

    def on_host(self, path: str) -> os.stat_result | None:
        """The status of a path on the host; None if it is not there, or cannot be known."""
        try:
            return self.sandbox.status_on_host(path)
        except SandboxError:
            return None

    def find(self, is_wanted: Callable[[int], bool]) -> str:
        """The first path of the failing functions that is wanted here and on the host.

        ``is_wanted`` is asked about the type of a file, as :func:`stat.S_ISFIFO`. "" if there is
        none.
        """
        for path in _paths(self.error):
            try:
                here = os.stat(path)
            except (OSError, ValueError):
                continue
            if is_wanted(here.st_mode):
                there = self.on_host(os.path.realpath(path))
                if there is not None and is_wanted(there.st_mode):
                    return path
        return ""


def _frames(traceback: TracebackType | None) -> Iterator[FrameType]:
    """The frames of a traceback, from the innermost on."""
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    yield from reversed(frames[-_FRAMES:])


def _paths(error: BaseException) -> Iterator[str]:
    """What may be a path in the functions that have failed: variables, constants, attributes."""
    if path := _decoded(getattr(error, "filename", None)):
        yield path
    for frame in _frames(error.__traceback__):
        values = [*frame.f_locals.values(), *frame.f_code.co_consts]
        own = getattr(frame.f_locals.get("self"), "__dict__", None)
        if isinstance(own, dict):
            values += own.values()
        for value in values:
            if path := _decoded(value):
                yield path


def _decoded(value: object) -> str:
    """A path as text; "" for what cannot be one."""
    if isinstance(value, PathLike):
        try:
            value = value.__fspath__()
        except Exception:  # noqa: BLE001 - of a class of the test's
            return ""
    if not isinstance(value, str | bytes) or not 0 < len(value) < _LONGEST_PATH:
        return ""
    return os.fsdecode(value)


def _sqlite(failure: _Failure) -> str:
    kind = type(failure.error)
    if kind.__module__ != "sqlite3" or "readonly database" not in str(failure.error):
        return ""
    return (
        f"{kind.__name__}: {failure.error}: SQLite refuses to write to a database file that it"
        " finds replaced (SQLITE_READONLY_DBMOVED). The connection was opened before the test had"
        " its sandbox. Open it in a fixture of function scope, or give the directory of the"
        " database as a volume."
    )


def _copy_file_range(failure: _Failure) -> str:
    if failure.number != errno.EXDEV or not failure.calls("copy_file_range"):
        return ""
    return (
        "EXDEV: copy_file_range(2) does not copy between filesystems. A file of the host and one"
        " that the test has written lie on different ones in a sandbox: the upper layer is a"
        " tmpfs. Copy by reading and writing if it is refused, as copy_file_range(2) advises, or"
        ' set upper="disk".'
    )


def _across_a_volume(failure: _Failure) -> str:
    other = _decoded(getattr(failure.error, "filename2", None))
    if failure.number != errno.EXDEV or not failure.path or not other:
        return ""
    paths = [os.path.abspath(one) for one in (failure.path, other)]
    for step in failure.sandbox.plan.steps:
        if not isinstance(step, Bind) or step.read_only:
            continue
        inside = [is_below(path, step.target) for path in paths]
        if inside[0] != inside[1]:
            return (
                f"{failure.said()}{step.target} is a volume, which is a mount of its own. Nothing"
                " can be renamed or linked from one mount to another (rename(2)); shutil.move"
                " copies. Make the directory that holds both the volume."
            )
    return ""


def _own_directory(failure: _Failure) -> str:
    own = [one.target for one in failure.sandbox.own]
    if not own or failure.number not in (errno.EXDEV, errno.EBUSY):
        return ""
    named = (failure.path, _decoded(getattr(failure.error, "filename2", None)))
    paths = [os.path.abspath(path) for path in named if path]
    for place in own:
        if failure.number == errno.EBUSY and place in paths:
            return (
                f'EBUSY: {place} is a mount of its own (tmp_path="own"). What is in it can be'
                " removed and renamed, but not the directory itself (rmdir(2), rename(2)). Use a"
                ' directory in it, or tmp_path="shared".'
            )
        inside = {path == place or is_below(path, place) for path in paths}
        if failure.number == errno.EXDEV and len(inside) == 2:
            return (
                f'{failure.said()}{place} is a mount of its own (tmp_path="own"). Nothing can be'
                " renamed or linked from one mount to another (rename(2)); shutil.move copies. Make"
                ' both in tmp_path, or use tmp_path="shared".'
            )
    return ""


def _missing_ids(report: pytest.TestReport, error: BaseException, plan: Plan) -> str:
    """Why a user who is shown as root has no other users, if the test has wanted one.

    The test itself, or a program that it has started: then the name is in what that has written.
    """
    if not plan.fake_root or not plan.why_one_id:
        return ""
    texts = [report.longreprtext, *(text for _, text in report.sections)]
    for one in chain(error):
        # As subprocess.CalledProcessError has them.
        written = (getattr(one, name, None) for name in ("stdout", "stderr"))
        texts += [os.fsdecode(text) for text in written if isinstance(text, str | bytes)]
    is_own = isinstance(error, OSError) and error.errno in (errno.EINVAL, errno.EPERM)
    pattern = _OF_IDS if is_own else _SAID_OF_IDS
    found = next(filter(None, (re.search(pattern, text) for text in texts)), None)
    if found is None:
        return ""
    return (
        f"{found[0].rstrip('(')}: the user namespace of this test has one uid and one gid, those of"
        " the user, shown as 0. So no file can be given to another user, and no process can become"
        f" one. Further ids are subordinate ids, subuid(5): {plan.why_one_id}."
    )


def _unmapped_id(failure: _Failure) -> str:
    if not failure.user_namespace:
        return ""
    command = getattr(failure.error, "cmd", None)
    if type(failure.error).__name__ == "CalledProcessError" and command:
        words = command.split() if isinstance(command, str) else list(command)
        program = os.path.basename(_decoded(words[0])) if words else ""
        if program not in _PROGRAMS:
            return ""
        said = f"{program} has failed. If it says EINVAL (Invalid argument):"
    elif failure.number == errno.EINVAL and failure.calls(
        "chown", "fchown", "lchown", "setxattr", "apply_to", "applyto"
    ):
        said = failure.said().rstrip()
    else:
        return ""
    return (
        f"{said} an ordinary user's sandbox is in a user namespace, which maps the user and the"
        " user's own group and no other. So files cannot be given to another user or group, nor"
        " to a supplementary group of the user, and access control lists cannot name them. Run as"
        " root."
    )


def _fifo(failure: _Failure) -> str:
    timeout = isinstance(failure.error, pytest.fail.Exception | TimeoutError)
    if failure.number != errno.ENXIO and not timeout:
        return ""
    path = failure.find(stat.S_ISFIFO)
    if not path:
        return ""
    return (
        f"{path} is a named pipe of the host. In a sandbox it is another pipe, which no process"
        " outside has opened: opening it for reading waits for a writer, and opening it for"
        " writing waits for a reader, or fails with ENXIO (fifo(7)). Give its directory as a"
        " volume."
    )


def _socket(failure: _Failure) -> str:
    if failure.number != errno.ECONNREFUSED:
        return ""
    path = failure.find(stat.S_ISSOCK)
    if not path:
        return ""
    return (
        f"ECONNREFUSED: {path} is the socket of a server on the host. The server has bound the"
        " host's file and not the one that OverlayFS shows. Give its directory as a volume."
    )


def _device(failure: _Failure) -> str:
    path = failure.path
    if failure.number != errno.ENOENT or not path:
        return ""
    if failure.calls("shm_open"):
        # shm_open(3) names objects "/name".
        path = f"{SHM}{path}"
    path = os.path.abspath(path)
    if not is_below(path, "/dev") or failure.on_host(path) is None:
        return ""
    if is_below(path, SHM):
        return (
            f"ENOENT: {path} is shared memory on the host. A sandbox has a {SHM} of its own, which"
            " shows only what this test run had there when the test began. Make the shared memory"
            f' in a fixture, or give it as a volume: "{path}".'
        )
    return (
        f"ENOENT: {path} is there on the host. A sandbox has only the usual devices; with"
        f' devices=["{path}"] it has this one as well.'
    )


def _ordinary_user(failure: _Failure) -> str:
    if not failure.user_namespace:
        return ""
    path, fake_root = failure.path, failure.sandbox.plan.fake_root
    text = {
        errno.EROFS: f"{path or 'This place'} is shown read-only: an ordinary user's sandbox has"
        " writable layers only over directories the user can write"
        + (", and over those that writable= names." if fake_root else "."),
        errno.EXDEV: "An ordinary user's OverlayFS cannot rename a directory of the lower layer,"
        " nor anything from one layered directory to another.",
        errno.EOVERFLOW: _unmapped(path),
    }.get(failure.number)
    if not text:
        return ""
    remedy = "Run as root, or give the directory as a volume."
    if failure.number == errno.EROFS and not fake_root:
        remedy = 'Use user="root", run as root, or give the directory as a volume.'
    if failure.number == errno.EOVERFLOW and fake_root:
        remedy = "Replace the file (write another one and rename it), or run as root."
    return f"{errno_name(failure.number)}: {text} {remedy}"


#: Each returns the explanation of a failure, or "". The first that knows one counts.
_EXPLANATIONS: Final[tuple[Callable[[_Failure], str], ...]] = (
    _sqlite,
    _copy_file_range,
    _own_directory,
    _across_a_volume,
    _unmapped_id,
    _fifo,
    _socket,
    _device,
    _ordinary_user,
)


def _opened_before() -> str:
    """A file that is open since before the sandbox, and was written to by its path since.

    A file that is only read has the same size and time of modification in the sandbox as on the
    host, and so has one that is written to through the descriptor alone. Another process may write
    to it between two looks, as that of pytest-xdist to what is its output. "" if there is none.
    """
    try:
        numbers = os.listdir("/proc/self/fd")
    except OSError:
        return ""
    for number in numbers:
        link = f"/proc/self/fd/{number}"
        try:
            opened = os.stat(link)
            if not stat.S_ISREG(opened.st_mode) or opened.st_nlink == 0:
                continue
            path = os.readlink(link)
            here = os.stat(path)
            again = os.stat(link)
        except OSError:
            continue
        if (
            opened.st_dev != here.st_dev
            and stat.S_ISREG(here.st_mode)
            and _version(opened) != _version(here)
            and _version(opened) == _version(again)
        ):
            return path
    return ""


def _version(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _unmapped(path: str) -> str:
    """Says which owner or group keeps ``path`` from being copied up."""
    place = os.path.abspath(path) if path else "/"
    found = []
    while place != "/":
        try:
            status = os.lstat(place)
        except OSError:
            pass
        else:
            kinds = [
                kind
                for kind, number in (("owner", status.st_uid), ("group", status.st_gid))
                if number == OVERFLOW_ID
            ]
            if kinds:
                found.append(f"{place} ({' and '.join(kinds)})")
        place = os.path.dirname(place)
    what = f": {', '.join(found)}" if found else ""
    return (
        "a file or directory cannot be copied into the upper layer, because its owner or group"
        f" is not the user's own and a user namespace maps no other{what}."
    )
