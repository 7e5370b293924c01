"""Runs a command in a sandbox, and waits for its end.

This process stays on the host. Its child becomes the command or, with a PID namespace, the process
that waits for the init above the command. The command is in this process's process group, so
Ctrl-C and Ctrl-Z of the terminal reach it directly. Signals that are sent to this process alone
are passed on to it.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn, final

from ..linux import processes
from ..linux import syscalls as sys
from ..linux.errors import SandboxError, errno_name, said
from ..linux.helper_process import channel, receive_answer, send_answer
from ..linux.job_control import take_terminal_back
from ..linux.pid_namespace import read_status
from ..linux.sockets import socket
from ..linux.untouched import os, signal
from ..plan.model import Plan, UppersDescription
from .forked import ForkedEntry
from .sandbox import Layers
from .written import Written

#: Exit statuses of a command that could not be started, as shells have them, see bash(1).
NOT_EXECUTABLE: Final = 126
NOT_FOUND: Final = 127

_SIGNALS: Final = frozenset(
    {signal.SIGCHLD, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP}
)
#: The ``si_code`` of a signal that the kernel has sent, sigaction(2).
_SI_KERNEL: Final = 0x80


@final
@dataclass(frozen=True, slots=True)
class Ended:
    """A command that has ended."""

    #: Its exit status; 128 + N if it was ended by signal N, as shells have it.
    status: int
    #: What it has written. The caller closes its scratch.
    written: Written


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
    """Run a command with this process's standard streams, and wait until it has ended.

    ``stage``, ``directory`` and ``layers`` are as for :func:`.create.make`. If there is a stage,
    this process is in the user namespace already that the plan may want; otherwise the child makes
    one. Processes that the command leaves behind are killed. How this process handles signals is
    changed for good. Raises :class:`SandboxError` if the sandbox cannot be made or entered.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # Orphans of the command become children of this process, PR_SET_CHILD_SUBREAPER(2const).
    sys.prctl(sys.PR_SET_CHILD_SUBREAPER, 1)
    before = processes.own_children()
    # With credentials: the command may have another process id in its PID namespace than here.
    receiver, sender = channel(credentials=True)
    reader, writer = os.pipe()
    parent = os.getpid()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        child = processes.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise SandboxError("start the command", said(error)) from error
    if child == 0:
        receiver.close()
        os.close(reader)
        enters = plan.user_namespace and stage < 0
        forked_entry = ForkedEntry(plan, cwd, directory, stage, layers, makes_user_namespace=enters)
        _Child(forked_entry, parent, sender, writer).run(command, environment, mask)
    sender.close()
    os.close(writer)
    try:
        answer = receive_answer(receiver)
        if not isinstance(answer.content, UppersDescription):
            processes.reap(child)
            raise answer.content or SandboxError(
                "enter the sandbox", cause="the process that was to do it has died"
            )
        (scratch,) = answer.descriptors
        status = _wait(child, answer.sender, apart=plan.pid_namespace)
        status = read_status(reader, status)
        # What the command has left: its root is about to vanish.
        processes.end_children(before)
        # Signals of a Ctrl-C that was meant for the command may be pending.
        while signal.sigtimedwait(_SIGNALS, 0) is not None:
            pass
        take_terminal_back()
    finally:
        receiver.close()
        os.close(reader)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = os.waitstatus_to_exitcode(status)
    written = Written.of(plan, scratch, answer.content, layers=layers)
    return Ended(128 - code if code < 0 else code, written)


@final
@dataclass(slots=True)
class _Child:
    """The process that enters the sandbox and executes the command."""

    forked_entry: ForkedEntry
    #: The process id of the parent.
    parent: int
    #: The sending end of a :func:`.helper_process.channel`.
    sender: socket.socket
    #: See :meth:`.ForkedEntry.enter`.
    status: int

    def run(
        self, command: Sequence[str], environment: Mapping[str, str], mask: set[int]
    ) -> NoReturn:
        """Enter and execute the command, with ``mask`` as the signals that are blocked."""
        try:
            try:
                sandbox = self.forked_entry.enter(self.parent, self.status)
            except SandboxError as error:
                send_answer(self.sender, error)
                sys.exit_now(1)
            except Exception as error:  # noqa: BLE001 - for the parent to say
                send_answer(self.sender, SandboxError("enter the sandbox", str(error)))
                sys.exit_now(1)
            send_answer(self.sender, sandbox.describe_uppers(), [sandbox.scratch])
            self.forked_entry.drop_privileges(self.parent)
            user = self.forked_entry.plan.user
            if user is not None:
                changed = {**environment, **user.variables()}
                environment = {name: value for name, value in changed.items() if value is not None}
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            # Python ignores them, and an ignored signal stays so across execve(2).
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
            _execute(command, environment)
        finally:
            sys.exit_now(1)


def _execute(command: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    try:
        os.execvpe(command[0], list(command), dict(environment))
    except OSError as error:
        number = error.errno or 0
        # execvpe fails with EACCES if a directory of PATH may not be searched, also if no directory
        # has such a program.
        if not _is_there(command[0], environment.get("PATH")):
            number = errno.ENOENT
        # The error's path, where it was looked for last, says nothing to the user.
        why = f"{errno_name(number)} ({os.strerror(number)})"
        os.write(2, f"pytest-mountns: cannot run {command[0]}: {why}\n".encode())
        missing = number in (errno.ENOENT, errno.ENOTDIR)
        sys.exit_now(NOT_FOUND if missing else NOT_EXECUTABLE)


def _is_there(program: str, path: str | None) -> bool:
    return "/" in program or shutil.which(program, os.F_OK, path) is not None


def _wait(child: int, target: int, *, apart: bool) -> int:
    """Returns the wait status of ``child``. Signals are passed on to ``target`` meanwhile.

    ``apart`` says that the target is in a process group of its own.
    """
    while True:
        info = signal.sigwaitinfo(_SIGNALS)
        if info.si_signo != signal.SIGCHLD:
            # A signal from the terminal has gone to all of this process's group.
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
