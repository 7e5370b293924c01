"""Tests whose sandboxes are made while the test before them runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.sandboxes

#: Beside another thread the pytest process makes no root for a forked test.
ALONE = ("-pno:rerunfailures", "-pno:randomly")

#: The pytest process changes the directory of the suite after each test.
CONFTEST = """
import os

def pytest_runtest_logreport(report):
    if report.when == "teardown":
        number = len([name for name in os.listdir(".") if name.startswith("of-host-")])
        os.mkdir(f"of-host-{number}")
        with open("new", "w") as file:
            file.write(str(number))
        os.rename("new", "state")
        os.chmod(".", 0o700 if number % 3 else 0o755)
"""


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_each_test_sees_what_was_changed_before_it(pytester: pytest.Pytester, process: str) -> None:
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize("number", range(12))
        def test(number):
            seen = sorted(name for name in os.listdir(".") if name.startswith("of-"))
            assert seen == sorted(f"of-host-{one}" for one in range(number))
            if number:
                mode = os.stat(".").st_mode & 0o777
                assert mode == (0o700 if (number - 1) % 3 else 0o755)
                with open("state") as file:
                    assert file.read() == str(number - 1)
            with open("state", "w") as file:
                file.write("of the test")
            os.mkdir("of-test")
        """
    )
    pytester.path.chmod(0o755)
    result = pytester.runpytest_subprocess(*ALONE, "--mountns", f"--mountns-process={process}")
    result.assert_outcomes(passed=12)
    assert not (pytester.path / "of-test").exists()


def test_a_test_holds_nothing_of_the_next_ones_sandbox(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However that one runs: it has the same directories and namespaces open as without."""
    pytester.makeini("[pytest]\nmountns_volumes = out")
    pytester.mkdir("out")
    # Plans are made anew when any process of this machine puts something into /dev/shm.
    pytester.makeconftest(
        """
        from pytest_mountns.engine.planning.planner import Planner

        Planner._uses_shm = lambda self: False
        """
    )
    pytester.makepyfile(
        """
        import os, pytest

        def held():
            links = []
            for name in os.listdir("/proc/self/fd"):
                try:
                    link = os.readlink(f"/proc/self/fd/{name}")
                except OSError:
                    continue
                if link.startswith("mnt:") or os.path.isdir(f"/proc/self/fd/{name}"):
                    links.append(link)
            return links

        KINDS = [{"process": "fork"}] * 2 + [
            {"process": "fork", "pid": True},
            {"process": "fork", "tmpfs": ["/mnt"]},
            {"process": "inline"},
            {"process": "module"},
        ]
        MARKS = [pytest.mark.mountns(**kind) for kind in KINDS] + [pytest.mark.no_mountns]
        # Each kind comes after each other kind.
        EACH = range(len(MARKS))
        ORDER = [one for first in EACH for second in EACH for one in (first, second)]

        @pytest.mark.parametrize("kind", [pytest.param(kind, marks=MARKS[kind]) for kind in ORDER])
        def test(kind):
            with open("out/held", "a") as file:
                print(kind, len(held()), file=file)
        """
    )
    found = []
    for left_out in ("", "made_ahead"):
        monkeypatch.setenv("MOUNTNS_ABLATE", left_out)
        result = pytester.runpytest_subprocess(*ALONE)
        result.assert_outcomes(passed=98)
        written = pytester.path / "out" / "held"
        found.append(written.read_text().splitlines())
        written.unlink()
    assert len(found[0]) == 98
    assert found[0] == found[1]


@pytest.mark.skipif(
    os.geteuid() != 0, reason="an ordinary user's test process makes its sandbox itself"
)
def test_a_test_process_is_ended_if_making_the_next_root_is_interrupted(
    pytester: pytest.Pytester,
) -> None:
    """A handler of a signal may raise there, as anywhere."""
    pytester.makeini("[pytest]\nmountns_volumes = out")
    pytester.mkdir("out")
    pytester.makeconftest(
        """
        import os, time
        from pytest_mountns.engine.sandbox.manager import SandboxManager

        def make_ahead(self, sandbox):
            while not os.path.exists("out/pid"):
                time.sleep(0.01)
            raise KeyboardInterrupt

        SandboxManager.make_ahead = make_ahead
        """
    )
    pytester.makepyfile(
        """
        import os, time

        def test_first():
            with open("out/new", "w") as file:
                file.write(str(os.getpid()))
            os.rename("out/new", "out/pid")
            time.sleep(60)

        def test_second():
            pass
        """
    )
    result = pytester.runpytest_subprocess(*ALONE, "--mountns", "--mountns-process=fork")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    pid = (pytester.path / "out" / "pid").read_text()
    assert not Path(f"/proc/{pid}").exists()
