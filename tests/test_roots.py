"""`root=` and `layers=` of the marker: the root filesystem that a test runs on."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.archives import (
    Layout,
    archive,
    directory,
    docker_save,
    hardlink,
    member,
    packed,
    symlink,
)
from tests.helpers.guard import GUARD
from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

BASE = archive(
    directory("./"),
    directory("etc/"),
    member("etc/os-release", b"ID=made\n"),
    member("etc/gone", b"gone"),
    directory("data/"),
    member("data/old", b"old"),
    directory("usr/"),
    directory("usr/lib/"),
    symlink("lib", "usr/lib"),
)
ABOVE = archive(
    directory("./"),
    member("etc/.wh.gone"),
    directory("data/"),
    member("data/.wh..wh..opq"),
    member("data/new", b"new"),
)


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def cache(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's layers are unpacked."""
    place = pytester.path.parent / f"{pytester.path.name}-cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    return place / "pytest-mountns"


def image(kind: str, place: Path) -> str:
    """An image of the two layers, in one of the forms it may have."""
    layout = Layout()
    layout.image([(gzip.compress(BASE), BASE), (ABOVE, ABOVE)])
    if kind == "layout":
        layout.write(place / "image")
    elif kind == "oci-archive":
        (place / "image").write_bytes(layout.archive())
    elif kind == "docker-save":
        (place / "image").write_bytes(packed(docker_save([BASE, ABOVE])))
    return "image"


@pytest.mark.parametrize("kind", ["layout", "oci-archive", "docker-save"])
def test_an_image_as_a_root(
    pytester: pytest.Pytester, record: Record, cache: Path, kind: str
) -> None:
    source = image(kind, pytester.path)
    pytester.makeconftest(GUARD)
    pytester.makepyfile(beside="VALUE = 42")
    pytester.makepyfile(
        f"""
        import os, shutil, subprocess, sys
        import pytest

        pytestmark = pytest.mark.mountns(root="{source}")

        def test_what_is_there():
            assert open("/etc/os-release").read() == "ID=made\\n"
            assert os.listdir("/data") == ["new"]
            assert not os.path.exists("/etc/gone")
            assert not os.path.exists("/bin/sh")
            for path in ("/proc/self/stat", "/dev/null", "/sys/kernel", "/dev/shm"):
                assert os.path.exists(path), path

        def test_python_goes_on(tmp_path):
            import beside, ssl, sqlite3, xml.dom.minidom
            assert beside.VALUE == 42
            assert os.getcwd() == os.path.dirname(os.path.abspath(__file__))
            (tmp_path / "file").write_text("text")
            code = "import ssl, beside; print(beside.VALUE)"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.stdout == "42\\n", done.stderr

        def test_changes_are_against_the_image(overlay_root):
            with open("/etc/os-release", "a") as file:
                file.write("VERSION=2\\n")
            os.unlink("/data/new")
            os.mkdir("/data/directory")
            open("/added", "w").close()
            # It is gone already, and that is no error of this test.
            open("/etc/gone", "w").close()
            os.unlink("/etc/gone")
            expected = {{
                "/added": "added",
                "/data/directory": "added",
                "/data/new": "deleted",
                "/etc/os-release": "modified",
            }}
            assert overlay_root.changes() == expected
            [change] = overlay_root.changes("/etc/os-release")
            assert change.before.read_text() == "ID=made\\n"
            with overlay_root.checkpoint():
                os.unlink("/added")
                assert overlay_root.changes() == {{"/added": "deleted"}}
            assert os.path.exists("/added")
            overlay_root.reset()
            assert overlay_root.changes() == {{}}
            assert os.listdir("/data") == ["new"]

        def test_removed(destroyer):
            shutil.rmtree(destroyer("/data"))
            shutil.rmtree(destroyer("/etc"))

        def test_the_next_one_has_it_again():
            assert os.listdir("/data") == ["new"]
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out
    assert len(list((cache / "layers").iterdir())) == 2
    assert not list((cache / "partial").iterdir())


@pytest.mark.parametrize("packer", ["gz", "xz", "zst"])
def test_a_compressed_tar_as_a_root(pytester: pytest.Pytester, record: Record, packer: str) -> None:
    if packer == "zst":
        zstandard = pytest.importorskip("zstandard")
        data = zstandard.ZstdCompressor().compress(BASE)
    else:
        data = {"gz": gzip, "xz": lzma}[packer].compress(BASE)
    (pytester.path / "root").write_bytes(data)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mountns(root="root")
        def test_it():
            assert open("/etc/os-release").read() == "ID=made\\n"
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out


def tree(place: Path, **files: str) -> str:
    for name, content in files.items():
        file = place / name.replace("__", "/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return str(place)


def test_a_directory_as_a_root(pytester: pytest.Pytester, record: Record) -> None:
    tree(pytester.path / "rootfs", etc__name="directory")
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(root="rootfs", volumes=["kept:/srv/kept"], tmpfs=["/srv/empty"])
        def test_it(overlay_root):
            assert open("/etc/name").read() == "directory"
            open("/etc/name", "w").write("changed")
            open("/srv/kept/file", "w").write("kept")
            open("/srv/empty/file", "w").close()
            assert overlay_root.changes() == {"/etc/name": "modified"}
        """
    )
    pytester.mkdir("kept")
    recorded = record()
    assert recorded.status == 0, recorded.out
    assert (pytester.path / "rootfs/etc/name").read_text() == "directory"
    assert sorted(os.listdir(pytester.path / "rootfs")) == ["etc"]
    assert (pytester.path / "kept/file").read_text() == "kept"


def test_a_minimal_root(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import errno, os, pwd, socket, subprocess, sys
        import pytest

        pytestmark = pytest.mark.mountns(root="minimal")

        def test_python_and_nothing_else(tmp_path, overlay_root):
            import sqlite3, ssl, decimal
            assert not os.path.lexists("/usr/bin/env")
            with pytest.raises(FileNotFoundError):
                subprocess.run(["ls"])
            assert overlay_root.changes("/usr", "/etc", "/bin", "/lib*") == {}
            pwd.getpwuid(os.getuid())
            assert socket.gethostbyname("localhost")
            (tmp_path / "file").write_text("text")
            done = subprocess.run([sys.executable, "-c", "import ssl"])
            assert done.returncode == 0

        def test_the_project_is_read_only():
            with pytest.raises(OSError) as caught:
                open("written", "w")
            assert caught.value.errno == errno.EROFS

        def test_everything_else_is_writable(overlay_root):
            os.makedirs("/opt/thing")
            assert overlay_root.changes() == {"/opt": "added", "/opt/thing": "added"}

        @pytest.mark.mountns(volumes=["/bin/sh"])
        def test_what_is_needed_besides_is_a_volume():
            assert os.path.exists("/bin/sh")

        def test_an_undeclared_dependency():
            subprocess.run(["sh", "-c", "true"], check=True)
        """
    )
    recorded = record()
    outcomes = {report.name: report.outcome for report in recorded.reports if report.when == "call"}
    assert outcomes == {
        "test_python_and_nothing_else": "passed",
        "test_the_project_is_read_only": "passed",
        "test_everything_else_is_writable": "passed",
        "test_what_is_needed_besides_is_a_volume": "passed",
        "test_an_undeclared_dependency": "failed",
    }, recorded.out


def test_layers_on_the_host(pytester: pytest.Pytester, record: Record) -> None:
    tree(pytester.path / "one", etc__mountns_layer="one", usr__share__mountns_layer__file="one")
    (pytester.path / "two.tar").write_bytes(
        archive(
            directory("etc/"),
            member("etc/mountns_layer", b"two"),
            member("etc/.wh.hostname"),
        )
    )
    before = sorted(os.listdir("/etc"))
    pytester.makepyfile(
        """
        import os, pytest

        pytestmark = pytest.mark.mountns(layers=["one", "two.tar"])

        def test_it(overlay_root):
            assert open("/etc/mountns_layer").read() == "two"
            assert open("/usr/share/mountns_layer/file").read() == "one"
            assert not os.path.exists("/etc/hostname")
            # The host's own is still there.
            assert os.path.exists("/etc/passwd") and os.path.exists("/usr/share")
            assert overlay_root.changes() == {}
            os.unlink("/etc/mountns_layer")
            open("/usr/share/mountns_layer/new", "w").close()
            assert overlay_root.changes() == {
                "/etc/mountns_layer": "deleted",
                "/usr/share/mountns_layer/new": "added",
            }
            overlay_root.reset()
            assert open("/etc/mountns_layer").read() == "two"

        @pytest.mark.mountns(layers=["two.tar", "one"])
        def test_the_last_one_is_on_top():
            assert open("/etc/mountns_layer").read() == "one"

        @pytest.mark.mountns(layers=[])
        def test_none():
            assert not os.path.exists("/etc/mountns_layer")
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out
    assert sorted(os.listdir("/etc")) == before
    assert (pytester.path / "one/etc/mountns_layer").read_text() == "one"


@pytest.mark.parametrize("count", [100, 490])
def test_many_layers(pytester: pytest.Pytester, record: Record, count: int) -> None:
    for number in range(count):
        tree(pytester.path / str(number), **{f"etc__mountns_layer_{number}": str(number)})
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mountns(layers=[str(number) for number in range({count})])
        def test_it(overlay_root):
            for number in range({count}):
                assert open(f"/etc/mountns_layer_{{number}}").read() == str(number)
            assert overlay_root.changes() == {{}}
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out


def test_layers_on_other_roots(pytester: pytest.Pytester, record: Record) -> None:
    tree(pytester.path / "one", etc__name="one", opt__deep__file="one")
    image("layout", pytester.path)
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize("x", range(2))
        @pytest.mark.mountns(root="image", layers=["one"])
        def test_on_an_image(overlay_root, x):
            assert open("/etc/name").read() == "one"
            assert open("/etc/os-release").read() == "ID=made\\n"
            open("/etc/name", "a").write("more")
            assert overlay_root.changes() == {"/etc/name": "modified"}

        @pytest.mark.mountns(root="minimal", layers=["one"])
        def test_on_a_minimal_one(overlay_root):
            assert open("/etc/name").read() == "one"
            assert os.path.exists("/etc/passwd")
            os.unlink("/opt/deep/file")
            assert overlay_root.changes() == {"/opt/deep/file": "deleted"}
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out


@pytest.mark.layered
@pytest.mark.parametrize("root", ["host", "minimal", "image"])
def test_wider_fixtures_write_on_them(pytester: pytest.Pytester, record: Record, root: str) -> None:
    tree(pytester.path / "one", etc__mountns_layer="one")
    image("layout", pytester.path)
    pytester.makepyfile(
        f"""
        import os, pytest

        pytestmark = pytest.mark.mountns(root="{root}", layers=["one"], scope="module")

        @pytest.fixture(scope="module", autouse=True)
        def installed():
            with open("/etc/mountns_layer", "a") as file:
                file.write(" installed")
            yield
            assert open("/etc/mountns_layer").read() == "one installed"

        @pytest.mark.parametrize("x", range(2))
        def test_it(overlay_root, x, tmp_path):
            assert open("/etc/mountns_layer").read() == "one installed"
            (tmp_path / "file").write_text("text")
            assert overlay_root.changes("/etc", "/usr", "/lib*", "/bin") == {{}}
            open("/etc/mountns_layer", "w").write("test")
            assert overlay_root.changes("/etc") == {{"/etc/mountns_layer": "modified"}}
        """
    )
    recorded = record()
    if "it has" in recorded.out and "threads" in recorded.out:
        pytest.skip("an ordinary user's process cannot settle here")
    assert recorded.status == 0, recorded.out
    assert not os.path.exists("/etc/mountns_layer")


@pytest.mark.parametrize("root", ["host", "minimal", "image"])
def test_other_keys_work_in_them(pytester: pytest.Pytester, record: Record, root: str) -> None:
    tree(pytester.path / "one", etc__mountns_layer="one")
    image("layout", pytester.path)
    pytester.makepyfile(
        f"""
        import errno, os, pytest

        pytestmark = pytest.mark.mountns(root="{root}", layers=["one"])

        @pytest.mark.mountns(pid=True)
        def test_pid():
            assert os.getppid() == 1
            assert open("/etc/mountns_layer").read() == "one"

        @pytest.mark.mountns(read_only=True)
        def test_read_only(tmp_path_factory):
            with pytest.raises(OSError) as caught:
                open("/etc/mountns_layer", "w")
            assert caught.value.errno == errno.EROFS

        @pytest.mark.mountns(upper="disk")
        def test_disk(overlay_root):
            open("/etc/mountns_layer", "w").close()
            assert overlay_root.changes("/etc") == {{"/etc/mountns_layer": "modified"}}

        @pytest.mark.mountns(writes=["/etc/mountns_layer"])
        def test_writes():
            open("/etc/mountns_layer", "w").close()

        @pytest.mark.mountns(size="1m")
        def test_size():
            with pytest.raises(OSError) as caught:
                open("/etc/mountns_layer", "wb").write(bytes(2 << 20))
            assert caught.value.errno == errno.ENOSPC
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out


def test_a_dead_test_says_what_it_changed(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    if process == "inline":
        pytest.skip("there it takes the session with it")
    tree(pytester.path / "one", etc__mountns_layer="one\n")
    image("layout", pytester.path)
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize(
            "root",
            [
                pytest.param(root, marks=pytest.mark.mountns(root=root, layers=["one"]), id=root)
                for root in ("host", "minimal", "image")
            ],
        )
        def test_it(root):
            open("/etc/mountns_layer", "a").write(root + "\\n")
            os._exit(3)
        """
    )
    out = record().out
    for root in ("host", "minimal", "image"):
        assert f" one\n+{root}\n" in out
    assert out.count("modified    mountns_layer") == 3


@pytest.mark.layered
@pytest.mark.parametrize("root", ["host", "minimal", "image"])
def test_layers_can_be_added(pytester: pytest.Pytester, record: Record, root: str) -> None:
    one = tree(pytester.path / "one", etc__mountns_layer="one", etc__mountns_both="one")
    two = pytester.path / "two.tar"
    two.write_bytes(
        archive(
            directory("etc/"),
            member("etc/mountns_both", b"two"),
            member("etc/mountns_two", b"two"),
        )
    )
    image("layout", pytester.path)
    pytester.makepyfile(
        f"""
        import os, pytest
        from pytest_mountns import SandboxError

        pytestmark = pytest.mark.mountns(root="{root}", layers=["one"])

        def test_it(overlay_root, tmp_path):
            (tmp_path / "file").write_text("text")
            open("/etc/mountns_layer", "w").write("test")
            open("/etc/mountns_own", "w").write("test")
            os.chdir(tmp_path)
            assert overlay_root.layers[1:] == ("{one}",)
            overlay_root.add_layer("{two}")
            assert overlay_root.layers[1:] == ("{one}", "{two}")
            assert os.getcwd() == str(tmp_path)
            assert (tmp_path / "file").read_text() == "text"
            assert open("/etc/mountns_both").read() == "two"
            assert open("/etc/mountns_two").read() == "two"
            # What the test has written stays on top, and is what it has changed.
            assert open("/etc/mountns_layer").read() == "test"
            changed = {{"/etc/mountns_layer": "modified", "/etc/mountns_own": "added"}}
            assert overlay_root.changes("/etc", "/usr", "/opt") == changed
            os.unlink("/etc/mountns_two")
            changed["/etc/mountns_two"] = "deleted"
            assert overlay_root.changes("/etc") == changed
            with overlay_root.checkpoint():
                open("/etc/mountns_both", "w").write("test")
                assert overlay_root.changes("/etc") == {{"/etc/mountns_both": "modified"}}
            used = overlay_root.usage()
            assert used.bytes >= 3 * 512 and used.inodes >= 3
            with pytest.raises(SandboxError, match="nothing of that name"):
                overlay_root.add_layer("/nowhere")
            overlay_root.reset()
            assert open("/etc/mountns_layer").read() == "one"
            assert open("/etc/mountns_two").read() == "two"
            assert overlay_root.changes("/etc") == {{}}

        def test_writes_are_seen_from_outside(overlay_root):
            open("/etc/mountns_own", "w").write("test")
            overlay_root.add_layer("{two}")
            open("/etc/mountns_two", "a").write(" and test")
            assert 0

        def test_the_next_one(overlay_root):
            assert open("/etc/mountns_both").read() == "one"
            assert not os.path.exists("/etc/mountns_two")
        """
    )
    recorded = record()
    assert len(recorded.failed) == 1, recorded.out
    section = recorded.out.partition("filesystem changes")[2]
    assert "added       mountns_own" in section, recorded.out
    assert "modified    mountns_two" in section, recorded.out


MALFORMED = {
    "absolute": (archive(member("/etc/passwd", b"x")), "is absolute"),
    "upwards": (archive(member("../x", b"x")), "leads outside by '..'"),
    "through a link": (
        archive(symlink("l", "/etc"), member("l/x", b"x")),
        "is a symbolic link",
    ),
    "link out": (archive(hardlink("x", "/etc/passwd")), "absolute"),
    "device": (archive(member("sda", kind=b"4", device=(8, 0))), "device"),
    "truncated": (BASE[:700], "truncated"),
    "no archive": (b"something else" * 100, ""),
    "empty": (b"", "the file is empty"),
    "damaged gzip": (gzip.compress(BASE)[:-20], ""),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_archives(
    pytester: pytest.Pytester,
    record: Record,
    cache: Path,
    process: str,
    case: str,
) -> None:
    data, words = MALFORMED[case]
    (pytester.path / "bad.tar").write_bytes(data)
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mountns(root="bad.tar")
        def test_root():
            pass

        @pytest.mark.mountns(layers=["bad.tar"])
        def test_layer():
            pass

        def test_beside():
            pass
        """
    )
    recorded = record()
    reports = {report.name: report for report in recorded.reports if report.when == "setup"}
    for name in ("test_root", "test_layer"):
        assert reports[name].outcome == "failed"
        text = reports[name].text
        assert text.startswith(f"mountns: use {pytester.path}/bad.tar as a layer")
        assert "likely cause: " in text
        assert "remedy: " in text
        assert words in text
        assert "Traceback" not in text
    assert reports["test_beside"].outcome == "passed"
    assert not list((cache / "layers").glob("*"))
    assert not list((cache / "partial").glob("*"))


def test_a_layer_with_a_wrong_digest(
    pytester: pytest.Pytester, record: Record, cache: Path
) -> None:
    layout = Layout()
    layout.image([(BASE, BASE)], diff_ids=[f"sha256:{'0' * 64}"])
    layout.write(pytester.path / "image")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mountns(root="image")
        def test_it():
            pass
        """
    )
    recorded = record()
    assert recorded.status == 1
    assert "does not have the digest" in recorded.out
    assert not list((cache / "layers").glob("*"))


def test_one_image_of_several(pytester: pytest.Pytester, record: Record) -> None:
    layout = Layout()
    layout.image([(BASE, BASE)], name="repo/old:1")
    layout.image([(BASE, BASE), (ABOVE, ABOVE)], name="new")
    layout.write(pytester.path / "image")
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(root="image:repo/old:1")
        def test_old():
            assert os.listdir("/data") == ["old"]

        @pytest.mark.mountns(root="image:new")
        def test_new():
            assert os.listdir("/data") == ["new"]

        @pytest.mark.mountns(root="image")
        def test_which():
            pass
        """
    )
    recorded = record()
    assert recorded.out.count("there are several images in it: repo/old:1, new") >= 1
    outcomes = [report.outcome for report in recorded.reports if report.when == "call"]
    assert outcomes == ["passed", "passed"], recorded.out


def test_what_is_not_there(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mountns(layers=["nowhere"])
        def test_it():
            pass
        """
    )
    out = record().out
    assert f"mountns: use {pytester.path}/nowhere as a layer" in out
    assert "there is nothing of that name" in out


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("root=3", "must be a path, not int"),
        ("root=''", "'' is not a path"),
        ("layers='one'", "must be a list, not str"),
        ("layers=[None]", "must be a path, not NoneType"),
    ],
)
def test_values_that_make_no_sense(
    pytester: pytest.Pytester, process: str, key: str, message: str
) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mountns({key})
        def test_it():
            pass
        """
    )
    result = pytester.runpytest_subprocess(f"--mountns-process={process}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"::test_it: @pytest.mark.mountns: {key}: {message}" in result.stderr.str()


def test_workers_share_what_is_unpacked(
    pytester: pytest.Pytester, record: Record, cache: Path
) -> None:
    pytest.importorskip("xdist")
    image("oci-archive", pytester.path)
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize("x", range(6))
        @pytest.mark.mountns(root="image")
        def test_it(x, tmp_path):
            assert os.listdir("/data") == ["new"]
            (tmp_path / "file").write_text("text")
        """
    )
    recorded = record("-n2")
    assert recorded.status == 0, recorded.out
    assert len(list((cache / "layers").iterdir())) == 2
    owners = {path.lstat().st_uid for path in cache.rglob("*")}
    assert owners == {os.geteuid()}


def test_long_unpacking_is_shown(pytester: pytest.Pytester, process: str, cache: Path) -> None:
    image("oci-archive", pytester.path)
    # Any time counts as long here.
    pytester.makeconftest("from pytest_mountns.session import progress; progress._LONG = 0.0")
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.mountns(root="image")
        def test_it():
            pass
        """
    )
    arguments = (f"--mountns-process={process}", "-pno:cacheprovider")
    out = pytester.runpytest_subprocess(*arguments).stdout
    out.fnmatch_lines([f"mountns: unpack {pytester.path}/image ...", "*1 passed*"])
    assert out.str().count("mountns: unpack") == 1
    for path in cache.rglob("layer.json"):
        path.unlink()
    out = pytester.runpytest_subprocess(*arguments, "-q").stdout
    out.no_fnmatch_line("*unpack*")
    out.fnmatch_lines(["1 passed*"])


def test_the_cache_can_be_pruned_afterwards(
    pytester: pytest.Pytester, record: Record, cache: Path
) -> None:
    image("layout", pytester.path)
    pytester.makepyfile(
        """
        import os, subprocess, sys, pytest

        @pytest.mark.mountns(root="image")
        def test_it():
            pass

        @pytest.mark.no_mountns
        def test_in_use():
            program = "from pytest_mountns.cli.main import main; main()"
            command = [sys.executable, "-c", program, "cache", "ls"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert done.stdout.count("in use") == 2
        """
    )
    recorded = record()
    assert recorded.status == 0, recorded.out
    program = "from pytest_mountns.cli.main import main; main()"
    command = [sys.executable, "-c", program, "cache", "ls", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [layer["in_use"] for layer in json.loads(done.stdout)["layers"]] == [False, False]
