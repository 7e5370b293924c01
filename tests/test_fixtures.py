"""`overlay_root`, `bind_volume`, `isolated_proc`, and what a sandboxed test may do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.guard import GUARD
from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes


@pytest.fixture(params=["fork", "module", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def passes(recorded: Recorded) -> bool:
    failed = recorded.not_passed
    assert not failed, failed
    return bool(recorded.status == 0)


@pytest.mark.as_root
def test_the_machine_is_back(
    pytester: pytest.Pytester, record: Record, host_mounts: Callable[[], bytes]
) -> None:
    """Removes /etc /usr/share /home /opt /var/lib, renames /usr/share/doc, remakes /etc empty."""
    places = [p for p in ("/etc", "/usr/share", "/home", "/opt", "/var/lib") if os.path.isdir(p)]
    before = {place: sorted(os.listdir(place)) for place in places}
    mounts = host_mounts()
    pytester.makeconftest(GUARD)
    pytester.makepyfile(
        f"""
        import os, shutil

        def test_destroys(destroyer):
            doc = destroyer("/usr/share/doc")
            os.rename(doc, "/usr/share/renamed")
            assert os.listdir("/usr/share/renamed")
            kept = os.path.realpath(os.path.dirname(os.__file__))
            for place in {places!r}:
                for name in os.listdir(destroyer(place)):
                    path = os.path.join(place, name)
                    if kept.startswith(path + "/") or __file__.startswith(path + "/"):
                        continue
                    if os.path.isdir(path) and not os.path.islink(path):
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        os.remove(path)
            os.rmdir(destroyer("/etc"))
            os.mkdir("/etc")
            assert os.listdir("/etc") == []

        def test_all_is_back(overlay_root):
            assert os.path.exists("/etc/passwd")
            assert not os.path.exists("/usr/share/renamed")
        """
    )
    assert passes(record())
    assert {place: sorted(os.listdir(place)) for place in places} == before
    assert host_mounts() == mounts


def test_home_can_be_emptied(
    pytester: pytest.Pytester,
    record: Record,
    host_mounts: Callable[[], bytes],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    home = tmp_path / "home"
    (home / "deep" / "er").mkdir(parents=True)
    (home / "deep" / "file").write_text("x")
    (home / ".profile").write_text("y")
    monkeypatch.setenv("HOME", str(home))
    mounts = host_mounts()
    pytester.makeconftest(GUARD)
    pytester.makepyfile(
        """
        import os, shutil
        from pathlib import Path

        def test_one(destroyer):
            home = Path(destroyer(Path.home()))
            assert len(os.listdir(home)) == 2
            (home / "added").write_text("x")
            shutil.rmtree(home / "deep")
            (home / ".profile").unlink()
            (home / "added").unlink()
            assert os.listdir(home) == []

        def test_two(overlay_root):
            assert sorted(os.listdir(Path.home())) == [".profile", "deep"]
        """
    )
    assert passes(record())
    assert sorted(str(p.relative_to(home)) for p in home.rglob("*")) == [
        ".profile",
        "deep",
        "deep/er",
        "deep/file",
    ]
    assert host_mounts() == mounts


def test_changes_and_reset(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os
        from pathlib import Path

        HOME = Path.home()

        def test_nothing_yet(overlay_root):
            assert overlay_root.changes() == {}

        def test_one(overlay_root):
            (HOME / "tree").mkdir()
            (HOME / "tree" / "file").write_text("x")
            expected = {str(HOME / "tree"): "added", str(HOME / "tree" / "file"): "added"}
            assert overlay_root.changes(str(HOME)) == expected
            assert overlay_root.changes(str(HOME / "*")) == {str(HOME / "tree"): "added"}
            assert overlay_root.changes("/nowhere") == {}
            os.chdir(HOME)
            overlay_root.reset()
            assert os.getcwd() == str(HOME)
            assert overlay_root.changes() == {}
            (HOME / "again").write_text("y")
            assert overlay_root.changes() == {str(HOME / "again"): "added"}

        def test_many_resets(overlay_root):
            descriptors = len(os.listdir("/proc/self/fd"))
            for _ in range(20):
                (HOME / "file").write_text("x")
                overlay_root.reset()
                assert not (HOME / "file").exists()
            assert len(os.listdir("/proc/self/fd")) == descriptors
        """
    )
    assert passes(record())


@pytest.mark.binding
def test_volumes_in_the_middle(pytester: pytest.Pytester, record: Record, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "given").write_text("by the host")
    (tmp_path / "single").write_text("a file")
    pytester.makepyfile(
        f"""
        import os, pytest
        from pathlib import Path
        from pytest_mountns import SandboxError

        SOURCE = Path({str(source)!r})
        SINGLE = Path({str(tmp_path / "single")!r})
        HOME = Path.home()

        def test_read_write(bind_volume):
            target = bind_volume(SOURCE, HOME / "made" / "for it")
            assert target == HOME / "made" / "for it"
            assert (target / "given").read_text() == "by the host"
            (target / "written").write_text("by the test")

        def test_at_its_own_place(bind_volume):
            (SOURCE / "lost").write_text("before the bind: in the upper")
            bind_volume(SOURCE)
            assert not (SOURCE / "lost").exists()
            (SOURCE / "kept").write_text("after it: on the host")

        def test_read_only(bind_volume):
            target = bind_volume(SOURCE, HOME / "ro", read_only=True)
            with pytest.raises(OSError, match="Read-only"):
                (target / "x").write_text("x")

        def test_a_file(bind_volume, overlay_root):
            target = bind_volume(SINGLE, HOME / "one" / "file")
            assert target.read_text() == "a file"
            target.write_text("changed")
            assert overlay_root.changes(str(HOME)) == {{}}

        def test_survives_a_reset(bind_volume, overlay_root):
            target = bind_volume(SOURCE, HOME / "v")
            overlay_root.reset()
            assert (target / "given").exists()

        def test_missing_source(bind_volume, tmp_path):
            (tmp_path / "here only").mkdir()
            with pytest.raises(SandboxError, match="ENOENT"):
                bind_volume(tmp_path / "here only", HOME / "x")

        def test_bad_target(bind_volume):
            with pytest.raises(SandboxError, match="the sandbox makes /proc"):
                bind_volume(SOURCE, "/proc/x")
        """
    )
    assert passes(record())
    assert (source / "written").read_text() == "by the test"
    assert (source / "kept").exists()
    assert not (source / "lost").exists()
    assert (tmp_path / "single").read_text() == "changed"


def test_processes(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, signal, subprocess, time

        def test_it(isolated_proc):
            assert os.getpid() != 1
            assert isolated_proc.pids() == [1, os.getpid()]
            sleepers = [subprocess.Popen(["sleep", "600"]) for _ in range(3)]
            assert isolated_proc.children() == sorted(p.pid for p in sleepers)
            assert isolated_proc.kill_all() == 3
            assert [p.wait() for p in sleepers] == [-signal.SIGKILL] * 3
            assert isolated_proc.kill_all() == 0

        def test_orphans_are_reaped(isolated_proc):
            subprocess.run(["sh", "-c", "sleep 0.01 & sleep 0.01 &"], check=True)
            deadline = time.monotonic() + 10
            while isolated_proc.children():
                assert time.monotonic() < deadline

        def test_default_signal_actions(isolated_proc):
            child = subprocess.Popen(["sh", "-c", "kill -TERM $$"])
            assert child.wait() == -signal.SIGTERM

        def test_signals_stay_inside(isolated_proc):
            signal.signal(signal.SIGUSR1, lambda *_: None)
            os.kill(0, signal.SIGUSR1)
        """
    )
    assert passes(record())


@pytest.mark.parametrize("fixture", ["overlay_root", "bind_volume", "isolated_proc"])
def test_asked_for_too_late(pytester: pytest.Pytester, record: Record, fixture: str) -> None:
    pytester.makepyfile(f"def test_one(request): request.getfixturevalue({fixture!r})")
    recorded = record()
    failed = recorded.failed[0]
    assert f"{fixture}: this test is not in a sandbox" in failed.text
    assert "Name the fixture" in failed.text


@pytest.mark.limiting
def test_full_disk(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import errno, pytest
        from pathlib import Path

        HOME = Path.home()

        @pytest.mark.mountns(size="1m")
        def test_full():
            with pytest.raises(OSError) as caught:
                (HOME / "big").write_bytes(bytes(2 << 20))
            assert caught.value.errno == errno.ENOSPC

        @pytest.mark.mountns(inodes=200)
        def test_too_many_files():
            with pytest.raises(OSError) as caught:
                for number in range(300):
                    (HOME / str(number)).touch()
            assert caught.value.errno == errno.ENOSPC
        """
    )
    assert passes(record())


def test_read_only(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import errno, pytest
        from pathlib import Path

        HOME = Path.home()

        @pytest.mark.mountns(read_only=True, tmpfs=[f"{HOME}/scratch:size=1m"])
        def test_read_only():
            with pytest.raises(OSError) as caught:
                (HOME / "file").touch()
            assert caught.value.errno == errno.EROFS
            (HOME / "scratch" / "file").touch()
        """
    )
    assert passes(record())


@pytest.mark.no_mountns(reason="an upper may not lie on an overlay")
def test_upper_on_disk(
    pytester: pytest.Pytester, record: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    pytester.makepyfile(
        """
        import pytest
        from pathlib import Path

        HOME = Path.home()

        @pytest.mark.mountns(upper="disk")
        def test_on_disk(overlay_root):
            (HOME / "file").write_text("x")
            assert overlay_root.changes(str(HOME)) == {f"{HOME}/file": "added"}
            overlay_root.reset()
            assert not (HOME / "file").exists()
            assert overlay_root.changes(str(HOME)) == {}
        """
    )
    assert passes(record("--basetemp=base"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_an_ordinary_user_stays_one(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        f"""
        import os, pytest

        def test_ids(overlay_root):
            assert (os.getuid(), os.getgid()) == {(os.getuid(), os.getgid())!r}

        def test_no_right_to_read_everything(overlay_root, tmp_path):
            secret = tmp_path / "secret"
            secret.write_text("x")
            secret.chmod(0)
            with pytest.raises(PermissionError):
                secret.read_text()
        """
    )
    assert passes(record())


@pytest.mark.skipif(os.geteuid() == 0, reason="root's sandboxes have no such limit")
def test_what_cannot_be_written_is_explained(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile("def test_one(overlay_root): open('/usr/new', 'w')")
    recorded = record()
    failed = recorded.failed[0]
    sections = dict(failed.sections)
    assert "/usr/new" in sections["mountns"]
    assert "read-only" in sections["mountns"]
    assert "volume" in sections["mountns"]


def test_code_outside_of_sandboxes_finds_no_test_process(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        def alone():
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

        @pytest.fixture(scope="module")
        def wider():
            alone()
            yield
            alone()

        def test_before(): pass

        @pytest.mark.no_mountns
        def test_unmarked():
            alone()

        def test_between(): pass

        def test_wider(wider): pass

        def test_last(): pass
        """
    )
    pytester.runpytest_subprocess("--mountns").assert_outcomes(passed=5)


def test_a_failure_is_shown_at_the_line_of_the_test(
    pytester: pytest.Pytester, process: str
) -> None:
    """Frames of the plugin tell the author of a test nothing: the message says what failed."""
    pytester.makepyfile(
        """
        def test_bind(bind_volume):
            bind_volume("/nowhere/at/all", "/tmp/there")

        def test_export(overlay_root):
            overlay_root.add_layer("/nowhere/at/all")
        """
    )
    result = pytester.runpytest_subprocess(f"--mountns-process={process}")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        ['>       bind_volume("/nowhere/at/all", "/tmp/there")', "E *ENOENT*"]
    )
    places = [line for line in result.outlines if ".py:" in line and line[0] not in " E>"]
    assert [line for line in places if not line.startswith(("test_", "FAILED"))] == []


def test_a_layer_that_is_exported_leaves_other_files_alone(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    """Whatever their names, and whether it is written or not."""
    volume = pytester.path / "volume"
    volume.mkdir()
    (volume / "layer.tar.partial").write_text("of another process")
    pytester.makepyfile(
        f"""
        import os, pytest

        VOLUME = {str(volume)!r}

        @pytest.mark.mountns(volumes=[VOLUME])
        def test_written(overlay_root):
            overlay_root.export(f"{{VOLUME}}/layer.tar")

        @pytest.mark.mountns(volumes=[VOLUME])
        def test_not_written(overlay_root):
            os.mkdir(f"{{VOLUME}}/directory")
            with pytest.raises(IsADirectoryError):
                overlay_root.export(f"{{VOLUME}}/directory")
            with pytest.raises(FileNotFoundError):
                overlay_root.export(f"{{VOLUME}}/missing/layer.tar")

        @pytest.mark.mountns(volumes=[VOLUME])
        def test_a_name_that_is_taken(overlay_root, monkeypatch):
            taken = f"{{VOLUME}}/other.tar.00000000"
            open(taken, "x").close()
            monkeypatch.setattr("os.urandom", bytes)
            with pytest.raises(FileExistsError):
                overlay_root.export(f"{{VOLUME}}/other.tar")
        """
    )
    assert passes(record(f"--mountns-process={process}"))
    assert sorted(os.listdir(volume)) == [
        "directory",
        "layer.tar",
        "layer.tar.partial",
        "other.tar.00000000",
    ]
    assert (volume / "layer.tar.partial").read_text() == "of another process"
