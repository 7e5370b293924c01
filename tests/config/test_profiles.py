"""Profiles: `[tool.mountns]` and `[tool.mountns.profiles.NAME]` of pyproject.toml."""

from __future__ import annotations

import subprocess
import sys

import pytest

SUITE = """
    import pytest

    @pytest.fixture
    def spec(request):
        return request.node.spec

    def test_plain(spec):
        print(f"plain: {spec.process} {spec.size} {[v.target for v in spec.volumes]}")

    @pytest.mark.mountns("small")
    def test_named(spec):
        print(f"named: {spec.process} {spec.size} {[v.target for v in spec.volumes]}")

    @pytest.mark.mountns("small", size="3m", volumes=[".:/tmp/marker"])
    def test_both(spec):
        print(f"both: {spec.process} {spec.size} {[v.target for v in spec.volumes]}")
"""

CONFTEST = """
    def pytest_mountns_spec(item, spec):
        item.spec = spec
"""

PYPROJECT = """
[tool.mountns]
mountns = true
unavailable = "error"
changes = "all"
size = "9m"
volumes = [".:/tmp/default"]

[tool.mountns.profiles.small]
description = "little room"
size = "1m"
volumes = [".:/tmp/profile"]

[tool.mountns.profiles.inline]
process = "inline"
"""
M = 1 << 20


def lines(result: pytest.RunResult) -> dict[str, str]:
    found = {}
    for line in result.outlines:
        for name in ("plain", "named", "both"):
            _, mark, rest = line.partition(f"{name}: ")
            if mark:
                found[name] = rest
    return found


@pytest.mark.sandboxes
def test_precedence(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", pyproject=PYPROJECT)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(SUITE)
    assert lines(pytester.runpytest_subprocess("-s")) == {
        "plain": f"auto {9 * M} ['/tmp/default']",
        "named": f"fork {M} ['/tmp/default', '/tmp/profile']",
        "both": f"fork {3 * M} ['/tmp/default', '/tmp/profile', '/tmp/marker']",
    }
    # The command line wins over a profile, and a mark's profile over that of the command line.
    options = ("-s", "--mountns-profile=inline", "--mountns-volume=.:/tmp/option")
    assert lines(pytester.runpytest_subprocess(*options)) == {
        "plain": f"inline {9 * M} ['/tmp/default', '/tmp/option']",
        "named": f"fork {M} ['/tmp/default', '/tmp/profile', '/tmp/option']",
        "both": f"fork {3 * M} ['/tmp/default', '/tmp/profile', '/tmp/option', '/tmp/marker']",
    }
    pytester.makeini("[pytest]\nmountns_process = inline\nmountns_profile = small\n")
    assert lines(pytester.runpytest_subprocess("-s", "--mountns-process=fork"))["plain"] == (
        f"fork {M} ['/tmp/default', '/tmp/profile']"
    )
    assert lines(pytester.runpytest_subprocess("-s"))["plain"].startswith(f"inline {M}")
    out = pytester.runpytest_subprocess("--mountns-profile=inline").stdout
    out.fnmatch_lines(["mountns: every test in a sandbox of its own (*inline*"])


@pytest.mark.sandboxes
def test_workers_know_them(pytester: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    pytester.makefile(".toml", pyproject=PYPROJECT)
    pytester.makepyfile(
        """
        import os, pytest

        @pytest.mark.parametrize("x", range(2))
        def test_it(x, overlay_root):
            status = os.statvfs(".")
            assert status.f_blocks * status.f_frsize == 1 << 20
        """
    )
    result = pytester.runpytest_subprocess("-n2", "--mountns-profile=small")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "[tool.mountns.profiles.x]\ncolour = 3",
            "[tool.mountns.profiles.x]: unknown key 'colour'; valid keys: process, scope,",
        ),
        (
            '[tool.mountns.profiles.x]\npid = "yes"',
            "[tool.mountns.profiles.x]: pid='yes': must be True or False, not str",
        ),
        (
            '[tool.mountns]\nsize = "big"',
            "[tool.mountns]: size='big': 'big' is not a size",
        ),
        ("[tool.mountns]\nkeep = 3", "[tool.mountns]: keep=3: must be a string"),
        ('[tool.mountns]\nkeep = "some"', "'some' is not valid; choose from: failed, all, none"),
        ("[tool.mountns]\nprofiles = 3", "[tool.mountns.profiles] must have a table"),
        (
            "[tool.mountns]\nkeep = 3\nsise = 1\n[tool.mountns.profiles.x]\nnett = 1\npid = 1",
            "pyproject.toml: [tool.mountns.profiles.x]: pid=1: must be True or False, not int",
        ),
        (
            "[tool.mountns]\nkeep = 3\nsise = 1\n[tool.mountns.profiles.x]\nnett = 1\npid = 1",
            "pyproject.toml: [tool.mountns]: unknown key 'sise'; valid keys: process, scope,",
        ),
        ("[tool.mountns\n", "pyproject.toml: "),
        ('[tool.mountns]\nprofile = "none"', "there is no [tool.mountns.profiles.none]"),
    ],
)
def test_what_is_wrong_is_said(pytester: pytest.Pytester, table: str, message: str) -> None:
    pytester.makefile(".toml", pyproject=table)
    pytester.makepyfile("def test_it(): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    text = result.stderr.str()
    assert message in text
    if "not valid" not in message:
        assert str(pytester.path / "pyproject.toml") in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        ("'none'", "there is no [tool.mountns.profiles.none]; profiles there: small, inline"),
        ("3", "the profile must be given by its name, not as 3"),
        ("'small', 'inline'", "takes at most one profile, not 2"),
    ],
)
def test_marks_with_a_wrong_profile(pytester: pytest.Pytester, mark: str, message: str) -> None:
    pytester.makefile(".toml", pyproject=PYPROJECT)
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.mark.mountns({mark})
        def test_marked(): pass
        """
    )
    result = pytester.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "::test_marked: @pytest.mark.mountns: " in result.stderr.str()
    assert message in result.stderr.str()


def listed(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from pytest_mountns.cli.main import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", program, "profiles", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_lists_them(pytester: pytest.Pytester) -> None:
    pytester.makefile(".toml", pyproject=PYPROJECT)
    below = pytester.mkdir("below")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(below)
        done = listed()
    assert done.returncode == 0
    assert done.stdout.split("\n\n")[:2] == [
        "@pytest.mark.mountns(\"small\"): size='1m', volumes=['.:/tmp/profile']\n    little room",
        "@pytest.mark.mountns(\"inline\"): process='inline'",
    ]
    (pytester.path / "pyproject.toml").write_text("[tool.mountns.profiles.x]\ncolour = 1")
    done = listed(str(pytester.path / "pyproject.toml"))
    assert done.returncode == 2
    assert "unknown key 'colour'" in done.stderr
