"""A bundle is replayed on another release of Debian, with a Python and a pytest of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_mountns
from tests.helpers.debian import MARKS, bootstrap
from tests.helpers.kept import bundles, command

pytestmark = MARKS

SUITE = """
import os, random, subprocess

def test_it(overlay_root):
    drawn = random.getrandbits(64)
    os.makedirs("/opt/greeter", exist_ok=True)
    with open("/opt/greeter/log", "a") as file:
        file.write("once")
    os.remove("/etc/debian_version")
    found = subprocess.run(["cat", "/opt/greeter/log"], capture_output=True, text=True).stdout
    assert found == "twice", drawn
"""

#: A mount of its own, as the root of a container is: then what a chroot shows is complete.
ENTER = """
set -e
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount -t tmpfs tmp "$1/tmp"
mount -t devtmpfs dev "$1/dev"
root=$1; shift
code="import sys; from pytest_mountns.cli.main import main; sys.exit(main())"
exec chroot "$root" python3 -c "$code" "$@"
"""


def test_the_same_failure(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(SUITE)
    pytester.runpytest_subprocess("-p", "pytest_mountns.plugin", "--mountns-keep=failed")
    (bundle,) = bundles(pytester.path / ".mountns")
    said = re.findall(
        "AssertionError: [0-9]+|'once' == 'twice'", (bundle / "report.txt").read_text()
    )
    assert len(said) == 2
    root = pytester.path / "root"
    bootstrap(root, "python3", "python3-pytest", "python3-filelock", "zstd")
    package = Path(pytest_mountns.__file__).parent
    shutil.copytree(package, root / "usr/lib/python3/dist-packages/pytest_mountns")
    there = root / str(pytester.path).strip("/")
    shutil.copytree(pytester.path, there, ignore=shutil.ignore_patterns("root"))
    words = ["sh", "-c", ENTER, "sh", str(root), "replay"]
    enter = ["unshare", "--mount", "--pid", "--fork", "--propagation", "private", *words]
    done = subprocess.run([*enter, str(bundle)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "1 failed in" in done.stdout
    for text in said:
        assert text in done.stdout
    # The command says that this is not the root that the test had.
    assert re.search("^  system: .* in the bundle, Debian .* here$", done.stderr, re.MULTILINE)
    assert f"  Python version: {'.'.join(map(str, sys.version_info[:3]))} then" in done.stderr
    assert (root / "etc/debian_version").exists()
    assert not (root / "opt/greeter").exists()
    # This Python, in that root.
    other = command("replay", "--root", str(root), str(bundle))
    assert other.returncode == 1, other.stderr
    for text in said:
        assert text in other.stdout
    on_top = subprocess.run(
        [*enter, "--from-end", str(bundle)], capture_output=True, text=True, check=False
    )
    # The layer was written on the other release, and is put on this one.
    assert "FileNotFoundError" in on_top.stdout
    assert "debian_version" in on_top.stdout
