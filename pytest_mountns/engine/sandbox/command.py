"""A command in a sandbox: started, waited for, and looked at when it has ended.

Three parties: this process, which stays on the host; the command, or with a PID namespace the init
above it; and the terminal. The command stays in this process's group, so the terminal's Ctrl-C and
Ctrl-Z reach it by themselves; signals sent to this process alone are passed on.
"""

from __future__ import annotations

import array
import errno
import os
import pickle
import shutil
import signal
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias, final

from ..linux import processes
from ..linux import syscalls as sys
from ..linux.errors import SandboxError, errno_name, said
from ..linux.job_control import take_terminal_back
from ..linux.pid_namespace import read_status
from ..plan.model import Plan
from .forked import ForkedEntry
from .sandbox import Layers
from .written import Outline, Written, outline

#: Exit statuses of a command that could not be started, as shells have them.
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127

_SIGNALS: Final = frozenset(
    {signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP}
)
_SI_KERNEL: Final = 0x80
_CREDENTIALS: Final = struct.Struct("3i")
#: Pid of the command, where its uppers lie, and which they are.
_Entered: TypeAlias = tuple[int, int, Outline]


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """``status``: the exit status, 128 + N for one that was ended by signal N. ``remains``: what
    it has written; its ``scratch`` is the caller's to close.
    """

    status: int
    remains: Written


def run_command(
    command: Sequence[str],
    plan: Plan,
    *,
    cwd: str,
    environment: Mapping[str, str],
    stage: int = -1,
    directory: str | None = None,
    layers: Layers | None = None,
) -> Ended:
    """Run it, with this process's standard streams. Processes that it leaves behind are killed.

    ``stage``, ``directory``, ``layers``: as for :func:`.create.make`; with a stage this process has
    settled in the user namespace that the plan may want. Changes how this process handles signals,
    for good. Raises :class:`SandboxError` if the sandbox cannot be made or entered.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # For what outlives the process that started it: prctl(2), PR_SET_CHILD_SUBREAPER.
    sys.prctl(sys.PR_SET_CHILD_SUBREAPER, 1)
    known = set(processes.children(os.getpid()))
    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    reader, writer = os.pipe()
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        child = processes.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise SandboxError("start the command", said(error)) from error
    if child == 0:
        ours.close()
        os.close(reader)
        enters = plan.user_namespace and stage < 0
        forked_entry = ForkedEntry(plan, cwd, directory, stage, layers, enter_user_namespace=enters)
        _Child(forked_entry, parent, theirs, writer).become(command, environment, mask)
    theirs.close()
    os.close(writer)
    try:
        entered = _hear(ours)
        if isinstance(entered, SandboxError):
            processes.reap(child)
            raise entered
        target, scratch, shape = entered
        status = _wait(child, target, apart=plan.pid_namespace)
        status = read_status(reader, status)
        _end_leftovers(known)
        # Of a Ctrl-C that was for the command, there may be more.
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass
        take_terminal_back()
    finally:
        ours.close()
        os.close(reader)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = os.waitstatus_to_exitcode(status)
    view = layers.view if layers is not None else -1
    remains = Written.of(plan, scratch, shape, (), view)
    return Ended(128 - code if code < 0 else code, remains)


@final
@dataclass(slots=True)
class _Child:
    """The process that becomes the command."""

    forked_entry: ForkedEntry
    parent: int
    channel: socket.socket
    status: int

    def become(
        self, command: Sequence[str], environment: Mapping[str, str], mask: set[int]
    ) -> NoReturn:
        try:
            try:
                sandbox = self.forked_entry.enter(self.parent, self.status)
            except SandboxError as error:
                self._say(error)
                sys.exit_now(1)
            except Exception as error:  # noqa: BLE001 - for the parent to say
                self._say(SandboxError("enter the sandbox", str(error)))
                sys.exit_now(1)
            self._say(outline(sandbox), sandbox.scratch)
            self.forked_entry.give_up_rights(self.parent)
            user = self.forked_entry.plan.user
            if user is not None:
                told = {**environment, **user.variables()}
                environment = {name: value for name, value in told.items() if value is not None}
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # Python ignores them: signal(7), "inherited by exec".
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            _execute(command, environment)
        finally:
            sys.exit_now(1)

    def _say(self, what: Outline | SandboxError, *descriptors: int) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        data = pickle.dumps(what)
        sent = self.channel.sendmsg([data], rights if descriptors else [])
        self.channel.sendall(data[sent:])
        # An init has it open, too.
        self.channel.shutdown(socket.SHUT_WR)


def _execute(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    try:
        os.execvpe(command[0], list(command), dict(environment))
    except OSError as error:
        number = error.errno or 0
        # A directory of PATH that may not be searched hides no program, but is what it fails with.
        if not _is_there(command[0], environment.get("PATH")):
            number = errno.ENOENT
        # Where it was looked for last is of no interest.
        why = f"{errno_name(number)} ({os.strerror(number)})"
        os.write(2, f"pytest-mountns: cannot run {command[0]}: {why}\n".encode())
        missing = number in (errno.ENOENT, errno.ENOTDIR)
        sys.exit_now(NOT_FOUND if missing else NOT_EXECUTABLE)


def _is_there(program: str, path: str | None) -> bool:
    return "/" in program or shutil.which(program, os.F_OK, path) is not None


def _hear(channel: socket.socket) -> _Entered | SandboxError:
    """What the child says of its sandbox, or why it has none."""
    data = b""
    pid, scratch = 0, -1
    while True:
        piece, messages, _, _ = channel.recvmsg(1 << 16, 256, socket.MSG_CMSG_CLOEXEC)
        if not piece:
            break
        data += piece
        for _level, kind, content in messages:
            if kind == socket.SCM_CREDENTIALS:
                # As this PID namespace knows it.
                pid = _CREDENTIALS.unpack_from(content)[0]
            elif kind == socket.SCM_RIGHTS:
                (scratch,) = array.array("i", content[:4])
    if not data:
        return SandboxError("enter the sandbox", cause="the process that was to do it has died")
    said_by_child: Outline | SandboxError = pickle.loads(data)
    if isinstance(said_by_child, SandboxError):
        return said_by_child
    return pid, scratch, said_by_child


def _wait(child: int, target: int, *, apart: bool) -> int:
    """The wait status of ``child``; signals for ``target`` are passed on meanwhile."""
    while True:
        info = signal.sigwaitinfo(_SIGNALS)
        if info.si_signo != signal.SIGCHLD:
            # From the terminal it has gone to the whole group, which the command may be apart from.
            if info.si_code != _SI_KERNEL or apart:
                try:
                    os.kill(target, info.si_signo)
                except ProcessLookupError:
                    pass
            continue
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0
            if pid == child:
                return status
            if pid == 0:
                break


def _end_leftovers(known: set[int]) -> None:
    """Their root is about to vanish."""
    while new := [pid for pid in processes.children(os.getpid()) if pid not in known]:
        processes.end(new)
