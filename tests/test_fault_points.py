"""`overlay_root.fault_points()`: each call of a function fails once."""

from __future__ import annotations

import pytest

from tests.helpers.recording import Record
from tests.test_crashes import fails

pytestmark = [
    pytest.mark.sandboxes,
    # For checkpoints.
    pytest.mark.layered,
    pytest.mark.no_mountns(reason="checkpoints nest as deep as OverlayFS allows"),
]


def test_each_distinct_call_fails_once_with_each_errno(
    pytester: pytest.Pytester, record: Record
) -> None:
    pytester.makepyfile(
        """
        import errno, os

        def save(path):
            fd = os.open(f"{path}.tmp", os.O_WRONLY | os.O_CREAT)
            try:
                for piece in (b"1", b"2", b"3"):
                    os.write(fd, piece)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(f"{path}.tmp", path)

        def test(overlay_root, tmp_path):
            path = tmp_path / "f"
            path.write_text("old")
            seen = []
            for fault in overlay_root.fault_points(lambda: save(path)):
                # Python makes a call again that was interrupted, PEP 475.
                assert fault.reported == (fault.error != "EINTR"), fault
                if fault.raised is not None:
                    assert fault.raised.errno == getattr(errno, fault.error)
                assert path.read_text() == ("old" if fault.reported else "123"), fault
                seen.append((fault.call.rstrip("at2"), fault.error))
            assert seen == [
                ("open", "EIO"), ("open", "ENOSPC"), ("open", "EINTR"),
                ("write", "EIO"), ("write", "ENOSPC"), ("write", "EINTR"),
                ("fsync", "EIO"), ("fsync", "ENOSPC"), ("fsync", "EINTR"),
                ("rename", "EIO"), ("rename", "ENOSPC"),
            ]
            assert os.listdir(tmp_path) == ["f"]
        """
    )
    assert record().not_passed == []


def test_a_function_that_hides_an_error_is_found(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import contextlib, os

        def save(path):
            with open(path, "w") as file:
                file.write("x")
                file.flush()
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())

        def test(overlay_root, tmp_path):
            for fault in overlay_root.fault_points(lambda: save(tmp_path / "f")):
                assert fault.reported or fault.error == "EINTR", fault

        def test_that_dies(overlay_root, tmp_path):
            def work():
                try:
                    (tmp_path / "f").touch()
                except OSError:
                    os.abort()

            for fault in overlay_root.fault_points(work):
                if fault.error != "EINTR":
                    assert fault.died == "signal SIGABRT" and fault.reported

        def test_reads(overlay_root, tmp_path):
            path = tmp_path / "f"
            path.write_text("x")
            calls = {fault.call for fault in
                     overlay_root.fault_points(path.read_text, watch=[f"{tmp_path}/**"])}
            assert calls == {"read"}
            assert not list(overlay_root.fault_points(path.read_text))
        """
    )
    failed = fails(record)
    assert set(failed) == {"test"}
    assert "fsync " in failed["test"]
    assert "/f fails with EIO; the function has returned" in failed["test"]
    assert "mountns fault" in failed["test"]
    assert failed["test"].count("\n  EIO    fsync") == 1


def test_one_fault_can_be_run_again(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        def test(overlay_root, tmp_path):
            faults = list(overlay_root.fault_points(lambda: (tmp_path / "f").write_text("x")))
            assert [(fault.number, fault.error) for fault in faults] == [(1, "ENOSPC")]
        """
    )
    assert record("--mountns-crash=1").not_passed == []


def test_a_fault_that_there_is_not_is_an_error(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        def test_some(overlay_root, tmp_path):
            for fault in overlay_root.fault_points(lambda: (tmp_path / "f").write_text("x")):
                assert fault.reported or fault.error == "EINTR", fault

        def test_none(overlay_root, tmp_path):
            for fault in overlay_root.fault_points(tmp_path.exists):
                assert fault.reported
        """
    )
    assert record().not_passed == []
    failed = fails(record, "--mountns-crash=5")
    assert set(failed) == {"test_none"}
    assert "mountns: go to fault 5\n" in failed["test_none"]
    assert "the function makes no call that may fail" in failed["test_none"]
    failed = fails(record, "--mountns-crash=6")
    assert set(failed) == {"test_some", "test_none"}
    assert "mountns: go to fault 6\n" in failed["test_some"]
    assert "the function has 6, and the last one is number 5" in failed["test_some"]
    assert "--mountns-crash with a number from 0 to 5" in failed["test_some"]


def test_faults_that_are_not_reached_are_an_error(
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
                for fault in overlay_root.fault_points(work):
                    pytest.fail("it makes no call again")
            finally:
                os.unlink("/srv/done")
        """
    )
    failed = fails(record)
    assert "mountns: go to any of 6 faults\n" in failed["test"]
    assert "the function has made fewer calls than when it ran first" in failed["test"]
    failed = fails(record, "--mountns-crash=1")
    assert "mountns: go to fault 1 of 6\n" in failed["test"]
