"""What a root or layer may be, and the cache that it is unpacked into."""

from __future__ import annotations

import gzip
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_mountns.engine.layers import cache as cache_module
from pytest_mountns.engine.layers.cache import Cache, default_directory
from pytest_mountns.engine.layers.images import architecture
from pytest_mountns.engine.layers.limits import Limits
from pytest_mountns.engine.layers.resolve import Stack, resolve
from pytest_mountns.engine.layers.unpack import Form, Unpacked
from pytest_mountns.engine.linux.errors import LayerError
from tests.helpers.archives import (
    Layout,
    archive,
    directory,
    docker_save,
    hardlink,
    member,
    packed,
    sha256,
)
from tests.helpers.places import place_for_whiteouts

FORM: Form = "trusted" if os.geteuid() == 0 else "user"

LOWER = archive(
    directory("etc"), member("etc/one", b"1"), member("etc/two", b"2"), directory("var")
)
UPPER = archive(directory("etc"), member("etc/.wh.one"), member("etc/three", b"3"))


@pytest.fixture
def tmp_path(tmp_path: Path) -> Iterator[Path]:
    with place_for_whiteouts(tmp_path) as place:
        yield place


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path: Path) -> Iterator[None]:
    """Fail if unpacking has left anything besides the cache and what the test has written."""
    yield
    assert {path.name for path in tmp_path.iterdir()} <= {"cache", "image", "image.tar", "go"}


@pytest.fixture
def use(cache: Cache) -> Iterator[Callable[..., Stack]]:
    opened = []

    def use(source: Path | str, **more: object) -> Stack:
        stack = resolve(str(source), FORM, cache=cache, **more)  # type: ignore[arg-type]
        opened.append(stack)
        return stack

    yield use
    for stack in opened:
        stack.close()


def files(directory: str) -> dict[str, bytes]:
    found = {}
    for place, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(place, name)
            status = os.lstat(path)
            if stat.S_ISCHR(status.st_mode):
                found[os.path.relpath(path, directory)] = b"whiteout"
            else:
                found[os.path.relpath(path, directory)] = Path(path).read_bytes()
    return found


def written(tmp_path: Path, data: bytes) -> Path:
    place = tmp_path / "image.tar"
    place.write_bytes(data)
    # Nothing is remembered of a file that was changed a moment ago.
    time.sleep(0.03)
    return place


LAYERS = [{"etc/one": b"1", "etc/two": b"2"}, {"etc/one": b"whiteout", "etc/three": b"3"}]


def test_a_directory_is_taken_as_it_is(tmp_path: Path, use: Callable[..., Stack]) -> None:
    (tmp_path / "image").mkdir()
    stack = use(tmp_path / "image")
    assert stack.directories == (str(tmp_path / "image"),)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_tar_archive(
    tmp_path: Path, use: Callable[..., Stack], pack: Callable[[bytes], bytes]
) -> None:
    stack = use(written(tmp_path, pack(LOWER)))
    assert [files(path) for path in stack.directories] == LAYERS[:1]
    assert stack.directories[0].startswith(str(tmp_path / "cache"))


def two_layers() -> Layout:
    layout = Layout()
    layout.image([(LOWER, LOWER), (gzip.compress(UPPER), UPPER)])
    return layout


def test_an_image_layout(tmp_path: Path, use: Callable[..., Stack]) -> None:
    stack = use(two_layers().write(tmp_path / "image"))
    assert [files(path) for path in stack.directories] == LAYERS
    assert stack.environment == ("PLACE=image",)


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_oci_archive(
    tmp_path: Path, use: Callable[..., Stack], pack: Callable[[bytes], bytes]
) -> None:
    stack = use(written(tmp_path, pack(two_layers().archive())))
    assert [files(path) for path in stack.directories] == LAYERS


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_docker_save_writes(
    tmp_path: Path, use: Callable[..., Stack], pack: Callable[[bytes], bytes]
) -> None:
    stack = use(written(tmp_path, pack(packed(docker_save([LOWER, UPPER])))))
    assert [files(path) for path in stack.directories] == LAYERS


def test_docker_save_with_a_layer_as_a_link(tmp_path: Path, use: Callable[..., Stack]) -> None:
    contents = docker_save([LOWER, UPPER])
    document = json.loads(contents["manifest.json"])
    lower, upper = document[0]["Layers"]
    data = archive(
        *(member(name, data) for name, data in contents.items() if name not in (lower, upper)),
        member("0.tar", contents[lower]),
        member("1.tar", contents[upper]),
        member(lower, kind=b"2", link="../0.tar"),
        hardlink(upper, "1.tar"),
    )
    stack = use(written(tmp_path, data))
    assert [files(path) for path in stack.directories] == LAYERS


def test_a_root_with_a_file_called_manifest(tmp_path: Path, use: Callable[..., Stack]) -> None:
    data = archive(member("manifest.json", b"{}"), member("index.json", b"[]"))
    stack = use(written(tmp_path, data))
    assert files(stack.directories[0]) == {"manifest.json": b"{}", "index.json": b"[]"}


def test_an_opaque_root_hides_the_layers_below(tmp_path: Path, use: Callable[..., Stack]) -> None:
    layout = Layout()
    above = archive(member(".wh..wh..opq"), member("only", b"1"))
    layout.image([(LOWER, LOWER), (above, above), (UPPER, UPPER)])
    stack = use(layout.write(tmp_path / "image"))
    assert [files(path) for path in stack.directories] == [{"only": b"1"}, LAYERS[1]]


def test_which_image(tmp_path: Path, use: Callable[..., Stack]) -> None:
    layout = Layout()
    layout.image([(LOWER, LOWER)], name="lower")
    layout.image([(UPPER, UPPER)], name="upper")
    layout.image(
        [(LOWER, LOWER), (UPPER, UPPER)],
        name="lower",
        platform={"os": "linux", "architecture": "pdp11"},
    )
    place = layout.write(tmp_path / "image")
    assert files(use(place, ref="upper").directories[0]) == LAYERS[1]
    assert len(use(place, ref="lower").directories) == 1
    with pytest.raises(LayerError, match="several images in it: lower, upper, lower for linux"):
        use(place)
    with pytest.raises(LayerError, match="no image called 'other'"):
        use(place, ref="other")


def test_an_index_in_the_index(tmp_path: Path, use: Callable[..., Stack]) -> None:
    layout = Layout()
    inner = [
        layout.image([(UPPER, UPPER)], platform={"os": "linux", "architecture": "pdp11"}),
        layout.image([(LOWER, LOWER)], platform={"os": "linux", "architecture": architecture()}),
    ]
    media_type = "application/vnd.oci.image.index.v1+json"
    layout.manifests = [layout.json({"manifests": inner}, media_type)]
    assert files(use(layout.write(tmp_path / "image")).directories[0]) == LAYERS[0]


def damaged(change: Callable[[Layout], object]) -> Callable[[], dict[str, bytes]]:
    def make() -> dict[str, bytes]:
        layout = two_layers()
        change(layout)
        return layout.all_files()

    return make


def _blob(layout: Layout, number: int) -> str:
    return [name for name in layout.files if name.startswith("blobs/")][number]


def _replace(layout: Layout, number: int, data: bytes) -> None:
    layout.files[_blob(layout, number)] = data


def _without(name: str) -> Callable[[Layout], object]:
    return lambda layout: layout.files.pop(name)


def _descriptor(**values: object) -> Callable[[Layout], object]:
    return lambda layout: layout.manifests[0].update(values)


def _of_wrong_length(layout: Layout) -> None:
    layout.manifests.clear()
    layout.image([(LOWER, LOWER)], diff_ids=[sha256(LOWER), sha256(UPPER)])


def _wrong_diff_id(layout: Layout) -> None:
    layout.manifests.clear()
    layout.image([(LOWER, LOWER)], diff_ids=[sha256(UPPER)])


def _bad_diff_id(layout: Layout) -> None:
    layout.manifests.clear()
    layout.image([(LOWER, LOWER)], diff_ids=["sha256:../../../etc"])


def _no_layers(layout: Layout) -> None:
    layout.manifests.clear()
    layout.image([])


def _artifact(layout: Layout) -> None:
    config = layout.json({}, "application/vnd.oci.empty.v1+json")
    manifest = {"config": config, "layers": [layout.blob(LOWER, "text/plain")]}
    layout.manifests[:] = [layout.json(manifest, "application/vnd.oci.image.manifest.v1+json")]


def _nested(layout: Layout) -> None:
    for _ in range(8):
        layout.manifests[:] = [
            layout.json(
                {"manifests": list(layout.manifests)}, "application/vnd.oci.image.index.v1+json"
            )
        ]


def _deep(layout: Layout) -> None:
    layout.files["oci-layout"] = b'{"a":' * 200_000


DAMAGED: dict[str, tuple[Callable[[Layout], object], str]] = {
    # Blobs in the order in which Layout made them: config, layers, manifest.
    "config": (lambda layout: _replace(layout, 0, b"{}"), "does not have its digest"),
    "layer": (lambda layout: _replace(layout, 1, LOWER[:-512]), "should have"),
    "layer of the same size": (
        lambda layout: _replace(layout, 1, LOWER.replace(b"etc/one", b"etc/ONE")),
        "checksum|does not have",
    ),
    "content of the same size": (
        lambda layout: _replace(layout, 1, LOWER[:-1] + b"x"),
        "does not have",
    ),
    "manifest": (lambda layout: _replace(layout, 3, b"{}"), "does not have its digest"),
    "missing layer": (lambda layout: layout.files.pop(_blob(layout, 1)), "is missing"),
    "missing manifest": (lambda layout: layout.files.pop(_blob(layout, 3)), "is missing"),
    "digest that is a path": (_descriptor(digest="sha256:../../../../etc/passwd"), "no digest"),
    "digest of another kind": (_descriptor(digest="md5:" + "0" * 32), "no digest"),
    "digest no text": (_descriptor(digest=7), "no digest"),
    "diff ids": (_of_wrong_length, "1 layers, and digests for 2"),
    "diff id": (_wrong_diff_id, "does not have the digest"),
    "diff id that is a path": (_bad_diff_id, "diff id is none"),
    "no layers": (_no_layers, "no layers"),
    "artifact": (_artifact, "no 'rootfs'"),
    "nested": (_nested, "nested too deep"),
    "deep": (_deep, "no JSON"),
    "version": (
        lambda layout: layout.files.update({"oci-layout": b'{"imageLayoutVersion": "9"}'}),
        "version '9'",
    ),
    "no JSON": (lambda layout: layout.files.update({"oci-layout": b"\xff{"}), "no JSON"),
    "no object": (lambda layout: layout.files.update({"oci-layout": b"[]"}), "no JSON object"),
    "big": (lambda layout: layout.files.update({"oci-layout": bytes(5 << 20)}), "too big"),
    "platform": (
        lambda layout: layout.manifests.append({**layout.image([(UPPER, UPPER)]), "platform": 7}),
        "several images",
    ),
    "no manifests": (lambda layout: layout.manifests.clear(), "no image for linux"),
}


@pytest.mark.parametrize("form", ["directory", "archive"])
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_images(
    tmp_path: Path, use: Callable[..., Stack], cache: Cache, case: str, form: str
) -> None:
    change, message = DAMAGED[case]
    layout = two_layers()
    change(layout)
    if form == "directory":
        place = layout.write(tmp_path / "image")
    else:
        place = written(tmp_path, layout.archive())
    with pytest.raises(LayerError, match=message) as caught:
        use(place)
    assert caught.value.tried == f"use {place} as a layer"
    assert caught.value.remedy
    # Layers that are sound may be in the cache, and nothing else.
    assert {entry.name for entry in cache.entries()} <= {
        f"{FORM}-{sha256(layer).replace(':', '-')}" for layer in (LOWER, UPPER)
    }
    assert os.listdir(tmp_path / "cache/partial") == [] if (tmp_path / "cache").exists() else True


def _save(**values: object) -> bytes:
    contents = docker_save([LOWER])
    document = json.loads(contents["manifest.json"])
    document[0].update(values)
    return packed({**contents, "manifest.json": json.dumps(document).encode()})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_save(Layers=["../../../etc/passwd"]), "is missing"),
        (_save(Layers=[7]), "is missing"),
        (_save(Layers="x"), "no 'Layers'"),
        (_save(Config="../config"), "is missing"),
        (_save(Config=None), "no 'Config'"),
        (_save(Layers=[]), "0 layers"),
        (b"", "is empty"),
        (gzip.compress(b""), "truncated"),
        (gzip.compress(LOWER)[:-9], "truncated"),
        (LOWER[:600], "truncated"),
        (b"\0" * 100, "truncated"),
    ],
    ids=[
        "a layer outside of it",
        "a layer that is no name",
        "layers that are no list",
        "a config outside of it",
        "no config",
        "no layers",
        "an empty file",
        "an empty gzip",
        "the beginning of a gzip",
        "the beginning of a layer",
        "zeros",
    ],
)
def test_damaged_archives(
    tmp_path: Path, use: Callable[..., Stack], cache: Cache, data: bytes, message: str
) -> None:
    with pytest.raises(LayerError, match=message):
        use(written(tmp_path, data))
    assert cache.entries() == []


@pytest.mark.parametrize("tags", [None, 7, True, "some:tag", [7]])
def test_docker_save_without_tags(tmp_path: Path, use: Callable[..., Stack], tags: object) -> None:
    place = written(tmp_path, _save(RepoTags=tags))
    assert files(use(place).directories[0]) == LAYERS[0]
    with pytest.raises(LayerError, match="no name"):
        use(place, ref="some:tag")


def test_docker_configuration_of_another_digest(tmp_path: Path, use: Callable[..., Stack]) -> None:
    contents = docker_save([LOWER])
    name = next(name for name in contents if name.endswith(".json") and name != "manifest.json")
    contents[name] += b" "
    with pytest.raises(LayerError, match="does not have its digest"):
        use(written(tmp_path, packed(contents)))


@pytest.mark.parametrize("kind", ["missing", "fifo"])
def test_what_is_no_layer(tmp_path: Path, use: Callable[..., Stack], kind: str) -> None:
    if kind == "fifo":
        os.mkfifo(tmp_path / "image")
    with pytest.raises(LayerError, match=r"nothing of that name|neither a directory"):
        use(tmp_path / "image")


def test_limits_are_kept(tmp_path: Path, use: Callable[..., Stack]) -> None:
    place = written(tmp_path, gzip.compress(LOWER))
    with pytest.raises(LayerError, match="more than 1000 bytes"):
        use(place, limits=Limits(bytes=1000))
    with pytest.raises(LayerError, match="more than 2 members"):
        use(place, limits=Limits(members=2))


def test_unpacked_once(tmp_path: Path, use: Callable[..., Stack], cache: Cache) -> None:
    reports: list[str] = []

    def report(what: str, done: int, total: int) -> None:
        assert 0 < done <= total
        reports.append(what)

    place = written(tmp_path, gzip.compress(LOWER))
    first = use(place, report=report)
    assert {what.split()[0] for what in reports} == {"decompress", "read", "unpack"}
    reports.clear()
    assert use(place, report=report).directories == first.directories
    assert reports == []
    # The same layer from elsewhere.
    layout = Layout()
    layout.image([(LOWER, LOWER)])
    reports.clear()
    assert use(layout.write(tmp_path / "image"), report=report).directories == first.directories
    assert reports == []
    # Another file of that name.
    place.write_bytes(gzip.compress(UPPER))
    assert files(use(place).directories[0]) == LAYERS[1]
    assert len(cache.entries()) == 2


def test_forms_are_kept_apart(tmp_path: Path, cache: Cache) -> None:
    place = written(tmp_path, archive(directory("a"), member("a/.wh..wh..opq")))
    with resolve(str(place), "user", cache=cache) as stack:
        assert os.listxattr(f"{stack.directories[0]}/a") == ["user.overlay.opaque"]
    if FORM == "trusted":
        with resolve(str(place), "trusted", cache=cache) as stack:
            assert os.listxattr(f"{stack.directories[0]}/a") == ["trusted.overlay.opaque"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may set trusted attributes")
def test_trusted_form_is_for_root(tmp_path: Path, cache: Cache) -> None:
    place = written(tmp_path, archive(directory("a"), member("a/.wh..wh..opq")))
    with pytest.raises(LayerError, match="not permitted"):
        resolve(str(place), "trusted", cache=cache)


def test_place_of_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == f"{tmp_path}/pytest-mountns"
    for value in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_directory() == "/home/somebody/.cache/pytest-mountns"


def test_only_the_owner_sees_the_cache(
    tmp_path: Path, use: Callable[..., Stack], cache: Cache
) -> None:
    use(written(tmp_path, LOWER))
    assert stat.S_IMODE(os.stat(cache.directory).st_mode) == 0o700
    assert Path(cache.directory, "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d1")
    os.chmod(cache.directory, 0o777)
    with pytest.raises(LayerError, match="somebody else could put layers there"):
        use(written(tmp_path, UPPER))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another's directory")
def test_the_cache_of_another_user(tmp_path: Path, use: Callable[..., Stack]) -> None:
    (tmp_path / "cache").mkdir()
    os.chown(tmp_path / "cache", 54321, 54321)
    with pytest.raises(LayerError, match="belongs to user 54321"):
        use(written(tmp_path, LOWER))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("no directory")
    place = written(tmp_path, LOWER)
    with pytest.raises(LayerError, match="cannot be used") as caught:
        resolve(str(place), FORM, cache=Cache(str(tmp_path / "image/cache")))
    assert "XDG_CACHE_HOME" in caught.value.remedy


def names(cache: Cache, part: str) -> list[str]:
    place = Path(cache.directory, part)
    return sorted(path.name for path in place.iterdir()) if place.exists() else []


def test_prune(tmp_path: Path, use: Callable[..., Stack], cache: Cache) -> None:
    lower, upper = (written(tmp_path, data) for data in (LOWER, UPPER))
    lower.write_bytes(LOWER)
    held = use(lower)
    upper.write_bytes(UPPER)
    use(upper).close()
    name = f"{FORM}-{sha256(UPPER).replace(':', '-')}"
    assert cache.prune(1) == []
    assert cache.prune(0, dry_run=True) == [name]
    assert len(cache.entries()) == 2
    assert [entry.in_use for entry in cache.entries()] == [True, False]
    assert cache.prune(0) == [name]
    assert len(cache.entries()) == 1
    assert files(held.directories[0]) == LAYERS[0]
    held.close()
    assert len(cache.prune(0)) == 1
    assert names(cache, "layers") == names(cache, "partial") == []
    assert files(use(upper).directories[0]) == LAYERS[1]


def test_old_layers_are_pruned_and_used_ones_are_not_old(
    tmp_path: Path, use: Callable[..., Stack], cache: Cache
) -> None:
    place = written(tmp_path, LOWER)
    use(place).close()
    marker = Path(cache.directory, "layers", cache.entries()[0].name, "layer.json")
    month_ago = time.time() - 31 * 86400
    os.utime(marker, (month_ago, month_ago))
    use(place).close()
    assert cache.prune(30) == []
    os.utime(marker, (month_ago, month_ago))
    assert len(cache.prune(30)) == 1


def test_incomplete_layers_are_none(
    tmp_path: Path, use: Callable[..., Stack], cache: Cache
) -> None:
    place = written(tmp_path, LOWER)
    first = use(place)
    first.close()
    marker = Path(first.directories[0]).with_name("layer.json")
    for content in (b"", b"[]", b'{"version": 0}'):
        marker.write_bytes(content)
        Path(first.directories[0], "etc/one").write_bytes(b"wrong")
        assert cache.entries() == []
        use(place).close()
        assert files(first.directories[0]) == LAYERS[0]
    marker.unlink()
    assert cache.prune(30) == [marker.parent.name]


KILLED = """
import os, signal, sys
from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.layers.resolve import resolve

def report(what, done, total):
    if what.startswith("unpack") and done > 2_000_000:
        os.kill(os.getpid(), signal.SIGKILL)

resolve(sys.argv[1], sys.argv[2], cache=Cache(sys.argv[3]), report=report)
"""


def test_killed_while_unpacking(tmp_path: Path, use: Callable[..., Stack], cache: Cache) -> None:
    content = os.urandom(4_000_000)
    data = archive(directory("closed", 0), member("closed/first", b"1"), member("big", content))
    place = written(tmp_path, data)
    command = [sys.executable, "-c", KILLED, str(place), FORM, cache.directory]
    for _ in range(2):
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        assert len(names(cache, "partial")) == 1
        assert cache.entries() == []
    leftover = names(cache, "partial")
    assert cache.prune(30) == leftover
    assert names(cache, "partial") == []
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert files(use(place).directories[0])["big"] == content
    assert names(cache, "partial") == []


COUNTING = """
import sys, time
from pytest_mountns.engine.layers.cache import Cache
from pytest_mountns.engine.layers.unpack import Unpacked

def fill(fd):
    with open(sys.argv[2], "a") as file:
        file.write("x")
    time.sleep(0.2)
    return Unpacked()

while not __import__("os").path.exists(sys.argv[3]):
    time.sleep(0.001)
print(Cache(sys.argv[1]).add("user", "sha256:" + "0" * 64, "test", fill).path)
"""


def test_many_at_once(tmp_path: Path, cache: Cache) -> None:
    (tmp_path / "image").mkdir()
    count, go = tmp_path / "image/count", tmp_path / "go"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", COUNTING, cache.directory, str(count), str(go)],
            stdout=subprocess.PIPE,
        )
        for _ in range(4)
    ]
    go.touch()
    places = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(places) == 1
    assert count.read_text() == "x"


def test_what_fails_leaves_nothing(cache: Cache) -> None:
    def fill(fd: int) -> Unpacked:
        os.mkdir("directory", 0, dir_fd=fd)
        raise LayerError("fail", cause="on purpose")

    with pytest.raises(LayerError, match="on purpose"):
        cache.add("user", "sha256:" + "0" * 64, "test", fill)
    assert names(cache, "layers") == names(cache, "partial") == []


def test_a_full_disk(cache: Cache) -> None:
    def fill(fd: int) -> Unpacked:
        raise OSError(28, "No space left on device")

    with pytest.raises(LayerError, match="No space") as caught:
        cache.add("user", "sha256:" + "0" * 64, "test", fill)
    assert "prune" in caught.value.remedy
    assert names(cache, "partial") == []


def test_a_file_changed_a_moment_ago_is_not_remembered(
    tmp_path: Path, use: Callable[..., Stack], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_TICK", 3600 * 10**9)
    place = written(tmp_path, LOWER)
    use(place)
    assert list((tmp_path / "cache/files").iterdir()) == []
