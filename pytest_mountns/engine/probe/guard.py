"""Finds out by trying whether a test can be guarded on this machine: see :mod:`.sandbox.guard`."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..linux import syscalls
from ..linux.diagnosis import diagnose_guard
from ..linux.environment import read_environment
from ..linux.errors import SandboxError
from ..linux.landlock import NETWORK_ABI, TRUNCATE_ABI, Ruleset
from ..linux.untouched import os
from .trials import Answer, Trial, TrialLog, try_in_child

#: The name of the trial.
GUARD: Final = "guard (Landlock)"
_WITHOUT: Final = "--mountns-unavailable=guard does not work"


class GuardProbe(NamedTuple):
    """What was found out."""

    trial: Trial
    #: The version of Landlock's interface; 0 if no test can be guarded.
    abi: int = 0

    @property
    def network(self) -> bool:
        """Whether TCP can be forbidden."""
        return self.abi >= NETWORK_ABI

    @property
    def uncovered(self) -> tuple[str, ...]:
        """The kinds of changes that a guard does not forbid, in words."""
        truncate = ("truncate",) if self.abi < TRUNCATE_ABI else ()
        return ("chmod", "chown", "utime", "setxattr", *truncate)


def probe_guard() -> GuardProbe:
    """Guard a process that ends afterwards, and let it try to write."""
    answer = try_in_child(_try)
    trial = Trial(**answer["trials"][0])
    if trial.works:
        return GuardProbe(trial, answer.get("abi", 0))
    advice = diagnose_guard(trial.errno, read_environment())
    return GuardProbe(
        trial if advice is None else trial._replace(cause=advice[0], remedy=advice[1])
    )


def _try() -> Answer:
    log = TrialLog(user_namespace=False)
    abi = 0

    def attempt() -> None:
        nonlocal abi
        abi = syscalls.landlock_abi()
        ruleset = Ruleset(abi, network=abi >= NETWORK_ABI)
        ruleset.enforce()
        try:
            os.close(os.open("/dev/null", os.O_WRONLY))
        except PermissionError:
            return
        raise SandboxError("write under a guard", cause="the kernel has allowed it")

    log.attempt(GUARD, attempt, needed=False, doing="landlock", without=_WITHOUT)
    return log.answer(abi=abi)
