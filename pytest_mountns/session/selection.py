"""When the plugin wakes: at the first option or test that asks for it.

A session that isolates nothing pays for this module, the options and the fixtures. All else is
loaded here, when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, final

import pytest

from ..config import options as settings

if TYPE_CHECKING:
    from .session import Gate

#: In reports: what a test has changed.
SECTION: Final = "filesystem changes"

gate_key: Final = pytest.StashKey["Gate"]()


def is_asked_for(config: pytest.Config) -> bool:
    """Whether an option or ini value of ours is set: what it says is looked at, used or not."""
    if settings.sandbox_everything(config) is not None:
        return True
    options = (value for name, value in vars(config.option).items() if name.startswith("mountns"))
    return (
        any(options)
        or any(map(config.getini, settings.INI))
        or bool(settings.profiles_of(config).settings)
    )


def is_wanted(item: pytest.Item, everything: bool | None) -> bool:
    """Whether ``item`` is to run in a sandbox, if there are to be any."""
    for mark in item.iter_markers():
        if mark.name in ("mountns", "no_mountns"):
            return mark.name == "mountns"
    fixtures: list[str] = getattr(item, "fixturenames", [])
    return bool(everything) or not settings.FIXTURES.isdisjoint(fixtures)


def wake(config: pytest.Config) -> Gate:
    """The gate of the session, with all that stands around it.

    Raises :class:`pytest.UsageError` if an option makes no sense.
    """
    gate = config.stash.get(gate_key, None)
    if gate is not None:
        return gate
    from ..reports.changes import ChangesReport, changes_key
    from .session import Gate

    manager = config.pluginmanager
    finisher = manager.get_plugin("mountns-finisher")
    assert isinstance(finisher, Finisher)
    gate = config.stash[gate_key] = Gate(config, manager.get_plugin("mountns-hooks"), finisher)
    audit = keeper = None
    if settings.is_audit(config):
        from ..reports.audit import Audit

        audit = Audit(config)
    changes = config.stash[changes_key] = ChangesReport(config, gate, audit)
    if settings.keep_policy(config) != "none":
        from ..repro.keeper import Keeper

        keeper = gate.keeper = Keeper(config)
        gate.at_the_door.append(keeper.begin)
    plugins = ("mountns-changes", changes), ("mountns-audit", audit), ("mountns-keeper", keeper)
    for name, plugin in plugins:
        if plugin is not None:
            manager.register(plugin, name)
    return gate


@final
class Finisher:
    """A plugin that, in place of running an item, tears down what ends with it.

    So that it happens where it always does: within pytest's own wrappers of the protocol, which
    record warnings and explain assertions.
    """

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self) -> bool | None:
        if self.work is None:
            return None
        self.work()
        return True
