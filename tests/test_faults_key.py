"""`faults=[...]` of the marker, and `overlay_root.faults()`: system calls that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.leftovers import Machine
from tests.helpers.recording import Record
from tests.test_crashes import fails

pytestmark = [
    pytest.mark.sandboxes,
    # The kernel allows one supervisor.
    pytest.mark.no_mountns(reason="some tests end their process"),
]


def test_calls_fail_as_the_marker_says(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import errno, os, subprocess, sys, threading, time
        from pathlib import Path

        import pytest

        HOME = Path.home()

        def fails(number, function, *arguments):
            with pytest.raises(OSError) as caught:
                function(*arguments)
            assert caught.value.errno == number
            return True

        @pytest.mark.mountns(faults=[f"fsync:{HOME}/app/**:EIO"])
        def test_fsync(tmp_path):
            (HOME / "app").mkdir()
            for place, works in ((HOME / "app", False), (tmp_path, True)):
                with open(place / "f", "w") as file:
                    for sync in (os.fsync, os.fdatasync):
                        if works:
                            sync(file.fileno())
                        else:
                            fails(errno.EIO, sync, file.fileno())
                    os.rename(place / "f", place / "g")

        @pytest.mark.mountns(faults=["write:/**/f:ENOSPC:nth=3"])
        def test_the_third_write(tmp_path):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            os.write(fd, b"1")
            os.write(os.open(tmp_path / "g", os.O_RDWR | os.O_CREAT), b"1")
            os.pwrite(fd, b"2", 1)
            fails(errno.ENOSPC, os.write, fd, b"3")
            os.write(fd, b"4")
            assert (tmp_path / "f").read_bytes() == b"14"

        @pytest.mark.mountns(faults=["write:**/f:EIO:every=2", "rename:**/f:EXDEV"])
        def test_every_second(tmp_path):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            done = []
            for _ in range(6):
                try:
                    done.append(os.write(fd, b"1"))
                except OSError:
                    done.append(0)
            assert done == [1, 0] * 3
            fails(errno.EXDEV, os.rename, tmp_path / "f", tmp_path / "g")
            fails(errno.EXDEV, os.rename, tmp_path, tmp_path / "f")

        @pytest.mark.mountns(faults=["write:**/f:ENOSPC:after_bytes=10"])
        def test_a_disk_that_is_full(tmp_path):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            assert os.write(fd, b"x" * 6) == 6
            fails(errno.ENOSPC, os.write, fd, b"x" * 6)
            assert os.write(fd, b"x" * 4) == 4
            fails(errno.ENOSPC, os.write, fd, b"x")

        @pytest.mark.mountns(faults=["read:**/f:short", "write:**/f:short"])
        def test_short(tmp_path):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            assert os.write(fd, b"0123456789") == 5
            assert os.write(fd, b"56") == 1
            assert os.pwrite(fd, b"abcd", 2) == 2
            os.lseek(fd, 0, os.SEEK_SET)
            assert os.read(fd, 8) == b"01ab"
            assert os.read(fd, 2) == b"4"
            assert os.read(fd, 1) == b"5"
            assert os.pread(fd, 4, 1) == b"1a"
            with open(tmp_path / "f", "wb", buffering=0) as file:
                assert file.write(b"1234") == 2

        @pytest.mark.mountns(faults=["read:**/f:short", "write:**/f:short"])
        def test_short_with_several_buffers(tmp_path):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            assert os.writev(fd, [b"01234", b"", b"567"]) == 4
            assert os.writev(fd, [b"45678901", b"23"]) == 5
            assert os.pwritev(fd, [b"a", b"b"], 2) == 1
            os.lseek(fd, 0, os.SEEK_SET)
            buffers = [bytearray(b"...") for _ in range(3)]
            assert os.readv(fd, buffers) == 4
            assert buffers == [b"01a", b"3..", b"..."]
            assert os.preadv(fd, buffers, 5) == 4
            assert buffers == [b"567", b"8..", b"..."]
            assert os.read(fd, 4) == b"45"
            with open(tmp_path / "g", "wb") as file:
                assert os.sendfile(file.fileno(), fd, 0, 4) == 4
            with open(tmp_path / "g", "rb") as file:
                assert os.sendfile(fd, file.fileno(), 0, 4) == 4
            if hasattr(os, "copy_file_range"):
                assert os.copy_file_range(fd, fd, 2, 0, 100) == 2

        @pytest.mark.mountns(faults=["read:**/f:short", "write:**/f:short"])
        def test_short_with_a_bad_address(tmp_path):
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            assert os.write(fd, b"0123") == 2
            os.lseek(fd, 0, os.SEEK_SET)
            for function in (libc.read, libc.write):
                assert function(fd, ctypes.c_void_p(16), ctypes.c_size_t(4)) == -1
                assert ctypes.get_errno() == errno.EFAULT

        @pytest.mark.mountns(faults=["read:**:short", "write:**:short"])
        def test_short_does_not_wait_at_pipes(tmp_path):
            os.mkfifo(tmp_path / "fifo")
            fifo = os.open(tmp_path / "fifo", os.O_RDWR)
            answers = []
            for reader, writer in (os.pipe(), (fifo, fifo)):
                thread = threading.Thread(target=lambda: answers.append(os.read(reader, 10)))
                thread.start()
                assert os.write(writer, b"0123456789") == 10
                thread.join()
            assert answers == [b"0123456789"] * 2

        @pytest.mark.mountns(faults=["read:**:EIO", "write:**:EIO"])
        def test_pipes_and_sockets_match_no_glob():
            import socket
            reader, writer = os.pipe()
            assert os.write(writer, b"1") == 1
            assert os.read(reader, 1) == b"1"
            one, other = socket.socketpair()
            assert os.write(one.fileno(), b"1") == 1
            assert os.read(other.fileno(), 1) == b"1"

        @pytest.mark.mountns(faults=["fsync:**/f::delay=0.3"])
        def test_delay(tmp_path):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            other = os.open(tmp_path / "g", os.O_RDWR | os.O_CREAT)
            begin = time.monotonic()
            thread = threading.Thread(target=os.fsync, args=(fd,))
            thread.start()
            os.fsync(other)
            assert thread.is_alive()
            thread.join()
            assert time.monotonic() - begin >= 0.3

        @pytest.mark.mountns(faults=["write:**/f:EIO:probability=0.5:seed=7"])
        @pytest.mark.parametrize("attempt", [1, 2])
        def test_the_same_dice_each_time(tmp_path, attempt, record_property):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            done = ""
            for _ in range(20):
                try:
                    done += str(os.write(fd, b"1"))
                except OSError:
                    done += "0"
            import random
            dice = random.Random(7)
            assert done == "".join(str(int(dice.random() >= 0.5)) for _ in range(20))

        @pytest.mark.mountns(
            faults=["mkdir:**/bad:EROFS", "unlink:**/keep:EPERM", "open:**/no:EMFILE"]
        )
        def test_processes_that_it_starts(tmp_path):
            (tmp_path / "keep").touch()
            done = subprocess.run(
                ["sh", "-c", "mkdir good; mkdir bad; rm -f keep; cat no"],
                cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"},
            )
            assert "Read-only file system" in done.stderr
            assert "Operation not permitted" in done.stderr
            assert "Too many open files" in done.stderr
            assert sorted(os.listdir(tmp_path)) == ["good", "keep"]
            os.mkdir(tmp_path / "keep2")
            fails(errno.EPERM, os.unlink, tmp_path / "keep")
            fails(errno.EPERM, os.remove, f"{tmp_path}/../{tmp_path.name}/keep")

        @pytest.mark.mountns(faults=["rmdir:**/keep:EPERM"])
        def test_unlink_is_not_rmdir(tmp_path):
            (tmp_path / "keep").touch()
            os.unlink(tmp_path / "keep")
            os.mkdir(tmp_path / "keep")
            fails(errno.EPERM, os.rmdir, tmp_path / "keep")

        @pytest.mark.mountns(faults=["fsync:/**:EIO"], pid=True)
        def test_in_a_pid_namespace(tmp_path, isolated_proc):
            fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
            fails(errno.EIO, os.fsync, fd)
            assert isolated_proc.children() == []
            assert isolated_proc.kill_all() == 0
            fails(errno.EIO, os.fsync, fd)
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, 0)

        @pytest.mark.mountns(faults=["fsync:/**:EIO"], leaks="error")
        def test_the_supervisor_is_no_process_that_is_left(tmp_path):
            fails(errno.EIO, os.fsync, os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT))

        def test_none(tmp_path):
            with open(tmp_path / "f", "w") as file:
                os.fsync(file.fileno())
            with open("/proc/self/status") as file:
                assert "Seccomp:\\t0" in file.read()
        """
    )
    recorded = record("--mountns")
    assert recorded.not_passed == []
    assert recorded.status == 0


@pytest.mark.as_root
def test_of_another_user(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(faults=["fsync:/**:EIO"], user="nobody")
        def test(tmp_path):
            with open(tmp_path / "f", "w") as file, pytest.raises(OSError):
                os.fsync(file.fileno())
        """
    )
    assert record("--mountns").not_passed == []


def test_what_was_made_to_fail_is_in_the_report(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(faults=["fsync:/**:EIO:nth=2", "rename:**/g:EXDEV"])
        def test_two(tmp_path):
            with open(tmp_path / "f", "w") as file:
                os.fsync(file.fileno())
                try:
                    os.fsync(file.fileno())
                except OSError:
                    pass
            os.rename(tmp_path / "f", tmp_path / "g")

        @pytest.mark.mountns(faults=["fsync:/**:EIO"])
        def test_none(tmp_path):
            assert False
        """
    )
    failed = fails(record)
    assert "mountns faults" in failed["test_two"]
    assert "/f: EIO  (fsync:/**:EIO:nth=2)" in failed["test_two"]
    assert "/f -> " in failed["test_two"]
    assert "/g: EXDEV  (rename:**/g:EXDEV)" in failed["test_two"]
    assert "mountns faults" not in failed["test_none"]


def test_each_attempt_counts_calls_anew(pytester: pytest.Pytester, record: Record) -> None:
    pytest.importorskip("pytest_rerunfailures")
    pytester.makepyfile(
        """
        import os, pytest

        # The other one would keep a fresh root from being made.
        @pytest.mark.mountns(faults=["fsync:**/f:EIO:nth=2", "mkdir:/**:EROFS:nth=3"])
        def test_it(tmp_path):
            with open(tmp_path / "f", "w") as file:
                os.fsync(file.fileno())
                os.fsync(file.fileno())
        """
    )
    recorded = record("--mountns", "--reruns=1", "-prerunfailures")
    assert [report.outcome for report in recorded.reports if report.when == "call"] == [
        "rerun",
        "failed",
    ]
    sections = dict(recorded.failed[0].sections)
    assert sections["mountns faults"].count("EIO") == 2
    assert len(sections["mountns faults"].splitlines()) == 1


def test_a_context_in_which_calls_fail(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, subprocess, sys, threading

        import pytest

        SYNC = "import os; os.fsync(os.open('f', os.O_WRONLY | os.O_CREAT))"

        def sync(path):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        def test(overlay_root, tmp_path):
            waiting = threading.Event()
            thread = threading.Thread(target=waiting.wait)
            thread.start()
            sync(tmp_path / "f")
            with overlay_root.faults(f"fsync:{tmp_path}/**:EIO"):
                with pytest.raises(OSError, match="Input/output error"):
                    sync(tmp_path / "f")
                command = [sys.executable, "-c", SYNC]
                done = subprocess.run(command, cwd=tmp_path, capture_output=True)
                assert b"Input/output error" in done.stderr
                caught = []
                def attempt():
                    try:
                        sync(tmp_path / "f")
                    except OSError as error:
                        caught.append(error.errno)
                other = threading.Thread(target=attempt)
                other.start()
                other.join()
                assert caught == [5]
                with overlay_root.faults("mkdir:/**:ENOSPC"):
                    with pytest.raises(OSError, match="No space left"):
                        os.mkdir(tmp_path / "d")
                os.mkdir(tmp_path / "d")
            sync(tmp_path / "f")
            subprocess.run(command, cwd=tmp_path, check=True)
            waiting.set()
            thread.join()

        @pytest.mark.mountns(faults=["mkdir:**/bad:EROFS"])
        def test_beside_the_marker(overlay_root, tmp_path):
            with pytest.raises(OSError, match="Read-only"):
                os.mkdir(tmp_path / "bad")
            with overlay_root.faults("mkdir:**/other:EIO", "fsync:**/f:EIO"):
                with pytest.raises(OSError, match="Input/output"):
                    sync(tmp_path / "f")
                with pytest.raises(OSError, match="Input/output"):
                    os.mkdir(tmp_path / "other")
                with pytest.raises(OSError, match="Read-only"):
                    os.mkdir(tmp_path / "bad")

        def test_in_a_report(overlay_root, tmp_path):
            with overlay_root.faults("mkdir:**/d:EIO"):
                os.mkdir(tmp_path / "d")
        """
    )
    failed = fails(record)
    assert set(failed) == {"test_in_a_report"}
    assert "/d: EIO  (mkdir:**/d:EIO)" in failed["test_in_a_report"]


def test_other_calls_than_the_markers_cannot_be_added(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.mountns(faults=["mkdir:**/bad:EROFS"])
        def test(request, tmp_path):
            with request.getfixturevalue("overlay_root").faults("fsync:**:EIO"):
                pass
        """
    )
    assert "name overlay_root in the test's arguments" in fails(record)["test"]


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("fsync", "is not a fault"),
        ("fsync:relative:EIO", "begins with / or **"),
        ("frobnicate:/**:EIO", "'frobnicate' is no system call that can be made to fail"),
        ("fsync:/**:EWHAT", "'EWHAT' is not the name of an errno"),
        ("fsync:/**:", "does nothing"),
        ("fsync:/**:short", "fsync cannot be short"),
        ("fsync:/**:EIO:often", "'often' is not an option of a fault"),
        ("fsync:/**:EIO:probability=2", "from 0 to 1"),
        ("fsync:/[z-a]:EIO", "has a range that ends before it begins"),
    ],
)
def test_rules_that_are_not_valid(pytester: pytest.Pytester, rule: str, said: str) -> None:
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mountns(faults=[{rule!r}])
        def test():
            pass
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert said in result.stderr.str()


def test_a_profile_may_have_faults(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyprojecttoml(
        """
        [tool.mountns.profiles.broken-disk]
        faults = ["fsync:/**:EIO"]
        """
    )
    pytester.makepyfile(
        """
        import os, pytest

        def test(overlay_root, tmp_path):
            with open(tmp_path / "f", "w") as file, pytest.raises(OSError):
                os.fsync(file.fileno())
        """
    )
    assert record("--mountns-profile=broken-disk").not_passed == []


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    assert made.left() == ""


@pytest.mark.parametrize("ends", ["os.kill(os.getpid(), 9)", "os._exit(0)", "assert False", "pass"])
def test_the_supervisor_ends_with_the_test(
    pytester: pytest.Pytester, machine: Machine, ends: str
) -> None:
    pytester.makepyfile(
        f"""
        import os, subprocess, pytest

        @pytest.mark.mountns(faults=["fsync:/**:EIO"])
        def test(tmp_path):
            subprocess.Popen(["sleep", "0.1"])
            {ends}
        """
    )
    with machine.running([str(pytester.path)], pytester.path) as process:
        process.communicate(timeout=60)


@pytest.mark.layered
def test_crashes_in_a_test_with_faults_are_refused_in_words(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import pytest

        def crash(overlay_root, tmp_path):
            list(overlay_root.crashes(lambda: (tmp_path / "f").write_text("x")))

        @pytest.mark.mountns(faults=["fsync:**:EIO"])
        def test_mark(overlay_root, tmp_path): crash(overlay_root, tmp_path)

        def test_context(overlay_root, tmp_path):
            with overlay_root.faults("fsync:**:EIO"):
                crash(overlay_root, tmp_path)

        def test_context_before(overlay_root, tmp_path):
            with overlay_root.faults("fsync:**:EIO"):
                pass
            crash(overlay_root, tmp_path)

        def test_fault_points(overlay_root, tmp_path):
            with overlay_root.faults("fsync:**:EIO"):
                list(overlay_root.fault_points(lambda: (tmp_path / "f").write_text("x")))

        def test_the_other_way_round(overlay_root, tmp_path):
            def inner():
                with overlay_root.faults("fsync:**:EIO"):
                    pass
            list(overlay_root.crashes(inner))
        """
    )
    refused = fails(record)
    assert len(refused) == 5
    for text in refused.values():
        assert "faults= and faults() cannot be combined with crashes() and fault_points()" in text
        assert "remedy: use one of them in a test" in text
