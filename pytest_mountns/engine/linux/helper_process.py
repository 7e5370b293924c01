"""Calls a function in a forked process, which may enter namespaces that this one must not enter.

This is the only way in which a helper process answers: one pickled answer, with descriptors beside
it (unix(7), ``SCM_RIGHTS``). Two processes say more than one thing, or say it late, and so have
ways of their own: a test process (:mod:`pytest_mountns.forking.channel`), and the init of a PID
namespace (:func:`.pid_namespace.read_status`).
"""

from __future__ import annotations

import array
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

from . import syscalls
from .errors import SandboxError, said
from .pid_namespace import die_with_parent
from .processes import describe_status, describe_unended, fork, reap_soon
from .sockets import socket
from .untouched import _signal, os, select, struct

_T = TypeVar("_T")

#: Seconds after which a helper process is ended. It may be reading gigabytes.
_TIMEOUT: Final = 600
#: Seconds that it may take to end then.
_GRACE: Final = 10
#: How many descriptors may come with an answer.
_MOST_DESCRIPTORS: Final = 8
_CREDENTIALS: Final = struct.Struct("3i")


class Answer(NamedTuple):
    """What a helper process has sent."""

    #: What it has said, None if it has ended without an answer.
    content: Any
    #: Copies of the descriptors that came with it, for the caller to close.
    descriptors: list[int]
    #: The process id of the sender, if :func:`channel` has been asked for it; 0 otherwise.
    sender: int


def channel(*, credentials: bool = False) -> tuple[socket.socket, socket.socket]:
    """The receiving and the sending end for one answer.

    ``credentials``: the kernel says who has sent it, by the process id that this process knows it
    by (unix(7), ``SO_PASSCRED``).
    """
    receiver, sender = socket.socketpair()
    if credentials:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return receiver, sender


def send_answer(sender: socket.socket, content: object, descriptors: Sequence[int] = ()) -> None:
    """Send the answer. Raises :class:`OSError` if nobody listens."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    data = pickle.dumps(content, protocol=5)
    sent = sender.sendmsg([data], rights if descriptors else [])
    sender.sendall(data[sent:])
    # Another process may have this end open, too.
    sender.shutdown(socket.SHUT_WR)


def receive_answer(receiver: socket.socket) -> Answer:
    """Wait for the answer, or for all processes to end that have the sending end open."""
    data = b""
    descriptors: list[int] = []
    sender = 0
    size = socket.CMSG_SPACE(4 * _MOST_DESCRIPTORS) + socket.CMSG_SPACE(_CREDENTIALS.size)
    while True:
        piece, messages, _, _ = receiver.recvmsg(1 << 16, size, socket.MSG_CMSG_CLOEXEC)
        if not piece:
            # At the end of the stream the kernel gives credentials, too, with process id 0.
            break
        for _level, kind, content in messages:
            if kind == socket.SCM_CREDENTIALS:
                sender = _CREDENTIALS.unpack_from(content)[0]
            elif kind == socket.SCM_RIGHTS:
                descriptors += array.array("i", content[: len(content) // 4 * 4])
        data += piece
    return Answer(pickle.loads(data) if data else None, descriptors, sender)


def _says_something(receiver: socket.socket, seconds: float) -> bool:
    """Whether there is an answer, or nobody who could give one, within some seconds."""
    poll = select.poll()
    poll.register(receiver, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def call_in_helper(
    action: Callable[[], tuple[_T, Sequence[int]]], tried: str, *, timeout: int = _TIMEOUT
) -> tuple[_T, list[int]]:
    """Call ``action`` in a forked process. Returns its result and copies of the descriptors.

    The helper process is ended after ``timeout`` seconds. Raises the :class:`SandboxError` that
    ``action`` raises, and one that says ``tried`` if it raises anything else, if the process dies,
    or if it can neither answer nor be ended.
    """
    receiver, sender = channel()
    parent = os.getpid()
    try:
        child = fork()
    except OSError as error:
        receiver.close()
        sender.close()
        raise SandboxError(
            tried, said(error), "too many processes, or not enough memory", "ulimit -u; free"
        ) from error
    if child == 0:
        receiver.close()
        _answer(action, tried, sender, timeout, parent)
    sender.close()
    with receiver:
        if not _says_something(receiver, timeout + _GRACE):
            cause = f"the helper process that was to do it does not end: {describe_unended(child)}"
            raise SandboxError(tried, cause=cause)
        answer = receive_answer(receiver)
    status = reap_soon(child)
    if answer.content is None:
        how = describe_status(status)
        late = f" (it may have taken more than {timeout} s)" if how.endswith("SIGALRM") else ""
        problem: SandboxError | None = SandboxError(
            tried, cause=f"the helper process that was to do it was ended by {how}{late}"
        )
    else:
        result, problem = answer.content
    if problem is not None:
        for fd in answer.descriptors:
            os.close(fd)
        raise problem
    found: _T = result
    return found, answer.descriptors


def _answer(
    action: Callable[[], tuple[_T, Sequence[int]]],
    tried: str,
    sender: socket.socket,
    timeout: int,
    parent: int,
) -> NoReturn:
    try:
        # No handler of this process's Python may run. SIGALRM ends the process, so that a network
        # filesystem that does not answer cannot stop the session.
        syscalls.block_all_signals()
        _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, {_signal.SIGALRM})
        _signal.alarm(timeout)
        # In a new PID namespace getppid(2) is 0, as the parent has no process id in there.
        if os.getppid():
            die_with_parent(parent)
        descriptors: Sequence[int] = ()
        answer: tuple[object, SandboxError | None]
        try:
            result, descriptors = action()
            answer = (result, None)
        except SandboxError as error:
            answer = (None, error)
        except OSError as error:
            answer = (None, SandboxError(tried, said(error)))
        except Exception as error:  # noqa: BLE001 - for the other process to say
            answer = (None, SandboxError(tried, repr(error)))
        send_answer(sender, answer, descriptors)
        syscalls.exit_now(0)
    finally:
        # Whoever waits learns that there is no answer.
        syscalls.exit_now(1)
