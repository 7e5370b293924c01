"""What installers do, by their usual commands, for an ordinary user who is shown as root.

On the host's own root, and in an image of another system: the environment variable MOUNTNS_IMAGE
names a Debian of which there is an archive or directory. The host stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_mountns.engine.probe.subordinate_ids import probe_subordinate_ids
from tests.test_shown_as_root import HOST, run, seen

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.no_mountns(reason="an ordinary user's sandboxes do not nest so deep"),
    pytest.mark.skipif(os.geteuid() == 0, reason="about ordinary users"),
    pytest.mark.usefixtures("shared_copies"),
]

WATCHED = (*HOST, "/usr/bin", "/usr/local", "/etc/shadow", "/var/lib/dpkg", "/var/lib/dpkg/status")


@pytest.fixture(params=["host", "image"])
def keys(request: pytest.FixtureRequest) -> str:
    """The keys of the marks of tests."""
    if request.param == "host":
        return 'user="root"'
    image = os.environ.get("MOUNTNS_IMAGE")
    if not image:
        pytest.skip("there is no image of a Debian: MOUNTNS_IMAGE=/path/to/debian.tar")
    return f'user="root", root="{image}"'


def passes(pytester: pytest.Pytester, keys: str, text: str) -> None:
    before = {path: seen(path) for path in WATCHED if os.path.exists(path)}
    result = run(pytester, f"pytestmark = pytest.mark.mountns({keys})\n{text}")
    result.assert_outcomes(passed=text.count("def test"))
    assert {path: seen(path) for path in before} == before


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_install(pytester: pytest.Pytester, keys: str) -> None:
    (pytester.path / "Makefile").write_text(
        "PREFIX = /usr/local\n"
        "install: greet.sh\n"
        "\tinstall -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/greet\n"
        "\tinstall -m 755 greet.sh $(DESTDIR)$(PREFIX)/bin/greet\n"
        "\tinstall -m 644 Makefile $(DESTDIR)$(PREFIX)/share/greet\n"
    )
    (pytester.path / "greet.sh").write_text("#!/bin/sh\necho greetings\n")
    passes(
        pytester,
        keys,
        """
def test(destroyer, overlay_root):
    destroyer("/usr/local/bin")
    sh("make install")
    assert sh("greet") == "greetings\\n"
    found = overlay_root.changes("/usr/local")
    assert {"/usr/local/bin/greet", "/usr/local/share/greet/Makefile"} <= {*found.paths()}
    assert all(change.kind == "added" for change in found)
""",
    )


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
def test_apt_get_install(pytester: pytest.Pytester, keys: str) -> None:
    """A package of the distribution; where there is none to be had, one that is made here."""
    options = "" if probe_subordinate_ids()[1] else "-o APT::Sandbox::User=root"
    package = "hello"
    if shutil.which("hello") or not can_download("hello", pytester.path):
        package = make_package(pytester)
    passes(
        pytester,
        keys,
        f"""
def test(destroyer, overlay_root):
    destroyer("/var/lib/dpkg")
    sh("apt-get {options} install -y {package}")
    assert sh("hello") == "Hello, world!\\n"
    assert overlay_root.changes("/usr/bin") == {{"/usr/bin/hello": "added"}}
    sh("apt-get {options} purge -y hello")
    assert not overlay_root.changes("/usr/bin")
""",
    )


def can_download(package: str, place: Path) -> bool:
    done = subprocess.run(
        ["apt-get", "download", "-q", package],
        cwd=place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
        check=False,
    )
    return done.returncode == 0


def make_package(pytester: pytest.Pytester) -> str:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no package can be downloaded, and without dpkg-deb none can be made")
    tree = pytester.path / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: hello\nVersion: 99\nArchitecture: all\nMaintainer: nobody\nDescription: a trial\n"
    )
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/hello").write_text("#!/bin/sh\necho 'Hello, world!'\n")
    (tree / "usr/bin/hello").chmod(0o755)
    pytester.run("dpkg-deb", "--root-owner-group", "--build", "package", "hello.deb")
    return "./hello.deb"


def test_another_user(pytester: pytest.Pytester, keys: str) -> None:
    trial, maps = probe_subordinate_ids()
    if maps is None:
        pytest.skip(f"no subordinate ids here: {trial.kernel or trial.cause}")
    passes(
        pytester,
        keys,
        """
def test(destroyer, overlay_root):
    destroyer("/etc")
    assert "(bob)" in sh("useradd bob && su bob -c id")
    assert "/etc/passwd" in overlay_root.changes().paths()
""",
    )


def test_remove_etc(pytester: pytest.Pytester, keys: str) -> None:
    passes(
        pytester,
        keys,
        """
def test(destroyer):
    sh(f"rm -rf {destroyer('/etc')}")
    assert not os.path.exists("/etc")


def test_it_is_back():
    assert os.path.exists("/etc/passwd")
""",
    )
