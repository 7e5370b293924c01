"""``/dev/shm``: the test's own, and what this run has there is shown."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.recording import Record

pytestmark = [
    pytest.mark.sandboxes,
    pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no /dev/shm here"),
]

SHARED = """
import os
from multiprocessing import shared_memory
import pytest

PLACE = "/dev/shm"


@pytest.fixture(scope="session")
def name():
    memory = shared_memory.SharedMemory(create=True, size=16)
    memory.buf[:5] = b"first"
    yield memory.name
    # What a test has written stays in its sandbox.
    assert bytes(memory.buf[:5]) == b"first"
    memory.close()
    memory.unlink()


@pytest.mark.parametrize("number", range(3))
def test_shared(name, number):
    assert name in os.listdir(PLACE)
    memory = shared_memory.SharedMemory(name)
    assert bytes(memory.buf[:5]) == b"first"
    memory.buf[:5] = b"other"
    memory.close()
    open(f"{PLACE}/mountns-left", "w").close()


def test_own():
    own = shared_memory.SharedMemory(create=True, size=16)
    own.close()
    own.unlink()
    assert not os.path.exists(f"{PLACE}/mountns-left")
"""


@pytest.fixture(params=["auto", "fork"])
def process(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


def test_shared_memory_of_a_wider_fixture(pytester: pytest.Pytester, record: Record) -> None:
    pytester.makepyfile(SHARED)
    recorded = record("--mountns")
    assert not recorded.not_passed, recorded.out
    assert recorded.status == 0
    assert "KeyError" not in recorded.err
    assert "mountns-left" not in os.listdir("/dev/shm")


@pytest.mark.parametrize("where", ["rootdir", "basetemp", "TMPDIR"])
def test_directories_of_the_run(
    pytester: pytest.Pytester,
    record: Record,
    in_memory: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """A suite in memory is a common way to make it faster."""
    suite = """
        import os, tempfile
        import pytest

        @pytest.fixture(scope="session")
        def made(tmp_path_factory):
            place = tmp_path_factory.mktemp("made")
            (place / "file").write_text("of the fixture")
            return place

        @pytest.mark.parametrize("number", range(2))
        def test_it(made, tmp_path, number):
            assert os.path.exists(__file__)
            assert (made / "file").read_text() == "of the fixture"
            (made / "file").write_text("of the test")
            with tempfile.NamedTemporaryFile() as file:
                assert os.path.exists(file.name)
            # Beside this file, which the next test must not find.
            with open(__file__ + ".new", "x"): pass
        """
    arguments = ["--mountns"]
    pytester.makepyfile(suite)
    if where == "rootdir":
        for path in pytester.path.glob("*.py"):
            shutil.move(path, in_memory)
        arguments += [f"--rootdir={in_memory}", str(in_memory)]
    elif where == "basetemp":
        arguments.append(f"--basetemp={in_memory}/base")
    else:
        monkeypatch.setenv("TMPDIR", str(in_memory))
    recorded = record(*arguments)
    assert not recorded.not_passed, recorded.out
    assert recorded.status == 0
    assert not list(in_memory.rglob("*.new"))
    if where == "basetemp":
        assert [path.read_text() for path in in_memory.rglob("file")] == ["of the fixture"]


def test_layers_do_not_hide_what_is_there(pytester: pytest.Pytester, record: Record) -> None:
    """What a test changes there is compared with the host's, and not with the root's ``/dev``."""
    pytester.mkdir("layer")
    pytester.makepyfile(
        """
        import os
        from multiprocessing import shared_memory
        import pytest

        @pytest.fixture(scope="session")
        def name():
            memory = shared_memory.SharedMemory(create=True, size=16)
            yield memory.name
            memory.close()
            memory.unlink()

        @pytest.mark.mountns(layers=["layer"])
        @pytest.mark.parametrize("number", range(2))
        def test_it(name, overlay_root, number):
            assert overlay_root.changes() == {}
            os.unlink(f"/dev/shm/{name}")
            assert overlay_root.changes() == {f"/dev/shm/{name}": "deleted"}
        """
    )
    recorded = record()
    assert not recorded.not_passed, recorded.out
