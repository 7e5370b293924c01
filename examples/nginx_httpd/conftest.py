"""The volumes, which are the host's, and the sites, each in its test's sandbox."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_mountns import BindVolume, IsolatedProc

from .. import mounts
from . import servers
from .observer import Observer
from .servers import Site


def pytest_report_collectionfinish() -> list[str]:
    lines = []
    for name in servers.NAMES:
        server = servers.find(name)
        stands_in = "not installed, Python's http.server takes its place"
        lines.append(f"{name}: {stands_in if server.stands_in else server.program}")
    return lines


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the host keeps the volumes: nginx-volume/nginx-file, httpd-volume/httpd-file."""
    store = tmp_path_factory.mktemp("store")
    for name in servers.NAMES:
        volume = store / f"{name}-volume"
        volume.mkdir()
        # Apache, started by root, reads it as another user.
        volume.chmod(0o755)
        file = volume / f"{name}-file"
        file.write_text(f"{name} serves this\n")
        file.chmod(0o644)
    return store


@pytest.fixture(scope="module")
def filesystem(store: Path) -> mounts.Mount:
    """Of the host, on which the volumes are."""
    return mounts.mount_of(store)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty directory of the host."""
    return tmp_path_factory.mktemp("nothing")


@pytest.fixture(scope="module")
def observer() -> Iterator[Observer]:
    """On the host, as every fixture wider than the test."""
    observer = Observer()
    yield observer
    observer.close()


@pytest.fixture
def mount_point() -> Path:
    """A directory where the sandbox lets this user make others."""
    return Path("/srv") if os.geteuid() == 0 else Path(tempfile.gettempdir())


@pytest.fixture(params=servers.NAMES)
def site(
    request: pytest.FixtureRequest,
    store: Path,
    nothing: Path,
    mount_point: Path,
    bind_volume: BindVolume,
    isolated_proc: IsolatedProc,
    tmp_path: Path,
) -> Iterator[Site]:
    """Runs nginx, or Apache, with its own volume and nothing of the other's.

    A sandbox shows the host's files, copy on write, so it also shows the store. A container
    would not: here an empty directory covers it.
    """
    server = servers.find(request.param)
    name = f"{server.name}-volume"
    volume = bind_volume(store / name, mount_point / name)
    bind_volume(nothing, store, read_only=True)
    with server.running(volume, tmp_path) as port:
        yield Site(server, volume, port)
