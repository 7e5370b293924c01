"""Finds out by trying whether an ordinary user may map further ids: see subuid(5)."""

from __future__ import annotations

from typing import Final

from ..linux.errors import SandboxError
from ..linux.namespaces import enter_user_namespace
from ..linux.subordinate_ids import IdMaps, find_maps
from ..linux.untouched import os
from .trials import Answer, Trial, TrialLog, try_in_child

#: The name of the trial.
SUBORDINATE_IDS: Final = "subordinate ids"
_WITHOUT: Final = 'with user="root" a test cannot give files to others, or become another user'


def probe_subordinate_ids() -> tuple[Trial, IdMaps | None]:
    """Make a user namespace with all ids that this user may map, and give a file to one of them."""
    try:
        maps = find_maps()
    except SandboxError as error:
        log = TrialLog(user_namespace=True)
        log.failed(SUBORDINATE_IDS, error, needed=False, without=_WITHOUT)
        return log.trials[0], None

    def attempt() -> Answer:
        log = TrialLog(user_namespace=True)

        def enter() -> None:
            enter_user_namespace(as_root=True, maps=maps)
            os.setresgid(1, 1, 1)
            os.setgroups([])
            os.setresuid(1, 1, 1)

        log.attempt(SUBORDINATE_IDS, enter, needed=False, without=_WITHOUT)
        return log.answer()

    trial = Trial(**try_in_child(attempt)["trials"][0])
    return trial, maps if trial.works else None
