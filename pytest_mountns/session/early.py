"""Enters an ordinary user's user namespace early, while the process has one thread.

Only such a process can enter one, unshare(2), and other plugins and conftest files start threads. A
worker of pytest-xdist has several threads from its beginning. So the controller enters the
namespace, and the workers begin in it. They need its capabilities, which execve(2) drops, except
for the *ambient* ones, capabilities(7). A worker gives up what is in effect before any code of the
suite runs, and so do all its threads.
"""

from __future__ import annotations

import pickle
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from .. import pytest_internals
from ..config import options
from ..engine.linux.untouched import os

if TYPE_CHECKING:
    from ..engine.probe.features import ProbeResult
    from ..engine.sandbox.manager import SandboxManager

#: What the controller sends to its workers: what its probe has found, pickled.
_FINDINGS: Final = "mountns_findings"


class Entered(NamedTuple):
    """What was made to enter the user namespace, for the session to go on with."""

    #: None if the namespace could not be entered; the session tries again and says why.
    manager: SandboxManager | None
    #: None in a worker, to which the controller sends them later.
    findings: ProbeResult | None


entered_key: Final = pytest.StashKey[Entered]()


def enter_early(config: pytest.Config) -> None:
    """Enter the user namespace if tests are to be run inline by the options of this run.

    ``config`` is that of ``pytest_load_initial_conftests``. What is wrong with the options is said
    later. Raises :class:`SandboxError` if capabilities that a worker inherits cannot be given up.
    """
    if os.geteuid() == 0:
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        _take_over(config)
    elif _is_wanted(pytest_internals.with_known_options(config)):
        config.stash[entered_key] = _enter(config)


def _is_wanted(config: pytest.Config) -> bool:
    try:
        if not options.sandbox_everything(config):
            return False
        keys = options.session_keys(config)
    except pytest.UsageError:
        return False
    return keys.get("process", "auto") != "fork" or keys.get("scope", "function") != "function"


def _enter(config: pytest.Config) -> Entered:
    from ..engine.linux.errors import SandboxError
    from ..engine.sandbox.manager import SandboxManager
    from .planner import make_planner

    planner = make_planner(config)
    findings = planner.findings
    manager: SandboxManager | None = None
    if findings.user_namespace:
        manager = SandboxManager(planner.places)
        try:
            manager.move_to_user_namespace()
        except SandboxError:
            manager.close()
            manager = None
    return Entered(manager, findings)


def _take_over(config: pytest.Config) -> None:
    """In a worker: give up the capabilities that it has begun with, and keep the namespace."""
    from ..engine.linux.namespaces import drop_inherited_capabilities

    if drop_inherited_capabilities():
        from ..engine.sandbox.manager import SandboxManager
        from .planner import make_planner

        manager = SandboxManager(make_planner(config).places)
        manager.move_to_user_namespace()
        config.stash[entered_key] = Entered(manager, None)


def hand_on_capabilities(config: pytest.Config) -> None:
    """In the controller of pytest-xdist, before it starts workers: they begin in the namespace.

    Raises :class:`SandboxError` if the capabilities cannot be handed on.
    """
    entered = config.stash.get(entered_key, None)
    if entered is not None and entered.manager is not None:
        from ..engine.linux import namespaces, threads

        # A worker could not move its other threads without it.
        if threads.LIBRARY.exists():
            namespaces.hand_on_capabilities()


def send_findings(config: pytest.Config, input: MutableMapping[str, Any]) -> None:
    """In the controller: put what its probe has found into what a worker is sent."""
    if (entered := config.stash.get(entered_key, None)) is not None:
        input[_FINDINGS] = pickle.dumps(entered.findings)


def early_findings(config: pytest.Config) -> ProbeResult | None:
    """What was found before the user namespace was entered; None if it was not entered early."""
    entered = config.stash.get(entered_key, None)
    if entered is None or entered.findings is not None:
        return entered and entered.findings
    sent: bytes | None = getattr(config, "workerinput", {}).get(_FINDINGS)
    return pickle.loads(sent) if sent is not None else None
