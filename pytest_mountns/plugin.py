"""pytest's hooks and options; each a few lines that call a room below."""

from __future__ import annotations

import warnings
from collections.abc import Generator

import pytest

from . import config as settings
from . import hookspecs, internals, terminal
from .audit import Audit
from .changes_report import ChangesReport, changes_key, explain_comparison
from .fixtures import bind_volume, isolated_net, isolated_proc, overlay_root
from .gate import Gate, gate_key
from .timers import TimeoutSettings

__all__ = ["bind_volume", "isolated_net", "isolated_proc", "overlay_root"]


def pytest_addoption(parser: pytest.Parser) -> None:
    settings.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for marker in settings.MARKERS:
        config.addinivalue_line("markers", marker)
    gate = config.stash[gate_key] = Gate(config)
    gate.hooks = Hooks(gate)
    config.pluginmanager.register(gate.hooks, "mountns-hooks")
    config.pluginmanager.register(gate.finisher, "mountns-finisher")
    audit = Audit(config) if settings.is_audit(config) else None
    changes = config.stash[changes_key] = ChangesReport(config, gate, audit)
    keeper = None
    if settings.keep_policy(config) != "none":
        # Not for every run: it needs more modules than the rest.
        from .keeping import Keeper

        keeper = gate.keeper = Keeper(config)
        gate.at_the_door.append(keeper.begin)
    plugins = ("mountns-changes", changes), ("mountns-audit", audit), ("mountns-keeper", keeper)
    for name, plugin in plugins:
        if plugin is not None:
            config.pluginmanager.register(plugin, name)


def pytest_unconfigure(config: pytest.Config) -> None:
    gate = config.stash.get(gate_key, None)
    if gate is not None:
        gate.close()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.getoption("mountns_doctor"):
        return terminal.doctor(config)
    return None


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    if op != "==":
        return None
    return explain_comparison(left, right, config.get_verbosity(pytest.Config.VERBOSITY_ASSERTIONS))


class Hooks:
    """The hooks of one session. In a test process they forward what is reported there."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def pytest_report_header(self) -> str | None:
        return terminal.header(self._gate)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        # Before the first test runs: a bad mark is a mistake in the suite, not a failing test.
        # From an xdist worker no such message reaches the user; there the test fails with it.
        if hasattr(config, "workerinput"):
            return
        for item in items:
            if self._gate.wants(item):
                self._gate.spec(item)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        if self._gate.wants(item):
            return (yield from self._gate.protocol(item, nextitem))
        self._gate.rest()
        return (yield)

    # Innermost: whoever saves what was gathered in the session does it after its own yield.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        self._gate.begin(session.items)
        try:
            return (yield)
        finally:
            self._gate.companions.finish()

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, settings: TimeoutSettings) -> None:
        self._gate.timeout_is_set(settings)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> None:
        self._gate.timeout_is_set(None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        self._gate.enter_phase("call")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        self._gate.enter_phase("teardown")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        if call.excinfo is not None:
            internals.drop_unseen(call.excinfo.value)
        report = yield
        if call.excinfo is not None and self._gate.inside is not None:
            sandbox = self._gate.inside.rooms.sandbox
            terminal.explain_failure(report, call.excinfo.value, sandbox)
        self._gate.complete_inline(item, report)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if self._gate.interrupt is not None:
            internals.show_interrupt(excinfo, self._gate.interrupt)

    @pytest.hookimpl(wrapper=True)
    def pytest_exception_interact(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            if self._gate.process is not None and internals.shown_by_debugger(report):
                self._gate.process.sender.send("shown")

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        if self._gate.process is not None:
            self._gate.process.sender.send("logstart", nodeid, location)

    # First: the live log, which hears of it as well, then forgets what it has written.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._gate.process is not None:
            self._gate.process.report(report)

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        if self._gate.process is not None:
            self._gate.process.sender.keep("logfinish", nodeid, location)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        if self._gate.process is not None:
            self._gate.process.warning(warning_message, when, nodeid)
