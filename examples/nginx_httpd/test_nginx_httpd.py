"""nginx and Apache httpd, each in a sandbox of its own with a volume of its own.

README.md in this directory tells the same as a story.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_mountns import IsolatedProc

from .. import mounts
from . import servers
from .observer import Note, Observer
from .servers import Site


def test_serves_its_volume(site: Site) -> None:
    name = site.server.name
    software, body = servers.fetch(site.port, f"/{name}-file")
    assert software.startswith(site.server.software)
    assert body == f"{name} serves this\n"


def test_sees_its_own_mounts(site: Site, mount_point: Path, observer: Observer) -> None:
    table = {mount.mountpoint: mount for mount in mounts.read()}
    host = {mount.device for mount in mounts.parse(observer.mount_table())}

    if os.geteuid() == 0:
        writable = table["/"]
    else:
        # The host's tree, read-only; overlays where the user can write.
        assert table["/"].read_only
        writable = mounts.mount_of(mount_point)
    assert writable.fstype == "overlay"
    options = {option.partition("=")[0] for option in writable.super_options}
    assert options >= {"lowerdir", "upperdir", "workdir"}

    for path, fstype in (("/proc", "proc"), ("/dev", "tmpfs"), ("/dev/pts", "devpts")):
        assert table[path].fstype == fstype
        assert table[path].device not in host
    assert table["/sys"].fstype == "sysfs"
    assert table["/sys"].read_only
    assert not [path for path in Path("/dev").iterdir() if path.is_block_device()]


def test_volume_is_on_the_hosts_filesystem(site: Site, filesystem: mounts.Mount) -> None:
    volume = mounts.mount_of(site.volume)
    assert volume.mountpoint == str(site.volume)
    assert volume.root.endswith(f"/{site.server.name}-volume")
    assert (volume.fstype, volume.device) == (filesystem.fstype, filesystem.device)
    assert not volume.read_only


def test_sees_nothing_of_the_other(
    site: Site, store: Path, mount_point: Path, isolated_proc: IsolatedProc
) -> None:
    [other] = set(servers.NAMES) - {site.server.name}
    assert not (mount_point / f"{other}-volume").exists()
    assert not any(f"{other}-volume" in mount.root for mount in mounts.read())
    assert list(store.iterdir()) == []
    programs = {os.readlink(f"/proc/{pid}/exe") for pid in isolated_proc.children()}
    assert programs == {os.path.realpath(site.server.program)}


def test_host_sees_none_of_it(site: Site, observer: Observer) -> None:
    host = mounts.parse(observer.mount_table())
    ours = mounts.read()
    assert not {mount.id for mount in ours} & {mount.id for mount in host}
    new = {mount.device for mount in ours if mount.fstype in ("overlay", "tmpfs", "devpts")}
    new -= {mount.device for mount in host}
    assert mounts.mount_of(Path("/dev")).device in new
    assert str(site.volume) not in {mount.mountpoint for mount in host}


def test_host_can_look_inside(site: Site, mount_point: Path, observer: Observer) -> None:
    note = mount_point / f"note-of-{site.server.name}"
    note.write_text("only here\n")
    assert observer.read(note) is None
    assert observer.read_inside(note) == "only here\n"


def test_writes_to_its_volume(site: Site, store: Path, observer: Observer) -> None:
    text = f"written beside {site.server.name}\n"
    (site.volume / "new-file").write_text(text)
    assert servers.fetch(site.port, "/new-file")[1] == text
    on_host = store / f"{site.server.name}-volume/new-file"
    observer.remember(Note(site.port, str(on_host), text))


@pytest.mark.no_mountns(reason="looks at what is left on the host")
def test_afterwards(store: Path, mount_point: Path, observer: Observer) -> None:
    notes = observer.notes()
    if not notes:
        pytest.skip("no test has written to a volume: run the whole file, in its order")
    for note in notes:
        assert Path(note.path).read_text() == note.text
        with pytest.raises(ConnectionRefusedError):
            servers.fetch(note.port, "/new-file")
    for name in servers.NAMES:
        assert not (mount_point / f"{name}-volume").exists()
        assert not (mount_point / f"note-of-{name}").exists()
