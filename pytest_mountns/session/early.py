"""Probes the machine early, and enters an ordinary user's user namespace.

Early is before conftest files and tests are loaded, which may load libraries and start threads. The
probe may fork, and a library that is in use may not bear that (gRPC). And only a process with one
thread can enter a user namespace, unshare(2).

A worker of pytest-xdist has several threads from its beginning. So the controller enters the
namespace, and the workers begin in it. They need its capabilities, which execve(2) drops, except
for the *ambient* ones, capabilities(7). A worker gives up what is in effect before any code of the
suite runs, and so do all its threads.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from ..engine.linux.untouched import os
from .watchdog import NamedWatchdog

if TYPE_CHECKING:
    from ..engine.probe.features import ProbeResult
    from ..engine.sandbox.manager import SandboxManager

#: What the controller sends to its workers: what its probe has found, pickled.
_FINDINGS: Final = "mountns_findings"


class Entered(NamedTuple):
    """What was made to enter the user namespace, for the session to go on with."""

    #: None if no namespace was entered. If it could not be, the session tries again and says why.
    manager: SandboxManager | None
    #: None in a worker, to which the controller sends them later.
    findings: ProbeResult | None


entered_key: Final = pytest.StashKey[Entered]()
watchdog_key: Final = pytest.StashKey[NamedWatchdog]()


def begin_early(config: pytest.Config, keys: Mapping[str, object]) -> None:
    """Probe the machine, and enter a user namespace if tests are to be run inline.

    All tests are isolated, with these marker keys.
    """
    name_watchdogs(config)
    is_user = os.geteuid() != 0
    inline = keys.get("process", "auto") != "fork" or keys.get("scope", "function") != "function"
    config.stash[entered_key] = _enter(config, user_namespace=is_user and inline)


def name_watchdogs(config: pytest.Config) -> None:
    """Have threads of faulthandler known by their name, until the session ends."""
    if watchdog_key not in config.stash:
        config.stash[watchdog_key] = watchdog = NamedWatchdog()
        config.add_cleanup(watchdog.restore)


def _enter(config: pytest.Config, *, user_namespace: bool) -> Entered:
    from ..engine.linux.errors import SandboxError
    from ..engine.sandbox.manager import SandboxManager
    from .planner import make_planner

    planner = make_planner(config)
    findings = planner.findings
    manager: SandboxManager | None = None
    if findings.user_namespace and user_namespace:
        manager = SandboxManager(planner.places)
        try:
            manager.move_to_user_namespace()
        except SandboxError:
            manager.close()
            manager = None
    return Entered(manager, findings)


def begin_in_worker(config: pytest.Config) -> None:
    """In an ordinary user's worker: give up the capabilities that it has begun with.

    It stays in the user namespace of the controller. Raises :class:`SandboxError` if a thread
    cannot give them up.
    """
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
        from ..engine.linux import compiled, namespaces

        # A worker could not move its other threads without it.
        if compiled.LIBRARY.exists():
            namespaces.hand_on_capabilities()


def send_findings(config: pytest.Config, input: MutableMapping[str, Any]) -> None:
    """In the controller: put what its probe has found into what a worker is sent."""
    import pickle

    if (entered := config.stash.get(entered_key, None)) is not None:
        input[_FINDINGS] = pickle.dumps(entered.findings)


def early_findings(config: pytest.Config) -> ProbeResult | None:
    """What was found before the user namespace was entered; None if it was not entered early."""
    entered = config.stash.get(entered_key, None)
    if entered is None or entered.findings is not None:
        return entered and entered.findings
    sent: bytes | None = getattr(config, "workerinput", {}).get(_FINDINGS)
    if sent is None:
        return None
    import pickle

    found: ProbeResult = pickle.loads(sent)
    return found
