"""Ctrl-C, a SIGINT from elsewhere, pytest.exit: the session ends as it would have."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.helpers.recording import Record

pytestmark = pytest.mark.sandboxes

SUITE = """
import pytest, time

@pytest.fixture(scope="module")
def wide():
    yield
    print("WIDE ENDED")

@pytest.fixture
def narrow(overlay_root):
    yield
    print("NARROW ENDED")

def test_first(overlay_root): pass

def test_waits(wide, narrow):
    print("WAITING", flush=True)
    # In small steps: a signal that comes just before nanosleep(2) does not end it.
    for _ in range(1200):
        time.sleep(0.05)

def test_never(overlay_root): pass
"""


def test_pytest_exit_in_a_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        def test_one(overlay_root): pass
        def test_two(overlay_root): pytest.exit("enough", returncode=9)
        def test_three(overlay_root): pass
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == 9
    result.stdout.fnmatch_lines(["*1 passed*", "*Exit: enough*"])


@pytest.mark.parametrize("attribute", ["shouldstop", "shouldfail"])
def test_the_session_is_told_to_stop(
    pytester: pytest.Pytester, record: Record, attribute: str
) -> None:
    """As a conftest does that ends the session after a failure of a certain kind."""
    pytester.makeconftest(
        f"""
        import pytest

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if report.failed:
                item.session.{attribute} = "that is enough"
            return report
        """
    )
    pytester.makepyfile("def test_one(): pass\ndef test_two(): assert 0\ndef test_three(): pass")
    plain, isolated = (record(option) for option in ("-pno:mountns", "--mountns"))
    assert "that is enough" in isolated.out
    assert "1 failed, 1 passed" in isolated.out
    assert isolated.status == plain.status
    assert isolated.outline == plain.outline


def test_exit_in_a_wider_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.fixture(scope="session")
        def wide(): pytest.exit("not today", returncode=8)
        def test_one(wide, overlay_root): pass
        """
    )
    assert pytester.runpytest_subprocess().ret == 8


def test_internal_errors_stay_internal_errors(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import pytest
        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_makereport(item, call):
            report = yield
            if call.when == "call":
                raise RuntimeError("broken plugin")
            return report
        """
    )
    pytester.makepyfile("def test_one(overlay_root): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert "RuntimeError: broken plugin" in result.stdout.str() + result.stderr.str()


def test_a_reporter_that_fails_is_an_internal_error(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        def pytest_runtest_logreport(report):
            if report.when == "call":
                raise RuntimeError("broken reporter")
        """
    )
    pytester.makepyfile("def test_one(overlay_root): pass\ndef test_two(overlay_root): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    text = result.stdout.str() + result.stderr.str()
    assert "RuntimeError: broken reporter" in text
    assert "ERROR at setup" not in text


def _start(pytester: pytest.Pytester, **options: Any) -> subprocess.Popen[bytes]:
    pytester.makepyfile(SUITE)
    command = [sys.executable, "-m", "pytest", "-s", "-p", "no:cacheprovider"]
    return subprocess.Popen(command, cwd=pytester.path, **options)


def _read_until(fd: int, mark: bytes, data: bytes = b"") -> bytes:
    deadline = time.monotonic() + 60
    while mark not in data:
        ready, _, _ = select.select([fd], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {mark!r} in {data!r}"
        try:
            more = os.read(fd, 65536)
        except OSError:  # a pseudo-terminal without a writer
            more = b""
        assert more, f"no {mark!r} in {data!r}"
        data += more
    return data


def test_sigint_to_pytest_alone(pytester: pytest.Pytester) -> None:
    """As from a supervisor: the test process has not had it and is told."""
    process = _start(pytester, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    data = _read_until(process.stdout.fileno(), b"WAITING")
    process.send_signal(signal.SIGINT)
    data += process.stdout.read()
    process.stdout.close()
    assert process.wait() == pytest.ExitCode.INTERRUPTED
    assert data.count(b"NARROW ENDED") == 1
    assert data.count(b"WIDE ENDED") == 1
    assert b"test_sigint_to_pytest_alone.py:19: KeyboardInterrupt" in data
    assert b"1 passed" in data


def test_ctrl_c_on_a_terminal(pytester: pytest.Pytester) -> None:
    master, slave = pty.openpty()

    def take_terminal() -> None:
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    with pytest.MonkeyPatch.context() as patch:
        # preexec_fn makes subprocess fork, and Python 3.12 warns of that where threads are alive.
        patch.setenv("PYTHONWARNINGS", "default")
        process = _start(
            pytester, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal
        )
    os.close(slave)
    data = _read_until(master, b"WAITING")
    os.write(master, b"\x03")
    data = _read_until(master, b" passed", data)
    assert process.wait() == pytest.ExitCode.INTERRUPTED
    os.close(master)
    assert data.count(b"NARROW ENDED") == 1
    assert data.count(b"WIDE ENDED") == 1


def test_a_test_that_handles_sigint_goes_on(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, signal

        def test_one(overlay_root):
            try:
                os.kill(os.getpid(), signal.SIGINT)
                for _ in range(1000): pass
            except KeyboardInterrupt:
                pass

        def test_two(overlay_root): pass
        """
    )
    assert record().status == 0
