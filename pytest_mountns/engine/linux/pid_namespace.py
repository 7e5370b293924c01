"""A PID namespace, with a reaping init as its PID 1 and the test as an ordinary process in it.

Three processes, because each has to be what it is: the *waiter* stays outside, since whoever
unshares a PID namespace is not in it; the *init* is PID 1, reaps orphans, and takes everything
with it when it ends; the *test process* is not PID 1, for PID 1 has no default signal actions.
See pid_namespaces(7).

Waiter and init both ask for SIGKILL when their parent dies (PR_SET_PDEATHSIG): with one of the
two missing, a SIGKILL of pytest leaves processes behind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from . import syscalls as sys
from .errno_advice import explain
from .errors import SandboxError, Unavailable, said
from .job_control import SIGNALS, Job
from .processes import fork, reap
from .untouched import os, select, signal

#: With the processes goes what they share by number: System V IPC and message queues.
NAMESPACES: Final = sys.CLONE_NEWPID | sys.CLONE_NEWIPC


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when ``parent`` (its parent's pid) ends, PR_SET_PDEATHSIG(2const).

    The parent may be gone already, before it was asked for: then this process ends here.
    """
    sys.prctl(sys.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit_now(1)


def enter_pid_namespace(prepare: Callable[[], None], status: int, user_namespace: bool) -> None:
    """Return in a new process inside a new PID namespace; the caller's process becomes the waiter.

    ``prepare`` runs in the init before the test process is made and must not raise: both then
    live in what it entered. The new process leads a process group of its own: kill(0, ...) goes to
    the process group, and that would span the PID namespace; pytest and the shell above it would
    be hit. When the test process ends, its wait status is written to the pipe
    ``status``, as 4 bytes, little-endian. Raises :class:`SandboxError` in the calling process.
    """
    try:
        sys.unshare(NAMESPACES)
        alive, held = os.pipe()
        init = fork()
    except OSError as error:
        cause, remedy = explain(error.errno or 0, user_namespace, "namespace")
        raise Unavailable("make a PID namespace", said(error), cause, remedy) from error
    # Ignored, by a wider fixture for example, it would never tell waiter and init of an end.
    on_child = signal.getsignal(signal.SIGCHLD)
    if on_child is not None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if init:
        os.close(alive)
        _wait_for(init)
    os.close(held)
    sys.prctl(sys.PR_SET_PDEATHSIG, signal.SIGKILL)
    # getppid() is 0 in here whether the waiter lives or not; its end of the pipe tells.
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


def read_status(reader: int, status: int) -> int:
    """The wait status of the test process, when the process that was forked for it has ended.

    ``reader``: of the pipe ``status`` of :func:`enter_pid_namespace`. Without a PID namespace
    nothing is written there, and it is ``status``.
    """
    os.set_blocking(reader, False)
    try:
        data = os.read(reader, 4)
    except BlockingIOError:
        return status
    return int.from_bytes(data, "little") if len(data) == 4 else status


def _wait_for(init: int) -> NoReturn:
    # A Ctrl-C reaches the whole process group; what it means is for the test process to say.
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
                # Nobody is left: the test process was not for this one to see.
                sys.exit_now(1)
            if pid == 0:
                break
            if pid == test and os.WIFSTOPPED(result):
                job.has_stopped(os.WSTOPSIG(result))
            elif pid == test:
                os.write(status, result.to_bytes(4, "little"))
                sys.exit_now(0)
