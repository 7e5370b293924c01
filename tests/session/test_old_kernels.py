"""What an older kernel lacks is not tried: the refusal names the version that has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.no_mountns(reason="an ordinary user's sandboxes do not nest by mount(2)"),
]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _import_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "500")


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(f"import pytest\n{body}")
    launcher = [sys.executable, "-m", "tests.helpers.old_kernel"]
    options = ["--mountns-unavailable=error", "-p", "no:cacheprovider"]
    return pytester.run(*launcher, sys.executable, "-m", "pytest", *options)


@pytest.mark.parametrize(
    ("call", "version"),
    [
        ("with overlay_root.checkpoint(): RAN()", "6.15"),
        ("for crash in overlay_root.crashes(RAN): RAN()", "6.15"),
        ("for fault in overlay_root.fault_points(RAN): RAN()", "6.15"),
        ("overlay_root.add_layer('layer')", "6.15"),
        ("bind_volume('/usr', '/mnt')", "5.12"),
    ],
    ids=["checkpoint", "crashes", "fault_points", "add_layer", "bind_volume"],
)
def test_what_a_test_calls(pytester: pytest.Pytester, call: str, version: str) -> None:
    pytester.mkdir("layer")
    result = run(
        pytester,
        f"""
def RAN(): print("has" " run")
def test(overlay_root, bind_volume):
    {call}
""",
    )
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    assert f"before Linux {version}" in text
    assert f"remedy: Linux {version} or later" in text
    assert "has run" not in text


def test_crashes_say_what_works_without_checkpoints(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test(overlay_root): list(overlay_root.crashes(print))")
    result.stdout.fnmatch_lines(["*mountns: crash a function", "*faults() and the key faults=*"])


def test_wider_fixtures_are_not_set_up(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
@pytest.fixture(scope="module")
def wide(): print("has" " run")

@pytest.mark.mountns(scope="module")
def test(wide): pass
""",
    )
    result.assert_outcomes(errors=1)
    text = result.stdout.str()
    assert "capture what fixtures of module scope write" in text
    assert "remedy: Linux 6.15 or later" in text
    assert "has run" not in text


def test_calls_that_fail(pytester: pytest.Pytester) -> None:
    """They need no mount, and no newer kernel."""
    result = run(
        pytester,
        """
@pytest.mark.mountns(faults=["mkdir:**/one:EIO"])
def test(overlay_root, tmp_path):
    with pytest.raises(OSError, match="Input/output error"):
        (tmp_path / "one").mkdir()

def test_context(overlay_root, tmp_path):
    with overlay_root.faults("mkdir:**/two:EIO"):
        with pytest.raises(OSError, match="Input/output error"):
            (tmp_path / "two").mkdir()
    (tmp_path / "two").mkdir()
""",
    )
    result.assert_outcomes(passed=2)
