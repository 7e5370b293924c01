"""`overlay_root.crashes()`: a function is crashed wherever it changes a file."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.leftovers import COMMAND, Machine, marked
from tests.helpers.processes import fork
from tests.helpers.recording import Record
from tests.helpers.seccomp import install, refuse

pytestmark = [
    pytest.mark.sandboxes,
    # For checkpoints.
    pytest.mark.layered,
    # In a sandbox those of the tests would be a third level.
    pytest.mark.no_mountns(reason="checkpoints nest as deep as OverlayFS allows"),
]

SAVES = """
import contextlib, json, os

import pytest

def naive(path, data):
    with open(path, "w") as file:
        json.dump(data, file)

def renamed(path, data):
    with open(f"{path}.tmp", "w") as file:
        json.dump(data, file)
    os.replace(f"{path}.tmp", path)

def synced(path, data):
    with open(f"{path}.tmp", "w") as file:
        json.dump(data, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)

def durable(path, data):
    synced(path, data)
    fd = os.open(os.path.dirname(path), os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

def old_or_new(overlay_root, tmp_path, save, **options):
    path = tmp_path / "s.json"
    synced(path, {"a": 1})
    seen = []
    for crash in overlay_root.crashes(lambda: save(path, {"a": 2}), **options):
        found = json.loads(path.read_text())
        assert found in ({"a": 1}, {"a": 2}), crash
        seen.append((crash, found["a"]))
    assert json.loads(path.read_text()) == {"a": 1}
    assert os.listdir(tmp_path) == ["s.json"]
    return seen
"""


def fails(record: Record, *arguments: str) -> dict[str, str]:
    """Run the suite. Returns text and sections of each test that fails, by its name."""
    recorded = record(*arguments)
    return {
        one.nodeid.rpartition("::")[2]: one.text + "".join(map("\n".join, one.sections))
        for one in recorded.reports
        if one.outcome == "failed"
    }


def test_three_ways_to_save_a_file(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        SAVES
        + """
@pytest.mark.parametrize("power", [False, True, "strict"])
@pytest.mark.parametrize("save", [naive, renamed, synced, durable])
def test(overlay_root, tmp_path, save, power):
    old_or_new(overlay_root, tmp_path, save, power=power)

@pytest.mark.parametrize("save", [synced, durable])
def test_is_durable_when_it_has_returned(overlay_root, tmp_path, save):
    seen = old_or_new(overlay_root, tmp_path, save, power="strict")
    assert {found for crash, found in seen if crash.ended} == {2}
"""
    )
    failed = fails(record)
    assert set(failed) == {
        "test[naive-False]",
        "test[naive-True]",
        "test[naive-strict]",
        "test[renamed-True]",
        "test[renamed-strict]",
        "test_is_durable_when_it_has_returned[synced]",
    }
    naive = failed["test[naive-False]"]
    assert "crash point 1 of 2: killed before write " in naive
    assert "s.json (8 bytes)" in naive
    assert "0 openat " in naive
    assert "s.json (empties it, 8 bytes)" in naive
    renamed = failed["test[renamed-True]"]
    assert "crash point 3 of 3: the power was cut after the end" in renamed
    assert "s.json.tmp -> s.json" in renamed


def test_a_crash_says_what_it_is(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        SAVES
        + """
def test(overlay_root, tmp_path):
    seen = [crash for crash, _ in old_or_new(overlay_root, tmp_path, durable, power="strict")]
    assert {crash.of for crash in seen} == {5}
    assert [crash.number for crash in seen if not crash.names_lost] == [0, 1, 2, 3, 4, 5]
    assert {crash.number for crash in seen if crash.names_lost} == {1, 2, 3, 4}
    at = {crash.number: crash for crash in seen if not crash.names_lost}
    path = str(tmp_path / "s.json")
    assert [at[number].call for number in range(5)] == [
        "openat", "write", "fsync", at[3].call, "fsync"
    ]
    assert at[3].call in ("rename", "renameat", "renameat2")
    assert (at[3].source, at[3].path) == (f"{path}.tmp", path)
    assert (at[1].path, at[4].path) == (f"{path}.tmp", str(tmp_path))
    assert at[5].ended and not at[4].ended
    assert {crash.power for crash in seen} == {"strict"}
    assert str(at[1]) == (
        f"crash point 1 of 5: the power was cut before write {path}.tmp (8 bytes)"
    )
    assert repr(at[1]) == str(at[1])
    assert str(seen[2]).endswith(", names that were not synced are lost")

def test_in_an_assertion(overlay_root, tmp_path):
    for crash in overlay_root.crashes(lambda: (tmp_path / "f").write_text("x")):
        assert not crash.ended, crash

def test_without_changes(overlay_root, tmp_path):
    (tmp_path / "f").write_text("x")
    crashes = list(overlay_root.crashes((tmp_path / "f").read_text))
    assert [str(crash) for crash in crashes] == ["crash point 0 of 0: killed after the end"]
"""
    )
    failed = fails(record)
    assert set(failed) == {"test_in_an_assertion"}
    assert (
        "AssertionError: crash point 2 of 2: killed after the end" in failed["test_in_an_assertion"]
    )


def test_one_crash_point_can_be_run_again(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        SAVES
        + """
def test(overlay_root, tmp_path):
    seen = old_or_new(overlay_root, tmp_path, renamed, power=True)
    assert [crash.number for crash, _ in seen] == [2]
"""
    )
    assert record("--mountns-crash=2").status == 0
    failed = fails(record, "--mountns-crash=3")
    assert "crash point 3 of 3: the power was cut after the end" in failed["test"]
    failed = fails(record, "--mountns-crash=4")
    assert "number 3 is after its end" in failed["test"]
    failed = fails(record, "--mountns-crash=two")
    assert "--mountns-crash: 'two' is not valid" in failed["test"]


def test_a_crash_point_that_is_not_reached_again_is_an_error(
    pytester: pytest.Pytester, record: Record
) -> None:
    (pytester.path / "kept").mkdir()
    pytester.makepyfile(
        f"""
        import os
        import pytest

        @pytest.mark.mountns(volumes=["{pytester.path}/kept:/srv"])
        def test(overlay_root, tmp_path):
            def work():
                # A checkpoint does not undo what is written to a volume.
                if not os.path.exists("/srv/done"):
                    open("/srv/done", "x").close()
                    (tmp_path / "f").write_text("x")

            try:
                for crash in overlay_root.crashes(work):
                    assert crash.ended
            finally:
                os.unlink("/srv/done")
        """
    )
    failed = fails(record, "--mountns-crash=1")
    assert "mountns: go to crash point 1 of 2\n" in failed["test"]
    assert "the function has made fewer calls than when it ran first" in failed["test"]
    assert record().not_passed == []
    assert record("--mountns-crash=2").not_passed == []


@pytest.mark.parametrize("torn", ["False", "True"])
def test_a_write_can_be_cut_in_half(pytester: pytest.Pytester, record: Record, torn: str) -> None:
    pytester.makepyfile(
        f"""
        import os

        def append(path, *lines):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.writev(fd, [line.encode() for line in lines])
            os.fsync(fd)
            os.close(fd)

        def test(overlay_root, tmp_path):
            path = tmp_path / "log"
            append(path, "one\\n")
            halves = 0
            for power in (False, True):
                work = lambda: append(path, "two", "\\n")
                for crash in overlay_root.crashes(work, power=power, torn={torn}):
                    found = path.read_text()
                    if crash.torn:
                        assert found == "one\\ntw"
                        assert "in the middle of writev" in str(crash)
                        halves += 1
                    else:
                        assert found in ("one\\n", "one\\ntwo\\n")
            assert halves == (2 if {torn} else 0)
            assert path.read_text() == "one\\n"
        """
    )
    assert record().not_passed == []


def test_sqlite(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import sqlite3

        import pytest

        @pytest.mark.parametrize("power", [False, True, "strict"])
        @pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
        @pytest.mark.parametrize("mode", ["delete", "wal"])
        def test(overlay_root, tmp_path, mode, synchronous, power):
            path = tmp_path / "a.db"

            def connect():
                connection = sqlite3.connect(path)
                connection.execute(f"pragma synchronous={synchronous}")
                return connection

            connection = connect()
            connection.execute(f"pragma journal_mode={mode}")
            connection.execute("create table t (v)")
            connection.execute("insert into t values (1)")
            connection.commit()
            connection.close()

            def update():
                connection = connect()
                connection.execute("update t set v = 2")
                connection.execute("insert into t values (2)")
                connection.commit()
                # The last to close it would write the log back and sync.
                update.open = connection

            seen, ended, mapped = set(), set(), set()
            for crash in overlay_root.crashes(update, power=power):
                connection = connect()
                assert connection.execute("pragma integrity_check").fetchone() == ("ok",), crash
                values = tuple(v for v, in connection.execute("select v from t"))
                connection.close()
                assert values in ((1,), (2, 2)), crash
                seen.add(values)
                if crash.ended and not crash.names_lost:
                    ended.add(values)
                mapped.update(crash.mapped)
            # What was committed may be lost by a power cut: the guarantee of NORMAL in WAL mode.
            weaker = mode == "wal" and synchronous == "NORMAL" and power
            assert ended == ({(1,)} if weaker else {(2, 2)})
            assert mapped == ({f"{path}-shm"} if mode == "wal" else set())
        """
    )
    assert record().not_passed == []


def test_all_calls_that_change_files(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os
        import shutil
        import subprocess
        import sys
        import threading

        def calls(overlay_root, function, **options):
            *crashes, last = overlay_root.crashes(function, **options)
            assert last.ended
            return list(last.calls)

        def test_names(overlay_root, tmp_path, monkeypatch):
            monkeypatch.chdir(tmp_path)
            (tmp_path / "d").mkdir()
            (tmp_path / "link").symlink_to("d")
            (tmp_path / "loop").symlink_to("d/../new")

            def work():
                os.mkdir("d/a")
                os.chdir("d")
                os.rename("a", "b")
                fd = os.open("b", os.O_RDONLY)
                os.rename("b", "../c")
                # What the descriptor leads to has another name now.
                os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
                os.symlink("f", "s", dir_fd=fd)
                os.link("f", "../link/h", src_dir_fd=fd)
                os.unlink("/proc/self/cwd/h")
                os.close(os.open("../loop", os.O_CREAT | os.O_WRONLY))
                os.mkfifo("fifo")
                os.replace("../c/f", "../c/s")
                os.rmdir("../x") if os.path.exists("../x") else None
                try:
                    os.mkdir("../c")
                except FileExistsError:
                    pass

            names = [one.replace(str(tmp_path), "T") for one in calls(overlay_root, work)]
            one = lambda text: text.split(" ", 1)[1]
            assert [one(name) for name in names] == [
                "T/d/a",
                "T/d/a -> b",
                "T/d/b -> T/c",
                "T/c/f (makes it)",
                "T/c/s",
                "T/c/f -> T/d/h",
                "T/d/h",
                "T/new (makes it)",
                "T/d/fifo",
                "T/c/f -> s",
            ]

        def test_contents_and_attributes(overlay_root, tmp_path):
            path = tmp_path / "f"
            path.write_bytes(b"x" * 100)

            def work():
                fd = os.open(path, os.O_RDWR)
                other = os.open(tmp_path / "g", os.O_RDWR | os.O_CREAT)
                os.pwrite(fd, b"y", 5)
                os.pwritev(fd, [b"a", b"b"], 7)
                os.sendfile(other, fd, 0, 10)
                os.copy_file_range(fd, other, 10)
                reader, writer = os.pipe()
                os.write(writer, b"12345")
                if hasattr(os, "splice"):
                    os.splice(reader, other, 5)
                os.posix_fallocate(other, 0, 200)
                os.ftruncate(fd, 50)
                os.ftruncate(fd, 50)
                os.truncate(path, 40)
                os.chmod(path, 0o600)
                os.fchmod(fd, 0o644)
                os.chown(path, -1, -1)
                os.utime(path)
                os.utime(fd, (1, 1))
                os.setxattr(path, "user.a", b"b")
                os.removexattr(path, "user.a")
                os.write(fd, b"")
                os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
                os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT))

            found = [call.split(" ")[0] for call in calls(overlay_root, work)]
            splice = ["splice"] * hasattr(os, "splice")
            assert [call for call in found if "chmod" not in call and "chown" not in call] == [
                "openat", "pwrite64", found[2], "sendfile", "copy_file_range", *splice,
                "fallocate", "ftruncate", "truncate", "utimensat", "utimensat", "setxattr",
                "removexattr", "openat",
            ]
            assert found[2] in ("pwritev", "pwritev2")
            assert sum("chmod" in call or "chown" in call for call in found) == 3

        def test_processes_and_threads(overlay_root, tmp_path):
            def work():
                subprocess.run(["sh", "-c", "echo 1 > a; mv a b; (echo 2 > c) & wait"],
                               cwd=tmp_path, check=True)
                thread = threading.Thread(target=(tmp_path / "d").write_text, args=("x",))
                thread.start()
                thread.join()
                code = "import os; os.mkdir('e'); os.chroot('.') if os.geteuid() == 0 else 0;" \\
                    "os.mkdir('/g' if os.geteuid() == 0 else 'g')"
                subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)

            found = calls(overlay_root, work)
            paths = [call.replace(f"{tmp_path}/", "").split(" ", 1)[1] for call in found]
            assert paths == [
                "a (makes it)", "a (2 bytes)", "a -> b", "c (makes it)", "c (2 bytes)",
                "d (makes it)", "d (1 bytes)", "e", "g",
            ]

        def test_what_does_not_count(overlay_root, tmp_path):
            (tmp_path / "module.py").write_text("A = 1")
            sys.path.insert(0, str(tmp_path))
            sys.dont_write_bytecode = False

            def work():
                import module
                print("to a terminal, a pipe or a file of the host")
                open("/dev/null", "w").write("x")
                open("/proc/self/comm", "w").write("x")
                with open(tmp_path / "gone", "w") as file:
                    os.unlink(tmp_path / "gone")
                    file.write("nobody can see it")
                (tmp_path / "module.py").read_text()
                subprocess.run(["true"])

            found = [call.split("/")[-1] for call in calls(overlay_root, work)]
            assert found == ["gone (makes it)", "gone"]
            assert (tmp_path / "module.py").exists()

        def test_watch(overlay_root, tmp_path):
            def work():
                for name in "abc":
                    (tmp_path / name).write_text("x")
                shutil.move(tmp_path / "a", tmp_path / "d.txt")

            found = calls(overlay_root, work, watch=[f"{tmp_path}/*.txt", str(tmp_path / "b")])
            assert [call.split("/")[-1] for call in found] == [
                "b (makes it)", "b (1 bytes)", "a -> d.txt"
            ]
        """
    )
    assert record().not_passed == []


def test_what_a_mapping_holds(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import mmap, os

        def test(overlay_root, tmp_path):
            path = tmp_path / "f"
            path.write_bytes(b"0" * 4096)

            def work():
                with open(path, "r+b") as file, mmap.mmap(file.fileno(), 4096) as mapping:
                    mapping[0:1] = b"1"
                    mapping.flush()
                    mapping[1:2] = b"2"
                    os.mkdir(tmp_path / "d")

            found = {}
            for crash in overlay_root.crashes(work, power=True):
                assert crash.mapped == (str(path),)
                assert f"{path} is mapped shared and writable" in crash.describe()
                found[crash.call] = path.read_bytes()[:3]
            assert found == {"msync": b"000", "mkdir": b"100", "": b"100"}
            for crash in overlay_root.crashes(work):
                found[crash.call] = path.read_bytes()[:3]
            assert found == {"msync": b"000", "mkdir": b"120", "": b"120"}
        """
    )
    assert record().not_passed == []


def test_a_sync_of_a_part_is_no_sync_of_the_rest(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import ctypes, mmap, os

        import pytest

        PAGE = mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)

        def at_the_end(overlay_root, path, work, **options):
            path.write_bytes(b"0" * 3 * PAGE)
            for crash in overlay_root.crashes(work, **options):
                content = path.read_bytes()
            assert crash.ended
            assert len(content) == 3 * PAGE
            return bytes(content[one * PAGE] for one in range(3))

        @pytest.mark.parametrize("power", [True, "strict"])
        def test_a_mapping(overlay_root, tmp_path, power):
            def work():
                with open(tmp_path / "f", "r+b") as file:
                    mapping = mmap.mmap(file.fileno(), 2 * PAGE, offset=PAGE)
                    mapping[0:1] = b"1"
                    mapping[PAGE:PAGE + 1] = b"2"
                    mapping.flush(PAGE, PAGE)

            assert at_the_end(overlay_root, tmp_path / "f", work, power=power) == b"002"

        def test_a_private_mapping(overlay_root, tmp_path):
            def work():
                with open(tmp_path / "f", "r+b") as file:
                    shared = mmap.mmap(file.fileno(), 0)
                    private = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
                    shared[0:1] = b"1"
                    private.flush()

            assert at_the_end(overlay_root, tmp_path / "f", work, power=True) == b"000"

        @pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC])
        def test_a_write_that_syncs(overlay_root, tmp_path, flag):
            def work():
                fd = os.open(tmp_path / "f", os.O_RDWR)
                os.pwrite(fd, b"1", 0)
                synced = os.open(tmp_path / "f", os.O_RDWR | flag)
                os.pwrite(synced, b"2", PAGE)
                os.pwrite(fd, b"3", 2 * PAGE)
                other = os.open(tmp_path / "g", os.O_RDWR | os.O_CREAT | os.O_APPEND | flag)
                os.write(other, b"x" * PAGE)
                os.write(other, b"y")

            path = tmp_path / "f"
            assert at_the_end(overlay_root, path, work, power=True) == b"020"
            for crash in overlay_root.crashes(work, power=True):
                if crash.ended:
                    assert (tmp_path / "g").read_bytes() == b"x" * PAGE + b"y"

        def test_a_range_of_a_file(overlay_root, tmp_path):
            def work():
                fd = os.open(tmp_path / "f", os.O_RDWR)
                for one in range(3):
                    os.pwrite(fd, b"1", one * PAGE)
                call = libc.sync_file_range
                call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
                assert call(fd, PAGE, PAGE, 7) == 0

            assert at_the_end(overlay_root, tmp_path / "f", work, power=True) == b"010"

        @pytest.mark.mountns(tmp_path="own")
        def test_one_overlay(overlay_root, tmp_path, tmp_path_factory):
            elsewhere = tmp_path.parent
            def work():
                for place in (tmp_path, elsewhere):
                    (place / "f").write_text("x")
                fd = os.open(elsewhere, os.O_RDONLY)
                assert libc.syncfs(fd) == 0

            for crash in overlay_root.crashes(work, power="strict"):
                if crash.ended:
                    assert (elsewhere / "f").read_text() == "x"
                    found = (tmp_path / "f").read_text() if (tmp_path / "f").exists() else None
                    assert found == (None if crash.names_lost else ""), crash
        """
    )
    recorded = record()
    assert recorded.not_passed == []
    assert recorded.status == 0


def test_what_another_process_or_thread_has_done_was_done_before(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import os, subprocess, sys, threading

        import pytest

        def in_a_process(code, where):
            subprocess.run([sys.executable, "-c", f"import os; {code}"], cwd=where, check=True)

        def in_a_thread(code, where):
            def target():
                os.chdir(where)
                exec(code)
                done.set()
                ended.wait()
            done, ended = threading.Event(), threading.Event()
            threading.Thread(target=target, daemon=True).start()
            done.wait()

        def in_a_thread_that_runs(code, where):
            def target():
                os.chdir(where)
                exec(code)
                done.set()
                while True:
                    pass
            done = threading.Event()
            threading.Thread(target=target, daemon=True).start()
            done.wait()

        does = pytest.mark.parametrize("do", [in_a_process, in_a_thread, in_a_thread_that_runs])

        @does
        @pytest.mark.parametrize("synced", ["a", "b"])
        def test_a_move(overlay_root, tmp_path, do, synced):
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
            (tmp_path / "a" / "x").write_text("x")

            def work():
                do("os.rename('a/x', 'b/x')", tmp_path)
                os.fsync(os.open(tmp_path / synced, os.O_RDONLY))

            lost = 0
            for crash in overlay_root.crashes(work, power="strict"):
                there = [name for name in "ab" if (tmp_path / name / "x").exists()]
                lost += crash.names_lost
                assert len(there) == 1, crash
                if crash.ended:
                    assert there == ["b"], crash
            assert lost

        @does
        def test_a_change_of_size(overlay_root, tmp_path, do):
            (tmp_path / "f").write_text("before")

            def work():
                do("os.truncate('f', 0)", tmp_path)
                with open(tmp_path / "f", "r+") as file:
                    file.write("new")

            for crash in overlay_root.crashes(work, power=True):
                text = (tmp_path / "f").read_text()
            assert crash.ended
            assert text == ""

        @does
        def test_a_write_that_syncs(overlay_root, tmp_path, do):
            (tmp_path / "f").write_text("before")

            def work():
                do("os.write(os.open('f', os.O_WRONLY | os.O_DSYNC), b'synced')", tmp_path)
                with open(tmp_path / "f", "r+") as file:
                    file.write("later ")

            for crash in overlay_root.crashes(work, power=True):
                text = (tmp_path / "f").read_text()
            assert crash.ended
            assert text == "synced"
        """
    )
    recorded = record()
    assert recorded.not_passed == []
    assert recorded.status == 0


def test_the_files_of_a_mount_that_a_checkpoint_cannot_undo_are_left_alone(
    pytester: pytest.Pytester, record: Record, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "old").write_text("old")
    pytester.makepyfile(
        f"""
        from pathlib import Path

        import pytest

        @pytest.mark.mountns(volumes=[{f"{kept}:/srv"!r}], tmpfs=["/mnt"])
        def test(overlay_root, tmp_path):
            def work():
                Path("/srv/old").write_text("new")
                Path("/mnt/file").write_text("new")
                (tmp_path / "file").write_text("new")

            *crashes, last = overlay_root.crashes(work, power="strict")
            assert all(str(tmp_path) in call for call in last.calls)
        """
    )
    assert record().not_passed == []
    assert (kept / "old").read_text() == "new"


@pytest.mark.parametrize("where", ["checkpoint", "below"])
def test_what_was_removed_without_a_sync_is_back(
    pytester: pytest.Pytester, record: Record, where: str
) -> None:
    pytester.makepyfile(
        f"""
        import contextlib, os, shutil, stat

        def look(top):
            found = {{}}
            for place, directories, files in os.walk(top):
                for name in (*directories, *files):
                    path = os.path.join(place, name)
                    status = os.lstat(path)
                    data = ""
                    if stat.S_ISLNK(status.st_mode):
                        data = os.readlink(path)
                    elif stat.S_ISREG(status.st_mode):
                        with open(path) as file:
                            data = file.read()
                    attributes = []
                    if not stat.S_ISLNK(status.st_mode) and not stat.S_ISFIFO(status.st_mode):
                        attributes = os.listxattr(path)
                    found[path] = (status.st_mode, status.st_uid, status.st_nlink if data else 0,
                                   data, attributes)
            return found

        def make(top):
            os.makedirs(top / "a" / "b" / "c")
            (top / "a" / "file").write_text("content")
            os.setxattr(top / "a" / "file", "user.mark", b"here")
            (top / "a" / "b" / "closed").write_text("closed")
            os.chmod(top / "a" / "b" / "closed", 0o400)
            (top / "a" / "b" / "link").symlink_to("nowhere")
            os.mkfifo(top / "a" / "b" / "fifo", 0o640)
            os.chmod(top / "a" / "b", 0o750)

        def test(overlay_root, tmp_path):
            top = tmp_path / "top"
            make(top)
            with overlay_root.checkpoint() if {where!r} == "below" else contextlib.nullcontext():
                before = look(top)
                for work in (
                    lambda: shutil.rmtree(top),
                    lambda: os.rename(top / "a" / "b" / "closed", top / "moved"),
                    lambda: (os.chmod(top / "a" / "file", 0o600),
                             os.removexattr(top / "a" / "file", "user.mark"),
                             os.unlink(top / "a" / "b" / "link"),
                             (top / "a" / "b" / "link").write_text("another")),
                ):
                    lost = 0
                    for crash in overlay_root.crashes(work, power="strict"):
                        if crash.names_lost:
                            lost += 1
                            assert look(top) == before, crash
                    assert lost
        """
    )
    assert record().not_passed == []


def test_what_the_function_raises(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os

        import pytest

        class Odd(Exception):
            def __init__(self, one, two):
                super().__init__(one)

        def work(path, error):
            path.write_text("x")
            if error is None:
                os._exit(3)
            raise error

        def test_error(overlay_root, tmp_path):
            for crash in overlay_root.crashes(lambda: work(tmp_path / "f", KeyError("key"))):
                assert False

        def test_is_caught(overlay_root, tmp_path):
            with pytest.raises(KeyError, match="key") as caught:
                list(overlay_root.crashes(lambda: work(tmp_path / "f", KeyError("key"))))
            assert 'in work' in str(caught.value.__cause__)
            assert not (tmp_path / "f").exists()

        def test_skip(overlay_root, tmp_path):
            list(overlay_root.crashes(lambda: pytest.skip("not here")))

        def test_odd(overlay_root, tmp_path):
            list(overlay_root.crashes(lambda: work(tmp_path / "f", Odd(1, 2))))

        def test_exit(overlay_root, tmp_path):
            list(overlay_root.crashes(lambda: work(tmp_path / "f", None)))

        def test_value(overlay_root, tmp_path):
            list(overlay_root.crashes(lambda: None, power="weak"))
        """
    )
    failed = fails(record)
    assert set(failed) == {"test_error", "test_odd", "test_exit", "test_value"}
    assert "KeyError: 'key'" in failed["test_error"]
    assert "in work" in failed["test_error"]
    assert "cannot be pickled" in failed["test_odd"]
    assert "in work" in failed["test_odd"]
    assert "exit status 3" in failed["test_exit"]
    assert 'choose from True, False, "ordered", "strict"' in failed["test_value"]


def test_everything_that_was_started_is_killed(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, subprocess, sys, time

        DAEMON = '''
        import os, sys, time
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        print(os.getpid(), flush=True)
        os.close(1)
        while True:
            time.sleep(0.001)
            open("beat", "a").write("x") if "{beats}" else None
        '''.replace("\\n        ", "\\n")

        def test(overlay_root, tmp_path):
            def work():
                started = subprocess.run([sys.executable, "-c", DAEMON.format(beats="")],
                                         cwd=tmp_path, stdout=subprocess.PIPE, check=True)
                (tmp_path / "pid").write_bytes(started.stdout)
                subprocess.Popen(["sleep", "1000"])
                (tmp_path / "end").write_text("x")

            for crash in overlay_root.crashes(work):
                if (tmp_path / "pid").exists() and (text := (tmp_path / "pid").read_text()):
                    assert not os.path.exists(f"/proc/{int(text)}"), crash
                with open(f"/proc/self/task/{os.getpid()}/children") as file:
                    assert file.read() == ""

        def test_that_writes_all_the_time(overlay_root, tmp_path):
            def work():
                subprocess.run([sys.executable, "-c", DAEMON.format(beats="x")],
                               cwd=tmp_path, stdout=subprocess.PIPE, check=True)
                while not (tmp_path / "beat").exists():
                    time.sleep(0.001)

            for crash in overlay_root.crashes(work):
                before = (tmp_path / "beat").exists() and (tmp_path / "beat").stat().st_size
                time.sleep(0.01)
                assert before == (
                    (tmp_path / "beat").exists() and (tmp_path / "beat").stat().st_size
                )
        """
    )
    assert record().not_passed == []


@pytest.mark.parametrize("key", ["", "pid=True", "user='nobody'", "network='none'"])
def test_with_other_keys_of_the_marker(pytester: pytest.Pytester, record: Record, key: str) -> None:
    pytester.makepyfile(
        SAVES
        + f"""
@pytest.mark.mountns({key})
def test(overlay_root, tmp_path):
    old_or_new(overlay_root, tmp_path, durable, power="strict")

@pytest.mark.mountns({key})
def test_in_a_checkpoint(overlay_root, tmp_path):
    with overlay_root.checkpoint():
        old_or_new(overlay_root, tmp_path, durable, power="strict")
"""
    )
    recorded = record()
    skipped = [one for one in recorded.reports if one.outcome == "skipped"]
    if not skipped:
        assert recorded.not_passed == []


def test_an_io_uring_cannot_be_made(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import errno

        from pytest_mountns.engine.linux.syscalls import io_uring_setup

        def test(overlay_root, tmp_path):
            def work():
                try:
                    io_uring_setup(1)
                except OSError as error:
                    (tmp_path / "f").write_text(errno.errorcode[error.errno])

            for crash in overlay_root.crashes(work):
                if crash.ended:
                    assert (tmp_path / "f").read_text() == "ENOSYS"
        """
    )
    assert record().not_passed == []


def test_native_aio_cannot_be_set_up(pytester: pytest.Pytester, record: Record) -> None:
    """A request to write makes no call of the table, so its content would survive a power cut."""
    pytester.makepyfile(
        """
        import ctypes, errno, os

        # io_setup(2), by the numbers of the kernel's headers.
        NUMBER = {"x86_64": 206, "aarch64": 0}[os.uname().machine]

        def set_up():
            libc = ctypes.CDLL(None, use_errno=True)
            context = ctypes.c_ulong(0)
            done = libc.syscall(NUMBER, 1, ctypes.byref(context))
            return "made" if done == 0 else errno.errorcode[ctypes.get_errno()]

        def test_crashes(overlay_root, tmp_path):
            for crash in overlay_root.crashes(lambda: (tmp_path / "f").write_text(set_up())):
                if crash.ended:
                    assert (tmp_path / "f").read_text() == "ENOSYS"

        def test_faults(overlay_root):
            with overlay_root.faults("write:/nowhere:EIO"):
                assert set_up() == "ENOSYS"
        """
    )
    assert record().not_passed == []


def test_a_file_cannot_be_cloned_without_being_seen(
    pytester: pytest.Pytester, record: Record
) -> None:
    """Content would change by ioctl(2); programs copy by other calls then."""
    pytester.makepyfile(
        """
        import errno, fcntl, shutil, struct, subprocess

        import pytest

        # <linux/fs.h>. No descriptor is a source here: without a filter that is what fails.
        CLONES = {0x40049409: -1, 0x4020940D: struct.pack("=qQQQ", -1, 0, 0, 0)}

        def tried(path):
            with open(path, "w") as file:
                for request, argument in CLONES.items():
                    with pytest.raises(OSError) as caught:
                        fcntl.ioctl(file, request, argument)
                    yield caught.value.errno
                # Other requests are made as before.
                with pytest.raises(OSError) as caught:
                    fcntl.ioctl(file, 0x5401, bytes(64))
                yield caught.value.errno

        EXPECTED = [errno.EOPNOTSUPP, errno.EOPNOTSUPP, errno.ENOTTY]

        def test_crashes(overlay_root, tmp_path):
            def work():
                assert list(tried(tmp_path / "f")) == EXPECTED

            for crash in overlay_root.crashes(work):
                pass

        def test_faults(overlay_root, tmp_path):
            with overlay_root.faults("write:/nowhere:EIO"):
                assert list(tried(tmp_path / "f")) == EXPECTED

        @pytest.mark.parametrize("copy", [shutil.copy, lambda *paths: subprocess.run(
            ["cp", "--reflink=auto", *paths], check=True)])
        def test_a_copy_is_seen(overlay_root, tmp_path, copy):
            (tmp_path / "f").write_text("content")
            lost = False
            for crash in overlay_root.crashes(
                lambda: copy(tmp_path / "f", tmp_path / "g"), power=True
            ):
                if crash.ended:
                    lost = (tmp_path / "g").read_text() == ""
            assert lost
        """
    )
    assert record().not_passed == []


def test_a_call_that_signals_interrupt_counts_once(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import os, signal

        def test(overlay_root, tmp_path):
            def work():
                signal.signal(signal.SIGALRM, lambda *_: None)
                signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
                fd = os.open(tmp_path / "f", os.O_WRONLY | os.O_CREAT)
                for _ in range(300):
                    os.write(fd, b"x")
                signal.setitimer(signal.ITIMER_REAL, 0)

            *_, last = overlay_root.crashes(work, watch=[f"{tmp_path}/none"])
            counted = overlay_root.crashes(work, watch=[f"{tmp_path}/**"])
            assert next(counted).of == 301
            counted.close()
        """
    )
    release = tuple(map(int, os.uname().release.split(".")[:2]))
    if release < (5, 19):
        pytest.skip("before Linux 5.19 a call that is interrupted counts again")
    assert record().not_passed == []


def test_threads_of_the_test_process_go_on(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import logging, threading

        def test(overlay_root, tmp_path):
            stop, lock = threading.Event(), threading.Lock()

            def busy():
                while not stop.is_set():
                    with lock:
                        logging.getLogger("busy").info("busy")

            threads = [threading.Thread(target=busy) for _ in range(3)]
            for thread in threads:
                thread.start()
            try:
                for crash in overlay_root.crashes(
                    lambda: (tmp_path / "f").write_text("x"), power=True
                ):
                    assert not (tmp_path / "f").exists() or not (tmp_path / "f").read_text()
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
        """
    )
    assert record("-Wignore::DeprecationWarning").not_passed == []


def test_a_bundle_says_which_crash_it_was(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        def test(overlay_root, tmp_path):
            for crash in overlay_root.crashes(lambda: (tmp_path / "f").write_text("x")):
                assert not (tmp_path / "f").exists()
        """
    )
    fails(record, "--mountns-keep=failed")
    (report,) = (pytester.path / ".mountns").rglob("report.txt")
    assert "crash point 1 of 2: killed before write " in report.read_text()


@pytest.mark.parametrize(
    "asks",
    [
        "list(overlay_root.crashes(print))",
        "list(overlay_root.fault_points(print))",
        "overlay_root.faults('fsync:**:EIO').__enter__()",
    ],
)
def test_an_inline_test_is_refused(pytester: pytest.Pytester, asks: str) -> None:
    pytester.makepyfile(f"def test(overlay_root): {asks}")
    result = pytester.runpytest_subprocess("--mountns-process=inline", "-pno:rerunfailures")
    result.stdout.fnmatch_lines(
        ["*: the pytest process (inline) or that of its module*", '*process="fork"*']
    )
    result.assert_outcomes(failed=1)


def test_where_seccomp_is_forbidden_it_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(overlay_root): list(overlay_root.crashes(lambda: None))")
    file = pytester.path / "out"
    child = fork()
    if child == 0:
        try:
            install(refuse(["seccomp"], errno.EPERM))
            out = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(out, 1)
            os.execv(sys.executable, [*COMMAND, "--mountns-process=fork"])
        finally:
            os._exit(77)
    _, status = os.waitpid(child, 0)
    text = file.read_text()
    assert os.waitstatus_to_exitcode(status) == 1, text
    assert "seccomp(SECCOMP_SET_MODE_FILTER): EPERM" in text
    assert "security-opt seccomp=unconfined" in text


def test_one_in_another_is_refused(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        def test(overlay_root, tmp_path):
            def work():
                list(overlay_root.crashes(lambda: (tmp_path / "f").write_text("x")))
            list(overlay_root.crashes(work))
        """
    )
    assert "the kernel allows one" in fails(record)["test"]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    assert made.left() == ""


ENDLESS = """
import os, signal, subprocess, sys, time

def work(path):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    path.write_text("x")
    print("WORKING", os.getppid(), flush=True)
    time.sleep(ENDS)
"""


@pytest.mark.parametrize(
    "ends",
    ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(1)", "assert False", "1 / 0", "return"],
)
def test_nothing_is_left_of_a_test_that_ends_in_the_middle(
    pytester: pytest.Pytester, machine: Machine, ends: str
) -> None:
    pytester.makepyfile(
        ENDLESS.replace("ENDS", "0")
        + f"""
def test(overlay_root, tmp_path):
    for crash in overlay_root.crashes(lambda: work(tmp_path / "f"), power="strict"):
        if crash.number == 1:
            {ends}

def test_after(overlay_root, tmp_path):
    assert not (tmp_path / "f").exists()
"""
    )
    with machine.running([str(pytester.path)], pytester.path) as process:
        out, _ = process.communicate(timeout=60)
    assert "1 passed" in out.splitlines()[-1] or "2 passed" in out.splitlines()[-1], out


@pytest.mark.parametrize("what", ["pytest", "test", "supervisor", "timeout", "ctrl-c"])
def test_nothing_is_left_of_a_function_that_is_running(
    pytester: pytest.Pytester, machine: Machine, what: str
) -> None:
    pytester.makepyfile(
        ENDLESS.replace("ENDS", "1000")
        + """
def test(overlay_root, tmp_path):
    print("TEST", os.getpid(), flush=True)
    list(overlay_root.crashes(lambda: work(tmp_path / "f")))
"""
    )
    arguments = ["-s", *(["--timeout=2"] if what == "timeout" else [])]
    with machine.running([*arguments, str(pytester.path)], pytester.path) as process:
        assert process.stdout is not None
        test = 0
        for line in process.stdout:
            if "TEST" in line:
                test = int(line.rpartition("TEST")[2])
            if "WORKING" in line:
                supervisor = int(line.rpartition("WORKING")[2])
                break
        # Two seconds may be over before the function begins, where the machine is busy.
        assert what == "timeout" or (test and marked(machine.word))
        if what == "pytest":
            process.kill()
        elif what == "test":
            os.kill(test, signal.SIGKILL)
        elif what == "supervisor":
            os.kill(supervisor, signal.SIGKILL)
        elif what == "ctrl-c":
            os.kill(test, signal.SIGINT)
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
