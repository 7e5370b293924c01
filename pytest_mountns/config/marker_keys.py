"""The keys of the marker and of profiles: which values they may have, and what these mean.

There is a function for each key. It takes the value as the user has written it and the directory
at which relative paths start, and returns the value of the field of :class:`SandboxSpec` that has
the same name. It raises one of :data:`INVALID` if the value is not valid.

A new key needs changes in other modules as well: "How to add a marker key" in
docs/contributing.md lists all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias, final

from ..engine.plan.spec import SpecError, Tmpfs, Volume, parse_size

Reader: TypeAlias = Callable[[object, Path], object]

#: What the function of a key raises if the value is not valid.
INVALID: Final = (SpecError, TypeError, ValueError)


def _process(value: object, base: Path) -> object:
    return _one_of(value, "auto", "fork", "module", "inline")


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


def _root(value: object, base: Path) -> str:
    if value in ("host", "minimal"):
        return str(value)
    return _path(value, base)


def _layers(value: object, base: Path) -> tuple[str, ...]:
    return tuple(_path(part, base) for part in _list(value))


def _path(value: object, base: Path) -> str:
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"must be a path, not {type(value).__name__}")
    path = os.fspath(value)
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{path!r} is not a path")
    return os.path.normpath(base / os.path.expanduser(path))


def _tmpfs(value: object, base: Path) -> tuple[Tmpfs, ...]:
    return tuple(
        part if isinstance(part, Tmpfs) else Tmpfs.parse(_text(part)) for part in _list(value)
    )


def _list(value: object) -> Iterable[object]:
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"must be a list, not {type(value).__name__}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, not {type(value).__name__}")
    return value


def _writes(value: object, base: Path) -> tuple[str, ...] | None:
    if value is None:
        return None
    globs = tuple(_text(part) for part in _list(value))
    # Imported here, because most sessions do not need it.
    from ..engine.changes.changes import compile_globs

    compile_globs(globs)
    return globs


def _faults(value: object, base: Path) -> tuple[str, ...]:
    # Imported here, because most sessions do not need it.
    from ..engine.changes.changes import compile_globs
    from ..engine.plan.fault_rules import FaultRule

    rules = [FaultRule.parse(_text(part)) for part in _list(value)]
    compile_globs([rule.glob for rule in rules])
    return tuple(map(str, rules))


def _size(value: object, base: Path) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(
            f'must be a number of bytes or a string like "64m", not {type(value).__name__}'
        )
    return parse_size(value)


def _count(value: object, base: Path) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise TypeError("must be a whole number above 0")
    return value


def _network(value: object, base: Path) -> object:
    return _one_of(value, "host", "none")


def _hostname(value: object, base: Path) -> str | None:
    return None if value is None else _text(value)


def _user(value: object, base: Path) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f'must be "keep", "root", a user name or a uid, not {type(value).__name__}')
    if isinstance(value, int) and not 0 <= value < 1 << 32:
        raise ValueError("a uid must be a number from 0 to 4294967295")
    if value == "":
        raise ValueError('must be "keep", "root", a user name or a uid')
    return "root" if value == 0 else value


def _writable(value: object, base: Path) -> tuple[str, ...] | None:
    if value is None or value == "all":
        return None
    return tuple(_text(part).rstrip("/") or "/" for part in _list(value))


def _devices(value: object, base: Path) -> tuple[str, ...]:
    return tuple(_text(part) for part in _list(value))


def _leaks(value: object, base: Path) -> object:
    return _one_of(value, "ignore", "warn", "error")


def _tmp_path(value: object, base: Path) -> object:
    return _one_of(value, "shared", "own")


def _flag(value: object, base: Path) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be True or False, not {type(value).__name__}")
    return value


#: The keys, in the order in which messages list them.
READERS: Final[Mapping[str, Reader]] = {
    "process": _process,
    "scope": _scope,
    "root": _root,
    "layers": _layers,
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
    "writable": _writable,
    "devices": _devices,
    "writes": _writes,
    "leaks": _leaks,
    "faults": _faults,
    "tmp_path": _tmp_path,
}


@final
class KeysError(ValueError):
    """Some keys are unknown, or have values that are not valid for them."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        #: One text for each problem. It names the keys that it is about and what is valid.
        self.problems = tuple(problems)


def read(name: str, value: object, base: Path) -> object:
    """The value of one key, as :class:`SandboxSpec` takes it; see :func:`read_all`."""
    return read_all({name: value}, base)[name]


def read_all(
    keys: Mapping[str, object], base: Path, *, also_valid: Iterable[str] = ()
) -> dict[str, object]:
    """The values of keys, as :class:`SandboxSpec` takes them.

    Relative paths start at ``base``. ``also_valid`` are keys that the caller reads itself; they
    are mentioned in messages. Raises :class:`KeysError`, which names every key that is unknown
    or has a value that is not valid.
    """
    found: dict[str, object] = {}
    unknown: list[str] = []
    problems: list[str] = []
    for name, value in keys.items():
        reader = READERS.get(name)
        if reader is None:
            unknown.append(repr(name))
            continue
        try:
            found[name] = reader(value, base)
        except INVALID as error:
            problems.append(f"{name}={value!r}: {str(error).removeprefix('mountns: ')}")
    if unknown:
        word = "key" if len(unknown) == 1 else "keys"
        valid = ", ".join([*READERS, *also_valid])
        problems.insert(0, f"unknown {word} {', '.join(unknown)}; valid keys: {valid}")
    if problems:
        raise KeysError(problems)
    return found


def override(volumes: tuple[Volume, ...], nearer: tuple[Volume, ...]) -> tuple[Volume, ...]:
    """Add volumes together. Of two that have the same target, the one of ``nearer`` counts."""
    targets = {volume.target for volume in nearer}
    return (*(volume for volume in volumes if volume.target not in targets), *nearer)


def merge(keys: Mapping[str, object], nearer: Mapping[str, object]) -> dict[str, object]:
    """Add keys together. The value of ``nearer`` counts, except that volumes are added."""
    merged = {**keys, **nearer}
    if "volumes" in keys and "volumes" in nearer:
        merged["volumes"] = override(_as_volumes(keys["volumes"]), _as_volumes(nearer["volumes"]))
    return merged


def _as_volumes(value: object) -> tuple[Volume, ...]:
    assert isinstance(value, tuple)
    return value
