"""An ordinary user's process enters a user namespace early, and tests have no capability of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.compiled import LIBRARY
from tests.helpers.recording import Record

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.skipif(os.geteuid() == 0, reason="root needs no user namespace"),
    pytest.mark.skipif(not LIBRARY.exists(), reason="installed without a C compiler"),
]

INLINE = """
import os, subprocess
import pytest

PID = os.getpid()
KINDS = ("CapEff", "CapPrm", "CapInh", "CapAmb")


def capabilities(status):
    found = dict(line.split(":", 1) for line in status.splitlines())
    return {kind: int(found[kind], 16) for kind in KINDS}


@pytest.mark.parametrize("number", range(6))
def test_inline(number):
    assert os.getpid() == PID
    for tid in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{tid}/status") as file:
            here = capabilities(file.read())
        # What is permitted is needed to leave the sandbox.
        assert here.pop("CapPrm") and not any(here.values()), (tid, here)
    command = ["cat", "/proc/self/status"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not any(capabilities(done.stdout).values())
    os.mkdir("closed", 0)
    with pytest.raises(PermissionError):
        os.listdir("closed")
"""


@pytest.fixture
def process() -> str:
    return "auto"


@pytest.mark.parametrize("workers", [[], ["-n2"]], ids=["alone", "xdist"])
def test_inline_beside_threads_of_other_plugins(
    pytester: pytest.Pytester, record: Record, workers: list[str]
) -> None:
    """pytest-rerunfailures starts one, and so does a conftest file."""
    pytest.importorskip("pytest_rerunfailures")
    pytester.makeconftest(
        """
        import threading
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait)
        thread.start()
        def pytest_unconfigure(): stop.set()
        """
    )
    pytester.makepyfile(INLINE)
    recorded = record("--mountns", "--reruns=1", *workers)
    assert not recorded.not_passed, recorded.out
    assert recorded.status == 0
    assert "inline where possible, in a user namespace" in recorded.out


def test_sessions_in_one_process_share_the_namespace(pytester: pytest.Pytester) -> None:
    """They would nest, and the kernel allows 32 levels."""
    pytester.makepyfile(INLINE)
    program = pytester.makepyfile(
        program="""
        import os, sys
        import pytest

        namespaces = set()
        for number in range(40):
            arguments = ["-q", "--mountns", "--mountns-unavailable=error", "-pno:cacheprovider"]
            # Threads that other plugins have started are still there.
            assert pytest.main([*arguments, sys.argv[1]]) == 0
            namespaces.add(os.readlink("/proc/self/ns/user"))
        assert len(namespaces) == 1
        print("DONE")
        """
    )
    name = "test_sessions_in_one_process_share_the_namespace.py::test_inline[0]"
    result = pytester.run(sys.executable, str(program), name)
    assert result.ret == 0
    assert "DONE" in result.outlines


def test_suites_that_do_not_run_inline_stay_where_they_are(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_where="""
        import os, sys
        def test_where():
            assert os.readlink("/proc/self/ns/user") == os.environ["NAMESPACE"]
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAMESPACE", os.readlink("/proc/self/ns/user"))
        for arguments in ([], ["--no-mountns"]):
            assert pytester.runpytest_subprocess(*arguments).ret == 0


def test_a_root_of_another_owner_is_shown_as_nobodys(
    pytester: pytest.Pytester, record: Record
) -> None:
    """What a user namespace changes for wider fixtures, as docs/usage.md says."""
    pytester.makepyfile(
        """
        import os, pytest
        @pytest.fixture(scope="session")
        def owner(): return os.stat("/").st_uid
        def test_it(owner): assert owner == 65534
        """
    )
    if (
        os.stat("/").st_uid == os.getuid()
        or Path("/proc/self/uid_map").read_text().split()[2] == "1"
    ):
        pytest.skip("this user owns / or is in such a namespace already")
    assert record("--mountns").status == 0
