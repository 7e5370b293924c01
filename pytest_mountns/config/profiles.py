"""Reads ``[tool.mountns]`` and ``[tool.mountns.profiles.NAME]`` of pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

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


@final
class ProfileError(Exception):
    """Something in the file is not valid. The message names the file, the profile and the key."""


@final
@dataclass(frozen=True, slots=True)
class Profiles:
    """What one pyproject.toml says about sandboxes."""

    file: Path
    #: The marker keys of ``[tool.mountns]``, which hold for every sandbox, as a spec takes them.
    defaults: Mapping[str, object] = field(default_factory=dict)
    #: The other keys of ``[tool.mountns]``, which mean what the ini options of these names mean.
    settings: Mapping[str, object] = field(default_factory=dict)
    #: The profiles by name, as they are written in the file.
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    #: The profiles by name, with the values that a spec takes and without the description.
    read: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

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
    defaults: dict[str, object] = {}
    settings: dict[str, object] = {}
    for key, value in table.items():
        if key == "profiles":
            continue
        kind = _SETTINGS.get(key)
        if kind is None:
            defaults[key] = _value(file, "tool.mountns", key, value, base, [*_SETTINGS, "profiles"])
        elif isinstance(value, kind):
            settings[key] = value
        else:
            raise ProfileError(
                f"{file}: [tool.mountns]: {key}={value!r}: must be {_TYPE_NAMES[kind]}"
            )
    tables = table.get("profiles", {})
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise ProfileError(f"{file}: [tool.mountns.profiles] must have a table for each profile")
    profiles = {name: _profile(file, name, one, base) for name, one in tables.items()}
    return Profiles(file, defaults, settings, tables, profiles)


def _profile(file: Path, name: str, table: Mapping[str, object], base: Path) -> dict[str, object]:
    place = f"tool.mountns.profiles.{name}"
    found = {}
    for key, value in table.items():
        if key == "description":
            if not isinstance(value, str):
                raise ProfileError(f"{file}: [{place}]: {key}={value!r}: must be a string")
            continue
        found[key] = _value(file, place, key, value, base, ["description"])
    return found


def _value(
    file: Path, place: str, key: str, value: object, base: Path, besides: list[str]
) -> object:
    try:
        return marker_keys.read(key, value, base)
    except ValueError as error:
        more = f", {', '.join(besides)}" if key not in marker_keys.READERS else ""
        raise ProfileError(f"{file}: [{place}]: {error}{more}") from None


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
