"""What a test has of its own besides files and processes: network, host name, user, devices."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

import pytest_mountns

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.no_mountns(reason="asks for what is the machine's"),
]

#: The two ways to isolate. A test that asks for a process of its own gets one in both.
PROCESSES = ["fork", "inline"]


@pytest.fixture(params=PROCESSES)
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(pytester: pytest.Pytester, process: str, suite: str, *more: str) -> pytest.RunResult:
    pytester.makepyfile(suite)
    return pytester.runpytest_subprocess(f"--mountns-process={process}", *more)


def test_network(pytester: pytest.Pytester, process: str) -> None:
    result = run(
        pytester,
        process,
        f"""
        import errno, os, socket, pytest

        OUTSIDE = {os.readlink("/proc/self/ns/net")!r}

        @pytest.mark.mountns(network="none")
        def test_by_mark():
            assert os.readlink("/proc/self/ns/net") != OUTSIDE

        def test_by_fixture(isolated_net):
            assert os.readlink("/proc/self/ns/net") != OUTSIDE
            assert isolated_net.interfaces() == ["lo"]
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).close()
            with socket.socket() as client, pytest.raises(OSError) as info:
                client.connect(("192.0.2.1", 80))
            assert info.value.errno == errno.ENETUNREACH

        def test_the_hosts(overlay_root):
            assert os.readlink("/proc/self/ns/net") == OUTSIDE

        @pytest.mark.mountns
        def test_too_late(request):
            request.getfixturevalue("isolated_net")
        """,
    )
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*isolated_net was asked for too late*"])


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs rights to give up"
)
def test_network_without_the_right_to_administrate_one(pytester: pytest.Pytester) -> None:
    """Root of a container as a rule."""
    pytester.makepyfile(
        """
        import socket

        def test_it(isolated_net, overlay_root):
            status = open("/proc/self/status").read()
            capabilities = int(status.partition("CapEff:")[2].split()[0], 16)
            assert not capabilities >> 12 & 1
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname()).close()
        """
    )
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    isolated = ("-m", "pytest", "--mountns-unavailable=error")
    result = pytester.run(*without, sys.executable, *isolated)
    result.assert_outcomes(passed=1)


def test_ports_of_the_host_are_free(pytester: pytest.Pytester, process: str) -> None:
    """Two tests each want the port that a program of the host has."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run(
            pytester,
            process,
            f"""
            import socket, pytest

            @pytest.mark.parametrize("number", range(2))
            def test_it(isolated_net, number):
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", {port}))
                socket.create_server(("127.0.0.1", {port})).close()
            """,
        )
        result.assert_outcomes(passed=2)


def test_abstract_sockets_of_the_host_are_out_of_reach(pytester: pytest.Pytester) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")  # the kernel chooses an abstract name
        server.listen()
        result = run(
            pytester,
            "fork",
            f"""
            import socket, pytest

            NAME = {server.getsockname()!r}

            def test_it(isolated_net):
                with socket.socket(socket.AF_UNIX) as client:
                    with pytest.raises(ConnectionRefusedError):
                        client.connect(NAME)
                with socket.socket(socket.AF_UNIX) as another:
                    another.bind(NAME)
            """,
        )
        result.assert_outcomes(passed=1)


def test_host_name(pytester: pytest.Pytester, process: str) -> None:
    before = os.uname()
    result = run(
        pytester,
        process,
        f"""
        import os, pytest

        @pytest.mark.mountns(hostname="mountns-test.example")
        def test_it():
            assert os.uname().nodename == "mountns-test.example"

        @pytest.mark.mountns
        def test_next():
            assert os.uname().nodename == {before.nodename!r}
        """,
    )
    result.assert_outcomes(passed=2)
    assert os.uname() == before


def test_fake_root(pytester: pytest.Pytester, process: str) -> None:
    """An ordinary user is shown as root. Root stays root."""
    result = run(
        pytester,
        process,
        """
        import os, subprocess, pytest
        from pathlib import Path

        HERE = Path(__file__).parent
        WHO = os.geteuid()

        @pytest.mark.mountns(user="root")
        def test_it(tmp_path, overlay_root):
            assert (os.getuid(), os.geteuid(), os.getgid()) == (0, 0, 0)
            assert subprocess.run(["id", "-u"], capture_output=True).stdout == b"0\\n"
            (HERE / "new").write_text("x")
            assert (HERE / "new").stat().st_uid == 0
            closed = tmp_path / "closed"
            closed.write_text("x")
            closed.chmod(0)
            assert closed.read_text() == "x"
            os.chown(closed, 0, 0)
            assert overlay_root.changes(str(HERE / "new")).paths() == [str(HERE / "new")]
            overlay_root.reset()
            assert not (HERE / "new").exists()

        @pytest.mark.mountns(user=0, pid=True)
        def test_with_processes():
            assert os.getuid() == 0
            assert os.getpid() == 2

        @pytest.mark.mountns
        def test_next():
            assert os.geteuid() == WHO
        """,
    )
    result.assert_outcomes(passed=3)
    assert not (pytester.path / "new").exists()


def test_only_root_becomes_another(pytester: pytest.Pytester) -> None:
    if os.geteuid() == 0:
        pytest.skip("this is root")
    result = run(
        pytester,
        "fork",
        """
        import pytest

        @pytest.mark.mountns(user="nobody")
        def test_it(): pass
        """,
        "-rs",
        "-vv",
    )
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*become user nobody*", "*only root can*"])


@pytest.mark.as_root
@pytest.mark.parametrize("keys", ["", "pid=True, ", "upper='disk', "])
def test_another_user(pytester: pytest.Pytester, process: str, keys: str) -> None:
    result = run(
        pytester,
        process,
        f"""
        import os, signal, subprocess, pytest
        from pathlib import Path

        def check(tmp_path):
            assert os.getresuid() == (65534, 65534, 65534)
            assert 0 not in os.getgroups()
            status = Path("/proc/self/status").read_text()
            assert "CapEff:\\t0000000000000000" in status
            assert tmp_path.stat().st_uid == 65534
            (tmp_path / "file").write_text("x")
            closed = tmp_path / "closed"
            closed.write_text("x")
            closed.chmod(0)
            with pytest.raises(PermissionError):
                closed.read_text()
            with pytest.raises(PermissionError):
                Path("/etc/shadow").read_text()
            with pytest.raises(PermissionError):
                Path("/etc/mountns-new").write_text("x")
            with pytest.raises(PermissionError):
                os.setuid(0)
            with pytest.raises(PermissionError):
                os.kill(1, 0)
            shown = subprocess.run(["id", "-un"], capture_output=True, text=True, cwd="/")
            assert shown.stdout == "nobody\\n"
            shown = subprocess.run(["cat", "/etc/shadow"], capture_output=True, cwd="/")
            assert shown.returncode == 1

        @pytest.mark.mountns({keys}user="nobody")
        def test_by_name(tmp_path, overlay_root):
            check(tmp_path)
            assert os.environ["USER"] == "nobody"
            null = os.stat("/dev/null")
            owners = [os.stat(place).st_uid for place in ("/", "/dev", "/dev/null", "/dev/shm")]
            assert owners == [0] * 4
            if {not keys.startswith("pid")}:
                overlay_root.reset()
                assert os.stat("/dev/null").st_mode == null.st_mode
                owners = [os.stat(place).st_uid for place in ("/", "/dev", "/dev/null", "/dev/shm")]
                assert owners == [0] * 4
            tmp_path = Path("/tmp/mountns-another")
            tmp_path.mkdir()
            check(tmp_path)

        @pytest.mark.mountns({keys}user=65534)
        def test_by_number(tmp_path):
            check(tmp_path)

        @pytest.mark.mountns({keys}user=54321)
        def test_unknown_to_the_host():
            assert (os.getuid(), os.getgid(), os.getgroups()) == (54321, 54321, [])
            assert "USER" not in os.environ

        @pytest.mark.mountns
        def test_next():
            assert os.getuid() == 0
        """,
    )
    result.assert_outcomes(passed=4)
    assert not os.path.exists("/tmp/mountns-another")


@pytest.mark.as_root
def test_temporary_files_of_another_user_in_a_fresh_root(pytester: pytest.Pytester) -> None:
    pytest.importorskip("pytest_rerunfailures")
    result = run(
        pytester,
        "fork",
        """
        import pytest
        pytestmark = pytest.mark.mountns(user="nobody")
        ATTEMPTS = []

        def test_another_attempt(tmp_path):
            (tmp_path / "file").touch()
            ATTEMPTS.append(1)
            assert len(ATTEMPTS) == 2

        def test_reset(overlay_root, request):
            overlay_root.reset()
            (request.getfixturevalue("tmp_path") / "file").touch()
        """,
        "--reruns=1",
        "-prerunfailures",
    )
    assert result.parseoutcomes() == {"passed": 2, "rerun": 1}


@pytest.mark.as_root
@pytest.mark.binding
@pytest.mark.parametrize("keys", ["", "pid=True, ", "upper='disk', "])
def test_what_another_user_binds(pytester: pytest.Pytester, process: str, keys: str) -> None:
    pytester.path.chmod(0o777)
    outside = pytester.path / "outside"
    outside.mkdir()
    (outside / "of_root").write_text("x")
    (outside / "of_root").chmod(0o600)
    result = run(
        pytester,
        process,
        f"""
        import pytest
        from pathlib import Path

        @pytest.mark.mountns({keys}user="nobody")
        def test(bind_volume):
            bind_volume({str(outside)!r}, "/tmp/volume")
            assert Path("/tmp/volume/of_root").exists()
            with pytest.raises(PermissionError):
                Path("/tmp/volume/of_root").read_text()
        """,
    )
    result.assert_outcomes(passed=1)


@pytest.mark.as_root
@pytest.mark.layered
@pytest.mark.parametrize("keys", ["", "pid=True, "])
def test_a_checkpoint_of_another_user(pytester: pytest.Pytester, process: str, keys: str) -> None:
    result = run(
        pytester,
        process,
        f"""
        import os, pytest
        from pathlib import Path

        @pytest.mark.mountns({keys}user="nobody")
        def test(overlay_root):
            place = Path("/tmp/mountns-another")
            place.mkdir()
            (place / "file").write_text("x")
            with overlay_root.checkpoint():
                (place / "more").write_text("x")
                assert overlay_root.changes() == {{"/tmp/mountns-another/more": "added"}}
            assert not (place / "more").exists()
            assert (place / "file").exists()
            assert os.getresuid() == (65534, 65534, 65534)
            with pytest.raises(PermissionError):
                Path("/etc/shadow").read_text()
        """,
    )
    result.assert_outcomes(passed=1)
    assert not os.path.exists("/tmp/mountns-another")


@pytest.mark.as_root
def test_the_other_user_cannot_read_the_plugin(
    pytester: pytest.Pytester, process: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where root's virtual environment lies in ``/root``. The plugin loads modules late."""
    closed = pytester.mkdir("closed")
    package = Path(pytest_mountns.__file__).parent
    shutil.copytree(package, closed / package.name)
    closed.chmod(0o700)
    monkeypatch.setenv("PYTHONPATH", str(closed))
    result = run(
        pytester,
        process,
        f"""
        import sys, pytest

        def check():
            with pytest.raises(PermissionError):
                open({str(closed / package.name / "plugin.py")!r})
            assert sys.modules["pytest_mountns"].__file__.startswith({str(closed)!r})

        @pytest.mark.mountns(user="nobody")
        def test_a_comparison():
            check()
            with pytest.raises(AssertionError, match="assert 1 == 2"):
                assert 1 == 2

        @pytest.mark.mountns(user="nobody")
        def test_a_comparison_of_changes(overlay_root, tmp_path):
            check()
            (tmp_path / "new").write_text("")
            with pytest.raises(AssertionError, match="found, 0 expected"):
                assert overlay_root.changes() == {{}}

        @pytest.mark.mountns(user="nobody")
        def test_what_the_fixtures_do(overlay_root, tmp_path):
            check()
            (tmp_path / "new").write_text("")
            assert overlay_root.usage().inodes
            assert overlay_root.export(tmp_path / "layer.tar.gz").size
            with overlay_root.checkpoint():
                (tmp_path / "more").write_text("")
            crashes = list(overlay_root.crashes((tmp_path / "new").unlink))
            assert crashes
            overlay_root.reset()
            assert not (tmp_path / "new").exists()

        @pytest.mark.mountns(user="nobody")
        def test_processes(isolated_proc):
            check()
            isolated_proc.kill_all()
        """,
    )
    result.assert_outcomes(passed=4)


@pytest.mark.as_root
def test_another_users_test_ends_with_pytest(pytester: pytest.Pytester) -> None:
    """To become another user clears PR_SET_PDEATHSIG."""
    result = run(
        pytester,
        "fork",
        """
        import ctypes, pytest

        @pytest.mark.mountns(user="nobody")
        def test_it():
            number = ctypes.c_int()
            assert ctypes.CDLL(None).prctl(2, ctypes.byref(number), 0, 0, 0) == 0
            assert number.value == 9
        """,
    )
    result.assert_outcomes(passed=1)


@pytest.mark.as_root
def test_an_unknown_user(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        "fork",
        """
        import pytest

        @pytest.mark.mountns(user="mountns-nobody-knows")
        def test_it(): pass
        """,
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'mountns-nobody-knows': the host knows no such user*"])


def test_devices(pytester: pytest.Pytester, process: str) -> None:
    device = next(
        (
            f"/dev/{name}"
            for name in ("kmsg", "fuse", "ptmx", "kvm")
            if Path(f"/dev/{name}").exists()
        ),
        None,
    )
    if device is None or not Path("/dev/net/tun").exists():
        pytest.skip("this machine has none of the nodes")
    result = run(
        pytester,
        process,
        f"""
        import os, pytest

        MODES = [os.stat(path).st_mode for path in ("/dev/net/tun", {device!r})]
        NUMBERS = [os.stat(path).st_rdev for path in ("/dev/net/tun", {device!r})]

        @pytest.mark.mountns(devices=["/dev/net/tun", {device!r}])
        def test_it():
            assert [os.stat(path).st_mode for path in ("/dev/net/tun", {device!r})] == MODES
            assert [os.stat(path).st_rdev for path in ("/dev/net/tun", {device!r})] == NUMBERS
            if os.geteuid() == 0:
                os.chmod("/dev/net/tun", 0)
                os.unlink("/dev/net/tun")

        @pytest.mark.mountns
        def test_usual():
            assert not os.path.exists("/dev/net/tun")
        """,
    )
    result.assert_outcomes(passed=2)
    assert Path("/dev/net/tun").stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ('network="host "', "network='host ': choose from: 'host', 'none'"),
        ("network=None", "network=None: choose from"),
        ('hostname=""', "'' is not a host name"),
        ('hostname="a b"', "'a b' is not a host name"),
        ('hostname="x" * 65', "is not a host name"),
        ("hostname=1", "hostname=1: must be a string, not int"),
        ("user=None", 'must be "keep", "root", a user name or a uid, not NoneType'),
        ("user=-1", "a uid must be a number from 0"),
        ('user=""', 'must be "keep", "root", a user name or a uid'),
        ('user="root", scope="module"', "user='root' cannot be combined with scope='module'"),
        ('devices=["/etc/passwd"]', "'/etc/passwd' is not a path below /dev"),
        ('devices=["/dev/../etc/passwd"]', "is not a path below /dev"),
        ('devices="/dev/fuse"', "must be a list, not str"),
    ],
)
def test_what_makes_no_sense_is_said(pytester: pytest.Pytester, keys: str, problem: str) -> None:
    pytester.makepyfile(f"import pytest\n@pytest.mark.mountns({keys})\ndef test_it(): pass\n")
    result = pytester.runpytest_subprocess()
    assert result.ret == 4
    assert problem in result.stderr.str() + result.stdout.str()


@pytest.mark.parametrize(
    ("device", "problem"),
    [("/dev/mountns-none", "ENOENT"), ("/dev/shm", "is not a device node")],
)
def test_a_device_that_is_none(pytester: pytest.Pytester, device: str, problem: str) -> None:
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.mountns(devices=[{device!r}])\ndef test_it(): pass\n"
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*{device}*{problem}*"])
