"""Loads and connects the parts of the plugin, when the first option or test needs them.

This is the only module that knows both the runners and the observers. It is loaded in every
pytest run; what it connects is imported when the plugin is activated.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, final

import pytest

from .config import options

if TYPE_CHECKING:
    from .runners.protocol import Runner
    from .session.session import Session


@final
class Active:
    """The plugin of one pytest session, once it is activated."""

    def __init__(self, session: Session, runner: Runner) -> None:
        self.session = session
        self.runner = runner


_active_key: Final = pytest.StashKey[Active]()


@contextmanager
def collector_paused() -> Iterator[None]:
    """A context in which Python's garbage collector does not run by itself.

    What is loaded when the plugin is activated is no garbage, and the collector would look at all
    of it again and again. With Python 3.11, loading all takes 0.9 times the CPU time so.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def find(config: pytest.Config) -> Active | None:
    """What has been activated in this session, None if nothing has."""
    return config.stash.get(_active_key, None)


def activate(config: pytest.Config) -> Active:
    """Activate the plugin, unless it is active already.

    Raises :class:`pytest.UsageError` if an option or ini value is not valid.
    """
    active = config.stash.get(_active_key, None)
    if active is not None:
        return active
    with collector_paused():
        return _activate(config)


def _activate(config: pytest.Config) -> Active:
    from .held_modules import HeldModules

    held = HeldModules()
    config.add_cleanup(held.close)
    from .reports.changes import ChangesHook, ChangesReport
    from .reports.count import CountTests
    from .reports.failures import FailureExplanation, RefusalExplanation
    from .reports.left_processes import LeftProcesses
    from .reports.project_files import ProjectFilesReport
    from .reports.summary import summary_key
    from .reports.told import ToldInReport
    from .reports.waiting import WaitingTests
    from .reports.writes_guard import WritesGuard
    from .runners.finisher import Finisher
    from .runners.protocol import Runner
    from .session.session import Session

    manager = config.pluginmanager
    finisher = manager.get_plugin("mountns-finisher")
    assert isinstance(finisher, Finisher)
    held.remember()
    session = Session(config, held)
    runner = Runner(config, session, manager.get_plugin("mountns-hooks"), finisher)
    active = config.stash[_active_key] = Active(session, runner)
    observers = session.observers
    observers.add(CountTests(config.stash[summary_key]))
    observers.add(FailureExplanation())
    observers.add(WaitingTests(config))
    observers.add(RefusalExplanation())
    observers.add(ToldInReport(session.current))
    summary = config.stash[summary_key]
    observers.add(ProjectFilesReport(config, summary.wrote))
    observers.add(LeftProcesses(config, session.selection, summary.left_running))
    changes = ChangesReport(config)
    if options.changes_policy(config) == "all":
        held.load()
    observers.add(changes)
    observers.add(WritesGuard(config, session.selection))
    manager.register(changes, "mountns-changes")
    if options.is_audit(config):
        from .reports.audit import Audit

        audit = Audit(config)
        observers.add(audit)
        held.load()
        manager.register(audit, "mountns-audit")
    if options.keep_policy(config) != "none":
        from .repro.keeper import Keeper

        keeper = Keeper(config)
        observers.add(keeper)
        held.load()
        manager.register(keeper, "mountns-keeper")
    observers.add(ChangesHook(config))
    return active
