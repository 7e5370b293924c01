"""The marker and the options: what they accept, refuse, and say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.helpers.recording import Record
from tests.helpers.terminals import without_summary


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("sise='64m'", ["unknown key 'sise'", "size"]),
        ("scope='wide'", ["function", "session"]),
        ("process='thread'", ["fork"]),
        ("size='many'", ["is not a size", "64m"]),
        ("size=True", ["bytes"]),
        ("inodes='x'", ["whole number"]),
        ("upper='tape'", ["memory", "disk"]),
        ("upper='disk', size='1m'", ["cannot limit an upper on disk"]),
        ("pid=1", ["True or False"]),
        ("volumes='/a:/b'", ["a list"]),
        ("volumes=[3]", ["a string"]),
        ("volumes=['/a:b']", ["not an absolute path"]),
        ("volumes=['/a:/b/../../c']", ["leads outside"]),
        ("volumes=['/a:/proc']", ["outside"]),
        ("volumes=['/a:/']", ["whole root"]),
        ("volumes=['/a:/b', '/c:/b']", ["two mounts want /b"]),
        ("tmpfs=['/a:color=red']", ["not an option"]),
        ("'strict'", ["there is no [tool.mountns.profiles.strict]"]),
    ],
)
def test_bad_marks_end_the_session_before_any_test(
    pytester: pytest.Pytester, mark: str, words: list[str]
) -> None:
    pytester.makepyfile(
        f"""
        import pytest
        def test_good(): pass
        @pytest.mark.mountns({mark})
        def test_marked(): pass
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str() + result.stdout.str()
    assert "::test_marked" in text
    for word in words:
        assert word in text
    assert "passed" not in text


def usage_error(pytester: pytest.Pytester) -> list[str]:
    """The lines of the error that ends a session before its first test."""
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "passed" not in result.stdout.str()
    return result.errlines


def test_all_keys_that_are_wrong_are_named(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        pytestmark = pytest.mark.mountns(inodes=0, pid=1)
        @pytest.mark.mountns("strict", sise=1, nett="none", size="many", pid=True)
        def test_marked(): pass
        """
    )
    assert [line.partition("; ")[0] for line in usage_error(pytester) if line] == [
        "ERROR: test_it.py::test_marked: @pytest.mark.mountns:",
        f"  {pytester.path}/pyproject.toml: there is no [tool.mountns.profiles.strict]",
        "  unknown keys 'sise', 'nett'",
        "  size='many': 'many' is not a size",
        '    remedy: write bytes or a suffix, as 4096, "512k", "64m", "1g"',
        "  inodes=0: must be a whole number above 0",
    ]


def test_one_bad_mark_does_not_hide_another(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        @pytest.mark.mountns(leaks="loud")
        def test_one(): pass
        @pytest.mark.parametrize("x", range(30))
        @pytest.mark.mountns(upper="tape", scope="wide")
        def test_many(x): pass
        def test_good(overlay_root): pass
        @pytest.mark.mountns(size="1m", upper="disk")
        def test_last(): pass
        """
    )
    lines = [line for line in usage_error(pytester) if line]
    assert lines[:9] == [
        "ERROR: 32 tests have marks that are not valid:",
        "  test_it.py::test_one: @pytest.mark.mountns: leaks='loud': choose from:"
        " 'ignore', 'warn', 'error'",
        "  test_it.py::test_many[0]: @pytest.mark.mountns:",
        "    upper='tape': choose from: 'memory', 'disk'",
        "    scope='wide': choose from: 'function', 'class', 'module', 'package', 'session'",
        "  test_it.py::test_last: @pytest.mark.mountns: size and inodes cannot limit an upper on"
        " disk",
        '    remedy: leave out upper="disk", or the limits',
        "  test_it.py::test_many[1]: the same problem as test_it.py::test_many[0]",
        "  test_it.py::test_many[2]: the same problem as test_it.py::test_many[0]",
    ]
    # Of 32 tests 20 are listed.
    assert lines[-1] == "  and 12 more"
    assert sum("::" in line for line in lines) == 20


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--mountns-process=thread", ["mountns_process", "fork"]),
        ("--mountns-unavailable=maybe", ["skip, error, guard"]),
        ("--mountns-volume=nonsense::", ["is not a volume", "SRC:DST"]),
    ],
)
def test_bad_options(pytester: pytest.Pytester, option: str, words: list[str]) -> None:
    pytester.makepyfile("def test_one(): pass")
    result = pytester.runpytest_subprocess(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    for word in words:
        assert word in result.stderr.str()


@pytest.mark.sandboxes
def test_a_volume_that_is_not_there(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import pytest
        @pytest.mark.mountns(volumes=["/no/such/directory:/mnt"])
        def test_one(): pass
        """
    )
    recorded = record()
    failed = recorded.failed[0]
    assert failed.when == "setup"
    assert "there is no /no/such/directory" in failed.text
    assert "mkdir -p" in failed.text


def test_markers_are_listed_with_their_keys(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--markers")
    result.stdout.fnmatch_lines(["@pytest.mark.mountns(profile=None, /, *, process=*"])
    result.stdout.fnmatch_lines(["@pytest.mark.no_mountns(reason=None)*"])


@pytest.mark.sandboxes
def test_nearest_mark_wins_key_by_key(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import os, pytest

        pytestmark = pytest.mark.mountns(size="8m", pid=True)

        def size():
            return os.statvfs(os.path.expanduser("~")).f_blocks * 4096

        class TestIt:
            pytestmark = pytest.mark.mountns(size="4m")

            def test_class(self):
                assert (size(), os.getpid()) == (4 << 20, 2)

            @pytest.mark.mountns(pid=False)
            def test_function(self):
                assert size() == 4 << 20
                assert os.getpid() != 2

        def test_module():
            assert size() == 8 << 20
        """
    )
    assert record().status == 0


@pytest.mark.sandboxes
def test_who_is_isolated_and_how(pytester: pytest.Pytester) -> None:
    """A test that asks for a sandbox itself has a process of its own; others run inline."""
    pytester.makepyfile(
        """
        import os, pytest
        HOME = os.getpid()

        @pytest.mark.mountns
        def test_marked(): assert os.getpid() != HOME
        def test_by_fixture(overlay_root): assert os.getpid() != HOME
        def test_unmarked():
            # Inline, in a mount namespace of its own.
            assert os.getpid() == HOME
            here = os.readlink("/proc/thread-self/ns/mnt")
            assert (here != os.environ["HOST"]) == ("EVERY" in os.environ)
        @pytest.mark.no_mountns(reason="measures the host")
        def test_kept_out(): assert os.getpid() == HOME
        """
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOST", os.readlink("/proc/thread-self/ns/mnt"))
        assert pytester.runpytest_subprocess().ret == 0
        patch.setenv("EVERY", "1")
        assert pytester.runpytest_subprocess("--mountns").ret == 0
        pytester.makeini("[pytest]\nmountns = true")
        assert pytester.runpytest_subprocess().ret == 0


def test_turned_off_is_skipped_never_bare(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(
        """
        import pytest
        def test_unmarked(): pass
        @pytest.mark.mountns
        def test_marked(): raise SystemExit("ran bare")
        def test_by_fixture(overlay_root): raise SystemExit("ran bare")
        """
    )
    recorded = record("--no-mountns", "-rs")
    assert recorded.status == 0
    assert "1 passed, 2 skipped" in recorded.out
    assert "--no-mountns" in recorded.out


@pytest.mark.sandboxes
def test_volume_option_is_for_every_sandbox(
    pytester: pytest.Pytester, record: Record, tmp_path: Path
) -> None:
    source = tmp_path / "host"
    source.mkdir()
    pytester.makepyfile(
        f"""
        import pytest
        from pathlib import Path
        TARGET = Path.home() / "shown"

        def test_one(overlay_root): (TARGET / "written").write_text("by a test")
        @pytest.mark.mountns(volumes=["{source}:" + str(TARGET / ".." / ".x").replace("/..", "")])
        def test_two(): assert (TARGET / "written").read_text() == "by a test"
        """
    )
    assert record(f"--mountns-volume={source}:{Path.home() / 'shown'}").status == 0
    assert (source / "written").read_text() == "by a test"


@pytest.mark.sandboxes
def test_header(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_one(): pass")
    assert "mountns: every test" in pytester.runpytest_subprocess("--mountns").stdout.str()
    assert "mountns: off" in pytester.runpytest_subprocess("--no-mountns").stdout.str()
    assert "mountns:" not in without_summary(pytester.runpytest_subprocess().stdout.str())


def test_bad_marks_reach_an_xdist_user(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makepyfile("import pytest\n@pytest.mark.mountns(sise=1)\ndef test_marked(): pass")
    result = pytester.runpytest_subprocess("-pxdist", "-n1")
    assert result.ret != 0
    assert "unknown key 'sise'" in result.stderr.str() + result.stdout.str()


@pytest.mark.sandboxes
@pytest.mark.parametrize("process", ["fork", "inline"])
def test_volumes_of_the_project_are_made(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    """A directory for results of a suite is often not there in a fresh clone."""
    pytester.makeini("[pytest]\nmountns_volumes = build/results")
    pytester.makepyfile(
        """
        def test_it():
            with open("build/results/file", "w") as file:
                file.write("kept")
        """
    )
    assert record("-pno:rerunfailures", "--mountns").status == 0
    assert (pytester.path / "build/results/file").read_text() == "kept"


@pytest.mark.sandboxes
@pytest.mark.parametrize("workers", [(), ("-pxdist", "-n2")], ids=["alone", "xdist"])
def test_volumes_that_were_made_and_not_used_are_removed(
    pytester: pytest.Pytester, record: Record, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    pytester.makeini("[pytest]\nmountns_volumes =\n    build/empty\n    build/used\n    other/one")
    pytester.makepyfile(
        """
        def test_one(): open("build/used/file", "w").close()
        def test_other(): pass
        """
    )
    assert record("--mountns", *workers).status == 0
    assert (pytester.path / "build/used/file").exists()
    assert not (pytester.path / "build/empty").exists()
    assert not (pytester.path / "other").exists()


def test_volumes_elsewhere_are_not_made(
    pytester: pytest.Pytester, record: Record, tmp_path: Path
) -> None:
    pytester.makepyfile("def test_it(): pass")
    recorded = record("--mountns", f"--mountns-volume={tmp_path}/missing:/mnt")
    assert recorded.status == 1
    assert "create it before the tests run" in recorded.out
    assert not (tmp_path / "missing").exists()
