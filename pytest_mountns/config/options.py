"""Options, ini values and markers -> :class:`SandboxSpec`: validation and messages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

import pytest

from ..engine.layers.limits import Limits
from ..engine.plan.spec import SandboxSpec, SpecError, Volume
from . import marker_keys, profiles

FIXTURES: Final = frozenset({"overlay_root", "bind_volume", "isolated_proc", "isolated_net"})

MARKERS: Final = (
    'mountns(profile=None, /, *, process="fork", scope="function", root="host", layers=[],'
    ' volumes=[], tmpfs=[], size=None, inodes=None, upper="memory", read_only=False, pid=False,'
    ' network="host", hostname=None, user="keep", devices=[], writes=None): run the test in a root'
    " filesystem of its own; what it writes, deletes and installs is gone when it ends.",
    "no_mountns(reason=None): keep the test out of the sandbox under --mountns.",
)

profiles_key: Final = pytest.StashKey[profiles.Profiles]()
_PROCESSES: Final = ("fork", "inline")
#: The ini values; see :func:`add_options`.
INI: Final = (
    *("mountns", "mountns_process", "mountns_profile", "mountns_layer_limits", "mountns_volumes"),
    *("mountns_unavailable", "mountns_changes", "mountns_keep", "mountns_dir"),
)


def add_options(parser: pytest.Parser) -> None:
    """The command line and its ini twins."""
    group = parser.getgroup("mountns", "a root filesystem for each test")
    group.addoption(
        "--mountns",
        action="store_true",
        default=None,
        dest="mountns",
        help="run every test in a sandbox of its own",
    )
    group.addoption(
        "--no-mountns",
        action="store_false",
        default=None,
        dest="mountns",
        help="make no sandboxes: tests that ask for one are skipped, never run bare",
    )
    group.addoption(
        "--mountns-process",
        metavar="fork|inline",
        default=None,
        help="how tests are kept apart: fork (a process each, the default), inline (the pytest"
        " process enters a sandbox for each test and returns; only files are isolated)",
    )
    group.addoption(
        "--mountns-profile",
        metavar="NAME",
        default=None,
        help="the profile of every sandbox, of [tool.mountns.profiles.NAME] in pyproject.toml",
    )
    group.addoption(
        "--mountns-volume",
        metavar="SRC:DST[:ro]",
        action="append",
        default=None,
        help="a host directory or file for every sandbox; what is written there stays",
    )
    group.addoption(
        "--mountns-unavailable",
        metavar="skip|error",
        default=None,
        help="what becomes of isolated tests on a machine that cannot isolate"
        " (default: skip; error when CI is set in the environment)",
    )
    group.addoption(
        "--mountns-changes",
        metavar="failed|all|none",
        default=None,
        help="which tests' reports say what they changed in the filesystem (default: failed)",
    )
    group.addoption(
        "--mountns-keep",
        metavar="failed|all|none",
        default=None,
        help="which isolated tests a repro is kept of: what they have written, and what it takes to"
        " run them again (default: none)",
    )
    group.addoption(
        "--mountns-dir",
        metavar="DIR",
        default=None,
        help="where repros are kept (default: .mountns in the root directory)",
    )
    group.addoption(
        "--mountns-audit",
        action="store_true",
        default=False,
        help="run every test in a sandbox, and say which tests write where outside their tmp_path",
    )
    group.addoption(
        "--mountns-audit-json",
        metavar="FILE",
        default=None,
        help="the audit, and write it as JSON",
    )
    group.addoption(
        "--mountns-audit-html",
        metavar="FILE",
        default=None,
        help="the audit, and write it as one HTML page",
    )
    group.addoption(
        "--mountns-doctor",
        action="store_true",
        default=False,
        help="try every step of a sandbox here, say what fails, why, and what mends it",
    )
    parser.addini("mountns", "run every test in a sandbox of its own", type="bool", default=False)
    parser.addini("mountns_process", "how tests are kept apart: fork or inline", default="")
    parser.addini("mountns_profile", "the profile of every sandbox", default="")
    parser.addini(
        "mountns_layer_limits", "how much a layer may be: members=N,bytes=SIZE,ratio=N", default=""
    )
    parser.addini("mountns_volumes", "SRC:DST[:ro] for every sandbox", type="linelist", default=[])
    parser.addini("mountns_unavailable", "skip or error", default="")
    parser.addini("mountns_changes", "failed, all or none", default="")
    parser.addini("mountns_keep", "failed, all or none", default="")
    parser.addini("mountns_dir", "where repros are kept, from the root directory on", default="")


def sandbox_everything(config: pytest.Config) -> bool | None:
    """True: every test; False: none (``--no-mountns``); None: those that ask for it."""
    option: bool | None = config.getoption("mountns")
    if is_audit(config):
        if option is False:
            raise pytest.UsageError("--no-mountns: there is nothing to audit without a sandbox")
        return True
    if option is not None:
        return option
    everything = config.getini("mountns") or profiles_of(config).settings.get("mountns")
    return True if everything else None


def unavailable_policy(config: pytest.Config) -> Literal["skip", "error"]:
    """What to do where nothing can be isolated. Raises :class:`pytest.UsageError`."""
    default = "error" if os.environ.get("CI") else "skip"
    value = _choice(config, "unavailable", ("skip", "error"), default)
    return cast('Literal["skip", "error"]', value)


def changes_policy(config: pytest.Config) -> Literal["failed", "all", "none"]:
    """Whose changes go into reports. Raises :class:`pytest.UsageError`."""
    value = _choice(config, "changes", ("failed", "all", "none"), "failed")
    return cast('Literal["failed", "all", "none"]', value)


def keep_policy(config: pytest.Config) -> Literal["failed", "all", "none"]:
    """Which tests a repro is kept of. Raises :class:`pytest.UsageError`."""
    value = _choice(config, "keep", ("failed", "all", "none"), "none")
    return cast('Literal["failed", "all", "none"]', value)


def repro_directory(config: pytest.Config) -> Path:
    """Where repros are kept; an absolute path."""
    option = config.getoption("mountns_dir")
    if option:
        return Path(config.invocation_params.dir, option)
    return Path(config.rootpath, _text_setting(config, "dir") or ".mountns")


def layer_limits(config: pytest.Config) -> Limits:
    """How much a layer may be. Raises :class:`pytest.UsageError`."""
    try:
        return Limits.parse(config.getini("mountns_layer_limits"))
    except SpecError as error:
        raise pytest.UsageError(f"mountns_layer_limits: {error}") from None


def is_audit(config: pytest.Config) -> bool:
    """Whether what tests write is to be listed; a file to write it to implies that."""
    names = ("mountns_audit", "mountns_audit_json", "mountns_audit_html")
    return any(config.getoption(name) for name in names)


def session_keys(config: pytest.Config, profile: str | None = None) -> dict[str, object]:
    """The marker keys that every sandbox has: of command line, profile and ini, nearest first.

    ``profile``: its name, if a mark has one. Raises :class:`pytest.UsageError`.
    """
    base = str(config.rootpath)
    known = profiles_of(config)
    name = profile or _text_setting(config, "profile")
    try:
        chosen = known.profile(name) if name else {}
    except profiles.ProfileError as error:
        raise pytest.UsageError(str(error)) from None
    ini: dict[str, object] = {}
    if process := config.getini("mountns_process"):
        ini["process"] = _valid("process", process, _PROCESSES)
    if texts := config.getini("mountns_volumes"):
        ini["volumes"] = _parse_volumes("mountns_volumes", texts, base)
    command: dict[str, object] = {}
    if process := config.getoption("mountns_process"):
        command["process"] = _valid("process", process, _PROCESSES)
    if texts := config.getoption("mountns_volume"):
        command["volumes"] = _parse_volumes("--mountns-volume", texts, base)
    merged: dict[str, object] = {"process": "fork", "volumes": ()}
    for level in (known.defaults, ini, chosen, command):
        merged = marker_keys.merge(merged, level)
    return merged


def profiles_of(config: pytest.Config) -> profiles.Profiles:
    """What pyproject.toml says, read once. Raises :class:`pytest.UsageError`."""
    known = config.stash.get(profiles_key, None)
    if known is None:
        inipath = config.inipath
        in_use = inipath is not None and inipath.name == "pyproject.toml"
        file = inipath if in_use and inipath else config.rootpath / "pyproject.toml"
        try:
            known = config.stash[profiles_key] = profiles.read(file, config.rootpath)
        except profiles.ProfileError as error:
            raise pytest.UsageError(str(error)) from None
    return known


def _parse_volumes(option: str, texts: list[str], base: str) -> tuple[Volume, ...]:
    try:
        volumes = tuple(Volume.parse(text, base) for text in texts)
        # Together, so that two of one origin for the same place are refused.
        SandboxSpec(volumes=volumes)
    except SpecError as error:
        raise pytest.UsageError(f"{option}: {error}") from None
    return volumes


def _text_setting(config: pytest.Config, name: str) -> str:
    """From the command line, an ini file, or pyproject.toml; "" if it is nowhere."""
    value = config.getoption(f"mountns_{name}") or config.getini(f"mountns_{name}")
    return str(value or profiles_of(config).settings.get(name, ""))


def _choice(config: pytest.Config, name: str, valid: tuple[str, ...], default: str) -> str:
    return _valid(name, _text_setting(config, name) or default, valid)


def _valid(name: str, value: str, valid: tuple[str, ...]) -> str:
    if value not in valid:
        raise pytest.UsageError(
            f"--mountns-{name} (ini: mountns_{name}): {value!r} is not valid;"
            f" choose from: {', '.join(valid)}"
        )
    return value


def item_spec(item: pytest.Item, session: Mapping[str, object]) -> SandboxSpec:
    """What marks and fixtures of ``item``, over the session's keys, add up to.

    The nearest mark wins, key by key; so does the nearest one that names a profile. Volumes of
    the session are added to a mark's own. Raises :class:`pytest.UsageError` naming the test.
    """
    marked: dict[str, object] = {}
    profile: object = None
    for mark in item.iter_markers("mountns"):
        if mark.args and profile is None:
            profile = mark.args[0]
        if len(mark.args) > 1:
            _refuse(item, f"one profile is wanted, not {len(mark.args)}: {mark.args!r}")
        for key, value in mark.kwargs.items():
            marked.setdefault(key, value)
    if profile is not None:
        if not isinstance(profile, str) or not profile:
            _refuse(item, f"the name of a profile is wanted, not {profile!r}")
        try:
            session = session_keys(item.config, profile)
        except pytest.UsageError as error:
            _refuse(item, str(error))
    try:
        base = item.config.rootpath
        own = {key: marker_keys.read(key, value, base) for key, value in marked.items()}
    except ValueError as error:
        _refuse(item, str(error))
    wanted = marker_keys.merge(session, own)
    if "isolated_proc" in getattr(item, "fixturenames", ()):
        wanted["pid"] = True
    if "isolated_net" in getattr(item, "fixturenames", ()):
        wanted["network"] = "none"
    try:
        spec = SandboxSpec(**cast("dict[str, Any]", wanted))
    except SpecError as error:
        _refuse(item, str(error))
    other: object = item.ihook.pytest_mountns_spec(item=item, spec=spec)
    if other is not None and not isinstance(other, SandboxSpec):
        raise pytest.UsageError(
            f"{item.nodeid}: pytest_mountns_spec returned {other!r}, which is no SandboxSpec"
        )
    return other or spec


def _refuse(item: pytest.Item, problem: str) -> NoReturn:
    raise pytest.UsageError(
        f"{item.nodeid}: @pytest.mark.mountns: {problem.removeprefix('mountns: ')}"
    )
