"""A PID namespace, with an init that reaps as its PID 1, and the test as another process in it.

There are three processes, pid_namespaces(7). The *waiter* stays outside, since a process that
unshares a PID namespace does not enter it itself. The *init* is PID 1 in it: it reaps orphans, and
everything in the namespace ends with it. The *test process* must not be PID 1, which has no default
actions for signals.

Waiter and init are both killed when their parent dies (PR_SET_PDEATHSIG(2const)). If only one of
the two were, SIGKILL of pytest would leave processes behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn, TypeVar

from . import syscalls as sys
from .errno_advice import explain
from .errors import SandboxError, Unavailable, said
from .job_control import SIGNALS, Job
from .processes import fork, reap
from .untouched import os, select, signal

_Status = TypeVar("_Status", bound="int | None")

#: Processes share System V IPC and message queues by numbers, so these are isolated with them.
NAMESPACES: Final = sys.CLONE_NEWPID | sys.CLONE_NEWIPC


def die_with_parent(parent: int) -> None:
    """Have this process killed when its parent, whose id is ``parent``, ends.

    See PR_SET_PDEATHSIG(2const). If the parent has ended already, this process ends here.
    """
    sys.prctl(sys.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit_now(1)


def enter_pid_namespace(prepare: Callable[[], None], status: int, user_namespace: bool) -> None:
    """Return in a new process in a new PID namespace; the calling process becomes the waiter.

    ``prepare`` runs in the init before the test process is forked, and must not raise; the test
    process inherits what it has entered. The test process leads a process group of its own:
    otherwise ``kill(0, ...)`` in the test would reach pytest and the shell above it. When the
    test process ends, its wait status is written to the pipe ``status``, as 4 bytes,
    little-endian. Raises :class:`SandboxError` in the calling process if that is refused.
    """
    try:
        sys.unshare(NAMESPACES)
        alive, held = os.pipe()
        init = fork()
    except OSError as error:
        cause, remedy = explain(error.errno or 0, user_namespace, "namespace")
        raise Unavailable("make a PID namespace", said(error), cause, remedy) from error
    # If SIGCHLD is ignored, by a wider fixture for example, waiter and init hear of no end.
    on_child = signal.getsignal(signal.SIGCHLD)
    if on_child is not None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if init:
        os.close(alive)
        _wait_for(init)
    os.close(held)
    sys.prctl(sys.PR_SET_PDEATHSIG, signal.SIGKILL)
    # In a PID namespace getppid(2) is 0 whether the waiter lives or not. When it has ended, its end
    # of the pipe is closed.
    poll = select.poll()
    poll.register(alive, 0)
    if poll.poll(0):
        sys.exit_now(1)
    os.close(alive)
    prepare()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        test = fork()
    except OSError as error:
        raise Unavailable(
            "fork a test process", said(error), "too many processes", "ulimit -u"
        ) from error
    if test:
        _reap(test, status)
    try:
        os.setpgid(0, 0)
    except OSError as error:
        raise SandboxError("give the test a process group of its own", said(error)) from error
    if on_child is not None:
        signal.signal(signal.SIGCHLD, on_child)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def read_status(reader: int, status: _Status) -> int | _Status:
    """The wait status of the test process, when the process that was forked for it has ended.

    ``reader`` is the other end of the pipe of :func:`enter_pid_namespace`. Without a PID namespace
    nothing is written there, and the result is ``status``. It is not the answer of a helper
    process: it comes when the test has ended, from an init that outlives no message.
    """
    os.set_blocking(reader, False)
    try:
        data = os.read(reader, 4)
    except BlockingIOError:
        return status
    return int.from_bytes(data, "little") if len(data) == 4 else status


def _wait_for(init: int) -> NoReturn:
    # A Ctrl-C reaches the whole process group, and the test process is the one to answer it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reap(init)
    sys.exit_now(0)


def _reap(test: int, status: int) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job(test)
    while True:
        number = signal.sigwait(SIGNALS)
        if number == signal.SIGTSTP:
            job.stop()
        elif number == signal.SIGCONT:
            job.go_on()
        while number == signal.SIGCHLD:
            try:
                pid, result = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            except ChildProcessError:
                # There are no children left, and the test process was not seen to end.
                sys.exit_now(1)
            if pid == 0:
                break
            if pid == test and os.WIFSTOPPED(result):
                job.has_stopped(os.WSTOPSIG(result))
            elif pid == test:
                os.write(status, result.to_bytes(4, "little"))
                sys.exit_now(0)
