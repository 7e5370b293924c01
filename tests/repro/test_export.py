"""pytest-mountns export: other programs can read it, and unpack the state that a test has left."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from tests.helpers.kept import bundles, command

pytestmark = pytest.mark.sandboxes


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed here")
    return found


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


#: The facts of each path that are compared, between the test and what was unpacked.
LOOK = """
import os, stat

def look(top):
    found = {}
    for place, directories, files in os.walk(top):
        for name in [*directories, *files]:
            path = os.path.join(place, name)
            status = os.lstat(path)
            about = [oct(status.st_mode), status.st_uid, status.st_gid, status.st_nlink]
            if stat.S_ISDIR(status.st_mode):
                about[3] = 0
            else:
                about.append(status.st_mtime_ns)
            if stat.S_ISREG(status.st_mode):
                with open(path) as file:
                    about.append(file.read())
            if stat.S_ISLNK(status.st_mode):
                about.append(os.readlink(path))
            found[os.path.relpath(path, top)] = about
    return found
"""

SUITE = """
import json, os, pytest

HERE = os.path.dirname(__file__)

@pytest.mark.mountns(volumes=[HERE + "/seen"])
def test_it():
    top = HERE + "/tree"
    os.makedirs(top + "/deep/er", 0o750)
    for name in ("file", "deep/with space", "deep/er/\\u00e9"):
        with open(f"{top}/{name}", "w") as file:
            file.write(f"content of {name}")
    os.chmod(top + "/file", 0o4711)
    os.link(top + "/file", top + "/hard")
    os.symlink("deep/er", top + "/link")
    os.mkfifo(top + "/fifo")
    os.utime(top + "/deep/with space", ns=(1, 1_234_567_891_234_567_891))
    with open(top + "/old", "a") as file:
        file.write("more")
    os.remove(HERE + "/gone")
    with open(HERE + "/seen/it", "w") as file:
        json.dump(look(top), file)
    assert 0
"""


@pytest.fixture
def archive(pytester: pytest.Pytester) -> Path:
    pytester.makepyfile(LOOK + SUITE)
    pytester.mkdir("seen")
    pytester.mkdir("tree")
    (pytester.path / "tree/old").write_text("old")
    (pytester.path / "gone").write_text("")
    pytester.runpytest_subprocess("-p", "no:cacheprovider", "--mountns-keep=failed")
    (bundle,) = bundles(pytester.path / ".mountns")
    out = pytester.path / "out.tar"
    assert command("export", str(bundle), str(out)).returncode == 0
    return out


def seen(archive: Path) -> dict[str, list[object]]:
    found: dict[str, list[object]] = json.loads((archive.parent / "seen/it").read_text())
    return found


def looked_at(top: Path) -> dict[str, list[object]]:
    scope: dict[str, object] = {}
    exec(LOOK, scope)
    look = scope["look"]
    assert callable(look)
    found: dict[str, list[object]] = look(str(top))
    return found


def test_umoci_unpacks_what_the_test_has_left(archive: Path, tmp_path: Path) -> None:
    umoci = tool("umoci")
    (tmp_path / "layout").mkdir()
    run(tool("tar"), "-C", str(tmp_path / "layout"), "-xf", str(archive))
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    image = f"{tmp_path}/layout:latest"
    run(umoci, "unpack", *rootless, "--image", image, str(tmp_path / "bundle"))
    root = tmp_path / "bundle/rootfs"
    here = root / str(archive.parent).strip("/")
    assert looked_at(here / "tree") == seen(archive)
    assert len(seen(archive)) == 9
    # Volumes are not in the image, and an image of one layer has no deletions.
    assert sorted(os.listdir(here)) == ["tree"]


def test_skopeo_reads_it(archive: Path, tmp_path: Path) -> None:
    skopeo = tool("skopeo")
    about = json.loads(run(skopeo, "inspect", f"oci-archive:{archive}"))
    assert len(about["Layers"]) == 1
    # Copying verifies every digest.
    target = f"oci:{tmp_path}/copied:latest"
    run(skopeo, "--insecure-policy", "copy", f"oci-archive:{archive}", target)
    assert (tmp_path / "copied/index.json").exists()


@pytest.mark.as_root
def test_podman_reads_it(archive: Path, tmp_path: Path) -> None:
    podman = tool("podman")
    # podman writes its locks and state to fixed places. Its mounts go away with the namespace.
    script = """
        set -e
        for place in /dev/shm /run /var/lib; do mount -t tmpfs none $place; done
        podman="$1 --storage-driver vfs"
        $podman load -q -i "$2" >&2
        image=$($podman images -q --no-trunc)
        mounted=$($podman image mount "$image")
        cp -a "$mounted" "$3"
        $podman image unmount "$image" >&2
    """
    copy = tmp_path / "copy"
    words = ["sh", "-c", script, "sh", podman, str(archive), str(copy)]
    run("unshare", "--mount", "--propagation", "private", *words)
    assert looked_at(copy / str(archive.parent).strip("/") / "tree") == seen(archive)


def test_a_bundle_without_a_layer(archive: Path, tmp_path: Path) -> None:
    (bundle,) = bundles(archive.parent / ".mountns")
    about = json.loads((bundle / "repro.json").read_text())
    (bundle / "repro.json").write_text(json.dumps({**about, "layers": [], "notes": ["too big"]}))
    shown = command("export", str(bundle), str(tmp_path / "none.tar"))
    assert shown.returncode == 1
    assert "it has none: too big" in shown.stderr
    assert not (tmp_path / "none.tar").exists()


def test_a_place_that_cannot_be_written(archive: Path) -> None:
    (bundle,) = bundles(archive.parent / ".mountns")
    shown = command("export", str(bundle), "/nowhere/out.tar")
    assert shown.returncode == 1
    assert "ENOENT" in shown.stderr
    assert stat.S_ISREG(archive.stat().st_mode)
