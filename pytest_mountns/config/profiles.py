"""``[tool.mountns]`` and ``[tool.mountns.profiles.NAME]`` of pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from . import marker_keys

#: Keys of ``[tool.mountns]`` that are not the marker's: ini values, without ``mountns_``.
_SETTINGS: Final[Mapping[str, type]] = {
    "mountns": bool,
    "profile": str,
    "unavailable": str,
    "changes": str,
    "keep": str,
    "dir": str,
}


@final
class ProfileError(Exception):
    """Something in the file is wrong. Says the file, the profile and the key."""


@final
@dataclass(frozen=True, slots=True)
class Profiles:
    """``defaults``: keys of every sandbox. ``settings``: see the ini values of the same names.

    ``tables``: the profiles as they are written; ``read``: as a spec wants them.
    """

    file: Path
    defaults: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    read: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def profile(self, name: str) -> Mapping[str, object]:
        """The keys of one. Raises :class:`ProfileError`."""
        try:
            return self.read[name]
        except KeyError:
            there = ", ".join(self.read) or "no profile"
            raise ProfileError(
                f"{self.file}: there is no [tool.mountns.profiles.{name}]; it has {there}"
            ) from None

    def describe(self) -> Iterator[str]:
        """One paragraph for each."""
        for name, table in self.tables.items():
            words = [f"{key}={value!r}" for key, value in table.items() if key != "description"]
            text = str(table.get("description", ""))
            yield f'@pytest.mark.mountns("{name}"): {", ".join(words)}' + (
                f"\n    {text}" if text else ""
            )


def read(file: Path, base: Path) -> Profiles:
    """The profiles in a file, none if there is no such file.

    ``base``: where relative paths begin. Raises :class:`ProfileError`.
    """
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return Profiles(file)
    except OSError as error:
        raise ProfileError(f"{file}: {error.strerror}") from None
    # Not worth a parser's time in every project.
    if b"mountns" not in content:
        return Profiles(file)
    table = _parse(file, content).get("tool", {}).get("mountns", {})
    if not isinstance(table, dict):
        raise ProfileError(f"{file}: [tool.mountns] is no table")
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
                f"{file}: [tool.mountns]: {key}={value!r}: a {kind.__name__} is wanted"
            )
    tables = table.get("profiles", {})
    if not isinstance(tables, dict) or not all(isinstance(one, dict) for one in tables.values()):
        raise ProfileError(f"{file}: [tool.mountns.profiles] is to hold a table for each profile")
    profiles = {name: _profile(file, name, one, base) for name, one in tables.items()}
    return Profiles(file, defaults, settings, tables, profiles)


def _profile(file: Path, name: str, table: Mapping[str, object], base: Path) -> dict[str, object]:
    place = f"tool.mountns.profiles.{name}"
    found = {}
    for key, value in table.items():
        if key == "description":
            if not isinstance(value, str):
                raise ProfileError(f"{file}: [{place}]: {key}={value!r}: a str is wanted")
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
    """The nearest pyproject.toml, in a directory or above it; the one it would be if none is."""
    for place in (directory, *directory.parents):
        if (place / "pyproject.toml").is_file():
            return place / "pyproject.toml"
    return directory / "pyproject.toml"
