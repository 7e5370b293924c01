"""Reads ``[tool.mountns]`` and ``[tool.mountns.profiles.NAME]`` of pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, final

from . import marker_keys

#: Keys of ``[tool.mountns]`` that are not keys of the marker, and the types of their values. They
#: mean what the ini options of these names mean, which begin with ``mountns_``.
_SETTINGS: Final[Mapping[str, type]] = {
    "mountns": bool,
    "profile": str,
    "unavailable": str,
    "changes": str,
    "keep": str,
    "dir": str,
}
#: TOML's names of the types in :data:`_SETTINGS`.
_TYPE_NAMES: Final = {bool: "true or false", str: "a string"}
_EMPTY: Final[Mapping[str, Any]] = MappingProxyType({})


@final
class ProfileError(Exception):
    """The file is not valid. The message names the file, and each profile and key that is wrong."""


# Every pytest run defines this class. A dataclass would take half a millisecond more to define.
class Profiles(NamedTuple):
    """What one pyproject.toml says about sandboxes."""

    file: Path
    #: The marker keys of ``[tool.mountns]``, which hold for every sandbox, as a spec takes them.
    defaults: Mapping[str, object] = _EMPTY
    #: The other keys of ``[tool.mountns]``, which mean what the ini options of these names mean.
    settings: Mapping[str, object] = _EMPTY
    #: The profiles by name, as they are written in the file.
    tables: Mapping[str, Mapping[str, object]] = _EMPTY
    #: The profiles by name, with the values that a spec takes and without the description.
    read: Mapping[str, Mapping[str, object]] = _EMPTY

    def profile(self, name: str) -> Mapping[str, object]:
        """The keys of the profile ``name``. Raises :class:`ProfileError` if there is none."""
        try:
            return self.read[name]
        except KeyError:
            there = ", ".join(self.read) or "none"
            raise ProfileError(
                f"{self.file}: there is no [tool.mountns.profiles.{name}]; profiles there: {there}"
            ) from None

    def describe(self) -> Iterator[str]:
        """Describe each profile in a paragraph, in the form of ``pytest --markers``."""
        for name, table in self.tables.items():
            words = [f"{key}={value!r}" for key, value in table.items() if key != "description"]
            text = str(table.get("description", ""))
            yield f'@pytest.mark.mountns("{name}"): {", ".join(words)}' + (
                f"\n    {text}" if text else ""
            )


def read(file: Path, base: Path) -> Profiles:
    """Read the profiles in ``file``. If there is no such file, there are no profiles.

    Relative paths in it start at ``base``. Raises :class:`ProfileError` if it cannot be read or
    something in it is not valid.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return Profiles(file)
    except OSError as error:
        raise ProfileError(f"{file}: {error.strerror}") from None
    # Most projects have nothing for this plugin in the file, and then it need not be parsed.
    if b"mountns" not in content:
        return Profiles(file)
    table = _parse(file, content).get("tool", {}).get("mountns", {})
    if not isinstance(table, dict):
        raise ProfileError(f"{file}: [tool.mountns] must be a table")
    tables = table.get("profiles", {})
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise ProfileError(f"{file}: [tool.mountns.profiles] must have a table for each profile")
    problems: list[str] = []
    written = {key: value for key, value in table.items() if key != "profiles"}
    defaults = _keys(written, "tool.mountns", base, {**_SETTINGS, "profiles": dict}, problems)
    settings = {key: value for key, value in written.items() if key in _SETTINGS}
    profiles = {
        name: _keys(one, f"tool.mountns.profiles.{name}", base, {"description": str}, problems)
        for name, one in tables.items()
    }
    if problems:
        raise ProfileError("\n".join(f"{file}: {problem}" for problem in problems))
    return Profiles(file, defaults, settings, tables, profiles)


def _keys(
    table: Mapping[str, object],
    place: str,
    base: Path,
    others: Mapping[str, type],
    problems: list[str],
) -> dict[str, object]:
    """The marker keys of a table, as a spec takes them.

    ``others`` are the keys that it may have besides, and the types of their values. What is not
    valid is added to ``problems``.
    """
    for key, kind in others.items():
        if key in table and not isinstance(table[key], kind):
            problems.append(f"[{place}]: {key}={table[key]!r}: must be {_TYPE_NAMES[kind]}")
    marked = {key: value for key, value in table.items() if key not in others}
    try:
        return marker_keys.read_all(marked, base, also_valid=others)
    except marker_keys.KeysError as error:
        problems.extend(f"[{place}]: {problem}" for problem in error.problems)
        return {}


def _parse(file: Path, content: bytes) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        parsed: dict[str, Any] = tomllib.loads(content.decode())
        return parsed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"{file}: {error}") from None


def find(directory: Path) -> Path:
    """The nearest pyproject.toml, in ``directory`` or above it.

    If there is none, this is the path that one would have in ``directory``.
    """
    for place in (directory, *directory.parents):
        if (place / "pyproject.toml").is_file():
            return place / "pyproject.toml"
    return directory / "pyproject.toml"
