"""``tmp_path="own"``: a mount of its own, and otherwise the ``tmp_path`` that it was."""

from __future__ import annotations

import os
import pwd
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.kept import bundles, command, members
from tests.helpers.recording import Record, Recorded

pytestmark = [
    pytest.mark.sandboxes,
    # Older kernels do not mount what lies on a mount that is in no namespace.
    pytest.mark.layered,
    pytest.mark.no_mountns(reason="checkpoints nest as deep as OverlayFS allows"),
]

HEAD = """
import errno, os, shutil, stat, subprocess, sys
from pathlib import Path

import pytest

def mounted(path):
    with open("/proc/self/mountinfo") as file:
        return [line.split() for line in file if line.split()[4] == str(path)]

def kinds(changes, below):
    return {str(Path(one.path).relative_to(below)): one.kind for one in changes}
"""


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(pytester: pytest.Pytester, record: Record, tests: str, *options: str) -> Recorded:
    pytester.makepyfile(HEAD + textwrap.dedent(tests))
    return record("--mountns", "-o", "mountns_tmp_path=own", "-p", "no:cacheprovider", *options)


def passes(recorded: Recorded) -> None:
    assert recorded.status == 0, recorded.out + recorded.err


def test_it_is_a_mount_that_looks_like_the_directory(
    pytester: pytest.Pytester, record: Record, host_mounts: Callable[[], bytes]
) -> None:
    before = host_mounts()
    passes(
        run(
            pytester,
            record,
            """
            def test_it(tmp_path):
                (mount,) = mounted(tmp_path)
                assert "tmpfs" in mount
                assert os.path.ismount(tmp_path)
                assert os.listdir(tmp_path) == []
                status, parent = tmp_path.stat(), tmp_path.parent.stat()
                assert stat.S_IMODE(status.st_mode) == 0o700
                assert (status.st_uid, status.st_gid) == (parent.st_uid, parent.st_gid)
                # As on the overlay: a program may be started there, or not.
                assert os.statvfs(tmp_path).f_flag == os.statvfs(tmp_path.parent).f_flag
                script = tmp_path / "script"
                script.write_text("#!/bin/sh\\necho started")
                script.chmod(0o755)
                assert subprocess.check_output([script], text=True) == "started\\n"

            def test_other_threads_and_processes_see_it(tmp_path):
                (tmp_path / "file").write_text("x")
                assert subprocess.check_output(["ls", tmp_path], text=True) == "file\\n"

            def test_without_it_nothing_is_mounted(request):
                with open("/proc/self/mountinfo") as file:
                    assert "/own0" not in file.read()
                path = request.getfixturevalue("tmp_path")
                assert mounted(path)

            def test_tmpdir(tmpdir, tmp_path):
                assert str(tmpdir) == str(tmp_path)
                assert mounted(tmpdir)

            def test_factory(tmp_path, tmp_path_factory):
                other = tmp_path_factory.mktemp("other")
                assert mounted(tmp_path) and not mounted(other)
                shutil.move(tmp_path_factory.mktemp("more"), tmp_path / "moved")

            @pytest.mark.mountns(tmp_path="shared")
            def test_the_mark_is_nearer_than_the_ini_file(tmp_path):
                assert not mounted(tmp_path)

            class TestOverridden:
                @pytest.fixture
                def tmp_path(self, tmp_path):
                    inner = tmp_path / "inner"
                    inner.mkdir()
                    return inner

                def test_it(self, tmp_path):
                    assert mounted(tmp_path.parent) and not mounted(tmp_path)
            """,
        )
    )
    assert host_mounts() == before


def test_a_suite_that_renames_nothing_sees_no_difference(
    pytester: pytest.Pytester, record: Record
) -> None:
    """Outcomes, what is said of changes, and the numbers of directories, but for their inodes."""
    pytester.makepyfile(
        HEAD
        + textwrap.dedent(
            """
            @pytest.mark.parametrize("count", range(3))
            def test_files(tmp_path, count):
                for number in range(count):
                    (tmp_path / str(number)).write_text("x")
                assert count < 2

            def test_tree(tmp_path, overlay_root):
                (tmp_path / "a/b").mkdir(parents=True)
                (tmp_path / "a/b/file").write_text("x")
                os.symlink("a", tmp_path / "link")
                os.link(tmp_path / "a/b/file", tmp_path / "hard")
                os.mkfifo(tmp_path / "fifo")
                os.chmod(tmp_path, 0o711)
                os.setxattr(tmp_path / "a", "user.name", b"x")
                os.rename(tmp_path / "a", tmp_path / "c")
                found = overlay_root.changes(str(tmp_path))
                assert kinds(found, tmp_path) == {
                    **dict.fromkeys([".", "c", "c/b", "c/b/file", "link"], "added"),
                    **dict.fromkeys(["hard", "fifo"], "added"),
                }
                assert found[str(tmp_path)].after.mode == 0o711
                assert found[f"{tmp_path}/c"].after.xattrs() == {"user.name": b"x"}
                assert found[f"{tmp_path}/hard"].after.read_bytes() == b"x"

            def test_dies(tmp_path, request):
                (tmp_path / "left").write_text("x")
            """
        )
    )
    options = ("--mountns", "--mountns-changes=all", "-p", "no:cacheprovider")
    shared = record(*options)
    own = record(*options, "-o", "mountns_tmp_path=own")
    assert own.outline == shared.outline
    assert own.without("text") == shared.without("text")


def test_what_is_written_there_is_read_and_dropped_with_the_rest(
    pytester: pytest.Pytester, record: Record
) -> None:
    tree = pytester.path / "tree"
    Path(f"{tree}{pytester.path}").mkdir(parents=True)
    Path(f"{tree}{pytester.path}/of-a-layer").touch()
    passes(
        run(
            pytester,
            record,
            f"""
            LAYER, PLACE = {str(tree)!r}, Path({str(pytester.path)!r}) / "of-a-layer"
            """
            """
            def test_usage_and_export(tmp_path, overlay_root):
                before = overlay_root.usage()
                (tmp_path / "file").write_bytes(bytes(100_000))
                after = overlay_root.usage()
                assert after.bytes - before.bytes >= 100_000
                assert after.inodes == before.inodes + 1
                overlay_root.export(tmp_path / "layer.tar")
                listed = subprocess.check_output(["tar", "tf", tmp_path / "layer.tar"], text=True)
                assert f"{tmp_path}/file"[1:] in listed.splitlines()
                # Not in itself.
                assert "layer.tar" not in listed

            def test_checkpoints(tmp_path, overlay_root):
                (tmp_path / "kept").write_text("before")
                (tmp_path / "removed").touch()
                os.chdir(tmp_path)
                with overlay_root.checkpoint():
                    assert mounted(tmp_path)
                    Path("kept").write_text("changed")
                    Path("removed").unlink()
                    Path("new").touch()
                    found = kinds(overlay_root.changes(str(tmp_path)), tmp_path)
                    assert found == {"kept": "modified", "removed": "deleted", "new": "added"}
                    with overlay_root.checkpoint():
                        shutil.rmtree(tmp_path, ignore_errors=True)
                        assert os.listdir(tmp_path) == []
                    assert sorted(os.listdir()) == ["kept", "new"]
                assert Path.cwd() == tmp_path
                assert sorted(os.listdir()) == ["kept", "removed"]
                assert Path("kept").read_text() == "before"
                found = kinds(overlay_root.changes(str(tmp_path)), tmp_path)
                assert found == dict.fromkeys([".", "kept", "removed"], "added")

            def test_asked_for_in_a_checkpoint(overlay_root, request):
                with overlay_root.checkpoint():
                    path = request.getfixturevalue("tmp_path")
                    (path / "file").touch()
                    assert mounted(path)
                    assert f"{path}/file" in overlay_root.changes().paths("added")
                    with overlay_root.checkpoint():
                        assert os.listdir(path) == ["file"]
                assert not path.exists() and not mounted(path)

            def test_reset(tmp_path, overlay_root):
                (tmp_path / "file").touch()
                overlay_root.reset()
                assert not tmp_path.exists() and not mounted(tmp_path)
                assert not overlay_root.changes()

            def test_reset_in_a_checkpoint(tmp_path, overlay_root):
                (tmp_path / "file").touch()
                with overlay_root.checkpoint():
                    overlay_root.reset()
                    assert not tmp_path.exists()
                assert os.listdir(tmp_path) == ["file"]

            def test_layer_in_a_checkpoint(tmp_path, overlay_root):
                (tmp_path / "file").write_text("before")
                with overlay_root.checkpoint():
                    (tmp_path / "file").write_text("changed")
                    overlay_root.add_layer(LAYER)
                    assert PLACE.exists() and mounted(tmp_path)
                    assert (tmp_path / "file").read_text() == "changed"
                    found = kinds(overlay_root.changes(str(tmp_path)), tmp_path)
                    assert found == {"file": "modified"}
                assert not PLACE.exists()
                assert (tmp_path / "file").read_text() == "before"

            def test_layer(tmp_path, overlay_root):
                (tmp_path / "file").write_text("before")
                overlay_root.add_layer(LAYER)
                assert PLACE.exists() and mounted(tmp_path)
                assert (tmp_path / "file").read_text() == "before"
                (tmp_path / "more").touch()
                found = kinds(overlay_root.changes(str(tmp_path)), tmp_path)
                assert found == dict.fromkeys([".", "file", "more"], "added")

            """,
        )
    )


def test_limits_and_places(pytester: pytest.Pytester, record: Record) -> None:
    volume = pytester.mkdir("volume")
    passes(
        run(
            pytester,
            record,
            f"VOLUME = {str(volume)!r}\n"
            + textwrap.dedent(
                """
                @pytest.mark.mountns(size="1m")
                def test_size(tmp_path):
                    with pytest.raises(OSError) as info:
                        (tmp_path / "file").write_bytes(bytes(2_000_000))
                    assert info.value.errno == errno.ENOSPC

                @pytest.mark.mountns(inodes=200)
                def test_inodes(tmp_path):
                    with pytest.raises(OSError) as info:
                        for number in range(200):
                            (tmp_path / str(number)).touch()
                    assert info.value.errno == errno.ENOSPC

                @pytest.mark.mountns(upper="disk")
                def test_disk(tmp_path, overlay_root):
                    (mount,) = mounted(tmp_path)
                    assert "tmpfs" not in mount
                    (tmp_path / "file").write_text("x")
                    found = overlay_root.changes(str(tmp_path))
                    assert kinds(found, tmp_path) == {".": "added", "file": "added"}

                @pytest.mark.mountns(tmpfs=["/tmp"])
                def test_tmpfs(overlay_root, tmp_path_factory, request, monkeypatch):
                    monkeypatch.setattr(tmp_path_factory, "_basetemp", Path("/tmp"))
                    path = request.getfixturevalue("tmp_path")
                    assert str(path).startswith("/tmp/") and not mounted(path)

                def test_volume(bind_volume, tmp_path_factory, request, monkeypatch):
                    place = bind_volume(VOLUME)
                    monkeypatch.setattr(tmp_path_factory, "_basetemp", place)
                    path = request.getfixturevalue("tmp_path")
                    assert not mounted(path)
                    (path / "file").touch()
                """
            ),
        )
    )
    assert (volume / "test_volume0" / "file").exists()


@pytest.mark.parametrize("policy", ["all", "failed", "none"])
def test_retention(pytester: pytest.Pytester, record: Record, policy: str) -> None:
    recorded = run(
        pytester,
        record,
        """
        def test_passes(tmp_path): (tmp_path / "file").touch()
        def test_fails(tmp_path): (tmp_path / "file").write_text(tmp_path)
        """,
        *("-o", f"tmp_path_retention_policy={policy}"),
        f"--basetemp={pytester.path}/temporary",
    )
    assert {name: one for (name, when), one in recorded.outcomes.items() if when == "call"} == {
        "test_passes": "passed",
        "test_fails": "failed",
    }
    assert len(recorded.failed) == 1


@pytest.mark.as_root
def test_another_user(pytester: pytest.Pytester, record: Record) -> None:
    name = next(one.pw_name for one in pwd.getpwall() if one.pw_uid)
    passes(
        run(
            pytester,
            record,
            f"""
            @pytest.mark.mountns(user={name!r})
            def test_it(tmp_path, overlay_root):
                assert mounted(tmp_path)
                assert tmp_path.stat().st_uid == os.geteuid() != 0
                (tmp_path / "file").touch()
                with overlay_root.checkpoint():
                    (tmp_path / "file").unlink()
                assert os.listdir(tmp_path) == ["file"]
            """,
        )
    )


def test_a_user_who_is_shown_as_root(
    pytester: pytest.Pytester, record: Record, shared_copies: None
) -> None:
    passes(
        run(
            pytester,
            record,
            """
            @pytest.mark.mountns(user="root", writable=["/etc"])
            def test_it(tmp_path, overlay_root):
                assert mounted(tmp_path)
                (tmp_path / "file").touch()
                assert f"{tmp_path}/file" in overlay_root.changes().paths("added")
            """
            if os.geteuid()
            else """
            @pytest.mark.mountns(user="root")
            def test_it(tmp_path): assert mounted(tmp_path)
            """,
        )
    )


def test_what_fails_for_it_is_explained(pytester: pytest.Pytester, record: Record) -> None:
    recorded = run(
        pytester,
        record,
        """
        def test_out(tmp_path): (tmp_path / "file").touch(); (tmp_path / "file").rename("here")
        def test_in(tmp_path): Path("there").touch(); os.link("there", tmp_path / "there")
        def test_removed(tmp_path): shutil.rmtree(tmp_path)
        def test_renamed(tmp_path): tmp_path.rename(tmp_path.with_name("other"))
        def test_unrelated(tmp_path): (tmp_path / "missing").unlink()
        """,
    )
    said = {
        one.name: "\n".join(text for title, text in one.sections if title == "mountns")
        for one in recorded.failed
    }
    assert set(said) == {f"test_{one}" for one in ("out", "in", "removed", "renamed", "unrelated")}
    for name in ("test_out", "test_in"):
        assert "EXDEV" in said[name]
        assert "mount of its own" in said[name]
    for name in ("test_removed", "test_renamed"):
        assert "EBUSY" in said[name]
        assert 'tmp_path="shared"' in said[name]
    assert said["test_unrelated"] == ""


def test_bundles_have_what_was_written(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    recorded = run(
        pytester,
        record,
        """
        def test_fails(tmp_path):
            (tmp_path / "evidence").write_text("x")
            assert 0
        """,
        "--mountns-keep=failed",
    )
    assert recorded.status == 1
    (bundle,) = bundles(pytester.path / ".mountns")
    (found,) = (content for name, content in members(bundle).items() if "evidence" in name)
    assert found == b"x"
    shown = command("diff", str(bundle))
    assert shown.stdout == "not shown: 3 in pytest's temporary directory (tmp_path)\n"
    replayed = command("replay", str(bundle))
    assert replayed.returncode == 1
    assert "assert 0" in replayed.stdout


def test_a_test_that_dies_has_its_changes_listed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(tmp_path="own", writes=["/nothing"])
        def test_dies(tmp_path):
            (tmp_path / "left").write_text("x")
            os.kill(os.getpid(), 9)
        """
    )
    out = pytester.runpytest_subprocess("--mountns-keep=failed").stdout
    out.fnmatch_lines(["*1 failed*"])
    (bundle,) = bundles(pytester.path / ".mountns")
    assert any("/left" in name for name in members(bundle))


@pytest.mark.parametrize("process", ["fork"])
def test_crash_points_are_those_of_a_shared_one(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        HEAD
        + textwrap.dedent(
            """
            def save(path):
                with open(f"{path}.tmp", "w") as file:
                    file.write("new")
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(f"{path}.tmp", path)

            @pytest.mark.parametrize("power", [False, True, "strict"])
            @pytest.mark.parametrize("kind", ["shared", "own"])
            def test_it(overlay_root, tmp_path, kind, power, record_property):
                assert bool(mounted(tmp_path)) == (kind == "own")
                path = tmp_path / "settings"
                path.write_text("old")
                seen = []
                run = lambda: save(path)
                for crash in overlay_root.crashes(run, power=power, watch=[f"{tmp_path}/**"]):
                    content = path.read_text()
                    assert content in ("old", "new")
                    seen.append((str(crash).replace(str(tmp_path), ""), content))
                assert len(seen) > 3
                record_property("seen", (power, seen))

            """
        )
    )
    pytester.makeconftest(
        """
        import pytest
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.mountns(tmp_path=item.callspec.params["kind"]))
        """
    )
    recorded = record("-p", "no:cacheprovider")
    assert recorded.status == 0, recorded.out
    found: dict[str, list[str]] = {"shared": [], "own": []}
    for report in recorded.reports:
        if report.when == "call":
            found["own" if "own" in report.name else "shared"].append(report.properties)
    assert len(found["own"]) == 3
    assert found["own"] == found["shared"]


def test_workers(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("xdist")
    recorded = run(
        pytester,
        record,
        """
        @pytest.mark.parametrize("number", range(4))
        def test_it(tmp_path, number):
            assert mounted(tmp_path)
            (tmp_path / "file").touch()
        """,
        "-n2",
    )
    passes(recorded)


def test_attempts_have_a_mount_each(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("pytest_rerunfailures")
    recorded = run(
        pytester,
        record,
        """
        @pytest.mark.flaky(reruns=2)
        def test_it(tmp_path, request):
            assert mounted(tmp_path)
            assert os.listdir(tmp_path) == []
            (tmp_path / "file").touch()
            assert request.node.execution_count == 3
        """,
    )
    passes(recorded)
    assert [report.outcome for report in recorded.reports if report.when == "call"] == [
        *("rerun", "rerun", "passed"),
    ]


def test_the_ini_value_is_checked(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess("-o", "mountns_tmp_path=mine")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*mountns_tmp_path: 'mine' is not valid; choose*shared, own*"])


def test_a_profile_may_have_it(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyprojecttoml('[tool.mountns.profiles.fast]\ntmp_path = "own"')
    pytester.makepyfile(
        HEAD
        + textwrap.dedent(
            """
            @pytest.mark.mountns("fast")
            def test_it(tmp_path): assert mounted(tmp_path)

            @pytest.mark.mountns
            def test_other(tmp_path): assert not mounted(tmp_path)
            """
        )
    )
    passes(record())
