"""Failures that the sandbox has caused are explained in the report."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_mountns.reports import explain
from tests.helpers.connections import CONNECTION
from tests.helpers.recording import Record, Recorded

pytestmark = pytest.mark.sandboxes

#: The connection is opened on the host, and the test finds another file at its path.
SQLITE = f"""{CONNECTION}
class Wrapped(Exception): pass

def test_plain(connection):
    connection.execute("insert into t values (1)")

def test_wrapped(connection):
    try:
        connection.execute("insert into t values (1)")
    except sqlite3.Error as error:
        raise Wrapped("of a library") from error

def test_unrelated(connection):
    connection.execute("select nothing")
"""


@pytest.fixture(params=["fork", "inline"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_sqlite_that_was_opened_before(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(textwrap.dedent(SQLITE))
    recorded = record("-pno:rerunfailures", "--mountns")
    said = {
        one.nodeid.rpartition("::")[2]: [text for name, text in one.sections if name == "mountns"]
        for one in recorded.not_passed
    }
    assert set(said) == {"test_plain", "test_wrapped", "test_unrelated"}
    for name in ("test_plain", "test_wrapped"):
        (text,) = said[name]
        assert "opened before the test had its sandbox" in text
        assert "function scope" in text
    assert said["test_unrelated"] == []


def _explained(recorded: Recorded) -> dict[str, str]:
    """The sections of the tests that have failed, by name."""
    return {
        one.name: "\n".join(text for title, text in one.sections if title == "mountns")
        for one in recorded.not_passed
    }


HOSTS_THINGS = """
import os, socket, time
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
import pytest

PLACE = Path({place!r})

class Client:
    def __init__(self, path): self.path = path
    def connect(self):
        with socket.socket(socket.AF_UNIX) as one: one.connect(self.path)

def test_pipe(): os.open(PLACE / "pipe", os.O_WRONLY | os.O_NONBLOCK)

@pytest.mark.timeout(1)
def test_pipe_timeout(): (PLACE / "pipe").read_text()

def test_own_pipe(tmp_path):
    os.mkfifo(tmp_path / "own")
    os.open(tmp_path / "own", os.O_WRONLY | os.O_NONBLOCK)

def test_socket(): Client(str(PLACE / "socket")).connect()

def test_own_socket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as one: one.bind("own")
    Client("own").connect()

# If this user has anything of a test run in /dev/shm, all of it is shown.
SHOWN = "/dev/shm/" + {shm!r}

def test_shared_memory(): os.path.exists(SHOWN) or SharedMemory(name={shm!r})

def test_shared_memory_file(): os.path.exists(SHOWN) or open(SHOWN)

def test_no_shared_memory(): open("/dev/shm/not-there-at-all")

def test_device():
    if not os.path.exists("/dev/mem"): open("/dev/console")

def test_copy(tmp_path):
    with open(PLACE / "file", "rb") as one, open(tmp_path / "copy", "wb") as other:
        os.copy_file_range(one.fileno(), other.fileno(), 10)

def test_rename_out_of_a_volume(tmp_path):
    (PLACE / "volume/file").write_text("x")
    os.rename(PLACE / "volume/file", tmp_path / "file")

@pytest.fixture(scope="session")
def log():
    with open(PLACE / "log", "a+") as file: yield file

def test_opened_before(log):
    (PLACE / "log").write_text("begin anew")
    log.seek(0)
    assert log.read() == "begin anew"

def test_opened_before_and_written_there(log):
    log.write("x")
    log.flush()
    assert (PLACE / "log").read_text() == ""
"""


@pytest.mark.no_mountns(reason="needs a pipe, a socket and shared memory of the host's")
@pytest.mark.parametrize("process", ["fork", "inline"])
def test_what_is_the_hosts(
    pytester: pytest.Pytester, record: Record, process: str, tmp_path: Path
) -> None:
    pytest.importorskip("pytest_timeout")
    place = tmp_path / "place"
    (place / "volume").mkdir(parents=True)
    (place / "file").write_text("0123456789")
    os.mkfifo(place / "pipe")
    with (
        socket.socket(socket.AF_UNIX) as server,
        tempfile.NamedTemporaryFile(dir="/dev/shm") as shm,
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            server.bind("socket")
        server.listen()
        suite = HOSTS_THINGS.format(place=str(place), shm=Path(shm.name).name)
        pytester.makepyfile(suite)
        recorded = record(
            *("-pno:rerunfailures", "--mountns", f"--mountns-process={process}"),
            *("--timeout-method=signal", f"--mountns-volume={place}/volume"),
            "-Wignore::pytest.PytestUnraisableExceptionWarning",
        )
    said = _explained(recorded)
    expected = {
        "test_pipe": "pipe is a named pipe of the host",
        "test_pipe_timeout": "pipe is a named pipe of the host",
        "test_own_pipe": "",
        "test_socket": "socket is the socket of a server on the host",
        "test_own_socket": "",
        "test_shared_memory": f"{shm.name} is shared memory on the host",
        "test_shared_memory_file": f"{shm.name} is shared memory on the host",
        "test_no_shared_memory": "",
        "test_copy": "EXDEV: copy_file_range(2)",
        "test_rename_out_of_a_volume": f"{place}/volume is a volume",
        "test_opened_before": "opened before the test had its sandbox",
    }
    if "test_device" in said:
        expected["test_device"] = 'devices=["/dev/console"]'
    if "test_shared_memory" not in said:
        del expected["test_shared_memory"], expected["test_shared_memory_file"]
    assert set(said) == {*expected, "test_opened_before_and_written_there"}
    for name, text in expected.items():
        assert text in said[name] if text else said[name] == "", name
    # The host's file has no other in the sandbox: the plain run fails in the same way.
    assert said["test_opened_before_and_written_there"] == ""


UNMAPPED = """
import os, shutil, subprocess
import pytest

def test_chown(tmp_path): os.chown(tmp_path, -1, 12345)

def test_program(tmp_path): subprocess.run(["chgrp", "12345", tmp_path], check=True)

def test_other_program(): subprocess.run(["false"], check=True)

def test_invalid(tmp_path): os.open(tmp_path, os.O_RDONLY | 1 << 40)
"""


@pytest.mark.parametrize("process", ["fork", "inline"])
def test_owners_that_no_user_namespace_has(
    pytester: pytest.Pytester, record: Record, process: str
) -> None:
    if os.geteuid() == 0:
        pytest.skip("root needs no user namespace")
    pytester.makepyfile(UNMAPPED)
    said = _explained(record("-pno:rerunfailures", "--mountns", f"--mountns-process={process}"))
    assert "EINVAL" in said["test_chown"]
    assert "Run as root" in said["test_chown"]
    assert "chgrp has failed" in said["test_program"]
    assert said["test_other_program"] == said["test_invalid"] == ""


@pytest.mark.parametrize(
    ("before", "after", "found"), [(10, 10, "/log"), (10, 14, ""), (12, 12, "")]
)
def test_a_file_that_another_process_writes_to_meanwhile(
    monkeypatch: pytest.MonkeyPatch, before: int, after: int, found: str
) -> None:
    """It is no other file for that: by its descriptor it has these sizes, and 12 between them."""
    sizes = iter([before, after])

    def status(path: str) -> SimpleNamespace:
        device, size = (1, 12) if path == "/log" else (2, next(sizes))
        fields = {"st_mode": stat.S_IFREG, "st_nlink": 1, "st_dev": device}
        return SimpleNamespace(**fields, st_size=size, st_mtime_ns=size)

    fake = SimpleNamespace(listdir=lambda _: ["9"], readlink=lambda _: "/log", stat=status)
    monkeypatch.setattr(explain, "os", fake)
    assert explain._opened_before() == found
