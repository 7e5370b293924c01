"""What is left of the files of programs and libraries when they are killed, or the power is cut.

Each changes a value from OLD to NEW. The outcomes are facts about the versions that are installed;
docs/crashes.md shows them as a table. Libraries that are not installed are skipped::

    pip install python-dotenv tinydb diskcache pickledb atomicwrites safer

``dbm.gnu`` and ``dbm.ndbm`` depend on what Python was built with; Debian's has both (python3-gdbm).
"""

from __future__ import annotations

import configparser
import importlib
import os
import shelve
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import pytest

import pytest_mountns

pytestmark = [pytest.mark.sandboxes, pytest.mark.layered]

#: More than Python writes at once, and of different lengths.
OLD: Final = "1" * 20000
NEW: Final = "2" * 15000

#: The value is OLD or NEW after each crash, and NEW when the function has returned.
GOOD: Final = "good"
#: It is OLD or NEW, but may be OLD although the function has returned.
LATE: Final = "late"
#: It can be neither: an error, an empty file, a mixture.
BAD: Final = "bad"
#: It writes through a mapping of the file, without a system call, so there was no crash point.
UNSEEN: Final = "unseen"

WAYS: Final[dict[str, dict[str, Any]]] = {
    "killed": {},
    "torn": {"torn": True},
    "ordered": {"power": "ordered"},
    "strict": {"power": "strict"},
}


class Subject(NamedTuple):
    """How a value is stored."""

    set: Callable[[Path, str], object]
    get: Callable[[Path], str]
    #: The outcome for each of WAYS.
    expected: tuple[str, str, str, str]
    #: What has to be installed.
    needs: str = ""


def set_text(place: Path, value: str) -> None:
    (place / "file").write_text(value)


def get_text(place: Path) -> str:
    return (place / "file").read_text()


def set_synced(place: Path, value: str) -> None:
    with open(place / "new", "w") as file:
        file.write(value)
        file.flush()
        os.fsync(file.fileno())
    os.replace(place / "new", place / "file")


def set_durable(place: Path, value: str) -> None:
    set_synced(place, value)
    directory = os.open(place, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def set_ini(place: Path, value: str) -> None:
    parser = configparser.ConfigParser()
    parser.read(place / "file")
    parser["section"] = {"key": value}
    with open(place / "file", "w") as file:
        parser.write(file)


def get_ini(place: Path) -> str:
    parser = configparser.ConfigParser()
    parser.read(place / "file")
    return parser["section"]["key"]


def shelf(kind: str, *expected: str) -> Subject:
    def opened(place: Path, flag: Literal["c", "r"]) -> shelve.Shelf[str]:
        return shelve.Shelf(importlib.import_module(kind).open(str(place / "shelf"), flag))

    def set_value(place: Path, value: str) -> None:
        with opened(place, "c") as found:
            found["key"] = value

    def get_value(place: Path) -> str:
        with opened(place, "r") as found:
            return found["key"]

    killed, torn, ordered, strict = expected
    return Subject(set_value, get_value, (killed, torn, ordered, strict), kind)


def sqlite(mode: str, synchronous: str, *expected: str) -> Subject:
    def connect(place: Path) -> sqlite3.Connection:
        connection = sqlite3.connect(place / "database")
        connection.execute(f"pragma synchronous = {synchronous}")
        return connection

    kept: list[sqlite3.Connection] = []

    def set_value(place: Path, value: str) -> None:
        connection = connect(place)
        connection.execute(f"pragma journal_mode = {mode}")
        connection.execute("create table if not exists t (key primary key, value)")
        connection.execute("insert or replace into t values ('key', ?)", [value])
        connection.commit()
        if value == OLD:
            connection.close()
        else:
            # The last to close a database writes the log back and syncs it.
            kept.append(connection)

    def get_value(place: Path) -> str:
        connection = connect(place)
        (fine,) = connection.execute("pragma integrity_check").fetchone()
        assert fine == "ok"
        (value,) = connection.execute("select value from t").fetchone()
        connection.close()
        return str(value)

    killed, torn, ordered, strict = expected
    return Subject(set_value, get_value, (killed, torn, ordered, strict))


def set_dotenv(place: Path, value: str) -> None:
    import dotenv  # type: ignore[import-not-found, import-untyped, unused-ignore]

    (place / "file").touch()
    dotenv.set_key(str(place / "file"), "KEY", value)


def get_dotenv(place: Path) -> str:
    import dotenv  # type: ignore[import-not-found, import-untyped, unused-ignore]

    return str(dotenv.dotenv_values(place / "file")["KEY"])


def set_tinydb(place: Path, value: str) -> None:
    import tinydb  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with tinydb.TinyDB(place / "file") as database:
        database.upsert({"key": value}, tinydb.Query().key.exists())


def get_tinydb(place: Path) -> str:
    import tinydb  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with tinydb.TinyDB(place / "file") as database:
        (row,) = database.all()
        return str(row["key"])


def set_pickledb(place: Path, value: str) -> None:
    import pickledb  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with pickledb.PickleDB(str(place / "file")) as database:
        database.set("key", value)
        database.save()


def get_pickledb(place: Path) -> str:
    import pickledb  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with pickledb.PickleDB(str(place / "file")) as database:
        return str(database.get("key"))


def diskcache(size: int, *expected: str) -> Subject:
    """``size``: values from this length on are files beside the database."""

    def cache(place: Path) -> Any:
        import diskcache  # type: ignore[import-not-found, import-untyped, unused-ignore]

        return diskcache.Cache(str(place / "cache"), disk_min_file_size=size)

    def set_value(place: Path, value: str) -> None:
        with cache(place) as opened:
            opened["key"] = value

    def get_value(place: Path) -> str:
        with cache(place) as opened:
            return str(opened["key"])

    killed, torn, ordered, strict = expected
    return Subject(set_value, get_value, (killed, torn, ordered, strict), "diskcache")


def set_atomicwrites(place: Path, value: str) -> None:
    from atomicwrites import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        atomic_write,
    )

    with atomic_write(place / "file", overwrite=True) as file:
        file.write(value)


def set_safer(place: Path, value: str) -> None:
    import safer  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with safer.open(place / "file", "w", temp_file=True) as file:
        file.write(value)


def pip_cache(place: Path) -> Any:
    """The cache of responses of pip: private to it, and what it writes is what is asked for."""
    from pip._internal.network.cache import (  # type: ignore[import-not-found, import-untyped, unused-ignore]
        SafeFileCache,
    )

    return SafeFileCache(str(place / "http"))


URL: Final = "https://example.org/"


def set_pip(place: Path, value: str) -> None:
    cache = pip_cache(place)
    if not hasattr(cache, "get_body"):
        # Before pip 23.1 a response was one file.
        pass
    elif (body := cache.get_body(URL)) is None:
        # Since pip 24 a response without a body is none. It is written once, and stays the same.
        cache.set_body(URL, b"")
    else:
        body.close()
    cache.set(URL, value.encode())


def get_pip(place: Path) -> str:
    found: bytes = pip_cache(place).get(URL)
    return found.decode()


SUBJECTS: Final = {
    "a file, written in place": Subject(set_text, get_text, (BAD, BAD, BAD, BAD)),
    "fsync, rename": Subject(set_synced, get_text, (GOOD, GOOD, GOOD, LATE)),
    "fsync, rename, fsync of the directory": Subject(
        set_durable, get_text, (GOOD, GOOD, GOOD, GOOD)
    ),
    "configparser, written in place": Subject(set_ini, get_ini, (BAD, BAD, BAD, BAD)),
    "shelve, with dbm.dumb": shelf("dbm.dumb", BAD, BAD, BAD, BAD),
    "shelve, with dbm.gnu": shelf("dbm.gnu", UNSEEN, UNSEEN, GOOD, GOOD),
    "shelve, with dbm.ndbm": shelf("dbm.ndbm", BAD, BAD, BAD, BAD),
    "sqlite3, delete, full": sqlite("delete", "full", GOOD, GOOD, GOOD, LATE),
    "sqlite3, delete, normal": sqlite("delete", "normal", GOOD, GOOD, GOOD, LATE),
    "sqlite3, delete, extra": sqlite("delete", "extra", GOOD, GOOD, GOOD, GOOD),
    # SQLite itself calls it unsafe. The models lose all that was not synced, and not a part of it.
    "sqlite3, delete, off": sqlite("delete", "off", GOOD, GOOD, LATE, LATE),
    "sqlite3, wal, full": sqlite("wal", "full", GOOD, GOOD, GOOD, GOOD),
    "sqlite3, wal, normal": sqlite("wal", "normal", GOOD, GOOD, LATE, LATE),
    "python-dotenv, set_key": Subject(set_dotenv, get_dotenv, (GOOD, GOOD, BAD, BAD), "dotenv"),
    "tinydb": Subject(set_tinydb, get_tinydb, (BAD, BAD, BAD, BAD), "tinydb"),
    "pickledb": Subject(set_pickledb, get_pickledb, (GOOD, GOOD, BAD, BAD), "pickledb"),
    "diskcache, in its database": diskcache(1 << 20, GOOD, GOOD, GOOD, GOOD),
    "diskcache, in files": diskcache(1000, GOOD, GOOD, BAD, BAD),
    "atomicwrites": Subject(set_atomicwrites, get_text, (GOOD, GOOD, GOOD, GOOD), "atomicwrites"),
    "pip, a response in its cache": Subject(set_pip, get_pip, (GOOD, GOOD, GOOD, LATE), "pip"),
    "safer, with temp_file": Subject(set_safer, get_text, (GOOD, GOOD, BAD, BAD), "safer"),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SUBJECTS)
def test_what_is_left(
    overlay_root: pytest_mountns.OverlayRoot, tmp_path: Path, name: str, way: str
) -> None:
    subject = SUBJECTS[name]
    if subject.needs:
        try:
            importlib.import_module(subject.needs)
        except ImportError as error:
            # Debian's Python has the module without what it needs, and says which package has it.
            pytest.skip(str(error))
    subject.set(tmp_path, OLD)
    assert subject.get(tmp_path) == OLD
    outcome = GOOD
    for crash in overlay_root.crashes(lambda: subject.set(tmp_path, NEW), **WAYS[way]):
        try:
            value = subject.get(tmp_path)
        except Exception:  # noqa: BLE001 - whatever the library raises
            value = ""
        if value not in (OLD, NEW):
            outcome = BAD
            break
        if crash.ended and value == OLD:
            outcome = LATE
    if crash.mapped and not crash.of:
        outcome = UNSEEN
    expected = subject.expected[list(WAYS).index(way)]
    assert outcome == expected, crash


GIT: Final = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    **{f"GIT_{who}_{what}": "a" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


@pytest.mark.parametrize(
    ("settings", "way", "expected"),
    [
        # Lock files stay: git says so, and what it tells to do is done here.
        ("core.fsync=default", "killed", GOOD),
        ("core.fsync=default", "ordered", BAD),
        ("core.fsync=all", "ordered", GOOD),
    ],
)
def test_git_commit(
    overlay_root: pytest_mountns.OverlayRoot,
    tmp_path: Path,
    settings: str,
    way: str,
    expected: str,
) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-c", settings, "-C", str(tmp_path), *arguments]
        environment = {**os.environ, **GIT}
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    if not any(os.access(f"{place}/git", os.X_OK) for place in os.get_exec_path()):
        pytest.skip("no git here")
    git("init", "-q")
    set_text(tmp_path, OLD)
    git("add", "file")
    git("commit", "-q", "-m", "old")
    set_durable(tmp_path, NEW)
    outcome = GOOD
    for _ in overlay_root.crashes(lambda: git("commit", "-q", "-a", "-m", "new"), **WAYS[way]):
        for lock in tmp_path.rglob("*.lock"):
            lock.unlink()
        # It is made anew from what was committed. git does not sync it, whatever core.fsync says.
        (tmp_path / ".git" / "index").unlink(missing_ok=True)
        try:
            git("reset", "-q")
            git("fsck")
            git("status")
            value = git("show", "HEAD:file")
        except subprocess.CalledProcessError:
            value = ""
        if value not in (OLD, NEW):
            outcome = BAD
            break
    assert outcome == expected
