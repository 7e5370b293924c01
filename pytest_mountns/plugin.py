"""The hooks and options of pytest that the plugin implements; each is a few lines."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from . import activation, hookspecs
from .config import options
from .fixtures import bind_volume, isolated_net, isolated_proc, overlay_root
from .reports import SECTION
from .reports.summary import Summary, summary_key
from .runners.finisher import Finisher
from .session.made_directories import made_directories
from .session.selection import is_asked_for, is_wanted

if TYPE_CHECKING:
    from .runners.context import ProcessOfTest
    from .runners.protocol import Runner, TimeoutSettings

__all__ = ["bind_volume", "isolated_net", "isolated_proc", "overlay_root"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options and ini values."""
    options.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the hooks that other plugins may implement."""
    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Probe the machine, and enter a user namespace, before conftest files are loaded."""
    if os.geteuid() != 0 and "PYTEST_XDIST_WORKER" in os.environ:
        from .session.early import begin_in_worker

        begin_in_worker(early_config)
    elif (keys := options.early_keys(early_config)) is not None:
        with activation.collector_paused():
            from .session.early import begin_early

            begin_early(early_config, keys)


def pytest_configure(config: pytest.Config) -> None:
    """Register markers and hooks, and activate the plugin if an option asks for it."""
    for marker in options.MARKERS:
        config.addinivalue_line("markers", marker)
    config.stash[summary_key] = Summary()
    config.pluginmanager.register(Hooks(config), "mountns-hooks")
    config.pluginmanager.register(Finisher(), "mountns-finisher")
    config.pluginmanager.register(Innermost(config), "mountns-innermost")
    if is_asked_for(config):
        activation.activate(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let go of everything."""
    active = activation.find(config)
    if active is not None:
        active.runner.close()
    made_directories(config).remove_empty(config)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """``--mountns-doctor`` runs in place of the tests."""
    if config.getoption("mountns_doctor"):
        # Asked for before anything is configured: there is no session yet.
        from .reports import doctor

        return doctor.report([str(config.rootpath)])
    return None


def pytest_assertrepr_compare(
    config: pytest.Config, op: str, left: object, right: object
) -> list[str] | None:
    """Explain comparisons of changes."""
    changes = sys.modules.get("pytest_mountns.engine.changes.changes")
    if op != "==" or changes is None:
        return None
    # Nothing is imported without need: the user of a test may not be able to read this package.
    if not isinstance(left, changes.Changes) and not isinstance(right, changes.Changes):
        return None
    from .reports.assertrepr import explain_comparison

    return explain_comparison(left, right, config.get_verbosity(pytest.Config.VERBOSITY_ASSERTIONS))


class Hooks:
    """The hooks of one session. In a test process they forward what is reported there.

    They are registered from the beginning, since the order of hooks is that of plugins. What they
    call is activated later.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._summary = config.stash[summary_key]
        self._known: activation.Active | None = None

    @property
    def _active(self) -> activation.Active | None:
        """What was activated; it stays active."""
        if self._known is None:
            self._known = activation.find(self._config)
        return self._known

    # Asked for several times for each test, and each function that a test process calls copies
    # pages of memory: so these look at `_known` first.
    @property
    def _runner(self) -> Runner | None:
        active = self._known or self._active
        return active.runner if active is not None else None

    @property
    def _process(self) -> ProcessOfTest | None:
        """This process, if it is a test process."""
        active = self._known or self._active
        return active.runner.process if active is not None else None

    def _activated_for(self, item: pytest.Item) -> activation.Active | None:
        """The active plugin if ``item`` asks for a sandbox, else None."""
        active = self._active
        everything = active.session.selection.everything if active is not None else None
        return activation.activate(self._config) if is_wanted(item, everything) else None

    def pytest_report_header(self) -> str | None:
        """Say how tests are isolated."""
        active = self._active
        if active is None or active.session.selection.everything is None:
            return None
        from .reports import terminal

        return terminal.header(active.session)

    def pytest_report_collectionfinish(self, items: Sequence[pytest.Item]) -> list[str]:
        """Say how many tests are run which way, and what will be wrong in forked ones."""
        active = activation.find(self._config)
        if active is None:
            return []
        from .reports import terminal

        return terminal.how_tests_run(active.session, items)

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> None:
        """Validate the marks before the first test runs: a bad mark is a mistake in the suite."""
        # From an xdist worker no such message reaches the user; there the test fails with it.
        if hasattr(config, "workerinput"):
            return
        errors, refused = [], []
        for item in items:
            active = self._activated_for(item)
            if active is not None:
                try:
                    active.session.selection.spec(item)
                except pytest.UsageError as error:
                    errors.append((item, error))
                    continue
                try:
                    active.session.refuse(item)
                except pytest.UsageError as error:
                    refused.append((item, error))
        options.raise_together(errors)
        options.raise_together(refused, "cannot be run in a sandbox as they are")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Run an item that asks for it in a sandbox."""
        active = self._activated_for(item)
        if active is not None:
            return (yield from active.runner.protocol(item, nextitem))
        if (runner := self._runner) is not None:
            runner.outside()
        return (yield)

    # Innermost: whoever saves what was gathered in the session does it after its own yield.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Unpack layers before the first test, and hand over plugins' notes after the last."""
        if any(self._activated_for(item) is not None for item in session.items):
            activation.activate(self._config).runner.begin(session.items)
        try:
            return (yield)
        finally:
            if (runner := self._runner) is not None:
                runner.finish()

    def pytest_sessionfinish(self) -> None:
        """In an xdist worker: send the summary, and which directories were made."""
        self._summary.send(self._config)
        made_directories(self._config).send(self._config)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_setupnodes(self, config: pytest.Config) -> None:
        """In the xdist controller: have the workers begin in its user namespace."""
        if os.geteuid() != 0:
            from .session.early import hand_on_capabilities

            hand_on_capabilities(config)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """In the xdist controller: tell a worker what the machine can do."""
        if os.geteuid() != 0:
            from .session.early import send_findings

            send_findings(self._config, node.workerinput)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """In the xdist controller: add what a worker has sent."""
        output = getattr(node, "workeroutput", {})
        self._summary.receive(output)
        made_directories(self._config).receive(output)

    # Last of all that is written, but for the line that counts outcomes.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> Generator[None, object, object]:
        """Write the summary."""
        result = yield
        self._summary.show(terminalreporter)
        return result

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_set_timer(self, settings: TimeoutSettings) -> None:
        """pytest-timeout's hook: note the timer, which fork(2) does not hand on."""
        if (runner := self._runner) is not None:
            runner.timeout_is_set(settings)

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_timeout_cancel_timer(self) -> None:
        """pytest-timeout's hook: the timer is cancelled."""
        if (runner := self._runner) is not None:
            runner.timeout_is_set(None)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self) -> None:
        """Note the phase, for the report of a process that dies."""
        if (active := self._known or self._active) is not None:
            active.session.current.enter_phase("call")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_teardown(self) -> None:
        """Note the phase, for the report of a process that dies."""
        if (active := self._known or self._active) is not None:
            active.session.current.enter_phase("teardown")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Have observers complete the report."""
        runner = self._runner
        if runner is None:
            return (yield)
        runner.before_report(call)
        return runner.complete_report(item, call, (yield))

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Show where a Ctrl-C has met a test process."""
        if (runner := self._runner) is not None:
            runner.show_interrupt(excinfo)

    @pytest.hookimpl(wrapper=True)
    def pytest_exception_interact(
        self, report: pytest.CollectReport | pytest.TestReport
    ) -> Generator[None, object, object]:
        """In a test process: tell the pytest process what has become of the report."""
        process = self._process
        end = process.interacts(report) if process is not None else None
        try:
            return (yield)
        except PermissionError as error:
            if process is None or not process.explains(error, report):
                raise
            return None
        finally:
            if end is not None:
                end()

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """In a test process: forward it."""
        if (process := self._process) is not None:
            process.log_start(nodeid, location)

    # First: the live log, which hears of it as well, then forgets what it has written.
    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """In a test process: forward it."""
        if (process := self._process) is not None:
            process.report(report)
        elif report.sections and any(name == SECTION for name, _ in report.sections):
            # Of a test that an xdist worker has run: this process colours the section.
            activation.activate(self._config)

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        """In a test process: forward it."""
        if (process := self._process) is not None:
            process.log_finish(nodeid, location)

    def pytest_warning_recorded(
        self, warning_message: warnings.WarningMessage, when: str, nodeid: str
    ) -> None:
        """In a test process: forward it."""
        if (process := self._process) is not None:
            process.warning(warning_message, when, nodeid)


class Innermost:
    """A wrapper of the protocol within those of other plugins."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """End a test process here, so that wrappers of other plugins end in one process only."""
        active = activation.find(self._config)
        if active is None:
            return (yield)
        return (yield from active.runner.within_wrappers(item))
