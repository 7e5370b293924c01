"""Options, ini values and markers -> :class:`SandboxSpec`: validation and messages."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NoReturn, cast

import pytest

from .engine.spec import SandboxSpec, SpecError, Tmpfs, Volume, parse_size

FIXTURES: Final = frozenset({"overlay_root", "bind_volume", "isolated_proc", "isolated_net"})

MARKERS: Final = (
    'mountns(profile=None, /, *, process="fork", scope="function", volumes=[], tmpfs=[], size=None,'
    ' inodes=None, upper="memory", read_only=False, pid=False, network="host", hostname=None,'
    ' user="keep", devices=[], writes=None): run the test in a root'
    " filesystem of its own; what it writes, deletes and installs is gone when it ends.",
    "no_mountns(reason=None): keep the test out of the sandbox under --mountns.",
)

#: The ini values; see :func:`add_options`.
INI: Final = (
    *("mountns", "mountns_process", "mountns_volumes", "mountns_unavailable", "mountns_changes"),
    *("mountns_keep", "mountns_dir"),
)

_LATER: Final = ("root", "layers")

Reader = Callable[[object, Path], object]


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
    return True if config.getini("mountns") else None


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
    return Path(config.rootpath, config.getini("mountns_dir") or ".mountns")


def is_audit(config: pytest.Config) -> bool:
    """Whether what tests write is to be listed; a file to write it to implies that."""
    names = ("mountns_audit", "mountns_audit_json", "mountns_audit_html")
    return any(config.getoption(name) for name in names)


def session_keys(config: pytest.Config) -> dict[str, object]:
    """The marker keys that command line and ini give to every sandbox.

    Raises :class:`pytest.UsageError`.
    """
    process = _choice(config, "process", ("fork", "inline"), "fork")
    volumes: tuple[Volume, ...] = ()
    for option, texts in (
        ("mountns_volumes", config.getini("mountns_volumes")),
        ("--mountns-volume", config.getoption("mountns_volume") or []),
    ):
        try:
            more = tuple(Volume.parse(text, str(config.rootpath)) for text in texts)
            # Together, so that two of one origin for the same place are refused.
            SandboxSpec(volumes=more)
        except SpecError as error:
            raise pytest.UsageError(f"{option}: {error}") from None
        volumes = _override(volumes, more)
    return {"process": process, "volumes": volumes}


def _choice(config: pytest.Config, name: str, valid: tuple[str, ...], default: str) -> str:
    value = config.getoption(f"mountns_{name}") or config.getini(f"mountns_{name}") or default
    if value not in valid:
        raise pytest.UsageError(
            f"--mountns-{name} (ini: mountns_{name}): {value!r} is not valid;"
            f" choose from: {', '.join(valid)}"
        )
    return cast(str, value)


def item_spec(item: pytest.Item, session: Mapping[str, object]) -> SandboxSpec:
    """What marks and fixtures of ``item``, over the session's keys, add up to.

    The nearest mark wins, key by key; volumes of the session are added to a mark's own. Raises
    :class:`pytest.UsageError` naming the test.
    """
    keys = dict(session)
    marked: dict[str, object] = {}
    for mark in item.iter_markers("mountns"):
        if mark.args:
            _refuse(item, f"profile {mark.args[0]!r}: profiles do not work yet in this version")
        for key, value in mark.kwargs.items():
            marked.setdefault(key, value)
    for key, value in marked.items():
        read = _READERS.get(key)
        if read is None:
            later = " does not work yet in this version" if key in _LATER else " is not known"
            _refuse(item, f"{key!r}{later}; valid keys: {', '.join(_READERS)}")
        try:
            keys[key] = read(value, item.config.rootpath)
        except (SpecError, TypeError, ValueError) as error:
            _refuse(item, f"{key}={value!r}: {str(error).removeprefix('mountns: ')}")
    if "volumes" in marked:
        own = cast("tuple[Volume, ...]", keys["volumes"])
        keys["volumes"] = _override(cast("tuple[Volume, ...]", session["volumes"]), own)
    if "isolated_proc" in getattr(item, "fixturenames", ()):
        keys["pid"] = True
    if "isolated_net" in getattr(item, "fixturenames", ()):
        keys["network"] = "none"
    try:
        spec = SandboxSpec(**cast("dict[str, Any]", keys))
    except SpecError as error:
        _refuse(item, str(error))
    other: object = item.ihook.pytest_mountns_spec(item=item, spec=spec)
    if other is not None and not isinstance(other, SandboxSpec):
        raise pytest.UsageError(
            f"{item.nodeid}: pytest_mountns_spec returned {other!r}, which is no SandboxSpec"
        )
    return other or spec


def _override(volumes: tuple[Volume, ...], nearer: tuple[Volume, ...]) -> tuple[Volume, ...]:
    """Both, but for one place the nearer one."""
    targets = {volume.target for volume in nearer}
    return (*(volume for volume in volumes if volume.target not in targets), *nearer)


def _refuse(item: pytest.Item, problem: str) -> NoReturn:
    raise pytest.UsageError(
        f"{item.nodeid}: @pytest.mark.mountns: {problem.removeprefix('mountns: ')}"
    )


def _process(value: object, base: Path) -> object:
    return _one_of(value, "fork", "inline")


def _scope(value: object, base: Path) -> object:
    return _one_of(value, "function", "class", "module", "package", "session")


def _medium(value: object, base: Path) -> object:
    return _one_of(value, "memory", "disk")


def _one_of(value: object, *valid: str) -> object:
    if value not in valid:
        raise ValueError(f"choose from: {', '.join(map(repr, valid))}")
    return value


def _volumes(value: object, base: Path) -> tuple[Volume, ...]:
    return tuple(
        part if isinstance(part, Volume) else Volume.parse(_text(part), str(base))
        for part in _list(value)
    )


def _tmpfs(value: object, base: Path) -> tuple[Tmpfs, ...]:
    return tuple(
        part if isinstance(part, Tmpfs) else Tmpfs.parse(_text(part)) for part in _list(value)
    )


def _list(value: object) -> Iterable[object]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"a list is wanted, not {type(value).__name__}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a string is wanted, not {type(value).__name__}")
    return value


def _writes(value: object, base: Path) -> tuple[str, ...] | None:
    if value is None:
        return None
    globs = tuple(_text(part) for part in _list(value))
    # Not for every session.
    from .engine.changes import compile_globs

    compile_globs(globs)
    return globs


def _size(value: object, base: Path) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f'bytes or "64m" are wanted, not {type(value).__name__}')
    return parse_size(value)


def _count(value: object, base: Path) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise TypeError("a whole number above 0 is wanted")
    return value


def _network(value: object, base: Path) -> object:
    return _one_of(value, "host", "none")


def _hostname(value: object, base: Path) -> str | None:
    return None if value is None else _text(value)


def _user(value: object, base: Path) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f'"keep", "root", a name or a uid is wanted, not {type(value).__name__}')
    if isinstance(value, int) and not 0 <= value < 1 << 32:
        raise ValueError("a uid is a number from 0 to 4294967295")
    if value == "":
        raise ValueError('"keep", "root", a name or a uid is wanted')
    return "root" if value == 0 else value


def _devices(value: object, base: Path) -> tuple[str, ...]:
    return tuple(_text(part) for part in _list(value))


def _flag(value: object, base: Path) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"True or False is wanted, not {type(value).__name__}")
    return value


_READERS: Final[Mapping[str, Reader]] = {
    "process": _process,
    "scope": _scope,
    "volumes": _volumes,
    "tmpfs": _tmpfs,
    "size": _size,
    "inodes": _count,
    "upper": _medium,
    "read_only": _flag,
    "pid": _flag,
    "network": _network,
    "hostname": _hostname,
    "user": _user,
    "devices": _devices,
    "writes": _writes,
}
