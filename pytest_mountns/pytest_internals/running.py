"""Items, fixtures and hooks: what is set up, run and torn down, and in which process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any, Final, Literal, NoReturn, TypeAlias, cast

import pluggy
import pytest
from _pytest.fixtures import get_scope_package
from _pytest.logging import caplog_handler_key, caplog_records_key
from _pytest.nodes import Node
from _pytest.outcomes import Exit, OutcomeException
from _pytest.runner import SetupState
from _pytest.unittest import TestCaseFunction

from .frames import unseen

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

#: A scope of fixtures that are set up outside of the test process.
WiderScope: TypeAlias = Literal["class", "module", "package", "session"]
#: Gives the place to set up a fixture in, by its scope and the node that its instance belongs to.
Within: TypeAlias = Callable[["WiderScope", pytest.Collector], AbstractContextManager[object]]

_TEMPORARY: Final = frozenset({"tmp_path", "tmp_path_factory", "tmpdir", "tmpdir_factory"})


class Delegated(Exit):
    """Ends the protocol of a test in the pytest process, since a test process has run it.

    It is a kind of ``Exit``, because nothing in between catches that: neither
    ``CallInfo.from_call`` nor the loops of plugins that implement the protocol to run a test
    again.
    """


def _setup_state(item: pytest.Item) -> SetupState:
    return item.session._setupstate


@unseen
def fill_wider_fixtures(item: pytest.Item, within: Within, *, of_module: bool = True) -> None:
    """Instantiate the fixtures of ``item`` whose scope is wider than function, each in its place.

    Without ``of_module`` only those that a module process has from the pytest process: see
    :func:`_is_shared`.

    ``item.fixturenames`` is ordered widest first. A parametrized fixture has the scope of its
    parametrization; class scope without a class is function scope (``FixtureRequest``).
    """
    __tracebackhide__ = True
    request = getattr(item, "_request", None)
    if not request:
        return
    funcargs: dict[str, object] = cast(Any, item).funcargs
    if isinstance(item, TestCaseFunction) and not hasattr(item, "_getinstance"):
        # Before 8.2 the item's setup made the instance that class-scoped fixtures are bound to.
        cast(Any, item)._testcase = cast(Any, item.parent).obj(item.name)
    for name, scope, definition in _wider_fixtures(item):
        if name not in funcargs and (of_module or _is_shared(scope, definition)):
            # If the parameter of a parametrized fixture has changed, the old instance ends here.
            with within(scope, _scope_node(item, scope, definition)):
                if _is_overridden(item, name, definition):
                    _set_up_overridden(request, name, definition)
                else:
                    funcargs[name] = request.getfixturevalue(name)


def _is_overridden(item: pytest.Item, name: str, definition: Any) -> bool:
    return definition is not cast(Any, item)._fixtureinfo.name2fixturedefs[name][-1]


def _set_up_overridden(request: Any, name: str, definition: Any) -> None:
    """Instantiate a fixture that another one of the same name overrides.

    Uses ``FixtureRequest._arg2fixturedefs``, where the definitions stand from the widest one on;
    ``_fixture_defs``, those that are active; and ``_arg2index`` of pytest 8.0.
    """
    known = request._arg2fixturedefs[name]
    request._arg2fixturedefs[name] = known[: known.index(definition) + 1]
    try:
        request.getfixturevalue(name)
    finally:
        request._arg2fixturedefs[name] = known
        # Who asks for the name next is to get the one that overrides.
        for active in (request._fixture_defs, getattr(request, "_arg2index", {})):
            active.pop(name, None)


def sets_up_wider_fixtures(item: pytest.Item, *, of_module: bool = True) -> bool:
    """Whether :func:`fill_wider_fixtures` will run a fixture, and not only look up values."""
    return next(_fixtures_to_set_up(item, of_module=of_module), None) is not None


def shared_fixture_to_set_up(item: pytest.Item) -> str | None:
    """The first fixture of ``item`` that the pytest process would set up for a module process."""
    return next(_fixtures_to_set_up(item, of_module=False), None)


def _fixtures_to_set_up(item: pytest.Item, *, of_module: bool) -> Iterator[str]:
    """Uses ``FixtureDef.cached_result``, with the value and the parameter it was made for."""
    if not getattr(item, "_request", None):
        return
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params if callspec is not None else {}
    for name, scope, definition in _wider_fixtures(item):
        if not of_module and not _is_shared(scope, definition):
            continue
        known = definition.cached_result
        if known is None or (name in parameters and known[1] is not parameters[name]):
            yield name


def _is_shared(scope: WiderScope, definition: Any) -> bool:
    """Whether a module process uses the instance of this fixture that the pytest process has.

    Those of class and module scope it sets up itself, unless they are alive already: the pytest
    process has set them up for a test of the module that is run in another way.
    """
    return scope in ("package", "session") or definition.cached_result is not None


def set_up_own_session_fixtures(item: pytest.Item, others: Iterable[pytest.Item]) -> None:
    """Set up the session fixtures of pytest itself that ``others`` will ask for.

    ``item`` is being set up. They do next to nothing, as ``tmp_path_factory``.
    """
    request: Any = getattr(item, "_request", None)
    if not request:
        return
    for other in others:
        for name, scope, definition in _wider_fixtures(other):
            own = definition.func.__module__.partition(".")[0] == "_pytest"
            is_new = scope == "session" and definition.cached_result is None
            if own and is_new and not _is_overridden(other, name, definition):
                request.getfixturevalue(name)


def _wider_fixtures(item: pytest.Item) -> Iterator[tuple[str, WiderScope, Any]]:
    information = getattr(item, "_fixtureinfo", None)
    if information is None:
        return
    definitions = information.name2fixturedefs
    callspec = getattr(item, "callspec", None)
    parametrized = callspec._arg2scope if callspec is not None else {}
    has_class = item.getparent(pytest.Class) is not None
    for name in cast(Any, item).fixturenames:
        if name not in definitions:
            continue
        definition = definitions[name][-1]
        if name in parametrized:
            scope = parametrized[name].value
        else:
            scope = definition.scope
            if scope == "function" and name in definition.argnames:
                definition = _overridden(name, definitions[name])
                scope = definition.scope
        if scope != "function" and (scope != "class" or has_class):
            yield name, scope, definition


def _overridden(name: str, definitions: Sequence[Any]) -> Any:
    """The definition that one of function scope gets, or the one behind that, if it is wider."""
    for definition in reversed(definitions):
        if definition.scope != "function" or name not in definition.argnames:
            break
    return definition


def _scope_node(item: pytest.Item, scope: WiderScope, definition: Any) -> pytest.Collector:
    """The node that a fixture's instance belongs to, and ends with."""
    if scope == "package":
        return cast(pytest.Collector, get_scope_package(item, definition))
    kinds: dict[str, type[pytest.Collector]] = {"class": pytest.Class, "module": pytest.Module}
    node = item.getparent(kinds[scope]) if scope in kinds else None
    # An item that is no Python function has no module.
    return node or item.session


def wider_scope(
    request: pytest.FixtureRequest,
) -> tuple[pytest.Item, WiderScope, pytest.Collector] | None:
    """The item, scope and node of the fixture that is being set up, if it is a wider one.

    None for function scope. Uses ``FixtureRequest._pyfuncitem``.
    """
    if request.scope == "function" or isinstance(request.node, pytest.Item):
        return None
    return request._pyfuncitem, request.scope, request.node


def is_tmp_path(fixturedef: pytest.FixtureDef[object], request: pytest.FixtureRequest) -> bool:
    """Whether the fixture that is set up is pytest's own ``tmp_path``, and not one on top of it."""
    return (
        request.fixturename == "tmp_path"
        and getattr(fixturedef.func, "__module__", "") == "_pytest.tmpdir"
    )


class Reporters:
    """The plugins that hear reports while a test runs. Uses pluggy's ``HookImpl``."""

    def __init__(self, config: pytest.Config) -> None:
        hook = config.hook
        self._callers = (hook.pytest_runtest_logreport, hook.pytest_report_teststatus)
        self._known: list[list[pluggy.HookImpl]] = []
        self._own = False

    def are_builtin(self) -> bool:
        """Whether all of them belong to pytest or to this plugin."""
        found = [caller.get_hookimpls() for caller in self._callers]
        if found != self._known:
            self._known = found
            self._own = all(_is_own(one) for listeners in found for one in listeners)
        return self._own


def _is_own(listener: pluggy.HookImpl) -> bool:
    plugin = listener.plugin
    # The methods that a subclass inherits may call those that it overrides.
    defined = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    places = (defined, listener.function.__module__)
    return all(place.partition(".")[0] in ("_pytest", "pytest_mountns") for place in places)


def choose_basetemp(item: pytest.Item) -> None:
    """Choose the directory of ``tmp_path`` once, outside of any sandbox, if the item needs it.

    Otherwise each test process would choose one of its own, and clean up those of others. Uses
    ``config._tmp_path_factory``.
    """
    if not _TEMPORARY.isdisjoint(getattr(item, "fixturenames", ())):
        cast(Any, item.config)._tmp_path_factory.getbasetemp()


def make_basetemp(config: pytest.Config) -> str | None:
    """Choose and make the directory of ``tmp_path``; None without pytest's plugin for it.

    Uses ``config._tmp_path_factory``.
    """
    factory = getattr(config, "_tmp_path_factory", None)
    return None if factory is None else str(factory.getbasetemp())


def basetemp(config: pytest.Config) -> object:
    """The directory of ``tmp_path``, None if none was chosen yet; for :func:`set_basetemp`."""
    return getattr(getattr(config, "_tmp_path_factory", None), "_basetemp", None)


def set_basetemp(config: pytest.Config, directory: object) -> None:
    """Set the directory of ``tmp_path``: one that was chosen in a sandbox is gone with it."""
    factory = getattr(config, "_tmp_path_factory", None)
    if factory is not None:
        factory._basetemp = directory


class _Placed(list[Callable[[], object]]):
    """The finalizers of a node, each of which runs within a context, and one that runs last."""

    def __init__(
        self,
        finalizers: Sequence[Callable[[], object]],
        place: Callable[[], AbstractContextManager[object]],
        close: Callable[[], object],
    ) -> None:
        super().__init__([close, *finalizers])
        self.place = place

    def pop(self, index: Any = -1) -> Callable[[], object]:
        finalizer = super().pop(index)
        if not self:
            return finalizer

        @unseen
        def finalize() -> None:
            with self.place():
                finalizer()

        return finalize


def place_finalizers(
    node: pytest.Collector,
    place: Callable[[], AbstractContextManager[object]],
    close: Callable[[], object],
) -> None:
    """Run the finalizers of ``node`` within ``place()``, and call ``close`` after the last one.

    Those of nodes below it are not concerned. Uses ``SetupState.stack``.
    """
    stack = cast(Any, node.session._setupstate.stack)
    finalizers, error = stack[node]
    stack[node] = (_Placed(finalizers, place, close), error)


def put_back_finalizers(item: pytest.Item, suspended: dict[Any, Any]) -> None:
    """Move ``suspended`` entries of ``SetupState.stack`` there, in place of those of their nodes.

    A plugin has taken them, and the nodes have been set up anew for ``item``.
    """
    stack = cast(Any, _setup_state(item).stack)
    for node in [node for node in suspended if node in stack]:
        stack[node] = suspended.pop(node)


def finalize_last(item: pytest.Item, finalizer: Callable[[], object]) -> None:
    """Call ``finalizer`` after all other finalizers of ``item`` (``SetupState.stack``)."""
    _setup_state(item).stack[item][0].insert(0, finalizer)


def skip_item(reason: str) -> NoReturn:
    """Skip the item. The report names the test's line and not this one (``_use_item_location``)."""
    __tracebackhide__ = True
    raise pytest.skip.Exception(reason, _use_item_location=True)


def forget_setup(item: pytest.Item) -> None:
    """Remove the item's teardown, since its setup has not run in this process."""
    entry = _setup_state(item).stack.get(item)
    if entry is not None:
        finalizers = entry[0]
        if item.teardown in finalizers:
            finalizers.remove(item.teardown)


def is_torn_down(item: pytest.Item) -> bool:
    """Whether the item was torn down in this process, or not set up."""
    return item not in _setup_state(item).stack


def drop(item: pytest.Item, *, torn_down: bool) -> None:
    """In the pytest process: forget an item that a test process has set up and run.

    ``torn_down``: whether it was torn down there. If it was not, because a hook has raised before
    pytest's own could do so, pytest fails the setup of the next test.
    """
    stack = _setup_state(item).stack
    if torn_down:
        stack.pop(item, None)
    elif item in stack:
        # What its finalizers would finish is in the test process.
        stack[item] = ([], None)
    if hasattr(item, "_request"):
        cast(Any, item)._request = False
        cast(Any, item).funcargs = None
    if caplog_handler_key in item.stash:
        del item.stash[caplog_handler_key]
    if caplog_records_key in item.stash:
        del item.stash[caplog_records_key]
    os.environ.pop("PYTEST_CURRENT_TEST", None)


def stop_at_item(item: pytest.Item) -> None:
    """In the test process: tear down the item, and of wider nodes only what is added from now on.

    A wider fixture that the test asks for while it runs is set up and torn down in this process.
    """
    state = _setup_state(item)
    known = {node: len(entry[0]) for node, entry in state.stack.items() if node is not item}
    alive = _alive_fixtures(state)
    original = state.teardown_exact

    @unseen
    def teardown_item() -> None:
        original(cast(Any, item.parent))

    @unseen
    def teardown_exact(nextitem: pytest.Item | None) -> None:
        added = [
            entry[0].pop()
            for node, entry in reversed(state.stack.items())
            if node is not item
            for _ in range(len(entry[0]) - known.get(node, len(entry[0])))
        ]
        late = [finalizer for finalizer in added if _finished_by(finalizer) not in alive]
        errors: list[BaseException] = []
        for finish in (teardown_item, *late):
            try:
                finish()
            except (Exception, OutcomeException) as error:  # noqa: BLE001 - as pytest does
                errors.append(error)
        if len(errors) == 1:
            raise errors[0]
        if errors:
            raise BaseExceptionGroup("errors during test teardown", errors)

    cast(Any, state).teardown_exact = teardown_exact


def _alive_fixtures(state: SetupState) -> frozenset[int]:
    """Before a fork: the fixtures that the pytest process finishes, see :func:`_finished_by`.

    Before 8.2 pytest adds a finalizer whenever one that is set up is asked for, in the forked
    process as well. None are returned where that is not so.
    """
    if not hasattr(pytest.FixtureRequest, "_schedule_finalizers"):
        return frozenset()
    finalizers = (finalizer for entry in state.stack.values() for finalizer in entry[0])
    return frozenset(map(_finished_by, finalizers)) - {id(None)}


def _finished_by(finalizer: Callable[[], object]) -> int:
    """The ``id()`` of the fixture that it finishes (``partial(FixtureDef.finish)``), or of None."""
    return id(getattr(getattr(finalizer, "func", None), "__self__", None))


def keep_own_finalizers(item: pytest.Item, ends: Callable[[], bool]) -> None:
    """In a module process: tear down what is set up from now on, and no more.

    What is set up already belongs to the pytest process, which tears it down. ``ends`` says whether
    the process ends with the running test: then all that it has set up is torn down with it.
    """
    state = _setup_state(item)
    stack = cast(Any, state.stack)
    alive = _alive_fixtures(state)
    for node, (finalizers, error) in list(stack.items()):
        if node is not item:
            stack[node] = (_own(finalizers), error)
    original = state.teardown_exact

    @unseen
    def teardown_exact(nextitem: pytest.Item | None) -> None:
        for finalizers, _ in state.stack.values() if alive else ():
            finalizers[:] = [one for one in finalizers if _finished_by(one) not in alive]
        original(None if isinstance(nextitem, pytest.Item) and ends() else nextitem)

    cast(Any, state).teardown_exact = teardown_exact


def _own(finalizers: list[Callable[[], object]]) -> list[Callable[[], object]]:
    """An empty list of finalizers in place of the pytest process's, which run in the same place."""
    if isinstance(finalizers, _Placed):
        return _Placed([], finalizers.place, lambda: None)
    return []


def module_of(item: pytest.Item) -> pytest.Item | pytest.Collector:
    """The node whose tests share a module process: the nearest file."""
    return item.getparent(pytest.File) or item.parent or item


def tear_down_item(item: pytest.Item) -> None:
    """In the test process, when the session is interrupted: as ``pytest_sessionfinish`` does it."""
    _setup_state(item).teardown_exact(None)


def tear_down_function_scope(item: pytest.Item) -> None:
    """When the session is interrupted: tear down what ends with the item, and no more."""
    if item in _setup_state(item).stack:
        _setup_state(item).teardown_exact(cast(Any, item.parent))


def wider_teardown_is_due(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether some node wider than ``item`` ends before ``nextitem``."""
    stack = [node for node in _setup_state(item).stack if node is not item]
    needed = nextitem.listchain() if nextitem is not None else []
    return stack != needed[: len(stack)]


def wider_teardown_runs_code(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Whether code runs when the nodes that end before ``nextitem`` are torn down.

    Each node has its own ``teardown`` as a finalizer, which does nothing unless it is overridden.
    """
    needed = nextitem.listchain() if nextitem is not None else []
    return any(
        len(finalizers) > 1 or type(node).teardown is not Node.teardown
        for node, (finalizers, _) in _setup_state(item).stack.items()
        if node is not item and node not in needed
    )


def tear_down_wider(
    item: pytest.Item, nextitem: pytest.Item | None
) -> tuple[pytest.CallInfo[None], list[tuple[str, str]]]:
    """In the pytest process: tear down the wider nodes that end with ``item``.

    Returns the call and the captured sections. Only pytest's own hooks run (capture, logging,
    warnings): the hooks of other plugins have seen this item's teardown in the test process.
    """
    from .screen import live_log_of_one_teardown

    hook = _own_hook(item, "pytest_runtest_teardown")
    before = len(item._report_sections)
    item.stash.setdefault(caplog_records_key, {})

    @unseen
    def teardown() -> None:
        hook(item=item, nextitem=nextitem)

    with live_log_of_one_teardown(item.config):
        call = pytest.CallInfo.from_call(
            teardown,
            when="teardown",
            reraise=(pytest.exit.Exception, KeyboardInterrupt),
        )
    sections = [
        (f"Captured {key} {when}", content) for when, key, content in item._report_sections[before:]
    ]
    return call, sections


def run_in_protocol(item: pytest.Item, nextitem: pytest.Item | None, instead: object) -> None:
    """Run the plugin ``instead`` within the wrappers that pytest itself puts around an item."""
    hook = _own_hook(item, "pytest_runtest_protocol", besides=instead)
    hook(item=item, nextitem=nextitem)


def _own_hook(item: pytest.Item, name: str, besides: object = None) -> pluggy.HookCaller:
    others = {
        impl.plugin
        for impl in getattr(item.ihook, name).get_hookimpls()
        if impl.plugin is not besides and not impl.function.__module__.startswith("_pytest.")
    }
    return item.config.pluginmanager.subset_hook_caller(name, others)


def others_wrap_setup(item: pytest.Item) -> bool:
    """Whether a plugin that is not pytest's has a wrapper around ``pytest_runtest_setup``."""
    return any(
        (impl.hookwrapper or impl.wrapper)
        and not impl.function.__module__.startswith(("_pytest.", "pytest_mountns."))
        for impl in item.ihook.pytest_runtest_setup.get_hookimpls()
    )


def keep_reporters_quiet(config: pytest.Config, keep: Sequence[object]) -> None:
    """In the test process: only the ``keep`` plugins and the live log hear reports and warnings.

    Otherwise they would be counted twice, and two processes would write to an xdist worker's
    channel.
    """
    live_log = config.pluginmanager.get_plugin("logging-plugin")
    for name in (
        "pytest_runtest_logstart",
        "pytest_runtest_logreport",
        "pytest_runtest_logfinish",
        "pytest_warning_recorded",
    ):
        # In place, since the callers of subsets of plugins (conftest.py) use the same list.
        implementations = getattr(config.hook, name)._hookimpls
        implementations[:] = [
            impl for impl in implementations if impl.plugin is live_log or impl.plugin in keep
        ]


def stopping(session: pytest.Session) -> tuple[bool | str, bool | str]:
    """Whether the session ends before the next test, and why: ``-x``, ``--maxfail``."""
    return session.shouldfail, session.shouldstop


def set_stopping(session: pytest.Session, shouldfail: bool | str, shouldstop: bool | str) -> None:
    """Set in this process what the other process has decided."""
    # pytest warns when they are set to False.
    if shouldfail:
        session.shouldfail = shouldfail
    if shouldstop:
        session.shouldstop = shouldstop
