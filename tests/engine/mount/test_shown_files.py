"""What a root takes over from files of the host, looked at in C and in Python."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_mountns.engine.linux import compiled
from pytest_mountns.engine.linux.attributes import read_xattrs
from pytest_mountns.engine.mount import shown_files
from pytest_mountns.engine.mount.shown_files import FilesToShow, ModelState
from tests.helpers.worlds import ACCESS_LIST, set_attribute

#: Seconds since 1970, in the year 2286.
_FAR = 10_000_000_000


@pytest.fixture(params=["compiled", "python"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "python":
        monkeypatch.setattr(shown_files, "library", lambda: None)
    elif compiled.library() is None:
        pytest.skip("installed without a C compiler")
    return str(request.param)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir(mode=0o750)
    os.utime(path, ns=(-1, 1_234_567_890_123_456_789))
    return path


def _as_now(path: Path) -> tuple[str, dict[str, bytes]]:
    """A model with the attributes that it has: with SELinux each directory has one."""
    return str(path), read_xattrs(str(path))


@pytest.mark.usefixtures("way")
def test_the_attributes_of_models_are_read(model: Path) -> None:
    other = model / "other"
    other.mkdir()
    found = FilesToShow([_as_now(model), _as_now(other)], [], []).look()
    assert found is not None
    assert list(found.model_states()) == [
        ModelState(
            status.st_mode & 0o7777,
            status.st_uid,
            status.st_gid,
            status.st_atime_ns,
            status.st_mtime_ns,
        )
        for status in (model.stat(), other.stat())
    ]


def test_both_ways_see_the_same(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled.library() is None:
        pytest.skip("installed without a C compiler")
    paths = [str(model), "/dev/null", "/proc/self"]
    files = FilesToShow([_as_now(model)], paths, paths)
    in_c = files.look()
    assert in_c is not None
    monkeypatch.setattr(shown_files, "library", lambda: None)
    assert files.look() == in_c


def _replace(path: Path) -> None:
    path.rename(path.with_name("old"))
    path.mkdir()


def _mode(path: Path) -> None:
    path.chmod(0o700)


def _time(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def _entry(path: Path) -> None:
    (path / "entry").touch()


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("change", "seen_by"),
    [
        (_replace, {"model", "source", "directory"}),
        (_mode, {"model", "directory"}),
        (_time, {"model", "directory"}),
        (_entry, {"model", "directory"}),
    ],
)
def test_changes_are_seen(model: Path, change: Callable[[Path], None], seen_by: set[str]) -> None:
    path = [str(model)]
    looks = {
        "model": FilesToShow([_as_now(model)], [], []),
        "source": FilesToShow([], path, []),
        "directory": FilesToShow([], [], path),
    }
    before = {name: files.look() for name, files in looks.items()}
    assert {name: files.look() for name, files in looks.items()} == before
    change(model)
    assert {name for name, files in looks.items() if files.look() != before[name]} == seen_by


def _set(path: Path, name: str, value: bytes) -> None:
    if not set_attribute(str(path), name, value):
        pytest.skip("this filesystem has no extended attributes")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"user.note": b"1"},
        {"user.empty": b"", "user.zeros": b"\0\0a\0", "user.last": b"\xff"},
        {"system.posix_acl_access": ACCESS_LIST, "user.note": b"1"},
        {f"user.{number}": b"x" * number for number in range(12)},
    ],
    ids=["none", "one", "values", "access-list", "many"],
)
def test_other_attributes_than_are_expected_are_none(
    model: Path, attributes: dict[str, bytes]
) -> None:
    for name, value in attributes.items():
        _set(model, name, value)
    files = FilesToShow([_as_now(model)], [str(model)], [])
    found = files.look()
    assert found is not None
    for name, value in attributes.items():
        if name.startswith("user."):
            for other in (value + b"\0", value[:-1] + b"2", b"x" * 300):
                _set(model, name, other)
                assert files.look() is None
        os.removexattr(model, name)
        if name.startswith("user."):
            assert files.look() is None
        _set(model, name, value)
    _set(model, "user.another", b"x")
    assert files.look() is None
    os.removexattr(model, "user.another")
    again = files.look()
    assert again is not None
    assert again.models == found.models


@pytest.mark.usefixtures("way")
def test_attributes_of_overlays_do_not_count(model: Path) -> None:
    files = FilesToShow([_as_now(model)], [], [])
    _set(model, "user.overlay.opaque", b"y")
    assert files.look() is not None


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sign", [1, -1])
def test_a_time_for_which_there_is_no_room_is_none(model: Path, sign: int) -> None:
    os.utime(model, (0, sign * _FAR))
    if os.stat(model).st_mtime != sign * _FAR:
        pytest.skip("this filesystem has no such times")
    assert FilesToShow([_as_now(model)], [], []).look() is None
    # Where it is only compared, it does no harm.
    assert FilesToShow([], [], [str(model)]).look() is not None


@pytest.mark.usefixtures("way")
def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        FilesToShow([], [str(tmp_path), str(tmp_path / "missing")], []).look()
