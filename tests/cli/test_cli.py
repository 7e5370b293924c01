"""The command pytest-mountns, run as its users run it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.layers.resolve import Stack, resolve
from tests.helpers.archives import archive, member, sha256
from tests.helpers.kept import command

DATA = archive(member("file", b"x" * 5000))


@pytest.fixture
def layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A layer in a cache of this test's own, in use."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    (tmp_path / "layer.tar").write_bytes(DATA)
    return resolve(str(tmp_path / "layer.tar"), "user", cache=Cache())


def test_list(layer: Stack, tmp_path: Path) -> None:
    shown = command("cache", "ls")
    assert shown.returncode == 0
    first, second = shown.stdout.splitlines()
    assert first == f"{tmp_path}/caches/pytest-mountns: 1 layers, 4.9 KiB"
    digest = sha256(DATA).partition(":")[2]
    assert second.split() == [
        "user",
        digest[:12],
        "4.9",
        "KiB",
        "in",
        "use",
        f"{tmp_path}/layer.tar",
    ]
    document = json.loads(command("cache", "ls", "--json").stdout)
    assert document["directory"] == f"{tmp_path}/caches/pytest-mountns"
    assert document["layers"][0]["name"] == f"user-sha256-{digest}"
    assert document["layers"][0]["in_use"] is True
    layer.close()
    assert "in use" not in command("cache", "ls").stdout


def test_prune(layer: Stack) -> None:
    assert command("cache", "prune", "--all").stdout == "0 removed, 0 B\n"
    layer.close()
    assert command("cache", "prune").stdout == "0 removed, 0 B\n"
    name = f"user-{sha256(DATA).replace(':', '-')}"
    planned = command("cache", "prune", "--all", "--dry-run").stdout
    assert planned == f"{name}\n1 would be removed, 4.9 KiB\n"
    assert os.path.exists(layer.directories[0])
    assert command("cache", "prune", "--unused-for", "0").stdout == f"{name}\n1 removed, 4.9 KiB\n"
    assert not os.path.exists(layer.directories[0])


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert "0 layers, 0 B" in command("cache", "ls").stdout
    assert command("cache", "prune").stdout == "0 removed, 0 B\n"
    assert not (tmp_path / "caches").exists()


def test_a_cache_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no directory")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    shown = command("cache", "ls")
    assert shown.returncode == 1
    assert "remedy: set XDG_CACHE_HOME" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_doctor() -> None:
    shown = command("doctor", "--json")
    facts = json.loads(shown.stdout)
    assert shown.returncode == (0 if facts["possible"] else 1)
    assert "tests can" in command("doctor").stdout


@pytest.mark.parametrize(
    "arguments", [[], ["cache"], ["nonsense"], ["cache", "prune", "--unused-for", "-1"]]
)
def test_asked_for_wrongly(arguments: list[str]) -> None:
    shown = command(*arguments)
    assert shown.returncode == 2
    assert "usage: pytest-mountns" in shown.stderr
