"""``user="root"`` of an ordinary user: the host's own root is written to, and stays as it is."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from pytest_mountns.engine.probe.subordinate_ids import probe_subordinate_ids
from tests.helpers.guard import GUARD

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.no_mountns(reason="an ordinary user's sandboxes do not nest so deep"),
    pytest.mark.skipif(os.geteuid() == 0, reason="about ordinary users"),
    pytest.mark.usefixtures("shared_copies"),
]

HEAD = """
import os, subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.mountns(user="root")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def sh(script):
    environment = {"PATH": PATH, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, env=environment)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    return done.stdout
"""


def run(pytester: pytest.Pytester, suite: str, *arguments: str) -> pytest.RunResult:
    pytester.makeconftest(GUARD)
    pytester.makepyfile(HEAD + suite)
    return pytester.runpytest_subprocess(*arguments)


def seen(*paths: str) -> dict[str, object]:
    """What the host has there."""
    found: dict[str, object] = {}
    for path in paths:
        status = os.stat(path)
        found[path] = (status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        if os.path.isdir(path):
            found[f"{path}/"] = sorted(os.listdir(path))
    return found


HOST = ("/", "/etc", "/etc/passwd", "/etc/hosts", "/usr/local/bin", "/usr/share", "/var/lib")


def test_what_installers_do(pytester: pytest.Pytester) -> None:
    before = seen(*HOST)
    result = run(
        pytester,
        """
def test_install(destroyer, overlay_root):
    destroyer("/usr/local/bin")
    sh("install -D -m 755 /etc/passwd /usr/local/bin/made")
    assert overlay_root.changes("/usr/local") == {"/usr/local/bin/made": "added"}


def test_edit(destroyer, overlay_root):
    destroyer("/etc")
    sh("echo 10.0.0.1 box >> /etc/hosts; sed -i s/root/toor/ /etc/group")
    assert overlay_root.changes() == {"/etc/hosts": "modified", "/etc/group": "modified"}


def test_new_directory_in_the_root(overlay_root, destroyer):
    destroyer("/etc")
    os.mkdir("/new directory")
    assert overlay_root.changes().paths() == ["/new directory"]


def test_remove(destroyer):
    sh(f"rm -rf {destroyer('/etc')}")
    assert not os.path.exists("/etc")


def test_programs(destroyer):
    destroyer("/usr/bin")
    sh("rm -rf /usr/share/doc; cp /usr/bin/env /usr/bin/cat.new; mv /usr/bin/cat.new /usr/bin/cat")


def test_all_is_back():
    assert os.path.exists("/etc/passwd") and not os.path.exists("/new directory")
""",
    )
    result.assert_outcomes(passed=6)
    assert seen(*HOST) == before


def test_only_what_is_named_is_writable(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
pytestmark = pytest.mark.mountns(user="root", writable=["/etc"])


def test_named(overlay_root):
    Path("/etc/hosts").write_text("")
    assert overlay_root.changes() == {"/etc/hosts": "modified"}


def test_other(): Path("/usr/local/bin/program").write_text("")


@pytest.mark.mountns(writable=[])
def test_none(): Path("/etc/hosts").write_text("")
""",
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines("EROFS: /usr/local/bin/program is shown read-only*writable=*")


def test_reset_and_checkpoint(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_reset(overlay_root):
    Path("/etc/new").write_text("")
    overlay_root.reset()
    assert not os.path.exists("/etc/new")
    Path("/etc/hosts").write_text("")
    assert overlay_root.changes() == {"/etc/hosts": "modified"}
""",
    )
    result.assert_outcomes(passed=1)


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_package(pytester: pytest.Pytester) -> None:
    tree = pytester.path / "package"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        "Package: mountns-trial\nVersion: 1\nArchitecture: all\nMaintainer: nobody\n"
        "Description: a trial\n"
    )
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/mountns-trial").write_text("#!/bin/sh\necho installed\n")
    (tree / "usr/bin/mountns-trial").chmod(0o755)
    pytester.run("dpkg-deb", "--root-owner-group", "--build", "package", "trial.deb")
    before = seen("/var/lib/dpkg", "/var/lib/dpkg/status", "/usr/bin")
    result = run(
        pytester,
        """
def test_install_and_purge(overlay_root, destroyer):
    destroyer("/var/lib/dpkg")
    sh("dpkg -i trial.deb")
    assert sh("mountns-trial") == "installed\\n"
    assert overlay_root.changes("/usr/bin") == {"/usr/bin/mountns-trial": "added"}
    sh("dpkg -P mountns-trial")
    assert not overlay_root.changes("/usr/bin")
""",
    )
    result.assert_outcomes(passed=1)
    assert seen("/var/lib/dpkg", "/var/lib/dpkg/status", "/usr/bin") == before


def test_subordinate_ids(pytester: pytest.Pytester) -> None:
    trial, maps = probe_subordinate_ids()
    if maps is None:
        pytest.skip(f"no subordinate ids here: {trial.kernel or trial.cause}")
    result = run(
        pytester,
        """
def test_owners(destroyer, overlay_root):
    destroyer("/etc")
    Path("/etc/given").write_text("")
    os.chown("/etc/given", 33, 33)
    assert os.stat("/etc/given").st_uid == 33
    sh("useradd bob")
    assert "(bob)" in sh("su bob -c id")
    sh("mkdir -m 777 /srv/open")
    sh("su bob -c 'umask 077; mkdir /srv/open/closed; touch /srv/open/closed/file'")
    assert "/srv/open/closed/file" in overlay_root.changes().paths()


def test_seen_from_outside():
    sh("mkdir -m 700 /srv/of-bin; touch /srv/of-bin/file; chown -R bin /srv/of-bin")
    assert False
""",
    )
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*/srv/*", "added*of-bin/*", "added*file*"])


def test_without_subordinate_ids_it_is_explained(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # newuidmap(1) is not found.
    monkeypatch.setenv("PATH", str(pytester.mkdir("empty")))
    result = run(
        pytester,
        """
def test_python(tmp_path): os.chown(tmp_path, 33, 33)
def test_program(): sh("chown 33:33 /etc/hosts")
def test_another(): assert False
""",
    )
    result.assert_outcomes(failed=3)
    text = result.stdout.str()
    assert text.count("this test has one uid and one gid") == 2
    assert "newuidmap is not installed; sudo apt install uidmap" in text


@pytest.mark.parametrize(
    ("program", "said"),
    [("#!/bin/sh\necho not today >&2\nexit 1\n", "not today"), ("no program\n", "ENOEXEC")],
    ids=["refuses", "cannot be started"],
)
def test_programs_that_refuse(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, program: str, said: str
) -> None:
    """The test runs with one user, and its report has what newuidmap(1) has said."""
    programs = pytester.mkdir("programs")
    for name in ("newuidmap", "newgidmap"):
        (programs / name).write_text(program)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    trial, maps = probe_subordinate_ids()
    assert maps is None
    if "gives no range" in trial.cause:
        pytest.skip(trial.cause)
    assert said in trial.kernel
    result = run(pytester, "def test(tmp_path): os.chown(tmp_path, 33, 33)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines("chown: the user namespace of this test has one uid*")


#: Suites with other keys, and what they need of the kernel.
WITH_KEYS = [
    pytest.param(
        """
@with_keys(upper="disk")
def test_disk(): pass


@with_keys(pid=True, network="none", hostname="box")
def test_namespaces(): assert os.getpid() == 2


@with_keys(tmpfs=["/etc/empty"], volumes=[f"{LAYER}:/opt/volume"])
def test_mounts():
    assert os.listdir("/etc/empty") == [] and os.listdir("/opt/volume")


@with_keys(layers=[LAYER])
def test_layers():
    assert Path("/etc/of-layer").read_text() == "layer" and os.path.isdir("/opt/deep")
    Path("/etc/of-layer").write_text("x")
""",
        id="any",
    ),
    pytest.param(
        """
@with_keys(size="64m", inodes=20000)
def test(): pass
""",
        marks=pytest.mark.limiting,
        id="limits",
    ),
    pytest.param(
        """
def test(bind_volume):
    bind_volume(LAYER, "/var/lib/volume")
    assert os.listdir("/var/lib/volume")
""",
        marks=pytest.mark.binding,
        id="bind_volume",
    ),
    pytest.param(
        """
def test(overlay_root):
    with overlay_root.checkpoint():
        Path("/etc/new").write_text("")
    assert not os.path.exists("/etc/new") and os.path.exists("/var/new")
""",
        marks=pytest.mark.layered,
        id="checkpoint",
    ),
]


@pytest.mark.parametrize("tests", WITH_KEYS)
def test_with_other_keys(pytester: pytest.Pytester, tests: str) -> None:
    layer = pytester.path / "layer"
    (layer / "etc").mkdir(parents=True)
    (layer / "etc/of-layer").write_text("layer")
    (layer / "opt/deep").mkdir(parents=True)
    result = run(
        pytester,
        f"""
LAYER = "{layer}"
"""
        """
with_keys = lambda **keys: pytest.mark.mountns(user="root", **keys)


@pytest.fixture(autouse=True)
def writes(destroyer, overlay_root):
    destroyer("/etc")
    Path("/etc/hosts").write_text("x")
    os.mkdir("/var/new")
    assert overlay_root.changes() == {"/etc/hosts": "modified", "/var/new": "added"}

"""
        f"{tests}",
    )
    result.assert_outcomes(passed=tests.count("def test"))


def test_a_root_that_is_read_only(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
pytestmark = pytest.mark.mountns(user="root", read_only=True)

def test_file(): Path("/etc/hosts").write_text("")
def test_directory(): os.mkdir("/new")
""",
    )
    result.assert_outcomes(failed=2)
    assert not os.path.exists("/new")


def test_a_command(pytester: pytest.Pytester) -> None:
    program = "import sys; from pytest_mountns.cli.main import main; sys.exit(main())"
    result = pytester.run(
        *(sys.executable, "-c", program, "run", "--user", "root", "--"),
        *("sh", "-c", "id -u; echo 10.0.0.1 box >> /etc/hosts; rm -rf /etc/passwd"),
    )
    assert result.outlines[0] == "0"
    text = result.stderr.str()
    assert "+10.0.0.1 box" in text
    assert "passwd" in text
    assert os.path.exists("/etc/passwd")


def test_inline_tests_beside(pytester: pytest.Pytester) -> None:
    """The pytest process has entered a user namespace for them: its tests can be shown as root."""
    result = run(
        pytester,
        """
def test_root():
    assert os.getuid() == 0
    Path("/etc/hosts").write_text("")


@pytest.mark.mountns(user="keep", process="inline")
def test_inline():
    assert os.getuid() != 0
""",
        "--mountns",
    )
    result.assert_outcomes(passed=2)
