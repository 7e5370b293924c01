"""Which attributes of nodes and the config are pytest's own, and which plugins may note some."""

from __future__ import annotations

import functools
import logging
import opcode
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence, Set
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, Final, NamedTuple, cast, final

import pytest
from _pytest.nodes import Node
from _pytest.terminal import TerminalReporter

try:
    from _pytest.fixtures import FixtureFunctionDefinition

    # What a module has in place of a function that is a fixture.
    _DEFINITIONS: tuple[type, ...] = (FixtureFunctionDefinition,)
except ImportError:  # before pytest 8.4
    _DEFINITIONS = ()

_STORE_ATTR: Final = opcode.opmap["STORE_ATTR"]


def foreign_attributes(node: Node) -> dict[str, object]:
    """The attributes of ``node`` that neither pytest nor the class of the node sets, by name."""
    own, attributes = _own_names(type(node)), vars(node)
    # The names alone: in a test process each value that is looked at has its page copied.
    return {name: attributes[name] for name in attributes if name not in own}


@functools.cache
def _own_names(kind: Any) -> frozenset[str]:
    """The names that a class and its bases define, and the attributes that their methods set."""
    names: set[str] = set()
    for base in kind.__mro__:
        names.update(vars(base), getattr(base, "__annotations__", ()))
        for value in vars(base).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(code := getattr(function, "__code__", None), CodeType):
                names.update(_stored(code))
    # Set by pytest from elsewhere.
    return frozenset(names | {"_request", "funcargs", "_evaluated_markers", "_explain_cache"})


def _stored(code: CodeType) -> list[str]:
    """The names of the attributes that ``code`` sets, of whichever object.

    An instruction is two bytes, dis; EXTENDED_ARG has the higher bits of the argument of the next
    one. ``dis.get_instructions()`` takes 18 ms for the classes of a session, and this takes 1 ms.

    No generator: where a Ctrl-C meets one at its start, pytest cannot show the line and fails.
    """
    names: list[str] = []
    higher = 0
    for operation, argument in zip(code.co_code[::2], code.co_code[1::2], strict=True):
        argument |= higher
        higher = argument << 8 if operation == opcode.EXTENDED_ARG else 0
        if operation == _STORE_ATTR:
            names.append(code.co_names[argument])
    return names


#: What modules and classes consist of besides data.
_CODE: Final = (
    *(BuiltinFunctionType, FunctionType, ModuleType, type, pytest.StashKey),
    *(classmethod, staticmethod, property, re.Pattern, logging.Logger),
    *_DEFINITIONS,
)
#: The hooks that run in a forked test process, or that hear there of what runs.
_IN_TESTS: Final = frozenset(
    {
        *("pytest_runtest_protocol", "pytest_runtest_setup", "pytest_runtest_call"),
        *("pytest_runtest_teardown", "pytest_runtest_makereport", "pytest_pyfunc_call"),
        *("pytest_fixture_setup", "pytest_fixture_post_finalizer", "pytest_exception_interact"),
        *("pytest_assertion_pass", "pytest_warning_recorded"),
    }
)
#: The hooks by which the pytest process tells plugins of reports.
_OF_REPORTS: Final = frozenset({"pytest_runtest_logreport", "pytest_report_teststatus"})
#: Plugins whose state a module of its own brings over, or that have none.
_KNOWN: Final = frozenset(
    {
        # In a worker, what runs of xdist is the module __channelexec__.
        *("_pytest", "pluggy", "pytest_mountns", "xdist", "__channelexec__"),
        *("pytest_cov", "pytest_benchmark"),
        *("syrupy", "flaky"),
        *("pytest_timeout", "_hypothesis_pytestplugin", "_hypothesis_ftz_detector", "anyio"),
        *("pytest_asyncio", "pytest_rerunfailures"),
    }
)


@final
class Watched(NamedTuple):
    """The plugins that may note something while a test runs."""

    #: Objects, modules and classes, by names for messages.
    plugins: Mapping[str, object]
    #: For each of them the names of what is no data of its own: code, and what it has imported.
    code: Mapping[str, frozenset[str]]
    #: The packages that they are of.
    packages: frozenset[str]
    #: The stash keys that are global variables of their modules.
    stash_keys: Sequence[pytest.StashKey[Any]]
    #: The fixtures of plugins that are wider than a test, by their names.
    fixtures: Mapping[str, Any]
    #: Whether one of them hears of reports as well.
    hears_reports: bool


def watched_plugins(config: pytest.Config, items: Sequence[pytest.Item]) -> Watched:
    """The plugins, neither pytest's nor known ones, with hooks that run in test processes.

    Stash keys are those of the others, too: what is stashed may be the value of a fixture.
    """
    plugins: dict[str, object] = {}
    modules: list[ModuleType] = []
    hears_reports = False
    for name, plugin in named_plugins(config):
        # A worker of xdist has one of a module that is not among sys.modules.
        place = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
        module = plugin if isinstance(plugin, ModuleType) else sys.modules.get(place)
        top = place.partition(".")[0]
        if top in _KNOWN or not hasattr(plugin, "__dict__"):
            continue
        modules += [module] if module is not None else []
        if isinstance(plugin, TerminalReporter):
            # Where it has written to is told in messages of its own.
            continue
        hooks = {caller.name for caller in config.pluginmanager.get_hookcallers(plugin) or ()}
        if hooks & (_IN_TESTS | _OF_REPORTS):
            hears_reports |= bool(hooks & (_OF_REPORTS | {"pytest_exception_interact"}))
            plugins[_title(config, name, plugin)] = plugin
            if module is not None and module is not plugin:
                plugins[module.__name__] = module
    # A plugin may have imported a key of pytest's.
    own = [module for name, module in list(sys.modules.items()) if name.startswith("_pytest.")]
    keys = _stash_keys(modules) - _stash_keys(own)
    packages = frozenset(one.__name__.partition(".")[0] for one in modules)
    others = [
        vars(module)
        for name, module in list(sys.modules.items())
        if isinstance(module, ModuleType) and name.partition(".")[0] not in packages
    ]
    code = {name: _code_names(plugin, others) for name, plugin in plugins.items()}
    for kind in _classes_with_data(plugins.values()):
        name = f"{kind.__module__}.{kind.__qualname__}"
        plugins[name], code[name] = kind, _code_names(kind, [])
    return Watched(
        plugins, code, packages, list(keys), _wider_fixtures(items, modules), hears_reports
    )


#: How deep the objects of plugins are looked into.
_DEPTH: Final = 3
_CONTAINERS: Final = (dict, list, set, defaultdict)
_SIMPLE: Final = (type(None), bool, int, float, str, bytes)


def _classes_with_data(plugins: Iterable[object]) -> list[type]:
    """The classes of plugins' objects, and of those that they refer to, that have containers.

    What is kept in a class is shared by all its objects. The class may be of another package, as
    ``allure_commons`` is of ``allure_pytest``; so a word of its name has to be the same.
    """
    found: dict[type, None] = {}
    level = [one for one in plugins if not isinstance(one, ModuleType)]
    words = {word for one in level for word in _words(one)}
    looked_at: set[int] = set()
    for _ in range(_DEPTH):
        level = [one for one in level if id(one) not in looked_at and words & _words(one)]
        looked_at.update(map(id, level))
        for one in level:
            if any(type(value) in _CONTAINERS for value in vars(type(one)).values()):
                found[type(one)] = None
        level = [value for one in level for value in getattr(one, "__dict__", {}).values()]
    return list(found)


def _words(value: object) -> set[str]:
    """The words in the name of the package of its class, without those that say nothing."""
    package = type(value).__module__.partition(".")[0]
    return set(package.split("_")) - {"pytest", "plugin", "plugins", "", "builtins", "conftest"}


def _code_names(plugin: object, others: Sequence[Mapping[str, object]]) -> frozenset[str]:
    """``others``: the variables of modules that are no plugins', from which one may import."""
    names = {
        name
        for name, value in vars(plugin).items()
        if isinstance(value, _CODE) or name.startswith("__") or type(value).__module__ == "typing"
    }
    if isinstance(plugin, ModuleType):
        names.update(
            name
            for name, value in vars(plugin).items()
            if name not in names
            and type(value) not in _SIMPLE
            and any(name in variables and variables[name] is value for variables in others)
        )
    return frozenset(names)


def _wider_fixtures(items: Sequence[pytest.Item], modules: Sequence[ModuleType]) -> dict[str, Any]:
    """The definitions of the modules' fixtures but those of function scope (``_fixtureinfo``)."""
    names = {module.__name__ for module in modules}
    found: dict[str, Any] = {}
    for item in items:
        information = getattr(item, "_fixtureinfo", None)
        for name, definitions in (information.name2fixturedefs if information else {}).items():
            if name not in found:
                found[name] = next(
                    (
                        one
                        for one in definitions
                        if one.scope != "function" and one.func.__module__ in names
                    ),
                    None,
                )
    return {name: definition for name, definition in found.items() if definition is not None}


def value_of_fixture(definition: Any) -> object:
    """The value of a fixture that is set up, else None (``FixtureDef.cached_result``)."""
    known = definition.cached_result
    return None if known is None else known[0]


def _stash_keys(modules: Sequence[ModuleType]) -> Set[pytest.StashKey[Any]]:
    """The stash keys that are global variables of these modules, in their order."""
    found = (value for module in modules for value in vars(module).values())
    return dict.fromkeys(one for one in found if isinstance(one, pytest.StashKey)).keys()


#: What a forked process shares with the other one, or has a copy of that leads nowhere: the names
#: of classes, and what to call them.
_OPEN: Final = {
    "Connection": "a database connection",
    "TextIOWrapper": "a file",
    "BufferedWriter": "a file",
    "Thread": "a thread",
    "socket": "a socket",
}
_OF_OPEN: Final = ("sqlite3", "_io", "threading", "socket", "psycopg", "psycopg2.extensions")


def kept_open(watched: Watched) -> list[tuple[str, str, str]]:
    """What the watched plugins keep open: plugin, attribute, and what it is."""
    standard = (sys.stdin, sys.stdout, sys.stderr, sys.__stdin__, sys.__stdout__, sys.__stderr__)
    return [
        (title, name, _OPEN[type(value).__name__])
        for title, plugin in watched.plugins.items()
        for name, value in vars(plugin).items()
        if type(value).__name__ in _OPEN
        and type(value).__module__ in _OF_OPEN
        and all(value is not one for one in standard)
    ]


def _title(config: pytest.Config, name: str, plugin: object) -> str:
    """The name of a plugin: for a conftest file it is a path, without a name it is a number."""
    if name.isdecimal():
        return f"{type(plugin).__module__}.{type(plugin).__qualname__} {name}"
    return name.removeprefix(f"{config.rootpath}/")


def named_plugins(config: pytest.Config) -> list[tuple[str, object]]:
    """The plugins that are loaded, by their names."""
    found = config.pluginmanager.list_name_plugin()
    return [(name, plugin) for name, plugin in found if plugin is not None]


def number_of_plugins(config: pytest.Config) -> int:
    """How many plugins are or were loaded (``PluginManager._name2plugin``)."""
    return len(config.pluginmanager._name2plugin)


def foreign_config_attributes(config: pytest.Config) -> dict[str, object]:
    """The attributes of ``config`` that pytest does not set."""
    own = _own_names(cast(Any, type(config)))
    return {
        name: value
        for name, value in vars(config).items()
        if name not in own and type(value).__module__.partition(".")[0] not in _KNOWN
    }
