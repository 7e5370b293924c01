"""A pytest plugin that runs the test of a bundle again. ``pytest-mountns replay`` loads it.

pytest gets the arguments that it was started with when the bundle was made. This plugin changes
those that would choose other tests, run them elsewhere, or overwrite files of that run.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Generator
from contextlib import ExitStack
from typing import Any, Final, cast, final

import pytest

from ..activation import activate
from ..config import marker_keys
from ..engine.linux.errors import SandboxError
from ..engine.plan.model import Plan
from ..engine.plan.spec import SandboxSpec
from ..engine.planning.planner import Planner
from ..engine.sandbox.manager import SandboxManager
from ..engine.sandbox.sandbox import Layers
from ..engine.sandbox.saved import base_layers_spec, make_base_layers
from ..repro.bundle import Bundle, load, spec_from
from ..repro.seeds import Seeds, begin
from ..session.observers import Observer
from ..session.selection import is_wanted

#: Options of pytest and of other plugins, and their values for one test in this process.
_OPTIONS: Final[dict[str, object]] = {
    # Which tests.
    "keyword": "",
    "markexpr": "",
    "deselect": None,
    "lf": False,
    "failedfirst": False,
    "newfirst": False,
    "stepwise": False,
    "stepwise_skip": False,
    "collectonly": False,
    # Where: pytest-xdist.
    "numprocesses": None,
    "dist": "no",
    "tx": [],
    "px": [],
    "looponfail": False,
    # What is written: JUnit XML, pytest-html, our own.
    "xmlpath": None,
    "htmlpath": None,
    "mountns_keep": "none",
    # The audit, which had all tests isolated, is switched off below, and what the arguments of then
    # asked for may be overruled by an ini file of now.
    "mountns": True,
    # A replay that is skipped would look like one that has passed.
    "mountns_unavailable": "error",
    "mountns_audit": False,
    "mountns_audit_json": None,
    "mountns_audit_html": None,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that ``pytest-mountns replay`` passes to pytest."""
    group = parser.getgroup("mountns")
    group.addoption("--mountns-replay", metavar="BUNDLE", help="run its test again")
    group.addoption("--mountns-root", metavar="ROOT", help="in this root")
    group.addoption("--mountns-from-end", action="store_true", help="on what it has written")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Read the bundle and register the plugin that replays it."""
    path = config.getoption("mountns_replay")
    if not path:
        raise pytest.UsageError("--mountns-replay: name a bundle")
    try:
        bundle = load(path)
        spec = spec_from(bundle.repro.spec)
        if root := config.getoption("mountns_root"):
            known = cast(str, marker_keys.read("root", root, config.rootpath))
            spec = dataclasses.replace(spec, root=known)
        seeds = _seeds(bundle)
    except (SandboxError, ValueError) as error:
        raise pytest.UsageError(str(error)) from None
    for name, value in _OPTIONS.items():
        if hasattr(config.option, name):
            setattr(config.option, name, value)
    if seeds.randomly is not None:
        config.option.randomly_seed = seeds.randomly
    place, *names = bundle.repro.name.split("::", 1)
    config.args = ["::".join([str(config.rootpath / place), *names])]
    replay = Replay(config, bundle.repro.name, spec, seeds)
    if config.getoption("mountns_from_end"):
        replay.begin_on(bundle)
    config.pluginmanager.register(replay, "mountns-replay")


@final
class Replay:
    """The hooks of one session."""

    def __init__(self, config: pytest.Config, nodeid: str, spec: SandboxSpec, seeds: Seeds) -> None:
        self._config = config
        self._nodeid = nodeid
        self._spec = spec
        self._seeds = seeds
        self._bundle: Bundle | None = None
        self._layers: Layers | None = None
        self._planner = Planner([str(config.rootpath), sys.prefix])
        self._manager: SandboxManager | None = None

    def begin_on(self, bundle: Bundle) -> None:
        """Have the test begin with what it had written when the bundle was made.

        Called before other plugins are configured: some start a thread, and a process with more
        than one thread cannot enter a user namespace (unshare(2)). Raises
        :class:`pytest.UsageError` if it cannot be entered.
        """
        self._bundle = bundle
        if self._planner.findings.user_namespace:
            self._manager = SandboxManager(self._planner.places)
            try:
                self._manager.move_to_user_namespace()
            except SandboxError as error:
                raise pytest.UsageError(str(error)) from None

    # Last, since the plugin itself has to be configured.
    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        """Set the seeds of the bundle, and mount its layers below every sandbox."""
        session = activate(config).session
        session.observers.add(_SetSeeds(self._seeds))
        if self._bundle is not None:
            session.sandboxes.base_layers = self._lay
            if self._manager is not None:
                session.sandboxes.adopt_manager(self._manager, self._planner.findings)

    def _lay(self, spec: SandboxSpec) -> Layers:
        """The layers of the bundle, to lie under the test.

        Raises :class:`SandboxError` if they cannot be unpacked.
        """
        assert self._bundle is not None
        if self._layers is None:
            sandboxes = activate(self._config).session.sandboxes
            if spec.user == "root" and self._manager is not None:
                raise SandboxError(
                    "begin on what a test has written",
                    cause='with user="root" an ordinary user\'s test has a user namespace that was'
                    " not saved",
                    remedy="replay it without --from-end, or run it as root",
                )
            plan = sandboxes.planner.plan(base_layers_spec(spec))
            with ExitStack() as stack:
                self._layers = make_base_layers(
                    sandboxes.manager, plan, self._bundle.sources(stack)
                )
        return self._layers

    # After other plugins have chosen tests, and before the plugin itself looks at marks.
    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Have the test of the bundle isolated, whatever its marks are now, and run no other.

        Raises :class:`pytest.UsageError` if only others were found. pytest takes the name of a
        function for the names of all its parameters as well.
        """
        others = [item for item in items if item.nodeid != self._nodeid]
        if others:
            items[:] = [item for item in items if item.nodeid == self._nodeid]
            if not items:
                found = ", ".join(item.nodeid for item in others)
                raise pytest.UsageError(
                    f"replay: {self._nodeid} is not there any more; found: {found}"
                )
            self._config.hook.pytest_deselected(items=others)
        for item in items:
            if not is_wanted(item, everything=True):
                item.add_marker("mountns", append=False)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Refuse to run the test in any other way than in its sandbox: it may write anywhere.

        Raises :class:`pytest.UsageError` if another plugin has decided otherwise.
        """
        selection = activate(self._config).session.selection
        for item in session.items:
            if not selection.wants(item) or selection.spec(item) != self._spec:
                raise pytest.UsageError(
                    f"replay: {item.nodeid} would not run in the sandbox that the bundle describes:"
                    " another plugin or a conftest.py has changed its marks or its specification"
                )
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_mountns_spec(self, item: pytest.Item, spec: SandboxSpec) -> SandboxSpec | None:
        """Return the specification in the bundle for the test that it describes."""
        return self._spec if item.nodeid == self._nodeid else None


@final
class _SetSeeds(Observer):
    """Has the test begin with the seeds that it had when the bundle was made."""

    def __init__(self, seeds: Seeds) -> None:
        self._seeds = seeds

    def before(self, item: pytest.Item, spec: SandboxSpec, plan: Plan) -> None:
        """Set the seeds."""
        begin(item, self._seeds)


def _seeds(bundle: Bundle) -> Seeds:
    """The seeds of a bundle. Raises :class:`SandboxError` if they are not valid."""
    seeds: dict[str, Any] = bundle.repro.seeds
    try:
        version, numbers, gauss = seeds["random"]
        given = Seeds(
            (version, tuple(numbers), gauss), seeds.get("hypothesis"), seeds.get("randomly")
        )
        random.Random().setstate(given.random)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise SandboxError(
            f"read the bundle {bundle.path}",
            cause=f"its seeds are not valid: {error}",
            remedy="save the test anew; do not edit the bundle",
        ) from error
    return given
