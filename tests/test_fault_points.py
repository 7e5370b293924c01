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
