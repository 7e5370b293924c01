"""Ways to leak that are easily overlooked: nothing that a test does is left on the machine.

Each suite checks in its tests that they are isolated before they do anything.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.no_mountns(reason="looks for what tests leave on the machine"),
    pytest.mark.usefixtures("shared_copies"),
]

#: The beginning of each suite. `keys` are those of the mark.
HEAD = """
import ctypes, os, signal, socket, subprocess, sys, time
from pathlib import Path

import pytest

HOME_NAMESPACE = os.readlink("/proc/self/ns/mnt")
HOME_PIDS = os.readlink("/proc/self/ns/pid")
HERE = Path(__file__).parent
libc = ctypes.CDLL(None, use_errno=True)
pytestmark = pytest.mark.mountns({keys})


@pytest.fixture(autouse=True)
def isolated(overlay_root):
    assert os.readlink("/proc/self/ns/mnt") != HOME_NAMESPACE, "NOT ISOLATED"


def in_own_pid_namespace():
    return os.readlink("/proc/self/ns/pid") != HOME_PIDS
"""

WAYS = {
    "fork": "",
    "inline": "process='inline'",
    "pid": "pid=True",
}
if os.geteuid() != 0:
    # With the host's whole root writable, by way of copies. For root it is "fork" once more.
    WAYS["as root"] = "user='root'"


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(pytester: pytest.Pytester, keys: str, suite: str, *arguments: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD.format(keys=keys) + suite)
    return pytester.runpytest_subprocess(*arguments)


def test_directories_that_were_open_lead_nowhere(pytester: pytest.Pytester, way: str) -> None:
    """A wider fixture opened them on the host: fchdir() and dir_fd would lead back there."""
    result = run(
        pytester,
        WAYS[way],
        """
@pytest.fixture(scope="module")
def directory():
    fd = os.open(HERE, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture(scope="module")
def home_directory():
    fd = os.open("/", os.O_PATH)
    yield fd
    os.close(fd)


def test_it(directory, home_directory):
    os.close(os.open("by_dir_fd", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    name = str(HERE / "by_root")[1:]
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=home_directory))
    open(f"/proc/self/fd/{directory}/by_proc", "x").close()
    os.fchdir(directory)
    open("by_fchdir", "x").close()
    os.chdir("..")
    open(f"{HERE.name}/by_dotdot", "x").close()
    os.fchdir(home_directory)
    open(name + "2", "x").close()
    assert len([name for name in os.listdir(HERE) if name.startswith("by_")]) == 6
""",
    )
    result.assert_outcomes(passed=1)
    assert list(pytester.path.glob("by_*")) == []


def test_no_open_directory_leads_to_the_host(pytester: pytest.Pytester, way: str) -> None:
    """None of the process's descriptors, those of the plugin included."""
    word = f"mountns-{secrets.token_hex(8)}"
    result = run(
        pytester,
        WAYS[way],
        f"""
import stat


def test_it():
    found = 0
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                continue
        except OSError:
            continue
        for place in (".", "..", "../..", str(HERE)[1:], str(Path.home())[1:], "tmp", "var/tmp"):
            try:
                made = os.open(place + "/{word}", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=fd)
            except OSError:
                continue
            os.close(made)
            found += 1
    print("FILES", found)
""",
        "-s",
    )
    result.assert_outcomes(passed=1)
    places = [pytester.path, Path.home(), Path("/"), Path("/tmp"), Path("/var/tmp"), Path.cwd()]
    assert [place for place in places if (place / word).exists()] == []
    assert list(pytester.path.parent.rglob(word)) == []


def test_no_process_in_sight_leads_to_the_host(pytester: pytest.Pytester) -> None:
    """/proc/PID/root and cwd of every process that the test can see."""
    result = run(
        pytester,
        "pid=True",
        """
def test_it():
    own = os.stat("/")
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    assert os.getpid() in pids
    for pid in pids:
        for name in ("root", "cwd"):
            try:
                there = os.stat(f"/proc/{pid}/{name}/" if name == "root" else f"/proc/{pid}/cwd/..")
                table = open(f"/proc/{pid}/mountinfo").read()
            except PermissionError:
                continue
            assert name == "cwd" or os.path.samestat(there, own)
            assert table == open("/proc/self/mountinfo").read()
""",
    )
    result.assert_outcomes(passed=1)


def test_an_ordinary_user_has_no_way_through_proc(pytester: pytest.Pytester) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may look at every process: docs/limits.md")
    result = run(
        pytester,
        "",
        """
def test_it():
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{os.getppid()}/root")
    with pytest.raises(PermissionError):
        os.listdir(f"/proc/{os.getppid()}/cwd")
""",
    )
    result.assert_outcomes(passed=1)


def test_dev_has_no_disks(pytester: pytest.Pytester, way: str) -> None:
    result = run(
        pytester,
        WAYS[way],
        """
import stat


def test_it():
    nodes = [os.path.join(place, name) for place, _, files in os.walk("/dev") for name in files]
    assert "/dev/null" in nodes
    assert [node for node in nodes if stat.S_ISBLK(os.stat(node).st_mode)] == []
    assert not os.path.exists("/dev/mem")
    assert not os.path.exists("/dev/kmsg")
""",
    )
    result.assert_outcomes(passed=1)


@pytest.mark.as_root
def test_the_kernels_settings_are_read_only_to_root(pytester: pytest.Pytester, way: str) -> None:
    """/proc/sys, /proc/sysrq-trigger, /sys and the cgroups: of the whole machine."""
    # It writes the value that is there already, which is harmless if it is let through.
    result = run(
        pytester,
        WAYS[way],
        """
import errno


@pytest.mark.parametrize("path", ["/proc/sys/kernel/hostname", "/proc/sys/vm/swappiness"])
def test_proc(path):
    now = open(path).read()
    with pytest.raises(OSError) as info:
        open(path, "w").write(now)
    assert info.value.errno == errno.EROFS


def test_sysrq():
    with pytest.raises(OSError) as info:
        os.open("/proc/sysrq-trigger", os.O_WRONLY)
    assert info.value.errno in (errno.EROFS, errno.ENOENT)


def test_sys():
    with pytest.raises(OSError) as info:
        os.open("/sys/kernel/mm/ksm/run", os.O_WRONLY)
    assert info.value.errno in (errno.EROFS, errno.ENOENT)


def test_cgroups():
    made = []
    for line in open("/proc/self/mountinfo"):
        fields = line.split()
        if fields[fields.index("-") + 1].startswith("cgroup"):
            with pytest.raises(OSError) as info:
                os.mkdir(fields[4] + "/mountns-test")
            assert info.value.errno == errno.EROFS
            made.append(fields[4])
""",
    )
    result.assert_outcomes(passed=5)


def test_shared_memory_files(pytester: pytest.Pytester, way: str) -> None:
    word = f"mountns-{secrets.token_hex(8)}"
    result = run(
        pytester,
        WAYS[way],
        f"""
def test_it():
    Path("/dev/shm/{word}").write_text("x")
    from multiprocessing import shared_memory
    memory = shared_memory.SharedMemory("{word}2", create=True, size=4096)
    memory.close()


def test_next():
    assert [name for name in os.listdir("/dev/shm") if "{word}" in name] == []
""",
        "-Wignore",
    )
    result.assert_outcomes(passed=2)
    assert [name for name in os.listdir("/dev/shm") if word in name] == []


def test_ipc_objects_go_with_the_pid_namespace(pytester: pytest.Pytester) -> None:
    """System V shared memory, semaphores and queues, and POSIX message queues."""
    key = secrets.randbelow(1 << 30) + 1
    before = [Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "sem", "msg")]
    result = run(
        pytester,
        "pid=True",
        f"""
IPC_CREAT = 0o1000


def test_it():
    assert in_own_pid_namespace()
    assert libc.shmget({key}, 4096, IPC_CREAT | 0o600) >= 0
    assert libc.semget({key}, 1, IPC_CREAT | 0o600) >= 0
    assert libc.msgget({key}, IPC_CREAT | 0o600) >= 0
    assert "{key}" in open("/proc/sysvipc/shm").read()
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    assert rt.mq_open(b"/mountns-{key}", os.O_CREAT | os.O_RDWR, 0o600, None) >= 0
    if os.path.exists("/dev/mqueue"):
        assert os.listdir("/dev/mqueue") == ["mountns-{key}"]


def test_next():
    assert "{key}" not in open("/proc/sysvipc/shm").read()
    rt = ctypes.CDLL("librt.so.1", use_errno=True)
    assert rt.mq_open(b"/mountns-{key}", os.O_RDWR, 0o600, None) == -1
""",
    )
    result.assert_outcomes(passed=2)
    assert [Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "sem", "msg")] == before


@pytest.mark.as_root
@pytest.mark.parametrize("way", ["fork", "pid"])
def test_the_host_name_is_the_tests_own(pytester: pytest.Pytester, way: str) -> None:
    before = os.uname()
    result = run(
        pytester,
        WAYS[way],
        f"""
def test_it():
    assert os.readlink("/proc/self/ns/uts") != {os.readlink("/proc/self/ns/uts")!r}
    socket.sethostname("mountns-leak")
    assert os.uname().nodename == "mountns-leak"


def test_next():
    assert os.uname().nodename == {before.nodename!r}
""",
    )
    result.assert_outcomes(passed=2)
    assert os.uname() == before


@pytest.fixture
def host_socket(tmp_path: Path) -> Iterator[Path]:
    """A server of the host, listening at a path."""
    # The path of a socket has at most 107 bytes.
    path = Path(os.path.relpath(tmp_path / "socket"))
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        yield path.absolute()


def test_sockets_of_the_host_are_reached_through_a_volume_only(
    pytester: pytest.Pytester, way: str, host_socket: Path
) -> None:
    result = run(
        pytester,
        f"volumes=[{str(host_socket.parent)!r} + ':/tmp/volume']"
        + f", {WAYS[way]}" * bool(WAYS[way]),
        f"""
def connect(path):
    os.chdir(os.path.dirname(path))
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.path.basename(path))


def test_through_the_overlay():
    with pytest.raises(ConnectionRefusedError):
        connect({str(host_socket)!r})


def test_through_the_volume():
    connect("/tmp/volume/socket")
""",
    )
    result.assert_outcomes(passed=2)


def test_mounts_of_a_test(pytester: pytest.Pytester, way: str) -> None:
    before = Path("/proc/self/mountinfo").read_bytes()
    result = run(
        pytester,
        WAYS[way],
        """
MS_BIND, MS_SHARED = 0x1000, 0x100000


def mount(source, target, fstype, flags):
    assert libc.mount(source, os.fsencode(target), fstype, flags, None) == 0, ctypes.get_errno()


def test_it(tmp_path):
    table = open("/proc/self/mountinfo").read()
    if os.geteuid() != 0:
        # As an ordinary user would: in namespaces of his own.
        code = "import os; os.makedirs('x'); assert os.system('mount -t tmpfs x x') == 0"
        done = subprocess.run(["unshare", "-rm", sys.executable, "-c", code], cwd=tmp_path)
        assert done.returncode == 0
    else:
        for number in range(20):
            place = tmp_path / str(number)
            place.mkdir()
            mount(b"x", place, b"tmpfs", 0)
        mount(os.fsencode(tmp_path), tmp_path, None, MS_BIND)
        mount(None, tmp_path, None, MS_SHARED)
        mount(b"x", tmp_path, b"tmpfs", 0)
        assert len(open("/proc/self/mountinfo").readlines()) > len(table.splitlines()) + 20


def test_next():
    assert "/test_it0" not in open("/proc/self/mountinfo").read()
""",
    )
    result.assert_outcomes(passed=2)
    assert Path("/proc/self/mountinfo").read_bytes() == before


@pytest.mark.as_root
def test_device_nodes_made_by_root_go_with_the_sandbox(pytester: pytest.Pytester, way: str) -> None:
    result = run(
        pytester,
        WAYS[way],
        """
import stat


def test_it():
    os.mknod(HERE / "node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod("/dev/mountns-node", stat.S_IFCHR | 0o600, os.makedev(1, 3))
""",
    )
    result.assert_outcomes(passed=1)
    assert not (pytester.path / "node").exists()
    assert not os.path.exists("/dev/mountns-node")
