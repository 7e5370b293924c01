"""``--mountns-unavailable=guard``: no sandbox can be made, and tests run where Landlock guards."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from pytest_mountns.engine.linux.landlock import NETWORK_ABI
from pytest_mountns.engine.probe.guard import probe_guard

ROOT = Path(__file__).parents[2]

SUITE = """
import multiprocessing, os, subprocess, tempfile, threading
from pathlib import Path

OUTSIDE = Path(__file__).with_name("outside")

def test_pure(): pass

def test_tmp_path(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "file").write_text("x")
    os.chmod(tmp_path / "file", 0o600)
    os.truncate(tmp_path / "file", 0)
    os.rename(tmp_path / "file", tmp_path / "a" / "file")

def test_temporary_file():
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "file").write_text("x")

def test_what_programs_write(tmp_path):
    script = "echo > /dev/null; echo x > /dev/stderr; echo x > file"
    subprocess.run(["sh", "-c", script], check=True, cwd=tmp_path)

def test_pool():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(abs, [-1]) == [1]

def test_threads_are_guarded():
    errors = []
    def write():
        try: OUTSIDE.write_text("x")
        except PermissionError as error: errors.append(error.filename)
    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    assert errors == [str(OUTSIDE)]

def test_programs_are_guarded():
    for script in (f"echo > {OUTSIDE}", f"mkdir {OUTSIDE}", f"ln -s / {OUTSIDE}"):
        assert subprocess.run(["sh", "-c", script]).returncode

def test_refused():
    OUTSIDE.write_text("x")

def test_refused_to_a_program():
    subprocess.run(["sh", "-c", "echo > outside"], check=True)

def test_sandbox(overlay_root): pass
"""


def run(pytester: pytest.Pytester, *arguments: str, landlock: bool = True) -> pytest.RunResult:
    """Run pytest with a guard, where neither namespaces nor mounts are allowed."""
    if landlock and not probe_guard().abi:
        pytest.skip(f"no Landlock here: {probe_guard().trial.kernel}")
    launcher = [sys.executable, "-m", "tests.helpers.confined"]
    launcher += [] if landlock else ["--no-landlock"]
    options = ["--mountns", "--mountns-unavailable=guard", "-rs", "-vv"]
    return pytester.run(*launcher, sys.executable, "-m", "pytest", *options, *arguments)


@pytest.fixture(autouse=True)
def _import_helpers(monkeypatch: pytest.MonkeyPatch, pytester: pytest.Pytester) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "500")


def _sections(result: pytest.RunResult) -> list[str]:
    """The plugin's sections of reports."""
    return re.findall(r"-+ mountns -+\n(.*)", result.stdout.str())


@pytest.mark.parametrize("workers", [[], ["-pxdist", "-n2"]], ids=["one", "xdist"])
def test_a_suite_of_ten(pytester: pytest.Pytester, workers: list[str]) -> None:
    if workers:
        pytest.importorskip("xdist")
    file = pytester.makepyfile(SUITE)
    result = run(pytester, *workers)
    result.assert_outcomes(passed=7, failed=2, skipped=1)
    outside = file.with_name("outside")
    assert not outside.exists()
    said = _sections(result)
    assert len(said) == 2
    assert all(one.startswith(f"EACCES: {outside}: refused by the guard") for one in said)
    result.stdout.fnmatch_lines(
        [
            "SKIPPED*this machine cannot isolate tests*",
            "*a guard is not enough: the test asks for a sandbox*",
            "mountns: 9 tests guarded, not isolated, 1 skipped*",
        ]
    )
    if not workers:
        result.stdout.fnmatch_lines("mountns: guarded, not isolated (*chmod*not covered")


def test_what_may_be_written(pytester: pytest.Pytester) -> None:
    for name in ("volume", "tree", "other"):
        pytester.mkdir(name)
    Path("log.txt").write_text("")
    pytester.makepyfile(
        """
        import pytest
        from pathlib import Path

        HERE = Path(__file__).parent
        allowed = pytest.mark.mountns(writes=[f"{HERE}/tree/**", f"{HERE}/*.txt"])

        def test_volume(): Path("volume/new").write_text("x")

        @allowed
        def test_tree(): Path("tree/new").write_text("x")

        @allowed
        def test_file(): Path("log.txt").write_text("x")

        @allowed
        def test_new_file(): Path("new.txt").write_text("x")

        @allowed
        def test_other(): Path("other/new").write_text("x")

        def test_tree_of_another_test(): Path("tree/other").write_text("x")
        """
    )
    result = run(pytester, "--mountns-volume", "volume")
    result.assert_outcomes(passed=3, failed=3)
    assert sorted(str(path) for path in Path().rglob("new*")) == ["tree/new", "volume/new"]
    assert Path("log.txt").read_text() == "x"
    new, other, tree = _sections(result)
    assert new.startswith(f"EACCES: {pytester.path}/new.txt (writes= allows it by a pattern")
    assert f"{pytester.path}/other/new: refused" in other
    assert f"{pytester.path}/tree/other: refused" in tree


def test_many_different_guards(pytester: pytest.Pytester) -> None:
    """What is kept for tests that may write to the same places does not use up the descriptors."""
    pytester.makepyfile(
        """
        import pytest, resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

        def each(number):
            return pytest.param(number, marks=pytest.mark.mountns(writes=[f"/srv/{number}"]))

        @pytest.mark.parametrize("number", map(each, range(120)))
        def test(number): pass
        """
    )
    run(pytester).assert_outcomes(passed=120)


def test_what_fails_for_a_moment_is_tried_again(pytester: pytest.Pytester) -> None:
    """A machine that had no memory when it was first tried can guard the tests after that."""
    pytester.makeconftest(
        """
        import errno
        from pathlib import Path
        from pytest_mountns.engine.linux import syscalls
        from pytest_mountns.engine.linux.errors import SyscallError

        create = syscalls.landlock_create_ruleset

        def fail_once(attributes):
            if not Path("failed").exists():
                Path("failed").touch()
                raise SyscallError(errno.ENOMEM, "landlock_create_ruleset()")
            return create(attributes)

        syscalls.landlock_create_ruleset = fail_once
        """
    )
    pytester.makepyfile("def test(): pass")
    result = run(pytester)
    assert Path("failed").exists()
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines("mountns: 1 test guarded, not isolated*")


def test_what_a_guard_cannot_give_is_skipped(pytester: pytest.Pytester) -> None:
    directory = pytester.mkdir("directory")
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mountns
        def test_mark(): raise SystemExit("ran bare")

        @pytest.mark.mountns(writes=[], volumes=["{directory}:/elsewhere"])
        def test_more_than_writes(): raise SystemExit("ran bare")

        def test_fixture_in_the_middle(request):
            request.getfixturevalue("overlay_root")
            raise SystemExit("ran bare")
        """
    )
    result = run(pytester)
    result.assert_outcomes(skipped=3)
    assert "ran bare" not in result.stdout.str()
    result.stdout.fnmatch_lines("SKIPPED*overlay_root: this machine cannot isolate tests, only*")


def test_a_setting_of_all_tests_that_needs_a_sandbox(pytester: pytest.Pytester) -> None:
    pytester.makepyfile('def test(): raise SystemExit("ran bare")')
    pytester.makepyprojecttoml("[tool.mountns]\npid = true\n")
    result = run(pytester)
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines("*a guard is not enough: pid=True needs a sandbox*")


@pytest.mark.parametrize(("ci", "outcome"), [(False, "skipped"), (True, "errors")])
def test_without_landlock(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: bool, outcome: str
) -> None:
    if ci:
        monkeypatch.setenv("CI", "true")
    pytester.makepyfile('def test(): raise SystemExit("ran bare")')
    result = run(pytester, landlock=False)
    result.assert_outcomes(**{outcome: 1})
    assert "ran bare" not in result.stdout.str()
    result.stdout.fnmatch_lines("mountns: not possible here (*), and no guard either (*ENOSYS*")
    result.stdout.fnmatch_lines("*no guard is possible either: *ENOSYS*Linux 5.13 or later*")


NETWORK = """
import socket

def test_pair():
    one, other = socket.socketpair()
    one.send(b"x")
    assert other.recv(1) == b"x"

def test_bind(): socket.create_server(("127.0.0.1", 0))
"""


def test_no_network(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(NETWORK)
    pytester.makepyprojecttoml('[tool.mountns]\nnetwork = "none"\n')
    result = run(pytester)
    if probe_guard().abi < NETWORK_ABI:
        result.assert_outcomes(skipped=2)
        result.stdout.fnmatch_lines('*network="none" needs a sandbox, or Linux 6.7*')
        return
    result.assert_outcomes(passed=1, failed=1)
    (said,) = _sections(result)
    assert "refuses every TCP connection" in said


@pytest.mark.parametrize(
    ("abi", "uncovered"), [(2, "setxattr, truncate are"), (3, "utime, setxattr are")]
)
def test_what_an_older_interface_lacks_is_said(
    pytester: pytest.Pytester, abi: int, uncovered: str
) -> None:
    """Before Linux 6.7 there are no rights for TCP, before 6.2 none for truncate(2)."""
    if 0 < probe_guard().abi < abi:
        pytest.skip("this kernel's interface is older still")
    pytester.makeconftest(
        f"""
        from pytest_mountns.engine.linux import syscalls

        syscalls.landlock_abi = lambda: {abi}
        """
    )
    pytester.makepyfile(NETWORK)
    result = run(pytester)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(f"mountns: guarded, not isolated (*chmod*{uncovered} not covered")
    pytester.makepyprojecttoml('[tool.mountns]\nnetwork = "none"\n')
    result = run(pytester)
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines('*network="none" needs a sandbox, or Linux 6.7*')


def test_temporary_directories_of_wider_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest, tempfile
        from pathlib import Path

        @pytest.fixture(scope="module")
        def place():
            with tempfile.TemporaryDirectory() as directory:
                yield Path(directory)

        @pytest.mark.parametrize("number", [1, 2])
        def test(place, number): (place / str(number)).write_text("x")
        """
    )
    run(pytester).assert_outcomes(passed=2)
    run(pytester, "-p", "no:tmpdir").assert_outcomes(passed=2)


def test_a_death_and_another_attempt(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("import os\ndef test(): os._exit(3)\ndef test_next(): pass")
    result = run(pytester)
    result.assert_outcomes(passed=1, failed=1)
    assert "the test process exited with status 3" in result.stdout.str()


def test_a_refusal_of_somebody_else_is_not_explained(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_missing(): open("/no such directory/file", "w")
        def test_other(tmp_path): raise PermissionError(13, "Permission denied", str(tmp_path))
        """
    )
    result = run(pytester)
    result.assert_outcomes(failed=2)
    assert not _sections(result)


def test_an_audit_needs_sandboxes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile('def test(): raise SystemExit("ran bare")')
    run(pytester, "--mountns-audit").assert_outcomes(skipped=1)


@pytest.mark.sandboxes
def test_where_sandboxes_can_be_made_there_is_no_guard(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test(): open('outside', 'w').close()")
    result = pytester.runpytest_subprocess("--mountns", "--mountns-unavailable=guard")
    result.assert_outcomes(passed=1)
    assert "guarded" not in result.stdout.str()
    assert not Path("outside").exists()
