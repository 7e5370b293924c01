"""Machines that cannot isolate: tests are skipped or fail, never run bare, and are told why."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from tests.helpers.worlds import skip_unless

pytestmark = pytest.mark.sandboxes

SUITE = """
import pytest
def test_unmarked(): pass
@pytest.mark.mountns
def test_marked(): raise SystemExit("ran bare")
def test_by_fixture(overlay_root): raise SystemExit("ran bare")
"""

#: Without CAP_SYS_ADMIN and without any user namespace to get it in.
NO_NAMESPACES = (
    "unshare", "--user", "--map-root-user", "--",
    "sh", "-c",
    'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-sys_admin'
    ' --inh-caps=-sys_admin "$@"',
    "sh",
)  # fmt: skip


def run(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} (util-linux) is not here")
    return pytester.run(
        *NO_NAMESPACES, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options
    )


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_skipped_with_reason_and_remedy(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = run(pytester, "-rs", "-vv")
    assert result.ret == 0
    result.assert_outcomes(passed=1, skipped=2)
    text = result.stdout.str()
    assert "cannot isolate tests" in text
    assert "EPERM" in text or "ENOSPC" in text
    assert "remedy" in text


@pytest.mark.no_mountns(reason="writes to /proc/sys")
@pytest.mark.parametrize("how", ["option", "CI"])
def test_an_error_where_that_is_wanted(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    pytester.makepyfile(SUITE)
    if how == "CI":
        monkeypatch.setenv("CI", "true")
    result = run(pytester, *(["--mountns-unavailable=error"] if how == "option" else []))
    assert result.ret == 1
    result.assert_outcomes(passed=1, errors=2)
    assert "ran bare" not in result.stdout.str()


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_everything_can_be_skipped(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(SUITE)
    result = run(pytester, "--mountns")
    result.assert_outcomes(skipped=3)
    assert "not possible here" in result.stdout.str()


@pytest.mark.no_mountns(reason="writes to /proc/sys")
def test_doctor_says_what_fails(pytester: pytest.Pytester) -> None:
    result = run(pytester, "--mountns-doctor")
    assert result.ret == 1
    text = result.stdout.str()
    assert "FAILED" in text
    assert "the kernel said" in text
    assert "remedy" in text
    assert "cannot be isolated here" in text


def test_doctor_is_content(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("--mountns-doctor")
    assert result.ret == 0
    assert "tests can be isolated here" in result.stdout.str()
    assert "FAILED" not in result.stdout.str()


def test_root_without_sys_admin_uses_a_user_namespace(pytester: pytest.Pytester) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    skip_unless("user")
    pytester.makepyfile(
        """
        import os
        from pathlib import Path

        def test_one(overlay_root):
            (Path.home() / "file of a sandbox").write_text("x")
        """
    )
    result = pytester.run(
        "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin",
        sys.executable, "-m", "pytest", "-p", "no:cacheprovider",
    )  # fmt: skip
    result.assert_outcomes(passed=1)
    assert not os.path.exists(os.path.expanduser("~/file of a sandbox"))
