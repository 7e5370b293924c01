"""pytest's hooks and options; each a few lines that call a room below."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import pytest

from . import hookspecs
from .config import options as settings
from .fixtures import bind_volume, isolated_net, isolated_proc, overlay_root
from .reports.summary import Summary, summary_key
from .session.selection import SECTION, Finisher, gate_key, is_asked_for, is_wanted, wake

if TYPE_CHECKING:
    from .forking.timers import TimeoutSettings
    from .runners.child import TestProcess
    from .session.session import Gate

__all__ = ["bind_volume", "isolated_net", "isolated_proc", "overlay_root"]


def pytest_addoption(parser: pytest.Parser) -> None:
    settings.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    for marker in settings.MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[summary_key] = Summary()
    config.pluginmanager.register(Hooks(config), "mountns-hooks")
    config.pluginmanager.register(Finisher(), "mountns-finisher")
    if is_asked_for(config):
        wake(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    gate = config.stash.get(gate_key, None)
    if gate is not None:
        gate.close()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    if config.getoption("mountns_doctor"):
        from .reports import terminal

        return terminal.doctor(config)
    return None


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    if op != "==" or "pytest_mountns.engine.changes.changes" not in sys.modules:
        return None
    from .reports.changes import explain_comparison

    return explain_comparison(left, right, config.get_verbosity(pytest.Config.VERBOSITY_ASSERTIONS))


class Hooks:
    """The hooks of one session. In a test process they forward what is reported there.

    They are there from the beginning, as the order of hooks is that of plugins; the gate is not.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._summary = config.stash[summary_key]

    @property
    def _gate(self) -> Gate | None:
        return self._config.stash.get(gate_key, None)

    @property
    def _process(self) -> TestProcess | None:
        """This process, if it is a test process."""
        gate = self._gate
        return gate.process if gate is not None else None

    def _wanted(self, item: pytest.Item) -> Gate | None:
        """The gate, if ``item`` is to go through it."""
        gate = self._gate
        if is_wanted(item, gate.everything if gate is not None else None):
            return wake(self._config)
        return None

    def pytest_report_header(self) -> str | None:
        gate = self._gate
        if gate is None or gate.everything is None:
            return None
        from .reports import terminal

        return terminal.header(gate)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        # Before the first test runs: a bad mark is a mistake in the suite, not a failing test.
        # From an xdist worker no such message reaches the user; there the test fails with it.
        if hasattr(config, "workerinput"):
            return
        errors = []
        for item in items:
            gate = self._wanted(item)
            if gate is not None:
                try:
                    gate.spec(item)
                except pytest.UsageError as error:
                    errors.append((item, error))
        settings.raise_together(errors)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        gate = self._wanted(item)
        if gate is not None:
            return (yield from gate.protocol(item, nextitem))
        if (gate := self._gate) is not None:
            gate.before_host_changes()
        return (yield)

    # Innermost: whoever saves what was gathered in the session does it after its own yield.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        if any(self._wanted(item) for item in session.items):
            wake(self._config).begin(session.items)
        try:
            return (yield)
        finally:
            gate = self._gate
            if gate is not None:
                gate.plugin_states.finish()

    def pytest_sessionfinish(self) -> None:
        self._summary.send(self._config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._summary.receive(getattr(node, "workeroutput", {}))

    # Last of all that is written, but for the line that counts outcomes.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, object, object]:
        result = yield
        self._summary.show(terminalreporter)
        return result

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, settings: TimeoutSettings) -> None:
        if (gate := self._gate) is not None:
            gate.timeout_is_set(settings)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> None:
        if (gate := self._gate) is not None:
            gate.timeout_is_set(None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        if (gate := self._gate) is not None:
            gate.enter_phase("call")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        if (gate := self._gate) is not None:
            gate.enter_phase("teardown")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        gate = self._gate
        if gate is None:
            return (yield)
        return (yield from gate.make_report(item, call))

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        if (gate := self._gate) is not None:
            gate.show_interrupt(excinfo)

    @pytest.hookimpl(wrapper=True)
    def pytest_exception_interact(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> Generator[None, object, object]:
        try:
            return (yield)
        finally:
            if (process := self._process) is not None:
                process.shown(report)

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        if (process := self._process) is not None:
            process.sender.send("logstart", nodeid, location)

    # First: the live log, which hears of it as well, then forgets what it has written.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if (process := self._process) is not None:
            process.report(report)
        elif report.sections and any(name == SECTION for name, _ in report.sections):
            # Of a worker's test: whoever shows the section colours it.
            wake(self._config)

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        if (process := self._process) is not None:
            process.sender.keep("logfinish", nodeid, location)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        if (process := self._process) is not None:
            process.warning(warning_message, when, nodeid)
