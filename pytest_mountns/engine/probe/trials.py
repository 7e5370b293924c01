"""Steps that are tried, each in a process that ends with it, and what came of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn, TypeAlias, final

from ..linux import syscalls as sys
from ..linux.errno_advice import Doing, explain
from ..linux.errors import SandboxError, SyscallError, errno_name, said
from ..linux.pid_namespace import die_with_parent
from ..linux.processes import fork, reap

_PROBE_SECONDS: Final = 30
#: What a process that tries something says.
Answer: TypeAlias = dict[str, Any]


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One step that was tried: whether it worked; if not, what the kernel said, why, what helps.

    ``needed``: without it nothing can be isolated here. ``errno``: its name. ``without``: what is
    done, or does not work, where the step fails.
    """

    name: str
    works: bool
    kernel: str = ""
    cause: str = ""
    remedy: str = ""
    needed: bool = True
    errno: str = ""
    without: str = ""


class Log:
    """Collects trials."""

    def __init__(self, user_namespace: bool) -> None:
        self.trials: list[Trial] = []
        self._user = user_namespace

    def attempt(
        self,
        name: str,
        action: Callable[[], object],
        *,
        needed: bool = True,
        remedy: str = "",
        doing: Doing = "",
        without: str = "",
    ) -> bool:
        """Whether it works. The rest: see :class:`Trial`, and :func:`.errno_advice.explain`."""
        try:
            action()
        except (SandboxError, OSError) as error:
            self.failed(name, error, needed=needed, remedy=remedy, doing=doing, without=without)
            return False
        self.trials.append(Trial(name, True, needed=needed))
        return True

    def failed(
        self,
        name: str,
        error: SandboxError | OSError,
        *,
        needed: bool = True,
        remedy: str = "",
        doing: Doing = "",
        without: str = "",
    ) -> None:
        """Note that: as for :meth:`attempt`."""
        if isinstance(error, SandboxError):
            kernel, cause, advice = _in_words(error), error.cause, error.remedy
            number = _errno(error)
        else:
            kernel, number = said(error), error.errno or 0
            cause, advice = explain(number, self._user, doing)
        named = errno_name(number) if number else ""
        self.trials.append(
            Trial(name, False, kernel, cause, remedy or advice, needed, named, without)
        )

    def answer(self, **more: object) -> Answer:
        """The trials, and more, as plain types."""
        return {"trials": [asdict(trial) for trial in self.trials], **more}


def _in_words(error: SandboxError) -> str:
    if not error.kernel:
        return error.tried
    # A system call names itself, and so does what has a path; a write does not say of what.
    cause = error.__cause__
    own = error.tried.startswith("make a ") and isinstance(cause, SyscallError)
    own = own or (isinstance(cause, OSError) and cause.filename is not None)
    return error.kernel if own else f"{error.tried}: {error.kernel}"


def _errno(error: SandboxError) -> int:
    cause = error.__cause__
    return cause.errno or 0 if isinstance(cause, OSError) else 0


def try_in_child(action: Callable[[], Answer]) -> Answer:
    """What a forked process answers; a failed trial if it ended without."""
    reader, writer = os.pipe()
    parent = os.getpid()
    child = fork()
    if child == 0:
        _report(action, parent, writer)
    os.close(writer)
    with open(reader, "rb") as file:
        data = file.read()
    status = reap(child)
    if data:
        answer: Answer = json.loads(data)
        return answer
    code = os.waitstatus_to_exitcode(status)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    lost = Trial("try a sandbox", False, f"the process that tried it ended by {how}")
    return {"trials": [asdict(lost)]}


def _report(action: Callable[[], Answer], parent: int, writer: int) -> NoReturn:
    try:
        # A network filesystem that does not answer must not stop the session.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PROBE_SECONDS)
        # In a PID namespace of its own the parent's number is not known; it waits in any case.
        if os.getppid():
            die_with_parent(parent)
        try:
            answer = action()
        except Exception as error:  # noqa: BLE001  # the other end has to hear of any
            answer = {"trials": [asdict(Trial("try a sandbox", False, repr(error)))]}
        data = json.dumps(answer).encode()
        while data:
            data = data[os.write(writer, data) :]
    finally:
        sys.exit_now(0)
