"""Rulesets of Landlock: which rights they have by version, and what they forbid."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.landlock import (
    TRUNCATE_ABI,
    Ruleset,
    ruleset_attributes,
    write_rights,
)
from pytest_mountns.engine.probe.guard import probe_guard
from tests.helpers.environments import drop_sys_admin
from tests.helpers.worlds import errno_of, in_child

_TRUNCATE = 1 << 14


@pytest.mark.parametrize(
    ("abi", "fields"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (7, 3), (99, 3)]
)
def test_a_version_gets_the_rights_that_it_knows(abi: int, fields: int) -> None:
    attributes = ruleset_attributes(abi, network=True)
    values = struct.unpack(f"={fields}Q", attributes)
    assert values[0] == write_rights(abi)
    assert bool(values[0] & _TRUNCATE) is (abi >= TRUNCATE_ABI)
    assert all(values[1:])
    assert not any(struct.unpack(f"={fields}Q", ruleset_attributes(abi, network=False))[1:])


def _versions() -> list[int]:
    return list(range(1, probe_guard().abi + 1))


def test_every_version_is_taken_by_a_kernel_that_has_a_newer_one() -> None:
    versions = _versions()
    if not versions:
        pytest.skip("no Landlock here")
    for abi in versions:
        Ruleset(abi, network=abi > 3).close()


CHANGES: dict[str, Callable[[str], object]] = {
    "write": lambda place: Path(place, "file").write_text("other"),
    "create": lambda place: Path(place, "new").touch(),
    "truncate": lambda place: os.truncate(f"{place}/file", 0),
    "unlink": lambda place: os.unlink(f"{place}/file"),
    "rename": lambda place: os.rename(f"{place}/file", f"{place}/other"),
    "rmdir": lambda place: os.rmdir(f"{place}/directory"),
    "mkdir": lambda place: os.mkdir(f"{place}/new"),
    "symlink": lambda place: os.symlink("/", f"{place}/new"),
    "link": lambda place: os.link(f"{place}/file", f"{place}/new"),
    "mkfifo": lambda place: os.mkfifo(f"{place}/new"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes(tmp_path: Path, change: Callable[[str], object]) -> None:
    abi = probe_guard().abi
    if abi < TRUNCATE_ABI:
        pytest.skip("no Landlock here that forbids truncate")
    places = []
    for name in ("allowed", "refused"):
        place = tmp_path / name
        (place / "directory").mkdir(parents=True)
        (place / "file").write_text("content")
        places.append(str(place))

    def guarded() -> list[int]:
        # As an ordinary user, and root in a container: the kernel asks for no_new_privs then.
        drop_sys_admin()
        ruleset = Ruleset(abi)
        ruleset.allow(places[0])
        ruleset.enforce()
        return [errno_of(partial(change, place)) for place in places]

    assert in_child(guarded) == [0, errno.EACCES]
    assert sorted(os.listdir(places[1])) == ["directory", "file"]
    assert Path(places[1], "file").read_text() == "content"
