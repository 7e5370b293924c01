"""Tries steps of making a sandbox, and notes what came of them; also in a process of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, final

from ..linux.errno_advice import Doing, explain
from ..linux.errors import SandboxError, SyscallError, errno_name, said
from ..linux.threads import ThreadsAfterFork

#: Seconds after which a process that tries something is ended.
_TIMEOUT: Final = 30
#: What such a process answers: a dictionary that has "trials" and whatever else it has found out.
Answer: TypeAlias = dict[str, Any]


@final
class Trial(NamedTuple):
    """One step that was tried. If it has worked, the texts are empty.

    The names of the fields are those in the JSON of ``pytest-mountns doctor``.
    """

    name: str
    works: bool
    #: What the kernel said.
    kernel: str = ""
    #: Why it said that, as far as this is known.
    cause: str = ""
    #: What helps.
    remedy: str = ""
    #: Whether nothing can be isolated on this machine without this step.
    needed: bool = True
    #: The name of the error number, as "EPERM".
    errno: str = ""
    #: What is done in place of the step, or what does not work without it.
    without: str = ""
    #: Whether it has failed for the state of this process, and not for what the machine can do.
    of_process: bool = False


class TrialLog:
    """Tries steps and collects what came of them.

    ``user_namespace`` says that they are tried in a user namespace.
    """

    def __init__(self, user_namespace: bool) -> None:
        #: In the order in which they were tried.
        self.trials: list[Trial] = []
        self._user_namespace = user_namespace

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
        """Try a step by calling ``action``, and return whether it works.

        It has not worked if ``action`` raises :class:`SandboxError` or :class:`OSError`. For the
        other arguments see :class:`Trial`, and :func:`.errno_advice.explain` for ``doing``.
        """
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
        """Note a step that has failed with ``error``; see :meth:`attempt` for the others."""
        if isinstance(error, SandboxError):
            kernel, cause, advice = _in_words(error), error.cause, error.remedy
            number = _errno(error)
        else:
            kernel, number = said(error), error.errno or 0
            cause, advice = explain(number, self._user_namespace, doing)
        named = errno_name(number) if number else ""
        of_process = isinstance(error, ThreadsAfterFork)
        self.trials.append(
            Trial(name, False, kernel, cause, remedy or advice, needed, named, without, of_process)
        )

    def answer(self, **more: object) -> Answer:
        """The trials and ``more``, as plain types."""
        return {"trials": [trial._asdict() for trial in self.trials], **more}


def _in_words(error: SandboxError) -> str:
    """What the kernel said, with what was tried if that text does not say it."""
    if not error.kernel:
        return error.tried
    # The text has the name of the system call, or a path. But that of write(2) has neither.
    cause = error.__cause__
    own = error.tried.startswith("make a ") and isinstance(cause, SyscallError)
    own = own or (isinstance(cause, OSError) and cause.filename is not None)
    return error.kernel if own else f"{error.tried}: {error.kernel}"


def _errno(error: SandboxError) -> int:
    cause = error.__cause__
    return cause.errno or 0 if isinstance(cause, OSError) else 0


def try_in_child(action: Callable[[], Answer]) -> Answer:
    """Call ``action`` in a helper process and return its answer.

    If the process ends without an answer, or ``action`` raises, the answer is a failed trial.
    """
    # Root's probe forks no process, as a rule.
    from ..linux.helper_process import call_in_helper

    try:
        answer, _ = call_in_helper(lambda: (action(), ()), "try a sandbox", timeout=_TIMEOUT)
    except SandboxError as error:
        return {"trials": [Trial("try a sandbox", False, error.kernel, error.cause)._asdict()]}
    return answer
